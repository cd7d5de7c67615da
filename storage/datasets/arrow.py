"""What Hugging Face's `datasets` writes: Arrow streams, mapped into memory, of which a batch at a time is looked at.

And what it says of them: names of classes in the schema of a table, in Arrow or Parquet, and splits in files' names.
"""

from __future__ import annotations

import contextlib
import json
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa

from storage.datasets.base import LocalFile
from storage.errors import MissingSource

SUFFIX = ".arrow"
NOT_LABELLED = -1  # what `ClassLabel` has for none
SPLITS, STATE = "dataset_dict.json", "state.json"  # of a folder that `save_to_disk` wrote
OF_SPLIT = re.compile(
    r"(?P<split>.+?)-(?P<number>\d{5})-of-(?P<all>\d{5})(-[0-9a-f]+)?"
)  # how the Hub calls files of Parquet
KEPT_FILES = 64  # mapped, in each process: none of it is held but what was just read
END = b"\xff\xff\xff\xff\x00\x00\x00\x00"  # of a stream; one that was cut off between two batches has none
BATCH_BYTES = 2**25  # of some columns, that are looked at together
MOST_AT_ONCE = 1024  # rows


@dataclass(frozen=True)
class ArrowStream:
    """One file.

    Attributes:
        path: where it is.
        schema: of its table.
        messages: one for each batch that has rows, as they lie in the file.
        ends: the row behind each of them.
    """

    path: Path
    schema: pa.Schema
    messages: tuple[Any, ...]
    ends: tuple[int, ...]

    @property
    def num_rows(self) -> int:
        """Return the rows of the file."""
        return self.ends[-1] if self.ends else 0

    @property
    def held_bytes(self) -> int:
        """Return what reading holds at once besides the samples: what is mapped, the disk's own cache holds."""
        return BATCH_BYTES

    def batches(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield some columns of the rows [start, stop), a bounded part of them at a time.

        Raises:
            MissingSource: they are damaged.
        """
        with reading(self.path):
            for number in range(bisect_right(self.ends, start), len(self.ends)):
                first = self.ends[number - 1] if number else 0
                if first >= stop:
                    return
                batch = self._batch(number, columns)
                size = max(1, min(MOST_AT_ONCE, BATCH_BYTES * batch.num_rows // max(1, batch.nbytes)))
                begin, end = max(0, start - first), min(batch.num_rows, stop - first)
                for place in range(begin, end, size):
                    part = batch.slice(place, min(size, end - place))
                    part.validate(full=True)  # nobody has checked what was mapped: offsets may lead anywhere
                    yield part

    def measures(self, columns: Sequence[str]) -> list[tuple[int, int]]:
        """Return rows and bytes of some columns of each batch. Raises MissingSource: they are damaged."""
        with reading(self.path):
            batches = [self._batch(number, columns) for number in range(len(self.messages))]
            return [(batch.num_rows, max(int(batch.nbytes), batch.num_rows)) for batch in batches]

    def _batch(self, number: int, columns: Sequence[str]) -> pa.RecordBatch:
        batch = pa.ipc.read_record_batch(self.messages[number], self.schema)
        batch.validate()  # else its size may be read of offsets beyond it
        return batch.select(list(columns))


def open_arrow(path: Path) -> ArrowStream:
    """Return a file. Raises MissingSource: it is not there, is none, or was cut off."""
    return _opened(path, LocalFile.of(path))


@lru_cache(maxsize=KEPT_FILES)
def _opened(path: Path, version: LocalFile) -> ArrowStream:
    """Return a file that was looked through, by its version. Raises MissingSource: it is none, or was cut off."""
    with reading(path), pa.memory_map(str(path)) as file:
        messages = pa.ipc.MessageReader.open_stream(file)
        try:
            schema = pa.ipc.read_schema(_of_type("schema", messages.read_next_message()))
        except StopIteration:
            raise pa.ArrowInvalid("an empty file") from None
        _names(schema)
        # what a batch refers to lies in messages between them
        if coded := [field.name for field in schema if pa.types.is_dictionary(field.type)]:
            raise MissingSource(
                f"{path} has columns of codes",
                found=", ".join(f"{name}: {schema.field(name).type}" for name in coded),
                expected="columns that hold their values, as `datasets` saves them",
                do="cast them before it is saved",
            )
        found = [_of_type("record batch", message) for message in messages]
        rows = [pa.ipc.read_record_batch(message, schema).num_rows for message in found]
        file.seek(max(0, version.size - len(END)))
        if file.read() != END:
            raise pa.ArrowInvalid(f"it has no end after {sum(rows)} rows: it was cut off, or something lies behind it")
    kept = [number for number, count in enumerate(rows) if count]
    ends = tuple(accumulate(rows[number] for number in kept))
    return ArrowStream(path, schema, tuple(found[number] for number in kept), ends)


def _names(fields: Iterable[pa.Field]) -> list[str]:
    """Return all names in a schema. Raises UnicodeDecodeError: so would whoever asked for them later."""
    names = []
    for field in fields:
        names += [field.name, *_names(field.type.field(i) for i in range(field.type.num_fields))]
    return names


def _of_type(expected: str, message: Any) -> Any:
    """Return a message that is of a type: pyarrow takes its word for it, and would read what is none (SIGSEGV)."""
    if message.type != expected:
        raise pa.ArrowInvalid(f"a message of type {message.type} where a {expected} belongs")
    return message


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say of what Arrow raises within the block which file it is of. Raises MissingSource."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise MissingSource(
            f"cannot read {path} as an Arrow stream",
            found=str(error).splitlines()[0],
            expected="a whole file as Dataset.save_to_disk writes it",
            do="save it again; of a file of another kind of Arrow: datasets.Dataset.from_file or Polars, then "
            "save_to_disk",
        ) from None


def features_of(schema: pa.Schema) -> dict[str, Any]:
    """Return what Hugging Face's `datasets` says of the columns of a table; nothing if it did not write it."""
    try:
        found = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}  # another tool's use of that key
    return found if isinstance(found, dict) else {}


def class_label(schema: pa.Schema, column: str) -> list[str]:
    """Return the names of a column of `ClassLabel`, in the order of its numbers; none if it is no such column."""
    feature = features_of(schema).get(column)
    names = feature.get("names") if isinstance(feature, dict) else None
    return [str(name) for name in names] if isinstance(names, list) else []


def is_saved(path: Path) -> bool:
    """Return whether a folder is one that `save_to_disk` wrote."""
    return (path / STATE).is_file() or (path / SPLITS).is_file()


def instead(path: Path) -> str | None:
    """Return what to do with a folder that is of `datasets`, and of another kind in a job; None: it is not."""
    return 'kind = "hf_folder"' if is_saved(path) else None


def several_splits(paths: Iterable[Path]) -> list[str]:
    """Return a note on files that are called after several splits, such as those of a folder `data` of the Hub."""
    splits = {found["split"] for path in paths if (found := OF_SPLIT.fullmatch(path.stem))}
    told = f"files of {len(splits)} splits are taken together: {', '.join(sorted(splits))}"
    return [f'{told}; kind = "hf_folder" takes one by name'] if len(splits) > 1 else []
