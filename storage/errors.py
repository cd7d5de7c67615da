"""Every error that a user may meet, with what was found, what was expected and what to do.

    none                       0    complete, or nothing to do
    StillroomError             1    a failure of ours
    ├── BadRequest             2    the request cannot be served as it stands
    │   ├── BadJob                  a job file with mistakes, all of them at once
    │   ├── MissingSource           a dataset, file or column that is not there
    │   ├── BadWeights              weights that cannot be read, or do not fit the model
    │   ├── BadTeacher              a teacher whose output is not what the cache was promised
    │   ├── LabelOutOfRange         a label that is none of the classes
    │   ├── NotInCache              a dataset, teacher, feature or split that the cache does not hold
    │   ├── IncompleteCache         shards that are still missing
    │   ├── StaleCache              a cache or run made by another job than this one
    │   ├── MissingCapability       a loss that needs what the encoding does not serve
    │   ├── DivergedLoss            a student whose loss is no finite number
    │   └── UnsupportedFormat       a cache of a later format, or none at all
    ├── StorageFailure         1    the disk or object store refused: full, read-only, gone
    │   ├── StoreRefused       2    an object store that refuses this address or these credentials
    │   └── StoreUnavailable  75    an object store that did not answer, for minutes
    ├── RowsMissing            3    finished, but some rows could not be had
    │   └── Overdue                 work that took longer than the job allows, as often as it was tried
    ├── CorruptObject         65    bytes that do not match their digest
    │   └── MissingObject           an object that is named but not there
    ├── WorkerDied             1    the worker of a piece of work died, as often as it was tried
    ├── TryAgain              75    the cluster was lost, or another command is at it; the same command resumes
    └── Interrupted      130/143    stopped by a signal; the same command resumes

Exit codes are for schedulers. All of these pickle, since they cross from Dask workers to the command.
"""

from __future__ import annotations

import re


class StillroomError(Exception):
    """An error in four parts; only the first is always there.

    Args:
        what: what is wrong, with the name of the thing.
        found: what was found.
        expected: what was expected instead.
        do: what to do, as a command where there is one.
    """

    exit_code = 1

    def __init__(self, what: str, found: str | None = None, expected: str | None = None, do: str | None = None):
        super().__init__(what, found, expected, do)  # all four: an exception pickles by its arguments
        self.what, self.found, self.expected, self.do = what, found, expected, do

    def __str__(self) -> str:
        """Return the class and what is wrong, then one aligned line for each other part."""
        parts = [("found", self.found), ("expected", self.expected), ("do", self.do)]
        lines = [f"{type(self).__name__}: {self.what}"]
        for label, text in parts:
            if text is not None:
                # as far in as the text of the first line
                lines.append(f"  {label:<10}" + text.replace("\n", "\n" + " " * 12))
        return "\n".join(lines)


class BadRequest(StillroomError):
    """The request cannot be served as it stands."""

    exit_code = 2


class BadJob(BadRequest):
    """A job file with mistakes."""


class MissingSource(BadRequest):
    """A dataset, file or column that is not there."""


class BadWeights(BadRequest):
    """Weights that cannot be read, or do not fit the model."""


class BadTeacher(BadRequest):
    """A teacher whose output is not what the cache was promised."""


class LabelOutOfRange(BadRequest):
    """A label that is none of the classes."""


class NotInCache(BadRequest):
    """A dataset, teacher, feature or split that the cache does not hold."""


class IncompleteCache(BadRequest):
    """Shards that are still missing."""


class StaleCache(BadRequest):
    """A cache or run made by another job than this one."""


class MissingCapability(BadRequest):
    """A loss, or another encoding, that needs what the stored encoding does not hold."""


class DivergedLoss(BadRequest):
    """A student whose loss is no finite number."""


class UnsupportedFormat(BadRequest):
    """A cache of a later format, or none at all."""


