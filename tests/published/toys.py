"""Small folders as `save_to_disk` writes them, tars as WebDataset does, and what the libraries themselves wrote."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from pydantic import TypeAdapter

from storage.datasets import AnySource, RawSample, Source
from tests.student_train.using.toys import COLOURS

IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
TRUE = Path(__file__).parents[1] / "data/published.zip"


def source(folder: Path, **options: Any) -> Any:
    """Return a source as a job file gives it, with paths relative to a folder."""
    return TypeAdapter(AnySource).validate_python({"name": "d"} | options, context={"folder": folder})


def read_all(source: Source) -> list[RawSample]:
    """Read every sample of a source, file by file."""
    files = source.files().select("file", "rows").iter_rows()
    if source.by_ranges:
        return [sample for file, size in files for sample in source.read_range(file, 0, size, last=True)]
    return [sample for file, rows in files for sample in source.read(file, 0, rows)]


def unpack(folder: Path) -> Path:
    """Write what `datasets` and `webdataset` wrote, and `rows.json`, which is what they read of it."""
    with zipfile.ZipFile(TRUE) as archive:
        archive.extractall(folder)
    return folder


@cache
def picture(colour: str, seed: int) -> bytes:
    """Return a noisy picture of a colour, as PNG."""
    pixels = np.array(COLOURS[colour]) + np.random.default_rng(seed).normal(0, 40, (8, 8, 3))
    sink = BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(sink, "PNG")
    return sink.getvalue()


def pictures(labels: Sequence[str], classes: Sequence[str], *, seed: int = 0) -> pa.Table:
    """Return a table of pictures and their classes, as numbers."""
    images = [{"bytes": picture(name, seed + i), "path": None} for i, name in enumerate(labels)]
    numbers = [classes.index(name) for name in labels]
    return pa.table({"image": pa.array(images, IMAGE), "label": pa.array(numbers, pa.int64())})


def save_to_disk(
    folder: Path, table: pa.Table, classes: Mapping[str, Sequence[str]], *, files: int = 1, batch: int = 1000
) -> Path:
    """Write a table as `Dataset.save_to_disk` does.

    Args:
        folder: to be made.
        table: of plain types.
        classes: names of each column of `ClassLabel`.
        files: among which its rows are spread.
        batch: rows of a batch.
    """
    folder.mkdir(parents=True)
    features = {name: {"_type": "ClassLabel", "names": list(names)} for name, names in classes.items()}
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    names = [f"data-{number:05d}-of-{files:05d}.arrow" for number in range(files)]
    ends = [len(table) * number // files for number in range(files + 1)]
    for name, start, stop in zip(names, ends, ends[1:], strict=False):
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table.slice(start, stop - start), batch)
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": n} for n in names], "_split": None}))
    return folder


def save_splits(folder: Path, splits: Mapping[str, Callable[[Path], object]]) -> Path:
    """Write splits as `DatasetDict.save_to_disk` does, each by what writes its folder."""
    for name, write in splits.items():
        write(folder / name)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(splits)}))
    return folder
