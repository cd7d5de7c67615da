"""A folder behind the protocol of S3, as far as obstore asks: it lists many objects as quickly as a store.

Its listings are of names in memory, in pages, with a delimiter and behind a name. It asks for no credentials, and
nothing else may write into the folder.
"""

from __future__ import annotations

import bisect
import contextlib
import json
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from time import gmtime, strftime
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape, unescape

PAGE = 1000
TAG = '"{:x}-{:x}"'


class FolderStore:
    """The objects of a folder, and what was asked of them.

    Attributes:
        folder: where they lie.
        pages: of listings, so far.
        most: requests that travelled at a time.
        asked: how many requests of each kind there were: LIST, and the methods of HTTP.
    """

    def __init__(self, folder: Path):
        self.folder, self.pages = folder, 0
        self.most = self._travelling = 0
        self.asked: Counter[str] = Counter()
        self.names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        self._lock = threading.Lock()

    def travel(self, kind: str, latency_s: float) -> None:
        """Let an answer be on its way for so long."""
        with self._lock:
            self.asked[kind] += 1
            self._travelling += 1
            self.most = max(self.most, self._travelling)
        time.sleep(latency_s)
        with self._lock:
            self._travelling -= 1

    def file(self, name: str) -> Path:
        """Return where an object lies."""
        return self.folder / name

    def page(self, prefix: str, delimiter: str, behind: str) -> tuple[list[str], list[str], bool]:
        """Return the names and the common prefixes of one page, and whether there are more."""
        with self._lock:
            self.pages += 1
            at, names, folders = (
                max(bisect.bisect_left(self.names, prefix), bisect.bisect_right(self.names, behind)),
                [],
                [],
            )
            while at < len(self.names) and self.names[at].startswith(prefix) and len(names) + len(folders) < PAGE:
                head, found, _ = self.names[at][len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
                if found:
                    folders.append(f"{prefix}{head}{delimiter}")
                    at = bisect.bisect_left(self.names, folders[-1] + "\U0010ffff")
                else:
                    names.append(self.names[at])
                    at += 1
            return names, folders, at < len(self.names) and self.names[at].startswith(prefix)

    def put(self, name: str, data: bytes, *, create: bool) -> bool:
        """Write an object; return whether it was."""
        with self._lock:
            at = bisect.bisect_left(self.names, name)
            is_there = self.names[at : at + 1] == [name]
            if is_there and create:
                return False
            self.file(name).parent.mkdir(parents=True, exist_ok=True)
            self.file(name).unlink(missing_ok=True)  # it may be one more name of another's file
            self.file(name).write_bytes(data)
            if not is_there:
                self.names.insert(at, name)
        return True

    def delete(self, name: str) -> None:
        with self._lock:
            self.file(name).unlink(missing_ok=True)
            with contextlib.suppress(ValueError):
                self.names.remove(name)


@contextlib.contextmanager
def s3_folder(folder: Path, latency_s: float = 0.0) -> Iterator[tuple[str, FolderStore]]:
    """Yield the address of a server whose one bucket is a folder, so far away, and what it knows."""
    store = FolderStore(folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        @property
        def name(self) -> str:
            return unquote(urlsplit(self.path).path).split("/", 2)[-1]

        def do_GET(self) -> None:
            query = {key: values[0] for key, values in parse_qs(urlsplit(self.path).query).items()}
            if "list-type" in query:
                self.answer(200, self.listing(query).encode())
                return
            try:
                data = store.file(self.name).read_bytes()
            except OSError:
                self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
                return
            if (said := self.headers.get("Range")) is None:
                self.answer(200, data, **self.of(self.name))
                return
            start, stop = (int(text) for text in said.removeprefix("bytes=").split("-"))
            part = data[start : stop + 1]
            where = f"bytes {start}-{start + len(part) - 1}/{len(data)}"
            self.answer(206, part, **self.of(self.name), **{"Content-Range": where})

        def do_HEAD(self) -> None:
            try:
                self.answer(200, store.file(self.name).read_bytes(), **self.of(self.name))
            except OSError:
                self.answer(404, b"")

        def do_PUT(self) -> None:
            data = self.rfile.read(int(self.headers["Content-Length"]))
            if store.put(self.name, data, create=self.headers.get("If-None-Match") == "*"):
                self.answer(200, b"", **self.of(self.name))
            else:
                self.answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")

        def do_DELETE(self) -> None:
            store.delete(self.name)
            self.answer(204, b"")

        def do_POST(self) -> None:  # of many at once
            keys = re.findall(r"<Key>(.*?)</Key>", self.rfile.read(int(self.headers["Content-Length"])).decode())
            for key in keys:
                store.delete(unescape(key))
            told = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys)
            self.answer(200, f"<DeleteResult>{told}</DeleteResult>".encode())

        def of(self, name: str) -> dict[str, str]:
            status = store.file(name).stat()
            dated = formatdate(status.st_mtime, usegmt=True)
            return {"ETag": TAG.format(status.st_mtime_ns, status.st_size), "Last-Modified": dated}

        def listing(self, query: dict[str, str]) -> str:
            behind = query.get("continuation-token", query.get("start-after", ""))
            names, folders, more = store.page(query.get("prefix", ""), query.get("delimiter", ""), behind)
            last = max([*names, *(f"{folder}\U0010fffe" for folder in folders)], default="")
            token = f"<NextContinuationToken>{escape(last)}</NextContinuationToken>" if more else ""
            told = [f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}"]
            for name in names:
                status = store.file(name).stat()
                dated = strftime("%Y-%m-%dT%H:%M:%S.000Z", gmtime(status.st_mtime))
                tag = escape(TAG.format(status.st_mtime_ns, status.st_size))
                told.append(
                    f"<Contents><Key>{escape(name)}</Key><LastModified>{dated}</LastModified>"
                    f"<ETag>{tag}</ETag><Size>{status.st_size}</Size></Contents>"
                )
            told += [f"<CommonPrefixes><Prefix>{escape(folder)}</Prefix></CommonPrefixes>" for folder in folders]
            return f"<ListBucketResult>{''.join(told)}</ListBucketResult>"

        def answer(self, status: int, data: bytes, **headers: str) -> None:
            store.travel("LIST" if "list-type" in self.path else self.command, latency_s)
            self.send_response_only(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", store
    finally:
        server.shutdown()
        server.server_close()


def variables(address: str) -> dict[str, str]:
    """Return the environment of a client."""
    return {
        "AWS_ENDPOINT_URL": address,
        "AWS_ALLOW_HTTP": "true",
        "AWS_SKIP_SIGNATURE": "true",
        "AWS_REGION": "us-east-1",
    }


if __name__ == "__main__":  # until nobody listens any more
    with s3_folder(Path(sys.argv[1]), float(sys.argv[2])) as (address, known):
        sys.stdout.write(f"{address}\n")
        sys.stdout.flush()
        for _ in sys.stdin:  # a line is a question: what was asked since the last one
            sys.stdout.write(f"{json.dumps(known.asked)}\n")
            sys.stdout.flush()
            known.asked.clear()
