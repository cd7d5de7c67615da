"""Text: files, or a column of Parquet or JSON-lines files, tokenised and packed into blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

import numpy as np
import polars as pl
from pydantic import Field, PrivateAttr, model_validator

from storage.datasets.base import FILE_SCHEMA, LocalFile, RawSample, Recorded, Source, TokenFacts, Unreadable
from storage.datasets.documents import cut, json_rows, parquet_rows, utf8
from storage.datasets.listing import list_files, passed_over
from storage.datasets.packing import Blocks, Document, pack
from storage.errors import BadRequest, MissingSource
from storage.options import JobPath, Name, Options
from storage.tasks.language_model import LanguageModel
from storage.tokenizer import TokenizerFile, encoder, parse_tokenizer, read_tokenizer, train_tokenizer

TABLES = (".parquet", ".jsonl")
KEPT_FILES = 2
# Measured on 11 MB of English in 1,024 tokens: 148 at the peak for each byte of text, most of it the library's own.
BUFFER_BYTES_PER_BYTE = 180


class TrainTokenizer(Options):
    """A byte-level BPE learned from the dataset's own text, once."""

    vocabulary: Annotated[int, Field(ge=257, le=2**20)]  # 256 bytes and the end-of-text token at least


class TextSource(Source):
    """Blocks of `block` tokens.

    Attributes:
        path: a file, or a folder of files taken by name: `*.txt`, or with `column` `*.parquet` and `*.jsonl`.
        column: of documents; without it each file is one document.
        prompt: column of text that comes before a document and is not to be predicted.
        part: from which share to which, of each file's characters, or of its rows with `column`.
        block: tokens of a row.
        tokenizer: a `tokenizer.json`,
        train_tokenizer: or one to learn from this text,
        tokenizer_of: or that of another dataset of the cache.
        end_of_text: the token between documents.
        long_documents: what becomes of a document longer than a block.
        pack: several documents in a block.
    """

    kind: Literal["text"]
    path: JobPath
    column: str | None = None
    prompt: str | None = None
    part: Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=2, max_length=2)] = Field(
        default=[0.0, 1.0]
    )
    block: Annotated[int, Field(ge=2, le=2**20)]
    tokenizer: JobPath | None = None
    train_tokenizer: TrainTokenizer | None = None
    tokenizer_of: Name | None = None
    end_of_text: Annotated[str, Field(min_length=1)] = "<|endoftext|>"
    long_documents: Literal["refuse", "split"] = "refuse"
    pack: bool = True

    _tokenizer: TokenizerFile | None = PrivateAttr(default=None)
    _recorded: Recorded = PrivateAttr(default={})

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if sum(given is not None for given in (self.tokenizer, self.train_tokenizer, self.tokenizer_of)) != 1:
            raise ValueError("give one of `tokenizer`, `train_tokenizer` and `tokenizer_of`")
        if self.column is None and (self.prompt is not None or self.path.suffix in TABLES):
            raise ValueError("name the `column` of documents")
        if self.part[0] >= self.part[1]:
            raise ValueError("`part` goes from a smaller share to a larger")
        return self

    def content(self) -> dict[str, Any]:
        keys = ("column", "prompt", "part", "block", "end_of_text", "long_documents", "pack", "train_tokenizer")
        return super().content() | {key: value for key, value in self.model_dump(mode="json").items() if key in keys}

    def find_tokenizer(self, of: Callable[[str], bytes | None]) -> bytes:
        if self.tokenizer is not None:
            return read_tokenizer(self.tokenizer).data
        taken = self.tokenizer_of or self.name
        if (data := of(taken)) is not None:
            return data
        if self.train_tokenizer is not None:
            found = (text for path in self._paths() for text in self._texts(path))
            readable = (part for _, prompt, text in found if isinstance(text, str) for part in (prompt, text))
            return train_tokenizer(readable, self.train_tokenizer.vocabulary, self.end_of_text)
        raise MissingSource(
            f"dataset {self.name} wants the tokenizer of {taken}",
            found="no such dataset of text in the cache, nor above it in the job",
            do=f"put [[dataset]] {taken} before {self.name}",
        )

    def prepared(self, tokenizer: bytes | None, recorded: Recorded) -> Self:
        assert tokenizer is not None
        copy = self.model_copy()
        copy._tokenizer = parse_tokenizer(tokenizer, f"the tokenizer of {self.name}")  # noqa: SLF001 - its own
        copy._recorded = recorded  # noqa: SLF001
        copy._tokenizer.special(self.end_of_text)  # noqa: SLF001
        return copy

    def task_name(self) -> str:
        return LanguageModel.name

    def tokens(self) -> TokenFacts:
        return TokenFacts(self._bound.vocabulary, self._bound.fingerprint)

    def files(self) -> pl.DataFrame:
        rows = []
        for path in self._paths():
            file = LocalFile.of(path)
            known = self._recorded.get(path.name)
            if known is not None and (known.size, known.version) == file:
                num_blocks = known.rows
            else:
                num_blocks = len(self._blocks(path).inputs_SL)
            rows.append((path.name, *file, num_blocks))
        return pl.DataFrame(rows, schema=FILE_SCHEMA, orient="row")

    def notes(self) -> list[str]:
        return passed_over(self.path, self._suffixes)

    def class_names(self) -> list[str]:
        return []

    def read(self, file: str, position: int, rows: int) -> Iterator[RawSample]:
        blocks = self._blocks(self.path / file if self.path.is_dir() else self.path)
        for i in range(position, min(position + rows, len(blocks.inputs_SL))):
            payload = blocks.unreadable.get(i) or np.stack([blocks.inputs_SL[i], blocks.labels_SL[i]])
            yield RawSample(f"{file}:{i}", payload, None)

    def decode(self, payload: bytes | np.ndarray) -> np.ndarray:
        assert isinstance(payload, np.ndarray)
        return np.asarray(payload[0])

    def decode_labels(self, payload: bytes | np.ndarray) -> np.ndarray:
        assert isinstance(payload, np.ndarray)
        return np.asarray(payload[1])

    def buffer_bytes(self) -> int:
        return BUFFER_BYTES_PER_BYTE * max(path.stat().st_size for path in self._paths())

    @property
    def _bound(self) -> TokenizerFile:
        assert self._tokenizer is not None, "a source of text is prepared first"
        return self._tokenizer

    @property
    def _suffixes(self) -> tuple[str, ...]:
        return (".txt",) if self.column is None else TABLES

    def _paths(self) -> list[Path]:
        if not self.path.is_dir():
            LocalFile.of(self.path)
            return [self.path]
        known = {path for name in self._recorded if (path := self.path / name).is_file()}  # a row stays a row
        paths = sorted({*list_files(self.path, self._suffixes, deep=False).files, *known})
        if not paths:
            raise MissingSource(f"{self.path} holds no {' or '.join(f'*{suffix}' for suffix in self._suffixes)} file")
        for path in paths:
            if not path.name.isprintable():  # surrogates stand for bytes that are not UTF-8, which no table can hold
                raise MissingSource(
                    f"a file name in {self.path} is not printable UTF-8", found=repr(path.name), do="rename the file"
                )
        return paths

    def _blocks(self, path: Path) -> Blocks:
        """Return the blocks of a file, tokenised once in each process: neighbouring shards share it."""
        return _tokenised(self.model_dump_json(), self._bound.data, path, LocalFile.of(path))

    def _texts(self, path: Path) -> Iterator[_Text]:
        if self.column is not None:
            columns = (self.column,) if self.prompt is None else (self.column, self.prompt)
            read = parquet_rows if path.suffix == ".parquet" else json_rows
            for name, row in read(path, columns, self.part):
                prompt = "" if isinstance(row, Unreadable) or self.prompt is None else row[self.prompt]
                yield _Text(name, prompt, row if isinstance(row, Unreadable) else row[self.column])
        else:
            text = utf8(path)
            start, stop = cut(len(text), self.part)
            yield _Text(path.name, "", text[start:stop])

    def _tokenise(self, path: Path) -> Blocks:
        """Return the blocks of a file. Raises BadRequest: a document is longer than a block."""
        texts = list(self._texts(path))
        encode = encoder(self._bound.data)
        spelled = iter(encode([part for t in texts if isinstance(t.text, str) for part in (t.prompt, t.text)]))
        documents: list[Document | Unreadable] = []
        for name, _, text in texts:
            if isinstance(text, Unreadable):
                documents.append(Unreadable(f"{name}: {text}"))
                continue
            prompt, answer = next(spelled), next(spelled)
            documents.append(Document(np.concatenate([prompt, answer]), len(prompt)))
            size = len(prompt) + len(answer) + 1
            if size > self.block and self.long_documents == "refuse":
                raise BadRequest(
                    f"a document of {self.name} is longer than a block",
                    found=f"{name}: {size} tokens, end-of-text among them",
                    expected=f"at most block = {self.block}",
                    do=f'long_documents = "split" cuts it; or block = {size}',
                )
        end_of_text = self._bound.special(self.end_of_text)
        split = self.long_documents == "split"
        return pack(documents, self.block, end_of_text=end_of_text, split=split, together=self.pack)


class _Text(NamedTuple):
    """A document before it is tokenised; `name` says where it is."""

    name: str
    prompt: str
    text: str | Unreadable


@lru_cache(maxsize=KEPT_FILES)
def _tokenised(options: str, tokenizer: bytes, path: Path, file: LocalFile) -> Blocks:
    source = TextSource.model_validate_json(options).prepared(tokenizer, {})
    return source._tokenise(path)  # noqa: SLF001 - of this module
