"""Labelled rows of a folder or a file, read as what the student learned from was: by its own promise, and a path."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from storage.datasets import AnySource, RawSample, Source, Unreadable
from storage.datasets.arrow import is_saved
from storage.datasets.chat.template import read_template
from storage.datasets.published import WebDatasetSource, are_tars
from storage.datasets.table import TableSource
from storage.errors import BadRequest, LabelOutOfRange, MissingSource
from storage.inputs.encoded import decoding
from storage.inputs.policy import ImagePolicy
from storage.tasks import NO_LABEL, Task
from student_train.feed.batches import Batch
from student_train.using.answering import Answerer
from student_train.using.evaluating.rows import LabelledRows, check_inputs, other_keys

IMAGES = ("image_folder", "parquet_images", "webdataset")  # kinds of which one can stand for another
OWN_KEYS = ("image", "label", "id", "images", "label_key")  # of some of these, said again of data of the same
TARS = IMAGES[2]
CHATS = "chat"
REBUILT = "cache build, of these data; then student eval RUN DATASET --cache URL"
ARRAYS = (".npy", ".npz")
AT_ONCE = 64  # samples whose bytes are held while they are decoded
# options of which a promise has the value as a job gives it
PROMISED = {
    "add_special_tokens", "block", "column", "completion", "delimiter", "document_mask", "end_of_text", "header",
    "joined_by", "label", "length", "long_chats", "long_documents", "missing", "pack", "prompt", "quotes", "roles",
    "special_tokens", "target", "task", "template_arguments", "unseen",
}  # fmt: skip
# keys of a promise that say which rows there are, not what a row is
WHICH_ROWS = {"id", "part", "where", "labels", "train_tokenizer"}
LABELLED_IMAGES = "a folder with one sub-folder of images for each class"
UNLABELLED = "move the images into sub-folders called after their classes; student predict RUN INPUTS needs no labels"
NO_LABELS = 'of a .npy give --labels FILE.npy; a .npz has "inputs" and "labels"; of images, a folder for each class'


def rows_elsewhere(path: Path, answerer: Answerer, labels: Path | None, folders: Sequence[Path] = ()) -> LabelledRows:
    """Return labelled rows of a folder or a file.

    Args:
        path: where they lie.
        answerer: who is to be measured, whose promise says how a sample becomes a row.
        labels: of a .npy, the file of its labels.
        folders: of chats, of tokenizers: of which one may have the template that made the student's rows.

    Raises:
        BadRequest: it is not known how such a file becomes rows of this student.
        MissingSource: there is nothing, or without labels.
    """
    if not path.exists():
        raise MissingSource(f"there is no {path}")
    source = source_like(path, answerer, labels, folders)
    files = source.files()
    if not len(files) or not files["rows"].sum():
        raise MissingSource(
            f"{path} has no samples", found="; ".join(source.notes()) or "nothing", expected=_kind(source)
        )
    classes, notes = _classes(source, answerer, path)
    unreadable: list[tuple[str, str]] = []
    remarks: Counter[str] = Counter()

    def batches(size: int) -> Iterator[tuple[Batch, Tensor | None]]:
        unreadable.clear()
        remarks.clear()
        read = _batches(source, files.iter_rows(named=True), answerer, size, unreadable, remarks)
        yield from ((batch, None) for batch in read)

    known = None if source.by_ranges else int(files["rows"].sum())
    count = f"{len(files):,} files" if known is None else f"{known:,} samples"
    return LabelledRows(
        f"{count} of {path}",
        path.name,
        classes,
        batches,
        notes=(*source.notes(), *notes),
        unreadable=lambda: unreadable,
        num_rows=known,
        remarks=remarks,
    )


def source_like(path: Path, answerer: Answerer, labels: Path | None, folders: Sequence[Path] = ()) -> Source:
    """Return a source at a path that makes rows as a student's own dataset did; `folders` as `rows_elsewhere`.

    Raises:
        BadRequest, MissingSource: likewise.
    """
    promise = answerer.blueprint.source
    if promise is None:
        raise BadRequest(
            "it is not known how a sample becomes an input of this student",
            found="a student without `source`, of before that was kept",
            do="train it again; or name rows of a cache",
        )
    kind = str(promise.get("kind"))
    section: dict[str, Any] = {"name": "elsewhere", "path": str(path.absolute())}
    if kind in IMAGES and path.suffix not in ARRAYS:
        policy = ImagePolicy.promised(promise).model_dump(exclude_defaults=True)
        section |= {"inputs": promise.get("inputs", "pixels"), **policy, "kind": _kind_of_images(path)}
        section |= {key: promise.get(key) for key in OWN_KEYS if section["kind"] == kind and promise.get(key)}
        if section["kind"] == TARS:  # whose numbers nobody names
            section["classes"] = list(answerer.blueprint.classes)
    elif path.suffix in ARRAYS and not answerer.blueprint.made_of.tokenised:
        section |= {"kind": "arrays"} | ({} if labels is None else {"labels": str(labels.absolute())})
    else:
        section |= _as_promised(promise, path, answerer.blueprint.classes)
        if answerer.tokenizer is not None:
            section["tokenizer"] = "tokenizer.json"  # its own, given below
        if kind == CHATS:
            section["tokenizer"] = str(_with_template(str(promise.get("template")), answerer, folders).absolute())
    if labels is not None and section["kind"] != "arrays":
        raise BadRequest("--labels is of a .npy file", found=f"{path}, whose samples have their labels with them")
    section |= {"kind": "hf_folder"} if is_saved(path) else {}
    if kind == "text" and are_tars(path):
        section |= {"kind": TARS} | dict.fromkeys(("header", "quotes"))
    try:
        source: Source = TypeAdapter(AnySource).validate_python(section)
    except ValidationError as error:
        raise BadRequest(
            f"{path} cannot be read as what this student learned from",
            found=f"{'a folder' if path.is_dir() else path.suffix or 'a file without a suffix'}",
            expected=f'data of kind "{kind}"',
            do=f"{REBUILT}; or a .npz of `inputs` and `labels`"
            if any(each["type"] == "extra_forbidden" for each in error.errors())  # a kind that reads no path
            else "; ".join(each["msg"] for each in error.errors()[:3]),
        ) from None
    if isinstance(source, TableSource) and (own := promise.get("id")) is not None and source.has_column(own):
        source = source.model_copy(update={"id": own})  # its rows are called as `student predict` calls them
    source = source if answerer.tokenizer is None else source.prepared(answerer.tokenizer, {})
    source = source.as_promised(promise)
    # Whatever a kind promises one day is compared too: a row that is made otherwise has other figures, silently.
    if other := sorted(other_keys(source.content(), promise) - WHICH_ROWS):
        raise BadRequest(
            f"{path} would be read in another way than what this student learned from",
            found=", ".join(f"{key} {source.content().get(key)!r}" for key in other),
            expected=", ".join(f"{key} {promise.get(key)!r}" for key in other),
            do=REBUILT,
        )
    return source


def makes_chats(answerer: Answerer) -> bool:
    """Return whether a student's rows were chats."""
    return (answerer.blueprint.source or {}).get("kind") == CHATS