def missing_extra(what: str, found: str, extra: str) -> BadRequest:
    """Return the refusal of what needs a package that only some users install.

    Args:
        what: needs it, such as `kind = "digits"`.
        found: instead of the package.
        extra: of pyproject.toml that has it.
    """
    return BadRequest(
        f"{what} needs a package that is not installed",
        found=found,
        do=f".venv/bin/pip install -c constraints.txt -e '.[{extra}]'",
    )


class StorageFailure(StillroomError):
    """The disk or object store refused: full, read-only, gone."""


class StoreRefused(StorageFailure):
    """An object store that refuses as long as the address, or the environment, is what it is."""

    exit_code = 2


class StoreUnavailable(StorageFailure):
    """An object store that did not answer, or only with failures of its own, for minutes."""

    exit_code = 75


class RowsMissing(StillroomError):
    """The command finished, but some rows could not be had."""

    exit_code = 3


class Overdue(RowsMissing):
    """Work that took longer than the job allows, as often as it was tried."""


class CorruptObject(StillroomError):
    """Bytes that do not match their digest."""

    exit_code = 65


class MissingObject(CorruptObject):
    """An object that is named but not there."""


class WorkerDied(StillroomError):
    """A worker process died with its work; most often out of memory, or of a crash in a model's own code."""


class TryAgain(StillroomError):
    """The cluster was lost, or another command is at the same work; the same command resumes."""

    exit_code = 75


class Interrupted(StillroomError):
    """Stopped by a signal; the same command resumes.

    Args:
        what: what was interrupted.
        signal_number: 2 (SIGINT) or 15 (SIGTERM); the exit code is 128 more, as a shell's is.
    """

    def __init__(self, what: str, signal_number: int = 2):
        super().__init__(what, None, None, "run the same command again; it resumes")
        self.args = (what, signal_number)  # what this class takes, for pickle
        self.exit_code = 128 + signal_number


class Unreadable(Exception):
    """One sample cannot be had; the message is the reason. It is quarantined, the build goes on."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, on a GPU or on the host."""
    import torch

    # what torch's allocator of the host says, in a RuntimeError
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def si(number: float, unit: str = "") -> str:
    """Return a number as messages write it, with three digits and a prefix.

    >>> si(1234567), si(999.6, "B"), si(0.25)
    ('1.23 M', '1 kB', '0.25')
    """
    for prefix in ("", "k", "M", "G", "T"):
        if abs(number) < 999.5:  # what three digits write as 1000 has the next prefix
            return f"{number:.3g} {prefix}{unit}".rstrip()
        number /= 1000
    return f"{number:.3g} P{unit}"


def in_units(value: float) -> str:
    """Return a number in the unit of what is told, in four digits or to the unit.

    >>> in_units(0.012345), in_units(193.68), in_units(22_761.4), in_units(3.2e16)
    ('0.01235', '193.7', '22,761', '3.2e+16')
    """
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:,.4g}"


def duration(seconds: float) -> str:
    """Return a length of time with two digits or so: 0.8 s, 90 s, 25 min, 3.5 h, 4.2 days."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.2g} {unit}" if seconds < 100 * length else f"{seconds / length:.0f} {unit}"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"


def gib(num_bytes: float) -> str:
    """Return bytes of memory as messages write them.

    >>> gib(3 * 2**29), gib(12 * 2**20)
    ('1.5 GiB', '12.0 MiB')
    """
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.1f} MiB"


# Controls but for tab and newline, what turns the direction of a line or is not seen, halves of characters: bytes that
# are no UTF-8, in names of files. Joiners stay, which some scripts are written with.
_STEERING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


def printable(text: str, *, one_line: bool = False) -> str:
    r"""Return a text as terminals and pages show it: what would steer them, or hide or turn other text, is spelled out.

    Names of samples, classes and files are whatever somebody called them, and errors of a user's code say anything.

    >>> print(printable("cat\x1b[31m\u202egod"), printable("a\nb", one_line=True))
    cat\x1b[31m\u202egod a\nb
    """
    if one_line:
        text = text.replace("\n", "\\n").replace("\t", "\\t")
    return _STEERING.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
