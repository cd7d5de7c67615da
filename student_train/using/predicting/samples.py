"""What INPUTS are: a folder, a table, lines of text, arrays; as a stream of samples with their ids, in order."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
from PIL import Image

from storage.datasets.arrays import ArraysSource
from storage.datasets.arrow import is_saved
from storage.datasets.base import Unreadable
from storage.datasets.listing import list_files, told
from storage.datasets.published import (
    ColumnImages,
    HfImages,
    HfTables,
    ParquetImagesSource,
    WebDatasetSource,
    are_tars,
    find_split,
    find_tars,
    tar_rows,
)
from storage.datasets.samples import kind_of_samples
from storage.datasets.table import TableSource
from storage.datasets.table.reading import num_rows
from storage.datasets.text.reading.rows import IN_COLUMNS, Columns, Row
from storage.datasets.text.reading.tables import rows_of
from storage.errors import BadRequest, MissingSource
from storage.format.stores.mirror import at_hand
from student_train.students import Blueprint
from student_train.using.predicting.columns import number_rows

STDIN = "-"
TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
ARRAYS = (".npy", ".npz")


class Sample(NamedTuple):
    """A sample as it lies somewhere.

    Attributes:
        sample_id: its path below a folder, its line, its row.
        payload: a path of an image, or bytes of one; a text; an array; or why there is none.
    """

    sample_id: str
    payload: Any


@dataclass(frozen=True)
class Samples:
    """A stream of samples.

    Attributes:
        told: what they are.
        each: yields them, in order.
        count: how many there are, where that is known.
        notes: what was passed over.
        remarks: what is to be told of samples, and of how many, once they are read.
    """

    told: str
    each: Iterator[Sample]
    count: int | None = None
    notes: tuple[str, ...] = ()
    remarks: Counter[str] = field(default_factory=Counter)


def find_samples(given: str, blueprint: Blueprint, columns: Sequence[str], stdin: TextIO | None = None) -> Samples:
    """Return the samples that INPUTS of the command line mean to a student.

    Args:
        given: a path, an address in an object store, or "-" for lines of text from standard input.
        blueprint: of the student.
        columns: of a table: those of its text, joined; or of its numbers, in the order of the student's inputs.
        stdin: where "-" reads.

    Raises:
        MissingSource: there is nothing there.
        BadRequest: it is nothing that this student takes.
    """
    kind = kind_of_samples(blueprint.source)
    if given == STDIN:
        if kind != "text":
            raise BadRequest(
                "only texts are read from standard input, a line each",
                found=f"a student of {blueprint.made_of.name}",
                expected=EXPECTED[kind],
            )
        lines = stdin or sys.stdin
        if isinstance(lines, TextIOWrapper):  # as a file is read, whatever the locale
            lines.reconfigure(encoding="utf-8-sig", errors="surrogateescape")
        return Samples("lines of standard input", _lines(lines, "stdin"))
    path, copied = at_hand(given)
    if not path.exists():
        raise MissingSource(f"there is no {given}", expected=EXPECTED[kind])
    if columns and path.suffix not in TABLES and not is_saved(path) and not are_tars(path):
        raise BadRequest("--column is of a table", found=given, expected=" or ".join(TABLES))
    found = FINDERS[kind](path, blueprint, columns)
    return replace(found, told=found.told.replace(str(path), given), notes=(*copied, *found.notes))


EXPECTED = {
    "image": "a folder of images, a .parquet, .tar or folder of save_to_disk with them, an image, or a .npy of pixels",
    "text": "a .txt (a text a line), a .csv, .tsv, .jsonl, .parquet or .tar with --column, or - for standard input",
    "table": "a .csv, .tsv or .parquet, or a folder of them, with the columns of the student's own table",
    "array": "a .npy or .npz of inputs, or of numbers a .csv or .parquet with --column for each",
}


def _wrong(path: Path, kind: str, do: str | None = None) -> BadRequest:
    found = "a folder" if path.is_dir() else f"a file *{path.suffix}" if path.suffix else "a file without a suffix"
    return BadRequest(f"{path} is nothing that this student takes", found=found, expected=EXPECTED[kind], do=do)


def _images(path: Path, blueprint: Blueprint, columns: Sequence[str]) -> Samples:
    """Return pictures of a folder, a table, tars or a folder of Hugging Face. Raises BadRequest, MissingSource."""
    Image.init()  # only from here on does Pillow know its suffixes
    promised = str((blueprint.source or {}).get("image", "image"))
    if is_saved(path):
        return _of_source(
            HfImages(name="inputs", kind="hf_folder", path=path, image=_one(columns) or promised, label="")
        )
    if are_tars(path):
        source = blueprint.source or {}
        own = {"images": source["images"]} if "images" in source else {}
        return _of_source(WebDatasetSource(name="inputs", kind="webdataset", path=path, label="", **own))
    if path.is_dir():
        listing = list_files(path, Image.EXTENSION)
        passed = told(listing.passed_over)
        if not listing.files:
            raise MissingSource(
                f"there is no image in {path}",
                found=passed or "an empty folder",
                expected="files that Pillow knows by their suffix: .png, .jpg, …",
            )
        each = (Sample(_utf8(file.relative_to(path).as_posix()), file) for file in listing.files)
        return Samples(
            f"{len(listing.files):,} images of {path}",
            each,
            len(listing.files),
            (f"passed over: {passed}",) if passed else (),
        )
    if path.suffix == ".parquet":
        column = _one(columns) or promised
        return _of_source(ParquetImagesSource(name="inputs", kind="parquet_images", path=path, image=column, label=""))
    if path.suffix in ARRAYS:
        return _arrays(path, blueprint, columns)
    if path.suffix.lower() in Image.EXTENSION:
        return Samples(str(path), iter([Sample(_utf8(path.name), path)]), 1)
    raise _wrong(path, "image")


def _utf8(name: str) -> str:
    r"""Return a file's name; of bytes that are no UTF-8, which no table can hold, what Python writes for them.

    >>> _utf8("caf\udce9.png")
    'caf\\xe9.png'
    """
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _of_source(source: ColumnImages | WebDatasetSource) -> Samples:
    files = list(source.files().select("file", "rows").iter_rows())
    rows = sum(rows for _, rows in files)

    def each() -> Iterator[Sample]:
        for file, count in files:
            for raw in source.read(file, 0, count):
                yield Sample(raw.sample_id, raw.payload)

    return Samples(f"{rows:,} rows of {source.path}", each(), rows, tuple(source.notes()))


def _one(columns: Sequence[str]) -> str | None:
    """Return the column of images, if one is named. Raises BadRequest: several are."""
    if len(columns) > 1:
        raise BadRequest("images are in one column", found=f"--column {' --column '.join(columns)}", do="name one")
    return columns[0] if columns else None


def _texts(path: Path, blueprint: Blueprint, columns: Sequence[str]) -> Samples:
    """Return texts: lines of a file, or a column of a table, of tars or of a folder of Hugging Face."""
    if path.suffix == ".txt":
        file = open(path, encoding="utf-8-sig", errors="surrogateescape")  # noqa: SIM115 - closed when its lines end
        return Samples(f"lines of {path}", _lines(file, path.name))
    if path.suffix not in TABLES and not is_saved(path) and not are_tars(path):
        raise _wrong(path, "text", "name one file of it" if path.is_dir() else None)
    source = blueprint.source or {}
    promised = source.get("column")
    names = list(columns) or ([promised] if isinstance(promised, str) else list(promised or ()))
    if not names:
        raise BadRequest(f"of which column of {path} are the texts?", do="--column NAME")
    joined_by = str(source.get("joined_by", " "))
    header = source.get("header") if not columns else None
    wanted = Columns(tuple(names), header=True if header is None else bool(header), quotes=source.get("quotes"))

    if are_tars(path):
        root, names_of_tars = find_tars(path, ())
        found = ((f"{name}/{key}", row) for name in names_of_tars for key, row in tar_rows(root / name, wanted))
        each_text = (Sample(where, joined_by.join(row.texts) if isinstance(row, Row) else row) for where, row in found)
        return Samples(f"texts of {path}, member {', '.join(map(str, names))}", each_text)
    files = find_split(path, None).files if is_saved(path) else (path,)

    def each() -> Iterator[Sample]:
        for file in files:
            name = file.relative_to(path).as_posix() if file != path and file.is_relative_to(path) else file.name
            for number, (_, row) in enumerate(rows_of(file, wanted, [0.0, 1.0])):  # named as a cache names its rows
                yield Sample(f"{name}:{number}", joined_by.join(row.texts) if isinstance(row, Row) else row)

    counts = [num_rows(file) for file in files if file.suffix in IN_COLUMNS]
    count = sum(filter(None, counts)) if len(counts) == len(files) else None
    return Samples(f"texts of {path}, column {', '.join(map(str, names))}", each(), count)


def _lines(file: TextIO, name: str) -> Iterator[Sample]:
    with file:
        for number, line in enumerate(file):
            text = line.rstrip("\r\n")
            where = f"{name}:{number}"
            if not text.strip():
                yield Sample(where, Unreadable("an empty line"))
                continue
            try:
                text.encode()
            except UnicodeEncodeError:
                yield Sample(where, Unreadable("is not UTF-8"))
            else:
                yield Sample(where, text)


def _arrays(path: Path, blueprint: Blueprint, columns: Sequence[str]) -> Samples:
    """Return rows of numbers: of a `.npy`, or of columns of a table in the student's order."""
    if path.suffix in ARRAYS:
        source = ArraysSource(name="inputs", kind="arrays", path=path)
        (file,) = source.files().iter_rows(named=True)
        (first,) = source.read(file["file"], 0, min(1, file["rows"])) if file["rows"] else (None,)
        shape = blueprint.input_shape if first is None else np.asarray(first.payload).shape
        if shape != blueprint.input_shape:
            raise BadRequest(
                f"the rows of {path} are no inputs of this student",
                found=f"{shape} each",
                expected=f"{blueprint.input_shape}",
            )

        def each() -> Iterator[Sample]:
            for raw in source.read(file["file"], 0, file["rows"]):
                yield Sample(raw.sample_id, raw.payload)

        return Samples(f"{file['rows']:,} rows of {path}", each(), file["rows"])
    if path.suffix in TABLES and len(blueprint.input_shape) == 1:
        width = blueprint.input_shape[0]
        if len(columns) != width:
            raise BadRequest(
                f"which columns of {path} are the inputs, and in which order?",
                found=f"{len(columns)} of {width} named",
                expected="the student's own order, which no table says",
                do="--column A --column B …",
            )
        rows = number_rows(path, columns)
        return Samples(f"rows of {path}", (Sample(where, row) for where, row in rows))
    raise _wrong(path, "array")


def _table(path: Path, blueprint: Blueprint, columns: Sequence[str]) -> Samples:
    """Return rows of a table by the names of columns that the student's own had, in any order."""
    if path.suffix in ARRAYS:
        return _arrays(path, blueprint, columns)
    if columns:
        raise BadRequest("--column is of a student that knows no names of columns", found=", ".join(columns))
    source = (HfTables if is_saved(path) else TableSource).like(blueprint.source or {}, path)
    files, remarks = source.files(), Counter[str]()

    def each() -> Iterator[Sample]:
        for file, rows in files.select("file", "rows").iter_rows():
            for raw in source.read(file, 0, rows):
                remarks.update(raw.remarks)
                yield Sample(raw.sample_id, raw.payload)

    rows = int(files["rows"].sum())
    return Samples(f"{rows:,} rows of {path}", each(), rows, tuple(source.notes()), remarks)


FINDERS: dict[str, Callable[[Path, Blueprint, Sequence[str]], Samples]] = {
    "image": _images,
    "text": _texts,
    "table": _table,
    "array": _arrays,
}
