"""A private Azure Blob Storage on this machine: Azurite, Microsoft's own emulator, of the npm registry."""

from __future__ import annotations

import base64
import contextlib
import hmac
import http.client
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from email.utils import formatdate

PROGRAM = "azurite-blob"  # npm install --global azurite
# Of every emulator, as Microsoft's documentation prints them.
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
VERSION = "2023-11-03"
STARTS_S = 120.0


def why_not() -> str | None:
    """Return why there can be none here; None if there can."""
    return None if shutil.which(PROGRAM) else f"no {PROGRAM} here: npm install --global azurite"


@contextlib.contextmanager
def private_azure() -> Iterator[str]:
    """Yield the host and port of an empty store that runs for as long as the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ("--blobPort", str(port), "--inMemoryPersistence", "--silent", "--disableTelemetry")
    # It knows versions of the protocol up to a date, and refuses what a newer client says.
    command = [PROGRAM, *options, "--skipApiVersionCheck"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as server:
        try:
            until_s = time.monotonic() + STARTS_S
            while not _answers(port):
                assert server.poll() is None
                assert time.monotonic() < until_s
                time.sleep(0.1)
            yield f"127.0.0.1:{port}"
        finally:
            server.kill()


def variables(host: str) -> dict[str, str]:
    """Return the environment of a client."""
    return {
        "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
        "AZURE_STORAGE_ACCOUNT_KEY": KEY,
        "AZURE_ENDPOINT": f"http://{host}/{ACCOUNT}",
        "AZURE_ALLOW_HTTP": "true",
    }


def make_container(host: str, name: str) -> None:
    """Make a container, which obstore cannot."""
    date, path = formatdate(usegmt=True), f"/{ACCOUNT}/{name}"
    # Source: Microsoft, "Authorize with Shared Key": eleven headers that are not sent, ours, and what is asked for.
    told = f"PUT{12 * chr(10)}x-ms-date:{date}\nx-ms-version:{VERSION}\n/{ACCOUNT}{path}\nrestype:container"
    signed = base64.b64encode(hmac.digest(base64.b64decode(KEY), told.encode(), "sha256")).decode()
    with contextlib.closing(http.client.HTTPConnection(host)) as connection:
        headers = {"x-ms-date": date, "x-ms-version": VERSION, "Authorization": f"SharedKey {ACCOUNT}:{signed}"}
        connection.request("PUT", f"{path}?restype=container", headers=headers | {"Content-Length": "0"})
        answer = connection.getresponse()
        assert answer.status in (201, 409), answer.read()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
