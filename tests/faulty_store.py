"""An object store that fails as real ones do: an HTTP proxy before a real S3 server that loses some of its answers."""

from __future__ import annotations

import contextlib
import http.client
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

Asked = Callable[[str, str], bool]
"""(method, path with query) → whether a fault strikes."""


@dataclass
class FaultyStore:
    """What the proxy does, and what it was asked.

    Attributes:
        fault: "deaf" (writes over what is there, whatever is asked), "drop" (before the store hears of it), "lose" (the
            store has done it; no answer), "reset" (likewise, by a TCP reset), "cut" (half of the answer), a status such
            as "503", or one with the store's own word, "503 SlowDown"; None for none.
        times: how many requests it strikes yet.
        strikes: which requests.
        asked: (method, path) of every request.
    """

    url: str = ""
    fault: str | None = None
    times: int = 0
    strikes: Asked = lambda method, path: True
    asked: list[tuple[str, str]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def will(self, fault: str, times: int, strikes: Asked = lambda method, path: True) -> None:
        """Let the next requests of this kind meet a fault."""
        self.fault, self.times, self.strikes, self.asked = fault, times, strikes, []

    def strike(self, method: str, path: str) -> str | None:
        with self._lock:
            self.asked.append((method, path))
            if self.times <= 0 or not self.strikes(method, path):
                return None
            self.times -= 1
            return self.fault


@contextlib.contextmanager
def faulty_store(behind: str) -> Iterator[FaultyStore]:
    """Yield a store whose requests all go to another, at `http://host:port`."""
    store, host = FaultyStore(), urlsplit(behind).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one_request(self) -> None:
            with contextlib.suppress(ConnectionError):  # a client that is gone
                super().handle_one_request()

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            fault = store.strike(self.command, self.path)
            if fault is not None and fault[0].isdecimal():
                status, _, code = fault.partition(" ")
                self.send(int(status), {}, f"<Error><Code>{code}</Code></Error>".encode() if code else b"")
                return
            if fault == "drop":
                self.close_connection = True
                return
            there = http.client.HTTPConnection(host)
            headers = {n: v for n, v in self.headers.items() if fault != "deaf" or n.lower() != "if-none-match"}
            there.request(self.command, self.path, body, headers)
            found = there.getresponse()
            headers, data = dict(found.getheaders()), found.read()
            there.close()
            if fault in ("lose", "reset"):
                if fault == "reset":
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close_connection = True
                return
            self.send(found.status, headers, data, cut=fault == "cut")

        def send(self, status: int, headers: dict[str, str], data: bytes, *, cut: bool = False) -> None:
            self.send_response_only(status)
            for name, value in headers.items():
                if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                    self.send_header(name, value)
            length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(data))
            self.send_header("Content-Length", length)
            self.end_headers()
            self.wfile.write(data[: len(data) // 2] if cut else data)
            self.close_connection = cut

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = answer

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    store.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield store
    finally:
        server.shutdown()
        server.server_close()
