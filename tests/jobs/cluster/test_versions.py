"""Workers of another environment than the command's: what differs is named, before they have work."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import pytest

from jobs.cluster import versions
from jobs.cluster.attendance import Attendance
from jobs.cluster.opening import open_client
from jobs.cluster.versions import Versions, differences, here
from jobs.files.cluster_options import ClusterOptions
from storage.errors import BadRequest, TryAgain

OWN = here()


@pytest.mark.parametrize(
    ("there", "told"),
    [
        ({}, ""),
        ({"Python": OWN["Python"].rpartition(".")[0] + ".99"}, ""),
        ({"Python": "3.99.1"}, "Python 3.99.1"),
        ({"torch": OWN["torch"].partition("+")[0] + "+cu126"}, ""),
        ({"torch": "2.0.0", "stillroom": "9.1"}, "torch 2.0.0, stillroom 9.1"),
        ({"torch": None}, "torch missing"),
        ({"stillroom": None}, ""),  # run from its files, which are compared
    ],
)
def test_what_may_change_a_result_differs_and_nothing_else(there: dict[str, str | None], told: str) -> None:
    assert differences(OWN | there) == told


class Workers:
    """Stands for a client, whose workers say what a test lets them say: real ones here are all alike."""

    def __init__(self, said: dict[str, dict[str, str]], sources: str):
        self.said, self.sources, self.asked = said, sources, 0

    def get_versions(self, packages: list[str]) -> dict[str, Any]:
        self.asked += 1
        packed = {address: there | {"python": there["Python"] + ".final.0"} for address, there in self.said.items()}
        return {"workers": {address: {"packages": there} for address, there in packed.items()}}

    def run(self, call: object, workers: list[str], on_error: str) -> dict[str, str]:
        return dict.fromkeys(workers, self.sources)


def test_workers_that_differ_are_refused_by_name_or_told_where_that_is_allowed() -> None:
    workers: Any = Workers({"tls://a": OWN, "tls://b": OWN | {"torch": "2.0.0"}}, versions.sources())
    with pytest.raises(BadRequest) as refused:
        Versions(lambda text: None, allowed=False).check(workers, workers.said)
    assert refused.value.found == "tls://b: torch 2.0.0"
    assert refused.value.expected == f"Python {OWN['Python']}, torch {OWN['torch']}, stillroom {version('stillroom')}"
    notes: list[str] = []
    allowing = Versions(notes.append, allowed=True)
    allowing.check(workers, workers.said)
    allowing.check(workers, workers.said)
    assert notes == ["note: a worker with another environment, tls://b: torch 2.0.0"]
    assert workers.asked == 2  # each worker once a command


def test_a_stillroom_of_the_same_version_and_other_files_is_another_one() -> None:
    workers: Any = Workers({"tls://a": OWN}, "another digest")
    with pytest.raises(BadRequest, match="workers come with another environment"):
        Versions(lambda text: None, allowed=False).check(workers, workers.said)


@pytest.mark.slow
def test_real_workers_of_this_environment_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with open_client(ClusterOptions(workers=1), environments=[{}]) as client:
        Attendance().look(client, client.nthreads())  # as if they were another's
        monkeypatch.setattr(versions, "here", lambda: OWN | {"torch": "1.0"})
        with pytest.raises(BadRequest) as refused:
            Attendance().look(client, client.nthreads())
    assert f"torch {OWN['torch'].partition('+')[0]}" in (refused.value.found or "")


def test_certificates_that_are_not_there_are_named(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").touch()
    files = {"tls_ca_file": tmp_path / "ca.pem", "tls_cert": tmp_path / "no.pem", "tls_key": tmp_path / "no.pem"}
    options = ClusterOptions(kind="address", address="tls://127.0.0.1:9", **files)
    with pytest.raises(BadRequest) as refused, open_client(options):
        pass
    assert refused.value.what == "tls_cert of [cluster] cannot be read"
    assert refused.value.found == f"{tmp_path}/no.pem: No such file or directory"


@pytest.mark.parametrize(("address", "warned"), [("tcp://8.8.8.8:1", True), ("tcp://127.0.0.1:1", False)])
def test_a_scheduler_on_a_public_address_without_tls_is_warned_of(
    address: str, warned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise OSError("nobody there")

    monkeypatch.setattr("distributed.Client", refuse)  # nothing is to leave this machine
    notes: list[str] = []
    options = ClusterOptions(kind="address", address=address)
    with pytest.raises(TryAgain), open_client(options, attendance=Attendance(notes.append)):
        pass
    assert [note[:8] for note in notes] == ["warning:"] * warned


def test_how_long_there_is_no_worker_is_counted_while_somebody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now_s[0])
    attendance, client = Attendance(), cast("Any", Workers({}, ""))
    attendance.look(client, {})
    now_s[0] = 500.0  # between two stages
    attendance.look(client, {})
    for second in range(501, 620, 2):
        now_s[0] = second
        attendance.look(client, {})
    now_s[0] = 621.0
    with pytest.raises(TryAgain, match="no Dask workers for 120 s"):
        attendance.look(client, {})


def test_workers_that_go_and_come_are_told_and_those_that_a_command_begins_with_are_not() -> None:
    notes: list[str] = []
    attendance, client = Attendance(notes.append, allow_versions=True), cast("Any", Workers({}, ""))
    client.get_versions = lambda packages: {"workers": {}}
    for there in ("", "ab", "ab", "a", "ade", "", "d"):
        attendance.look(client, dict.fromkeys((f"tcp://{name}" for name in there), 1))
    assert notes == [
        "workers gone: 1 (tcp://b); there are 1",
        "workers there now: 2 (tcp://d, tcp://e); there are 3",
        "workers gone: 3 (tcp://a, tcp://d, tcp://e); there are 0",
        "workers there now: 1 (tcp://d); there are 1",
    ]
