"""What every source of samples offers: files with row counts, raw samples with permanent ids, and decoding.

A source is its own section of a job file. Rows are numbered elsewhere (`storage.format.rows`); a source knows only
files and positions within them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

import numpy as np
import polars as pl
from pydantic import Field

from storage.digests import digest, fingerprint, unit_interval
from storage.errors import LabelOutOfRange, MissingSource
from storage.errors import Unreadable as Unreadable  # noqa: PLC0414 - who reads sources finds it here
from storage.format.stores.mirror import fetched
from storage.language.tokenizer import TokenizerFile
from storage.options import Name, Options
from storage.tasks.image_classification import ImageClassification

FILE_SCHEMA = {"file": pl.String, "size": pl.Int64, "version": pl.String, "rows": pl.Int64}
Split = Literal["train", "validation"]


MOST_NUMBERED = 2**20  # classes without names


class RawSample(NamedTuple):
    """A sample as its source holds it.

    Attributes:
        sample_id: permanent, whatever row it becomes.
        payload: encoded bytes, an array, or why there is neither.
        label: class number, or None.
        target: numbers that are its answer, or None.
        remarks: what is to be told of it, each in words that a count goes before: "texts that …".
    """

    sample_id: str
    payload: bytes | np.ndarray | Unreadable
    label: int | None
    remarks: tuple[str, ...] = ()
    target: tuple[float, ...] | None = None

    @property
    def payload_bytes(self) -> bytes:
        """The bytes of the payload as the source holds it. Raises Unreadable."""
        if isinstance(self.payload, Unreadable):
            raise self.payload
        return self.payload if isinstance(self.payload, bytes) else np.ascontiguousarray(self.payload).tobytes()

    def digests(self, version: int) -> dict[str, str]:
        """Return what a commit of a cache of this format says of payload and label; a payload that cannot be had is "".

        Format 2 digested both together, so that it knew that a sample had changed, but not what of it.
        """
        unreadable = isinstance(self.payload, Unreadable)
        if version < 3:
            return {"digest": "" if unreadable else digest(self.payload_bytes + f"|{self.label}".encode())}
        payload = "" if unreadable else digest(self.payload_bytes)
        return {
            "payload_digest": payload,
            "label_digest": fingerprint(self.label if self.target is None else self.target),
        }


class TokenFacts(NamedTuple):
    """What the rows of a dataset of tokens are made of: the number of ids, and the tokenizer's fingerprint if known."""

    vocabulary: int
    tokenizer: str | None


class Density(NamedTuple):
    """What a source in ranges has for each unit of its measure: rows, their sites, and those that have a label."""

    rows: float
    sites: float
    labelled: float


class RecordedFile(NamedTuple):
    """What a cache knows of a source's file: its size and version when it was last looked at, and its rows."""

    size: int
    version: str
    rows: int


Recorded = Mapping[str, RecordedFile]


