"""What tests of several rooms share: the two programs, a real S3 server, and one thread for torch."""

from __future__ import annotations

import signal
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import settings

from storage.digests import digest
from storage.format.objects import Objects, open_objects
from tests import azure
from tests.counting import Counting
from tests.faulty_store import FaultyStore, faulty_store

settings.register_profile("stillroom", deadline=None)  # a busy machine is no failure
settings.load_profile("stillroom")


class Ended(NamedTuple):
    """How a program ended."""

    code: int
    out: str
    err: str


Program = Callable[..., Ended]


@pytest.fixture
def program(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Program]:
    """Return a function that runs `cache` or `student` in this process; any exception but its exit is a traceback."""
    from jobs.cli import cache as cache_cli
    from jobs.cli import student as student_cli

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run(name: str, *arguments: object) -> Ended:
        monkeypatch.setattr("sys.argv", [name, *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            {"cache": cache_cli, "student": student_cli}[name].main()
        out, err = capsys.readouterr()
        return Ended(int(caught.value.code or 0), out, err)

    yield run
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Compute here as tasks and other processes of the tests do: bits depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Yield the address of a real S3 server in this process."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """Return the address of a new, empty prefix on the S3 server, with the environment set for it."""
    environment: dict[str, Any] = {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with urllib.request.urlopen(urllib.request.Request(f"{s3_server}/stillroom", method="PUT")):
        pass
    return f"s3://stillroom/{digest(request.node.nodeid.encode())}"


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Return what is asked of any cache from now on."""
    asked: list[tuple[str, str]] = []

    def counted(url: str) -> Objects:
        return Counting(open_objects(url), asked)

    monkeypatch.setattr("storage.cache.cache.open_objects", counted)
    return asked


@pytest.fixture(scope="session")
def azure_server() -> Iterator[str]:
    """Yield the host and port of a real Azure server in a process of its own."""
    if reason := azure.why_not():
        pytest.skip(reason)
    with azure.private_azure() as host:
        azure.make_container(host, "stillroom")
        yield host


@pytest.fixture
def container(azure_server: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """Return the address of a new, empty prefix on the Azure server, with the environment set for it."""
    for name, value in azure.variables(azure_server).items():
        monkeypatch.setenv(name, value)
    return f"az://stillroom/{digest(request.node.nodeid.encode())}"


@pytest.fixture
def faulty(bucket: str, s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyStore]:
    """Yield what loses answers on the way between `bucket` and whoever opens it from here on."""
    monkeypatch.setattr("storage.format.stores.asking.FIRST_WAIT_S", 0.001)
    with faulty_store(s3_server) as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.url)
        yield store
