"""The layout of messages, exit codes, and the way through a pickle."""

from __future__ import annotations

import pickle

import pytest

from storage import errors
from storage.errors import Interrupted, StillroomError

EXIT_CODES = {
    "StillroomError": 1,
    "BadRequest": 2,
    "BadJob": 2,
    "MissingSource": 2,
    "BadWeights": 2,
    "BadTeacher": 2,
    "LabelOutOfRange": 2,
    "NotInCache": 2,
    "IncompleteCache": 2,
    "StaleCache": 2,
    "MissingCapability": 2,
    "DivergedLoss": 2,
    "UnsupportedFormat": 2,
    "StorageFailure": 1,
    "StoreRefused": 2,
    "StoreUnavailable": 75,
    "RowsMissing": 3,
    "Overdue": 3,
    "CorruptObject": 65,
    "MissingObject": 65,
    "WorkerDied": 1,
    "TryAgain": 75,
}
CLASSES = [getattr(errors, name) for name in EXIT_CODES]


def test_every_error_has_its_exit_code() -> None:
    defined = {
        name: value.exit_code
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, StillroomError) and value is not Interrupted
    }
    assert defined == EXIT_CODES


@pytest.mark.parametrize("kind", CLASSES)
def test_a_message_says_what_was_found_and_expected_and_what_to_do(kind: type[StillroomError]) -> None:
    error = kind(
        "caches/c10 was built by another teacher", "teacher 9f3c", "teacher 41aa\nfp16", "cache build JOB --as c10-2"
    )
    assert str(error).splitlines() == [
        f"{kind.__name__}: caches/c10 was built by another teacher",
        "  found     teacher 9f3c",
        "  expected  teacher 41aa",
        "            fp16",
        "  do        cache build JOB --as c10-2",
    ]


def test_a_part_that_is_not_known_is_left_out() -> None:
    assert str(StillroomError("it broke", do="mend it")) == "StillroomError: it broke\n  do        mend it"


@pytest.mark.parametrize("kind", CLASSES)
def test_an_error_crosses_from_a_worker_with_its_parts(kind: type[StillroomError]) -> None:
    back = pickle.loads(pickle.dumps(kind("what", "found", None, "do")))
    assert (type(back), back.what, back.found, back.expected, back.do, back.exit_code) == (
        kind,
        "what",
        "found",
        None,
        "do",
        EXIT_CODES[kind.__name__],
    )


@pytest.mark.parametrize(("signal_number", "exit_code"), [(2, 130), (15, 143)])
def test_a_signal_gives_the_exit_code_of_a_shell(signal_number: int, exit_code: int) -> None:
    back = pickle.loads(pickle.dumps(Interrupted("cache build", signal_number)))
    assert (back.exit_code, str(back)) == (
        exit_code,
        "Interrupted: cache build\n  do        run the same command again; it resumes",
    )


def test_the_tree_in_the_docstring_names_every_class() -> None:
    assert [name for name in [*EXIT_CODES, "Interrupted"] if name not in (errors.__doc__ or "")] == []
