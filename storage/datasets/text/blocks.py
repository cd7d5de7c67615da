"""Text for a language model: files, or a column of Parquet or JSON-lines files, packed into blocks of tokens."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

import numpy as np
import polars as pl
from pydantic import Field, model_validator

from storage.datasets.base import FILE_SCHEMA, LocalFile, RawSample, Recorded, Unreadable
from storage.datasets.packing import Blocks, Document, pack
from storage.datasets.text.files import KEPT_FILES, TextFiles
from storage.datasets.text.rows import Columns, cut, rows_of, utf8
from storage.errors import BadRequest
from storage.tasks.language_model import LanguageModel
from storage.tokenizer import encoder, spelling

TABLES = (".parquet", ".jsonl")
IF_NOT = "tokens of a row, of a language model; for classes, name the column of them: `label`"
SHARED = "answers begin in the middle of a token that their prompt shares, which is predicted as theirs"


class TextSource(TextFiles):
    """Blocks of `block` tokens.

    Attributes:
        path: a file, or a folder of files taken by name: `*.txt`, or with `column` `*.parquet` and `*.jsonl`.
        task: what is asked of a row.
        column: of documents; without it each file is one document.
        prompt: column of text that comes before a document and is not to be predicted.
        part: from which share to which, of each file's characters, or of its rows with `column`.
        block: tokens of a row.
        long_documents: what becomes of a document longer than a block.
        pack: several documents in a block.
    """

    kind: Literal["text"]
    task: Literal["language_model"] = LanguageModel.name
    column: str | None = None
    prompt: str | None = None
    block: Annotated[int, Field(ge=2, le=2**20, description=IF_NOT)]
    long_documents: Literal["refuse", "split"] = "refuse"
    pack: bool = True

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.column is None and (self.prompt is not None or self.path.suffix in TABLES):
            raise ValueError("name the `column` of documents")
        return self

    @property
    def suffixes(self) -> tuple[str, ...]:  # type: ignore[override]  # of these options, not of the class
        """The ends of names that are taken from a folder."""
        return (".txt",) if self.column is None else TABLES

    def content(self) -> dict[str, Any]:
        keys = ("column", "prompt", "part", "block", "end_of_text", "long_documents", "pack", "train_tokenizer")
        content = super().content() | {key: value for key, value in self.model_dump(mode="json").items() if key in keys}
        # They were two texts to the tokenizer once: rows of that time are not to be mixed with these.
        return content if self.prompt is None else content | {"prompt_tokens": "of one text with the answer"}

    def readable_texts(self, path: Path) -> Iterator[str]:
        for _, prompt, text in self._texts(path):
            if isinstance(text, str):
                yield prompt
                yield text

    def prepared(self, tokenizer: bytes | None, recorded: Recorded) -> Self:
        copy = super().prepared(tokenizer, recorded)
        copy.bound.special(self.end_of_text)
        return copy

    def task_name(self) -> str:
        return self.task

    def files(self) -> pl.DataFrame:
        rows = []
        for path in self.paths():
            known = self.recorded_rows(path)
            num_blocks = len(self._blocks(path).inputs_SL) if known is None else known
            rows.append((path.name, *LocalFile.of(path), num_blocks))
        return pl.DataFrame(rows, schema=FILE_SCHEMA, orient="row")

    def class_names(self) -> list[str]:
        return []

    def read(self, file: str, position: int, rows: int) -> Iterator[RawSample]:
        blocks = self._blocks(self.at(file))
        for i in range(position, min(position + rows, len(blocks.inputs_SL))):
            # (2, L): tokens, and what each is to predict
            payload = blocks.unreadable.get(i) or np.stack([blocks.inputs_SL[i], blocks.labels_SL[i]])
            yield RawSample(f"{file}:{i}", payload, None, blocks.remarks.get(i, ()))

    def decode(self, payload: bytes | np.ndarray) -> np.ndarray:
        assert isinstance(payload, np.ndarray)
        return np.asarray(payload[0])

    def decode_labels(self, payload: bytes | np.ndarray) -> np.ndarray:
        assert isinstance(payload, np.ndarray)
        return np.asarray(payload[1])

    def _blocks(self, path: Path) -> Blocks:
        # options as text: a key of the calls that are kept must be hashable
        return _tokenised(self.model_dump_json(), self.bound.data, path, LocalFile.of(path))

    def _texts(self, path: Path) -> Iterator[_Text]:
        if self.column is not None:
            texts = (self.column,) if self.prompt is None else (self.column, self.prompt)
            for name, row in rows_of(path, Columns(texts), self.part):
                if isinstance(row, Unreadable):
                    yield _Text(name, "", row)
                else:
                    yield _Text(name, "" if self.prompt is None else row.texts[1], row.texts[0])
        else:
            text = utf8(path)
            start, stop = cut(len(text), self.part)
            yield _Text(path.name, "", text[start:stop])

    def _tokenise(self, path: Path) -> Blocks:
        """Return the blocks of a file. Raises BadRequest: a document is longer than a block."""
        texts = list(self._texts(path))
        spelled = iter(self._spelled([text for text in texts if isinstance(text.text, str)]))
        documents: list[Document | Unreadable] = []
        for name, _, text in texts:
            if isinstance(text, Unreadable):
                documents.append(Unreadable(f"{name}: {text}"))
                continue
            documents.append(document := next(spelled))
            size = len(document.tokens) + 1
            if size > self.block and self.long_documents == "refuse":
                raise BadRequest(
                    f"a document of {self.name} is longer than a block",
                    found=f"{name}: {size} tokens, end-of-text among them",
                    expected=f"at most block = {self.block}",
                    do=f'long_documents = "split" cuts it; or block = {size}',
                )
        end_of_text = self.bound.special(self.end_of_text)
        split = self.long_documents == "split"
        return pack(documents, self.block, end_of_text=end_of_text, split=split, together=self.pack)

    def _spelled(self, texts: list[_Text]) -> list[Document]:
        """Return documents in tokens, a prompt and its answer as one text, cut where the tokens of the prompt end."""
        whole = [f"{prompt}{text}" for _, prompt, text in texts]
        remarks = [self.remarks_of(text) for text in whole]
        if self.prompt is None:
            tokens = encoder(self.bound.data, parse_special=self.parses_special)(whole)
            return [Document(*each) for each in zip(tokens, [0] * len(whole), remarks, strict=True)]
        documents = []
        spelled = spelling(self.bound.data, parse_special=self.parses_special)(whole)
        for (_, prompt, _), (ids, offsets), told in zip(texts, spelled, remarks, strict=True):
            # those that reach beyond the prompt, from the first on
            answer = np.flatnonzero(offsets[:, 1] > len(prompt))
            num_prompt = 0 if not prompt else int(answer[0]) if len(answer) else len(ids)
            shared = 0 < num_prompt < len(ids) and offsets[num_prompt, 0] < len(prompt)
            documents.append(Document(ids, num_prompt, (*told, SHARED) if shared else told))
        return documents


class _Text(NamedTuple):
    """A document before it is tokenised; `name` says where it is."""

    name: str
    prompt: str
    text: str | Unreadable


@lru_cache(maxsize=KEPT_FILES)
def _tokenised(options: str, tokenizer: bytes, path: Path, file: LocalFile) -> Blocks:
    source = TextSource.model_validate_json(options).prepared(tokenizer, {})
    return source._tokenise(path)  # noqa: SLF001 - of this module
