"""Token ids in NumPy files: a stream that is cut into blocks, or blocks as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import polars as pl
from pydantic import Field, PrivateAttr, model_validator

from storage.datasets.arrays import load_numpy
from storage.datasets.base import FILE_SCHEMA, LocalFile, RawSample, Recorded, Source, TokenFacts
from storage.datasets.listing import list_files, passed_over
from storage.errors import BadRequest, LabelOutOfRange, MissingSource
from storage.options import JobPath
from storage.tasks import NO_LABEL
from storage.tasks.language_model import LanguageModel
from storage.tokenizer import TokenizerFile, parse_tokenizer, read_tokenizer


class TokensSource(Source):
    """Blocks of token ids that something else has made.

    Attributes:
        path: a .npy of integers, a stream (N,) or blocks (S, L); or a folder of them, taken by name.
        mask: a .npy of bool of the same shape, or a folder of files of the same names: false for tokens that are not
            to be predicted, such as a prompt's or padding.
        block: L; of a stream, and by default what the first blocks have.
        vocabulary: number of ids.
        tokenizer: the `tokenizer.json` that made them; teachers are checked against it.
        end_of_text: id of the token between documents; it predicts nothing.
    """

    kind: Literal["tokens"]
    path: JobPath
    mask: JobPath | None = None
    block: Annotated[int, Field(ge=2, le=2**20)] | None = None
    vocabulary: Annotated[int, Field(ge=2, le=2**24)]
    tokenizer: JobPath | None = None
    end_of_text: Annotated[int, Field(ge=0)] | None = None

    _tokenizer: TokenizerFile | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.end_of_text is not None and self.end_of_text >= self.vocabulary:
            raise ValueError(f"`end_of_text` is one of the `vocabulary` = {self.vocabulary} ids")
        return self

    def content(self) -> dict[str, Any]:
        return super().content() | {"end_of_text": self.end_of_text, "masked": self.mask is not None}

    def find_tokenizer(self, of: Callable[[str], bytes | None]) -> bytes | None:
        return None if self.tokenizer is None else read_tokenizer(self.tokenizer).data

    def prepared(self, tokenizer: bytes | None, recorded: Recorded) -> Self:
        if tokenizer is None:
            return self
        copy = self.model_copy()
        copy._tokenizer = tokenizer_of(self.name, tokenizer, self.vocabulary)  # noqa: SLF001 - its own
        return copy

    def task_name(self) -> str:
        return LanguageModel.name

    def tokens(self) -> TokenFacts:
        return TokenFacts(self.vocabulary, None if self._tokenizer is None else self._tokenizer.fingerprint)

    def files(self) -> pl.DataFrame:
        rows = []
        for path in self._paths():
            stream, length = self._load(path)
            # rounded up: the last may be short
            num_blocks = -(-stream.size // length) if stream.ndim == 1 else len(stream)
            rows.append((path.name, *self.look_at(path.name), num_blocks))
        return pl.DataFrame(rows, schema=FILE_SCHEMA, orient="row")

    def look_at(self, file: str) -> LocalFile:
        path = self.path / file if self.path.is_dir() else self.path
        return LocalFile.of_all(each for each in (path, self._mask_path(path)) if each is not None)

    def notes(self) -> list[str]:
        return passed_over(self.path, (".npy",))

    def class_names(self) -> list[str]:
        return []

    def read(self, file: str, position: int, rows: int) -> Iterator[RawSample]:
        path = self.path / file if self.path.is_dir() else self.path
        tokens, length = self._load(path)
        mask = self._load_mask(path, tokens.shape)
        for i in range(position, min(position + rows, -(-tokens.size // length))):
            where = slice(length * i, length * (i + 1) + 1) if tokens.ndim == 1 else i  # a stream knows what comes next
            counts = None if mask is None else np.asarray(mask[where])
            yield RawSample(f"{file}:{i}", self._packed(np.asarray(tokens[where]), counts, length, f"{file}:{i}"), None)

    def decode(self, payload: bytes | np.ndarray) -> np.ndarray:
        assert isinstance(payload, np.ndarray)
        return np.asarray(payload[0])

    def decode_labels(self, payload: bytes | np.ndarray) -> np.ndarray:
        assert isinstance(payload, np.ndarray)
        return np.asarray(payload[1])

    def _packed(self, tokens: np.ndarray, counts: np.ndarray | None, length: int, name: str) -> np.ndarray:
        """Return inputs and labels (2, L) from up to L + 1 tokens and which of them are to be predicted."""
        outside = (tokens < 0) | (tokens >= self.vocabulary)
        if outside.any():
            where = int(outside.argmax())
            raise LabelOutOfRange(
                f"block {name} holds a token outside the vocabulary",
                found=f"id {tokens[where]} at position {where}",
                expected=f"0 to {self.vocabulary - 1}",
                do="correct `vocabulary`, or the tokens: they may be another tokenizer's",
            )
        pair_2L = np.full((2, length), NO_LABEL, np.int32)
        pair_2L[0] = self.end_of_text or 0  # of what the last block of a stream has too little
        pair_2L[0, : len(tokens[:length])] = tokens[:length]
        following = tokens[1 : length + 1].astype(np.int32)  # a copy, and signed: some become −1
        if counts is not None:
            following[~counts[1 : length + 1]] = NO_LABEL
        if self.end_of_text is not None:
            following[tokens[: len(following)] == self.end_of_text] = NO_LABEL
        pair_2L[1, : len(following)] = following
        return pair_2L

    def _paths(self) -> list[Path]:
        if not self.path.is_dir():
            LocalFile.of(self.path)  # raises if there is none
            return [self.path]
        paths = list_files(self.path, (".npy",), deep=False).files
        if not paths:
            raise MissingSource(f"{self.path} holds no *.npy file")
        return list(paths)

    def _mask_path(self, path: Path) -> Path | None:
        return None if self.mask is None else self.mask / path.name if self.mask.is_dir() else self.mask

    def _load(self, path: Path) -> tuple[np.ndarray, int]:
        """Return the tokens of a file, on the disk still, and L."""
        tokens = load_numpy(path)
        if tokens.ndim not in (1, 2) or not np.issubdtype(tokens.dtype, np.integer) or not tokens.size:
            raise MissingSource(
                f"{path} holds no tokens", found=f"{tokens.dtype} {tokens.shape}", expected="integers, (N,) or (S, L)"
            )
        length = self.block if tokens.ndim == 1 or self.block is not None else tokens.shape[1]
        if length is None or (tokens.ndim == 2 and tokens.shape[1] != length):
            raise MissingSource(
                f"{path} does not say how long a block is"
                if length is None
                else f"{path} has blocks of another length",
                found=f"{tokens.shape} and block = {self.block}",
                expected="a stream (N,) with `block`, or blocks (S, block)",
            )
        return tokens, length

    def _load_mask(self, path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
        if (mask_path := self._mask_path(path)) is None:
            return None
        mask = load_numpy(mask_path)
        if mask.dtype != np.bool_ or mask.shape != shape:
            found = f"{mask.dtype} {mask.shape}"
            raise MissingSource(f"{mask_path} is no mask of {path}", found=found, expected=f"bool {shape}")
        return mask


def tokenizer_of(dataset: str, data: bytes, vocabulary: int) -> TokenizerFile:
    """Return the tokenizer of a dataset of so many ids. Raises BadRequest: it has more."""
    tokenizer = parse_tokenizer(data, f"the tokenizer of {dataset}")
    if tokenizer.vocabulary > vocabulary:
        raise BadRequest(
            f"dataset {dataset} has a smaller vocabulary than its tokenizer",
            found=f"vocabulary = {vocabulary}",
            expected=f"{tokenizer.vocabulary} or more",
        )
    return tokenizer
