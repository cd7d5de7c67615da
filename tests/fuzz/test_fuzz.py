"""Changed files for every reader, some dozens each; `python -m tests.fuzz --cases N` takes as many as one wants."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.errors import CorruptObject
from tests.fuzz import changes
from tests.fuzz.changes import Payload
from tests.fuzz.readers import Reader, all_readers
from tests.fuzz.watch import Harm, watched

CASES = 50  # of a reader; less of those that take long


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> list[Reader]:
    return all_readers(tmp_path_factory.mktemp("fuzz"))


def test_no_changed_file_gives_another_value_or_does_harm(readers: list[Reader]) -> None:
    """The same files every time: what chance finds beyond them is for `python -m tests.fuzz`."""
    refused = sum(_num_refused(reader) for reader in readers)
    assert refused > CASES * len(readers) / 4  # they were changed


def _num_refused(reader: Reader) -> int:
    refused = 0

    @settings(
        max_examples=round(CASES * reader.weight),
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.integers(0, 2**32))
    def check(seed: int) -> None:
        nonlocal refused
        refused += reader.check(changes.chance(seed))

    check()
    return refused


def _forks() -> None:
    os.system("true")


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda folder: pickle.loads(pickle.dumps(Payload())), "pickle.find_class"),
        (lambda folder: _forks(), "os.system"),
        (lambda folder: (folder / "../elsewhere").write_text(""), "open"),
        (lambda folder: Path("/etc/passwd").read_text(), "open"),
        (lambda folder: exec(compile("1", str(folder / "evil.py"), "exec")), "code of"),
        (lambda folder: bytearray(600 * 2**20), "MiB"),
    ],
)
def test_harm_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: object, told: str) -> None:
    monkeypatch.chdir(tmp_path)  # where the payload leaves its mark
    with pytest.raises(Harm, match=told), watched(tmp_path):
        harm(tmp_path)  # type: ignore[operator]


def test_a_reader_that_believes_a_changed_file_is_told(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"whole")
    believing = Reader("believing", tmp_path, b"whole", file.write_bytes, file.read_bytes, seals=(changes.any_bytes,))

    def fails() -> object:
        if file.read_bytes() == b"whole":
            return b"whole"
        raise KeyError("a library's own")

    failing = Reader("failing", tmp_path, b"whole", file.write_bytes, fails, forges=(changes.any_bytes,))

    def refuses() -> object:
        if file.read_bytes() == b"whole":
            return b"whole"
        raise CorruptObject("it is damaged")

    refusing = Reader("refusing", tmp_path, b"whole", file.write_bytes, refuses, seals=(changes.any_bytes,))
    for reader, told in ((believing, "another value"), (failing, "KeyError")):
        with pytest.raises(AssertionError, match=told):
            reader.check(changes.chance(1))
    assert refusing.check(changes.chance(1))