def _with_template(digest: str, answerer: Answerer, folders: Sequence[Path]) -> Path:
    """Return the folder with the chat template that made a student's rows.

    Raises:
        BadRequest: none of them has it.
    """
    found = []
    for folder in folders:
        try:
            template = read_template(folder, None)
        except MissingSource:
            found.append(f"{folder}, which has none")
            continue
        if template.digest == digest:
            return folder
        found.append(f"{template.path}, of digest {template.digest}")
    raise BadRequest(
        f"the chat template that made the rows of {answerer.name} is not at hand",
        found="; ".join(found) or "no folder of a tokenizer",
        expected=f"the template of digest {digest}",
        do="--tokenizer FOLDER, which the dataset in the cache job names; a `template` of its own is there as "
        "chat_template.jinja",
    )


def _kind_of_images(path: Path) -> str:
    """Return what kind of images lies at a path. Raises MissingSource: they have no labels."""
    of_folder, of_tables, of_tars = IMAGES
    if path.suffix.lower() in Image.registered_extensions():
        raise MissingSource(f"{path} is one image, without a label", expected=LABELLED_IMAGES, do=UNLABELLED)
    if is_saved(path):
        return of_tables
    if are_tars(path):
        return of_tars
    if path.is_file() or any(path.glob("*.parquet")):
        return of_tables
    if path.is_dir() and not any(entry.is_dir() for entry in path.iterdir()):
        files = sum(entry.suffix.lower() in Image.registered_extensions() for entry in path.iterdir())
        found = f"{files} image{'s' * (files != 1)} in the folder itself"
        raise MissingSource(f"{path} has no sub-folders", found=found, expected=LABELLED_IMAGES, do=UNLABELLED)
    return of_folder


def _as_promised(promise: dict[str, Any], path: Path, classes: tuple[str, ...]) -> dict[str, Any]:
    """Return the options that a promise has the values of."""
    section = {"kind": promise["kind"], "path": str(path.absolute())}
    section |= {key: value for key, value in promise.items() if key in PROMISED and value is not None}
    written = promise.get("labels")
    if written is not None and list(written) != list(classes) and len(written) == len(classes):
        section["classes"] = dict(zip(written, classes, strict=True))  # what is written there = name
    return section


def _kind(source: Source) -> str:
    return f'data of kind "{getattr(source, "kind", "?")}"'


