"""Token ids in NumPy files: a stream that is cut into blocks or into its documents, or blocks as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import polars as pl
from pydantic import Field, PrivateAttr, model_validator

from storage.datasets.arrays import load_numpy
from storage.datasets.base import FILE_SCHEMA, LocalFile, RawSample, Recorded, Source, TokenFacts
from storage.datasets.listing import lacking, list_files, passed_over
from storage.datasets.packing import fill_rows, join_documents
from storage.errors import BadRequest, LabelOutOfRange, MissingSource
from storage.format.stores.mirror import SourcePath
from storage.language.tokenizer import TokenizerFile, parse_tokenizer, read_tokenizer
from storage.options import JobPath
from storage.tasks import NO_LABEL
from storage.tasks.language_model import LanguageModel

CUT = "documents longer than `length`, of which the end is cut off"


class TokensSource(Source):
    """Blocks or documents of token ids that something else has made.

    Attributes:
        path: a .npy of integers, a stream (N,) or blocks (S, L); or a folder of them, taken by name.
        mask: a .npy of bool of the same shape, or a folder of files of the same names: false for tokens that are not
            to be predicted, such as a prompt's or padding.
        documents: a .npy of integers, where in the stream each document begins, ascending from 0; or a folder of files
            of the same names. No label crosses from one into the next.
        block: L; of a stream, and by default what the first blocks have.
        length: in place of `block`, so that each document is a row, at its own length: tokens at most; what is longer
            is cut, and the build says of how many rows.
        pack: with `length`, several documents in a row, of which none sees another.
        vocabulary: number of ids.
        tokenizer: the `tokenizer.json` that made them; teachers are checked against it.
        end_of_text: id of the token between documents; it predicts nothing.
    """

    kind: Literal["tokens"]
    path: SourcePath
    mask: SourcePath | None = None
    documents: SourcePath | None = None
    length: Annotated[int, Field(ge=2, le=2**20)] | None = None
    pack: bool = False
    block: Annotated[int, Field(ge=2, le=2**20)] | None = None
    vocabulary: Annotated[int, Field(ge=2, le=2**24)]
    tokenizer: JobPath | None = None
    end_of_text: Annotated[int, Field(ge=0)] | None = None

    _tokenizer: TokenizerFile | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.end_of_text is not None and self.end_of_text >= self.vocabulary:
            raise ValueError(f"`end_of_text` is one of the `vocabulary` = {self.vocabulary} ids")
        if self.length is not None and (self.documents is None or self.block is not None):
            raise ValueError(
                "`length` is of rows that are documents: it goes with `documents`, and in place of `block`"
            )
        if self.pack and self.length is None:
            raise ValueError("`pack` is of rows of whole documents: it goes with `documents` and `length`")
        return self

    def content(self) -> dict[str, Any]:
        content = super().content() | {"end_of_text": self.end_of_text, "masked": self.mask is not None}
        # said where it is not as it always was
        documents = {} if self.documents is None else {"documents": True}
        packed = {"pack": True} if self.pack else {}
        return content | documents | ({} if self.length is None else {"length": self.length}) | packed

    @property
    def packs(self) -> bool:
        return self.pack

    def longest_row(self) -> int | None:
        return self.length

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

    def tokenizer_file(self) -> TokenizerFile | None:
        return self._tokenizer

    def tokens(self) -> TokenFacts:
        return TokenFacts(self.vocabulary, None if self._tokenizer is None else self._tokenizer.fingerprint)

    def files(self) -> pl.DataFrame:
        rows = [(path.name, *self.look_at(path.name), self._num_rows(path)) for path in self._paths()]
        return pl.DataFrame(rows, schema=FILE_SCHEMA, orient="row")

    def look_at(self, file: str) -> LocalFile:
        path = self.path / file if self.path.is_dir() else self.path
        return LocalFile.of_all(
            each for each in (path, _beside(self.mask, path), _beside(self.documents, path)) if each is not None
        )

    def notes(self) -> list[str]:
        return [*passed_over(self.path, (".npy",)), *lacking(self.path, self._paths())]

    def class_names(self) -> list[str]:
        return []

    def read(self, file: str, position: int, rows: int) -> Iterator[RawSample]:
        path = self.path / file if self.path.is_dir() else self.path
        tokens, mask, starts = self._load(path), self._load_mask(path), self._load_documents(path)
        for i in range(position, min(position + rows, self._num_rows(path))):
            if self.pack and starts is not None:
                yield join_documents([self._document(file, tokens, mask, starts, d) for d in self._filled(path)[i]])
                continue
            where, length = self._place(tokens, starts, i)
            counts = None if mask is None else np.array(mask[where])
            if starts is not None and isinstance(where, slice):
                counts = np.ones(len(tokens[where]), np.bool_) if counts is None else counts
                # nobody is asked for the first token of a document
                first, last = np.searchsorted(starts, [where.start + 1, where.stop])
                counts[starts[first:last] - where.start] = False
            yield RawSample(f"{file}:{i}", self._packed(np.asarray(tokens[where]), counts, length, f"{file}:{i}"), None)

    def decode(self, payload: bytes | np.ndarray) -> np.ndarray:
        """Return the tokens of a block, or of a document the first `length`."""
        assert isinstance(payload, np.ndarray)
        return np.asarray(payload[0, : self.length])

    def decode_labels(self, payload: bytes | np.ndarray) -> np.ndarray:
        assert isinstance(payload, np.ndarray)
        return np.asarray(payload[1, : self.length])

    def _document(
        self, file: str, tokens: np.ndarray, mask: np.ndarray | None, starts: np.ndarray, number: int
    ) -> RawSample:
        """Return a document that is to share a row."""
        where, size = self._place(tokens, starts, number)
        counts = None if mask is None else np.array(mask[where])
        pair_2L = self._packed(np.asarray(tokens[where]), counts, size, f"{file}:{number}")
        remarks = (CUT,) if size > (self.length or 0) else ()
        return RawSample(f"{file}:{number}", pair_2L[:, : self.length], None, remarks)

    def _filled(self, path: Path) -> list[list[int]]:
        """Return which documents of a file share a row."""
        documents = _beside(self.documents, path)
        assert documents is not None
        assert self.length is not None
        return _fill(documents, LocalFile.of(documents), self._load(path).size, self.length)

    def _num_rows(self, path: Path) -> int:
        if self.pack and self._load_documents(path) is not None:
            return len(self._filled(path))
        tokens, starts = self._load(path), self._load_documents(path)
        if self.length is not None and starts is not None:
            return len(starts)
        # rounded up: the last may be short
        return -(-tokens.size // self._block(path, tokens)) if tokens.ndim == 1 else len(tokens)

    def _place(self, tokens: np.ndarray, starts: np.ndarray | None, row: int) -> tuple[slice | int, int]:
        """Return where a row is in its file, with the token behind it if there is one, and how long it is."""
        if tokens.ndim == 2:
            return row, tokens.shape[1]
        if self.length is not None and starts is not None:
            start, stop = int(starts[row]), int(starts[row + 1]) if row + 1 < len(starts) else tokens.size
            return slice(start, stop), stop - start
        assert self.block is not None
        return slice(self.block * row, self.block * (row + 1) + 1), self.block  # a stream knows what comes next

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

    def _load(self, path: Path) -> np.ndarray:
        """Return the tokens of a file, on the disk still. Raises MissingSource: they are no rows of these options."""
        tokens = load_numpy(path)
        if tokens.ndim not in (1, 2) or not np.issubdtype(tokens.dtype, np.integer) or not tokens.size:
            raise MissingSource(
                f"{path} holds no tokens", found=f"{tokens.dtype} {tokens.shape}", expected="integers, (N,) or (S, L)"
            )
        if self.length is None:
            self._block(path, tokens)
        return tokens

    def _block(self, path: Path, tokens: np.ndarray) -> int:
        """Return L. Raises MissingSource: nobody says it, or two do."""
        length = self.block if tokens.ndim == 1 or self.block is not None else tokens.shape[1]
        if length is None or (tokens.ndim == 2 and tokens.shape[1] != length):
            raise MissingSource(
                f"{path} does not say how long a block is"
                if length is None
                else f"{path} has blocks of another length",
                found=f"{tokens.shape} and block = {self.block}",
                expected="a stream (N,) with `block`, or blocks (S, block)",
            )
        return length

    def _load_mask(self, path: Path) -> np.ndarray | None:
        if (mask_path := _beside(self.mask, path)) is None:
            return None
        mask, shape = load_numpy(mask_path), self._load(path).shape
        if mask.dtype != np.bool_ or mask.shape != shape:
            found = f"{mask.dtype} {mask.shape}"
            raise MissingSource(f"{mask_path} is no mask of {path}", found=found, expected=f"bool {shape}")
        return mask

    def _load_documents(self, path: Path) -> np.ndarray | None:
        """Return where each document of a stream begins. Raises MissingSource: they are no such places."""
        if (documents_path := _beside(self.documents, path)) is None:
            return None
        starts, tokens = load_numpy(documents_path), self._load(path)
        fits = tokens.ndim == 1 and starts.ndim == 1 and np.issubdtype(starts.dtype, np.integer) and len(starts) > 0
        # compared, not subtracted: unsigned numbers would wrap
        if not fits or starts[0] != 0 or starts[-1] >= tokens.size or (starts[1:] <= starts[:-1]).any():
            ends = f" from {starts.flat[0]} to {starts.flat[-1]}" if starts.size else ""
            raise MissingSource(
                f"{documents_path} does not say where the documents of {path} begin",
                found=f"{starts.dtype} {starts.shape}{ends}; tokens {tokens.shape}",
                expected="integers (D,), ascending from 0 to below the length of a stream (N,)",
                do="leave out a last one that is the end of the stream",
            )
        return np.asarray(starts, np.int64)


@lru_cache(maxsize=8)
def _fill(documents: Path, version: LocalFile, num_tokens: int, length: int) -> list[list[int]]:
    """Return which documents share a row, of a file that says where in so many tokens each begins."""
    starts = np.asarray(load_numpy(documents), np.int64)
    return fill_rows(np.minimum(np.diff(starts, append=num_tokens), length).tolist(), length)


def _beside(given: Path | None, path: Path) -> Path | None:
    """Return the file that belongs to one of tokens: the one that is given, or in a folder that of the same name."""
    return None if given is None else given / path.name if given.is_dir() else given


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
