"""A real browser without a window, driven over Chromium's own DevTools pipe: no driver, no port, no package.

What it logs, throws or asks of any network while a page is open is kept for tests to look at.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless",
    "--no-sandbox",  # CI is root
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--remote-debugging-pipe",
    "--window-size=1280,900",
)
TIMEOUT_S = 120.0
# The pipe is file descriptors 3 and 4, by the browser's own rule.
LAUNCH = "import os, sys; a, b, *c = sys.argv[1:]; os.dup2(int(a), 3); os.dup2(int(b), 4); os.execvp(c[0], c)"
chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page:
    """A page that is open.

    Attributes:
        errors: what its scripts threw, and what the browser logged as an error, such as a breach of the page's policy.
        requests: addresses that it asked for, other than data URIs.
    """

    def __init__(self, write_to: int, read_from: int):
        self._write_to, self._read_from = write_to, read_from
        self._left, self._number, self._session = b"", 0, None
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._loaded = False
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._ask(f"{domain}.enable")

    def open(self, path: Path) -> None:
        """Open a file and wait until it and its images are loaded."""
        self._loaded = False
        self._ask("Page.navigate", url=path.resolve().as_uri())
        while not self._loaded:
            self._take(self._receive())
        self.run("new Promise(done => requestAnimationFrame(() => setTimeout(done, 50)))")

    def run(self, script: str) -> Any:
        """Return the value of a script of the test's own, which the page's policy does not concern."""
        answer = self._ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def click(self, selector: str) -> None:
        """Press the mouse on an element, as a hand would."""
        x, y = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'center'}); const r = e.getBoundingClientRect();"
            "return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self._ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write_to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer}"
                result: dict[str, Any] = answer["result"]
                return result
            self._take(answer)

    def _receive(self) -> dict[str, Any]:
        ends_at = time.monotonic() + TIMEOUT_S
        while b"\0" not in self._left:
            ready, _, _ = select.select([self._read_from], [], [], max(0.0, ends_at - time.monotonic()))
            assert ready, "the browser says nothing"
            data = os.read(self._read_from, 2**16)
            assert data, "the browser is gone"
            self._left += data
        message, _, self._left = self._left.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

    def _take(self, event: dict[str, Any]) -> None:
        given = event.get("params", {})
        match event.get("method"):
            case "Runtime.exceptionThrown":
                self.errors.append(str(given["exceptionDetails"].get("exception", {}).get("description", given)))
            case "Runtime.consoleAPICalled" if given["type"] in ("error", "assert", "warning"):
                self.errors.append(str([argument.get("value") for argument in given["args"]]))
            case "Log.entryAdded" if given["entry"]["level"] in ("error", "warning"):
                self.errors.append(given["entry"]["text"])
            case "Network.requestWillBeSent" if not given["request"]["url"].startswith("data:"):
                self.requests.append(given["request"]["url"])
            case "Page.javascriptDialogOpening":
                self.errors.append(f"a dialog: {given['message']}")
                self._ask("Page.handleJavaScriptDialog", accept=False)
            case "Page.loadEventFired":
                self._loaded = True


def _above(descriptor: int) -> int:
    """Return a descriptor moved out of the way of 3 and 4."""
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(descriptor)
    return moved


@contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """Yield a page of a browser of its own, whose profile is a new folder."""
    assert chromium is not None
    theirs_in, ours_out = map(_above, os.pipe())
    ours_in, theirs_out = map(_above, os.pipe())
    command = [sys.executable, "-c", LAUNCH, str(theirs_in), str(theirs_out), chromium, *FLAGS]
    process = subprocess.Popen(
        [*command, f"--user-data-dir={profile}"],
        pass_fds=(theirs_in, theirs_out),
        env={**os.environ, "HOME": str(profile)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        yield Page(ours_out, ours_in)
    finally:
        os.close(ours_out)  # it ends when its pipe does
        os.close(ours_in)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
