"""Samples of one's own become rows as those of a dataset did, by what it promises of its source and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image
from pydantic import ValidationError

from storage.datasets.base import Unreadable
from storage.datasets.table import Layout
from storage.errors import BadRequest
from storage.inputs import Inputs
from storage.inputs.policy import ImagePolicy
from storage.language.tokenizer import around, encoder

if TYPE_CHECKING:
    from torch import Tensor


def rows_of(
    samples: Sequence[Any],
    source: Mapping[str, Any] | None,
    made_of: Inputs,
    input_shape: tuple[int, ...],
    tokenizer: bytes | None,
) -> Tensor:
    """Return samples as rows of a dataset, (B, …), as they are shown without a view.

    Args:
        samples: images as Pillow opened them or the bytes of their files, texts, or arrays: what the dataset is of.
        source: its promise; None: nobody knows it.
        made_of: what its rows are.
        input_shape: of a row, of texts that of the longest.
        tokenizer: its `tokenizer.json`, if it has one.

    Raises:
        BadRequest: there is no sample; they are of another kind; or they do not become rows of this shape.
    """
    if isinstance(samples, str | bytes | Image.Image):  # a text is a sequence too: of its letters
        raise BadRequest(
            "these are no samples for this student",
            found=f"one {type(samples).__name__}",
            expected="a list of samples",
            do="prepare([sample])",
        )
    if source is None:
        raise BadRequest(
            "it is not known how a sample becomes an input of this student",
            found="a student.json without `source`, of before that was kept",
            do="train it again; or call it with inputs of your own making",
        )
    rows = OF_KIND.get(str(source.get("kind")), _arrays)(samples, source, tokenizer, input_shape)
    wrong = next((row for row in rows if not _fits(row, made_of, input_shape)), None)
    if not rows or wrong is not None:
        raise BadRequest(
            "these are no inputs of this student",
            found="no sample" if wrong is None else f"a row of shape {wrong.shape}, {wrong.dtype}",
            expected=f"{input_shape}{', or shorter' if made_of.tokenised else ''}, {made_of.dtypes}",
        )
    if any(row.dtype.kind == "f" and not np.isfinite(row).all() for row in rows):
        raise BadRequest("these are no inputs of this student", found="a row with numbers that are NaN or infinite")
    stored = made_of.stored(rows, str(np.result_type(*rows)))
    return made_of.shown(stored, np.arange(len(rows)))


def _fits(row: np.ndarray, made_of: Inputs, input_shape: tuple[int, ...]) -> bool:
    if not made_of.takes(row.dtype):
        return False
    if made_of.tokenised:  # a model takes rows shorter than the longest
        return row.ndim == 1 and 0 < len(row) <= input_shape[0]
    return made_of.fits(row.shape, input_shape)


def _images(
    samples: Sequence[Any], source: Mapping[str, Any], tokenizer: bytes | None, input_shape: tuple[int, ...]
) -> list[np.ndarray]:
    try:
        policy = ImagePolicy.promised(source)
    except ValidationError as error:
        raise BadRequest("this student does not say how an image is read", found=str(error)) from None
    if (promised := policy.shape(input_shape)) != input_shape:  # before memory is taken for one of that size
        raise BadRequest(
            "this student's images are no inputs of it", found=f"images of {promised}", expected=str(input_shape)
        )
    # pixels as a dataset of arrays has them are rows already
    _require(samples, (bytes, Image.Image, np.ndarray), "images as Pillow opened them, or the bytes of their files")
    try:
        return [sample if isinstance(sample, np.ndarray) else policy.pixels(sample) for sample in samples]
    except Unreadable as error:
        raise BadRequest("an image cannot be read", found=str(error)) from None


def _texts(
    samples: Sequence[Any], source: Mapping[str, Any], tokenizer: bytes | None, input_shape: tuple[int, ...]
) -> list[np.ndarray]:
    _require(samples, (str,), "texts")
    if tokenizer is None:
        raise BadRequest("this student has no tokenizer", do="train it again: one that is trained now keeps its own")
    rows = encoder(tokenizer, parse_special=source.get("special_tokens") == "parsed")(list(samples))
    if source.get("add_special_tokens"):
        return [around(tokenizer).put(row, input_shape[0]) for row in rows]
    # A row for classification is what is left of a text, of a block all must be there.
    return [row[: input_shape[0]] for row in rows] if "task" in source else rows


def _chats(
    samples: Sequence[Any], source: Mapping[str, Any], tokenizer: bytes | None, input_shape: tuple[int, ...]
) -> list[np.ndarray]:
    """Return chats in tokens, as the dataset had them: what a template writes holds special tokens."""
    _require(samples, (str,), "chats as text: tokenizer.apply_chat_template(messages, tokenize=False)")
    return _texts(samples, {"special_tokens": "parsed"}, tokenizer, input_shape)


def _arrays(
    samples: Sequence[Any], source: Mapping[str, Any], tokenizer: bytes | None, input_shape: tuple[int, ...]
) -> list[np.ndarray]:
    _require(samples, (np.ndarray,), f'arrays, as a dataset of kind "{source.get("kind")}" has them')
    return list(samples)


def _cells(
    samples: Sequence[Any], source: Mapping[str, Any], tokenizer: bytes | None, input_shape: tuple[int, ...]
) -> list[np.ndarray]:
    """Return rows of a table by the names of its columns, whatever others there are; or rows that were made before."""
    _require(samples, (Mapping, np.ndarray), "rows by the names of columns: {column: value}, None for nothing")
    layout = Layout.promised(source)
    assert layout is not None
    rows = []
    for sample in samples:
        if isinstance(sample, Mapping) and (absent := [name for name in layout.names if name not in sample]):
            raise BadRequest(f"a row has no column {', '.join(absent)}", found=", ".join(map(str, sample)))
        try:
            rows.append(sample if isinstance(sample, np.ndarray) else layout.row([sample[n] for n in layout.names])[0])
        except Unreadable as error:
            raise BadRequest("a row cannot be read", found=str(error)) from None
    return rows


def _require(samples: Sequence[Any], kinds: tuple[type, ...], expected: str) -> None:
    if (strange := next((sample for sample in samples if not isinstance(sample, kinds)), None)) is not None:
        raise BadRequest("these are no samples for this student", found=type(strange).__name__, expected=expected)


def kind_of_samples(source: Mapping[str, Any] | None) -> Literal["image", "text", "table", "array"]:
    """Return what a sample of one's own is, of a student whose dataset promised this."""
    made = OF_KIND.get(str((source or {}).get("kind")), _arrays)
    return SAMPLES.get(made, "text")


SAMPLES: dict[Any, Literal["image", "table", "array"]] = {_images: "image", _cells: "table", _arrays: "array"}

# By `kind` of the dataset.
OF_KIND: dict[str, Callable[[Sequence[Any], Mapping[str, Any], bytes | None, tuple[int, ...]], list[np.ndarray]]] = {
    "image_folder": _images,
    "parquet_images": _images,
    "webdataset": _images,
    "table": _cells,
    "text": _texts,
    "chat": _chats,
}