class Source(Options):
    """One `[[dataset]]` of a cache job.

    Attributes:
        name: its folder in the cache.
        validation: share of samples in the split "validation"; the others are "train".
        seed: of the split, which is a pure function of (seed, sample_id) and so survives growth.
        max_quarantined: share of unreadable samples above which the build stops.
        rows_per_shard: rows of one shard; by default 2,048, or fewer where inputs are large.
    """

    name: Name
    validation: Annotated[float, Field(ge=0, lt=1)] = 0.0
    seed: int = 0
    max_quarantined: Annotated[float, Field(ge=0, le=1)] = 0.01
    rows_per_shard: Annotated[int, Field(ge=1)] | None = None

    def content(self) -> dict[str, Any]:
        """Return every option that decides the content of a row, as JSON. Paths do not: data may move."""
        # each kind declares its own, by which Pydantic chooses
        return {"kind": getattr(self, "kind"), "validation": self.validation, "seed": self.seed}  # noqa: B009

    def by_domain(self) -> Sequence[Self]:
        """Return the sources that a section of a job stands for: itself, or one for each domain."""
        return [self]

    def as_promised(self, content: Mapping[str, Any]) -> Self:
        """Return this source for a cache that holds it: what the job leaves out is what was promised, no new default.

        Args:
            content: that of the cache's `dataset.json`.
        """
        return self

    @property
    def like_dataset(self) -> str | None:
        """The name of a dataset as which rows are to be made, of which the promise counts; None: there is none."""
        return None

    def as_other(self, content: Mapping[str, Any]) -> Self:
        """Return this source so that its rows are made as those of `like_dataset`, whose promise this is."""
        raise NotImplementedError

    def files(self) -> pl.DataFrame:
        """Return FILE_SCHEMA, one row per file in row order; `version` changes whenever the file may have."""
        raise NotImplementedError

    def fetched(self) -> list[str]:
        """Have all files at hand, of a source in an object store; return what is to be told of that."""
        told = []
        for name in type(self).model_fields:
            path = getattr(self, name)
            if isinstance(path, Path) and (copied := fetched(path)) is not None:
                told += copied.told
        return told

    def class_names(self) -> list[str]:
        """Return the classes; empty for an unlabelled source."""
        raise NotImplementedError

    def look_at(self, file: str) -> LocalFile:
        """Return size and version of one file now, as `files` gives them. Raises MissingSource: it is gone."""
        raise NotImplementedError

    def check_unchanged(self, file: str, size: int, version: str) -> None:
        """Check that a file is as it was when its rows were planned, before and after it is read.

        Raises:
            MissingSource: it has changed, so that a shard would mix what was with what is.
        """
        if (now := self.look_at(file)) != (size, version):
            raise MissingSource(
                f"{file} of dataset {self.name} changed during the build",
                found=f"{now.size} bytes, version {now.version}",
                expected=f"{size} bytes, version {version}, as it was when the build began",
                do="leave the data alone while it is read, then run the same command again",
            )

    @property
    def by_ranges(self) -> bool:
        """Whether rows of `files` are a measure of its ranges, and how many samples one has is known once it is read.

        Such a source has `read_range` in place of `read`.
        """
        return False

    def known_input(self) -> tuple[tuple[int, ...], str] | None:
        """Return shape and dtype of an input where the options tell them; None: a sample is to be read."""
        return None

    def measure_per_row(self) -> int:
        """Return about how much of the measure of a range becomes one row."""
        return 1

    def density(self) -> Density | None:
        """Return how many sites a source in ranges has, from a sample of a bounded size; None: nobody has looked."""
        return None

    def read_range(self, file: str, start: int, stop: int, *, last: bool) -> Iterator[RawSample]:
        """Yield the raw samples of the range [start, stop) of one file, in order.

        Args:
            file: its name.
            start, stop: in the measure of ranges.
            last: whether the file ended there when it was planned.
        """
        raise NotImplementedError

    def range_digest(self, file: str, start: int, stop: int) -> str:
        """Return the digest of what a range holds, without making samples of it."""
        raise NotImplementedError

    def open_end_digest(self, file: str, start: int, stop: int) -> str | None:
        """Return the digest of a range as it was while its file ended at `stop`; None if that was no open last line.

        A line that had no line end yet is the same line when it has got one, and others come behind it.
        """
        return None

    def notes(self) -> list[str]:
        """Return what a user should know of the samples, a sentence each: what was passed over, what looks wrong."""
        return []

    @property
    def encoded(self) -> bool:
        """Whether a cache keeps the bytes of images, which are decoded whenever they are read."""
        return False

    @property
    def packs(self) -> bool:
        """Whether a row may have several documents, of which none may see another."""
        return False

    def rows_of(self, samples: Iterable[RawSample]) -> Iterable[RawSample]:
        """Return the rows of a shard, of the samples that were read for it: the same, or several in one."""
        return samples

    def read(self, file: str, position: int, rows: int) -> Iterator[RawSample]:
        """Yield the raw samples [position, position + rows) of one file, in order."""
        raise NotImplementedError

    def runs(self, file: str, position: int, rows: int) -> list[int]:
        """Return how many rows each of the runs has that [position, position + rows) of a file are read in.

        A run costs little more than its first row, so that in another order than the file's it stays together.
        """
        return [1] * rows

    def decode(self, payload: bytes | np.ndarray) -> np.ndarray:
        """Return the model-ready input of one payload. Raises Unreadable."""
        assert isinstance(payload, np.ndarray)
        return payload

    def num_items(self, payload: bytes | np.ndarray) -> int:
        """Return how many items a row of its own length would have if nothing of it were cut off."""
        assert isinstance(payload, np.ndarray)
        return int(payload.shape[-1])  # before it, where there are two, ids and labels

    def decode_labels(self, payload: bytes | np.ndarray) -> np.ndarray:
        """Return the label of each position of a block of tokens, as `decode` returns the tokens."""
        raise NotImplementedError

    def find_tokenizer(self, of: Callable[[str], bytes | None]) -> bytes | None:
        """Return the `tokenizer.json` of a dataset of text, read, taken over or learned; None if it has none.

        Args:
            of: returns that of a dataset which the cache holds, or which is above this one in the job.
        """
        return None

    def prepared(self, tokenizer: bytes | None, recorded: Recorded) -> Self:
        """Return this source with its tokenizer, and with the files whose rows need not be counted again."""
        return self

    def task_name(self) -> str:
        """Return what is asked of a row: the name of one of `storage.tasks.TASKS`."""
        return ImageClassification.name

    def longest_row(self) -> int | None:
        """Return the length that a row may have where each has its own; None: all are alike."""
        return None

    def tokenizer_file(self) -> TokenizerFile | None:
        """Return the tokenizer of a prepared source that has one."""
        return None

    def tokens(self) -> TokenFacts | None:
        """Return what a prepared source of tokens is made of; None for anything else."""
        return None

    def buffer_bytes(self) -> int:
        """Return the bytes that reading holds at once besides the samples themselves: a file or part of one."""
        return 0

    def split_of(self, sample_id: str) -> Split:
        """Return the split of a sample."""
        return "validation" if unit_interval("split", self.seed, sample_id) < self.validation else "train"


