"""A real web server over a folder, as people publish one: with parts of files, as nearly all have them, or without."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any


class WithoutParts(SimpleHTTPRequestHandler):
    """What `python -m http.server` serves: whole files alone. Tells of every request."""

    def __init__(self, *arguments: Any, requests: list[str], **named: Any):
        self.requests = requests
        super().__init__(*arguments, **named)

    def log_message(self, form: str, *arguments: Any) -> None:
        self.requests.append(f"{self.command} {self.path.lstrip('/')}")


class WithParts(WithoutParts):
    """Parts of files too."""

    def do_GET(self) -> None:
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        path = Path(self.translate_path(self.path))
        if found is None or not path.is_file():
            super().do_GET()
            return
        data = path.read_bytes()
        start, stop = int(found[1]), min(int(found[2]) + 1, len(data))
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        self.send_header("Content-Length", str(stop - start))
        self.send_header("Last-Modified", self.date_time_string(int(path.stat().st_mtime)))
        self.end_headers()
        self.wfile.write(data[start:stop])


@contextlib.contextmanager
def serve(folder: Path, handler: type[WithoutParts] = WithParts) -> Iterator[tuple[str, list[str]]]:
    """Yield the address of a folder on a web server, and what is asked of it, a line each."""
    requests: list[str] = []
    serves = partial(handler, directory=str(folder), requests=requests)
    with ThreadingHTTPServer(("127.0.0.1", 0), serves) as server:
        thread = Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", requests
        finally:
            server.shutdown()
            thread.join()