def _classes(source: Source, answerer: Answerer, path: Path) -> tuple[tuple[str, ...], list[str]]:
    """Return the names of the classes, and notes. Raises MissingSource: the samples have none."""
    own = answerer.blueprint.classes
    if answerer.blueprint.asked.label_array is not None:
        return own, []  # a label is an id of the tokenizer
    if answerer.blueprint.asked.numbers:
        return (), []
    if isinstance(source, WebDatasetSource):
        told = f"labels of {path.name} that are numbers are taken as the student's own: 0 is {own[0]}, …"
        return own, [told] if getattr(source, "label", "") else []
    if getattr(source, "kind", None) != "arrays":
        names = tuple(source.class_names())
        if not names:
            raise MissingSource(f"{path} has no labels", expected="samples with their class", do=NO_LABELS)
        return names, []
    names = tuple(source.class_names())  # numbers: the file has no others
    if not names:
        raise MissingSource(f"{path} has no labels", expected="samples with their class", do=NO_LABELS)
    if set(names) <= set(own):
        counted = [f"{name} is class {own.index(name)}" for name in names if own.index(name) != int(name)]
        told = f"labels of {path.name} are taken as names of classes, which sort otherwise than one counts: "
        return names, [f"{told}{', '.join(counted[:3])}"] if counted else []
    if len(names) > len(own):
        raise BadRequest(
            f"{path} has labels beyond the student's classes",
            found=f"0 to {len(names) - 1}",
            expected=f"0 to {len(own) - 1}",
        )
    return own, [f"labels of {path.name} are numbers, taken as the student's own: 0 is {own[0]}, …"]


def _batches(
    source: Source,
    files: Iterator[dict[str, Any]],
    answerer: Answerer,
    size: int,
    unreadable: list[tuple[str, str]],
    remarks: Counter[str],
) -> Iterator[Batch]:
    """Yield batches of readable samples; what is not is added to `unreadable`, what is told of them to `remarks`."""
    blueprint, asked = answerer.blueprint, answerer.blueprint.asked
    num_classes = (
        blueprint.num_classes if asked.numbers else len(source.class_names()) if asked.label_array is None else 0
    )
    inputs: list[np.ndarray] = []
    labels: list[Any] = []
    for file in files:
        rows = int(file["rows"])
        read: Callable[..., Any] = source.read
        samples = (
            source.read_range(file["file"], 0, rows, last=True) if source.by_ranges else read(file["file"], 0, rows)
        )
        for sample, row in _decoded(source, samples, on_threads=blueprint.made_of.scaled):
            remarks.update(sample.remarks)
            if isinstance(row, Unreadable):
                unreadable.append((sample.sample_id, str(row)))
                continue
            assert not isinstance(sample.payload, Unreadable), "it has a row"
            if not blueprint.made_of.takes(row.dtype):
                raise BadRequest(
                    f"{sample.sample_id} of {source.name} is no data for this student",
                    found=f"{row.dtype}",
                    expected=f"{blueprint.made_of.dtypes}: others would be shown to it as something else",
                    do='of pixels, array.astype("uint8")' if blueprint.made_of.scaled else 'array.astype("float32")',
                )
            if row.dtype.kind == "f" and not np.isfinite(row).all():
                unreadable.append((sample.sample_id, "has numbers that are NaN or infinite"))
                continue
            check_inputs(
                row.shape, blueprint.made_of.name, asked.name, None, blueprint, f"{sample.sample_id} of {source.name}"
            )
            inputs.append(row)
            many = asked.label_array is not None
            labels.append(source.decode_labels(sample.payload) if many else _label(sample, num_classes, asked))
            if len(inputs) == size:
                yield _batch(inputs, labels, answerer)
                inputs, labels = [], []
    if inputs:
        yield _batch(inputs, labels, answerer)


def _decoded(
    source: Source, samples: Iterable[RawSample], *, on_threads: bool
) -> Iterator[tuple[RawSample, np.ndarray | Unreadable]]:
    """Yield samples with their rows, or why they have none; pictures some at a time, while the student waits."""

    def decode(sample: RawSample) -> np.ndarray | Unreadable:
        try:
            return sample.payload if isinstance(sample.payload, Unreadable) else source.decode(sample.payload)
        except Unreadable as reason:
            return reason

    if not on_threads:
        yield from ((sample, decode(sample)) for sample in samples)
        return
    rest = iter(samples)
    while some := list(islice(rest, AT_ONCE)):
        yield from zip(some, decoding().threads.map(decode, some), strict=True)


def _label(sample: RawSample, num_classes: int, asked: Task) -> int | np.ndarray:
    """Return a label, or NO_LABEL. Raises LabelOutOfRange: it is no class, and would count from the end as another."""
    if asked.numbers:
        return np.array(sample.target or [np.nan] * num_classes, np.float32)
    if sample.label is None:
        return NO_LABEL
    if not 0 <= sample.label < num_classes:
        raise LabelOutOfRange(
            f"{sample.sample_id} has a label that is no class",
            found=str(sample.label),
            expected=f"0 to {num_classes - 1}",
            do="leave out rows without a label",
        )
    return sample.label


def _batch(inputs: list[np.ndarray], labels: list[Any], answerer: Answerer) -> Batch:
    made_of, asked = answerer.blueprint.made_of, answerer.blueprint.asked
    shown_B = made_of.shown(made_of.stored(inputs, str(np.result_type(*inputs))), np.arange(len(inputs)))
    if asked.label_array is None:
        return Batch(shown_B.to(answerer.device), torch.tensor(np.array(labels)))
    longest = max(map(len, labels))
    labels_BL = np.full((len(labels), longest), NO_LABEL, np.int64)
    for row, own in zip(labels_BL, labels, strict=True):
        row[: len(own)] = own
    return Batch(shown_B.to(answerer.device), torch.from_numpy(labels_BL).to(answerer.device))