class LocalFile(NamedTuple):
    """A file's size and version; the version is its modification time, as git's index keeps it."""

    size: int
    version: str

    @classmethod
    def of(cls, path: Path) -> LocalFile:
        try:
            status = path.stat()
        except OSError as error:
            raise MissingSource(
                f"there is no {path}", found=error.strerror, do="paths in a job file are relative to its own folder"
            ) from None
        return cls(status.st_size, f"{status.st_mtime_ns:x}")

    @classmethod
    def of_all(cls, paths: Iterable[Path]) -> LocalFile:
        """Return several files as one, such as inputs and their labels."""
        files = [cls.of(path) for path in paths]
        # all of them: a change of any is a change
        return cls(sum(file.size for file in files), "+".join(file.version for file in files))


def check_label(
    label: int | None, classes: list[str], sample_id: str, names: Callable[[], Sequence[str]] = tuple
) -> None:
    """Raise LabelOutOfRange unless the label is one of the classes, or there is none.

    Args:
        label: its number.
        classes: that there are to be.
        sample_id: whose it is.
        names: returns the classes as the data have them now, new ones behind.
    """
    if label is not None and not 0 <= label < len(classes):
        known = names()
        raise LabelOutOfRange(
            f"sample {sample_id} has a label outside the classes",
            found=f"label {known[label]!r}" if 0 <= label < len(known) else f"label {label}",
            expected=f"0 to {len(classes) - 1} ({', '.join(classes[:5])}{', …' if len(classes) > 5 else ''})"
            if classes
            else "no label: the dataset names no classes",
            do="mend the labels, or give the dataset's `classes` in the job",
        )


def classes_up_to(largest: int, where: str) -> list[str]:
    """Return the names of classes that have none but their numbers, from 0 to the largest label there is.

    Raises:
        LabelOutOfRange: nobody has as many: it is another column, or damaged.
    """
    if largest >= MOST_NUMBERED:
        raise LabelOutOfRange(
            f"labels of {where} are no numbers of classes",
            found=f"label {largest}",
            expected=f"0 to {MOST_NUMBERED - 1:,}, or names of classes",
            do="name another column or file of labels, or number them from 0",
        )
    return [str(number) for number in range(largest + 1)]


def number_of(label: str | None, numbers: Mapping[str, int], where: str, dataset: str) -> int | None:
    """Return the number of the class that is written as a label; None: nothing is.

    Args:
        label: as it is written.
        numbers: of the classes, by how they are written.
        where: it is, for the message.
        dataset: its name.

    Raises:
        LabelOutOfRange: it is no class.
    """
    if label is None:
        return None
    if label not in numbers:
        raise LabelOutOfRange(
            f"{where} of dataset {dataset} has a label that is no class",
            found=repr(label),
            expected=", ".join(map(repr, numbers)),
            do="mend it; or name it in `classes`, as list of what is written there, or as { written = name }",
        )
    return numbers[label]


def numbered(names: Sequence[str]) -> str | None:
    """Return a note on names of classes that are numbers and sort otherwise than one counts; None: they are not.

    >>> numbered(["0", "1", "10", "2"])
    'classes sort by name: 0, 1, 10, 2; if the teacher counts, say so: classes = ["0", "1", "2", "10"]'
    >>> numbered(["0", "1", "2"]), numbered(["ant", "bee"])
    (None, None)
    """
    if not all(name.isdecimal() for name in names) or (counted := sorted(names, key=int)) == list(names):
        return None
    listed = ", ".join(f'"{name}"' for name in counted)
    return f"classes sort by name: {', '.join(names)}; if the teacher counts, say so: classes = [{listed}]"
