"""Text for a language model: files, or a column of Parquet or JSON-lines files, packed into blocks of tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, PrivateAttr, model_validator

from storage.datasets.arrow import SUFFIX
from storage.datasets.base import LocalFile, RawSample, Recorded, Unreadable
from storage.datasets.packing import Blocks, Document, pack, parted
from storage.datasets.text.files import TextFiles
from storage.datasets.text.ranged import RangedFiles, TooLong
from storage.datasets.text.reading.opening import kind_of
from storage.datasets.text.reading.ranges import Ranges, ranges_of, sample_texts
from storage.datasets.text.reading.rows import Columns, Row
from storage.datasets.text.tokenising import batches_of, in_pieces, spelled_in_pieces
from storage.datasets.text.whole import BYTES_PER_BYTE, Layout, whole_blocks
from storage.errors import BadRequest, MissingSource
from storage.language.tokenizer import encoder, spelling
from storage.tasks.language_model import LanguageModel

TABLES = (".parquet", ".jsonl")
CONVERT = {  # what has no place where it may be cut, since a field may hold line ends
    ".csv": 'polars.read_csv("{0.name}").write_ndjson("{0.stem}.jsonl")',
    ".tsv": 'polars.read_csv("{0.name}", separator="\\t").write_ndjson("{0.stem}.jsonl")',
    ".json": "jq -c '.[]' {0.name} > {0.stem}.jsonl    # of a list in JSON",
}
IN_RANGES = (*TABLES, SUFFIX)
IF_NOT = "tokens of a row, of a language model; for classes, name the column of them: `label`"
BYTES_PER_TOKEN = 4  # of English, of a large vocabulary; a shard has more rows than it is asked for where it is less
RANGES = {"ranges": "bytes"}  # in a promise; without it a file was tokenised whole
SHARED = "answers begin in the middle of a token that their prompt shares, which is predicted as theirs"


class TextSource(TextFiles, RangedFiles):
    """Blocks of `block` tokens.

    Attributes:
        path: a file, or a folder, to any depth, of files taken by name: `*.txt`, or with `column` `*.parquet` and
            `*.jsonl`, each but Parquet compressed too.
        task: what is asked of a row.
        column: of documents; without it each file is one document.
        prompt: column of text that comes before a document and is not to be predicted.
        part: from which share to which, of each file's characters, or of its rows with `column`.
        block: tokens of a row.
        long_documents: what becomes of a document longer than a block.
        pack: several documents in a block.
        document_mask: none of which sees another: whole ones, or pieces of a split one, fill a row as far as they do.
    """

    kind: Literal["text"]
    task: Literal["language_model"] = LanguageModel.name
    column: str | None = None
    prompt: str | None = None
    block: Annotated[int, Field(ge=2, le=2**20, description=IF_NOT)]
    long_documents: Literal["refuse", "split"] = "refuse"
    pack: bool = True
    document_mask: bool = False

    _of_old: bool = PrivateAttr(default=False)  # of a cache from before texts were cut into ranges

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.column is None and (self.prompt is not None or kind_of(self.path) in TABLES):
            raise ValueError("name the `column` of documents")
        if self.column is None and (self.where is not None or self.domain is not None):
            raise ValueError("`where` and `domain` are of tables: name the `column` of documents too")
        if self.document_mask and not self.pack:
            raise ValueError("`document_mask` is of several documents in a row: leave `pack = false` out")
        return self

    @property
    def suffixes(self) -> tuple[str, ...]:  # type: ignore[override]  # of these options, not of the class
        """The ends of names that are taken from a folder."""
        return (".txt",) if self.column is None else TABLES

    def content(self) -> dict[str, Any]:
        keys = ("column", "prompt", "part", "block", "end_of_text", "long_documents", "pack")
        content = super().content() | {key: value for key, value in self.model_dump(mode="json").items() if key in keys}
        if self.document_mask:
            content |= {"document_mask": True}
        if self._of_old:
            return content
        # They were two texts to the tokenizer once: rows of that time are not to be mixed with these.
        together = {} if self.prompt is None else {"prompt_tokens": "of one text with the answer"}
        return content | RANGES | together

    def as_promised(self, content: Mapping[str, Any]) -> Self:
        if RANGES.items() <= content.items():
            return self
        copy = self.model_copy()
        copy._of_old = True  # noqa: SLF001 - its own
        return copy

    def paths(self) -> list[Path]:
        if self.column is not None and self.path.is_file() and kind_of(self.path) not in IN_RANGES:
            raise MissingSource(
                f"{self.path} has no documents that can be read in ranges",
                found=kind_of(self.path) or "a name without a suffix",
                expected=" or ".join(f"*{suffix}" for suffix in IN_RANGES),
                do=CONVERT.get(kind_of(self.path), "write one of these").format(self.path),
            )
        return super().paths()

    def prepared(self, tokenizer: bytes | None, recorded: Recorded) -> Self:
        copy = super().prepared(tokenizer, recorded)
        copy.bound.special(self.end_of_text)
        return copy

    def task_name(self) -> str:
        return self.task

    @property
    def by_ranges(self) -> bool:
        return not self._of_old

    @property
    def row_tokens(self) -> int:
        return self.block

    @property
    def refuses_long(self) -> bool:
        return self.long_documents == "refuse"

    def longest_row(self) -> int | None:
        return self.block if self.document_mask else None

    @property
    def packs(self) -> bool:
        return self.document_mask

    def known_input(self) -> tuple[tuple[int, ...], str]:
        # of what is cut wherever a block ends no document is too long, and one that cannot be read is set aside
        return super().known_input() if self.refuses_long and self.by_ranges else ((self.block,), "int32")

    def sizes(self, path: Path) -> Iterator[int | Unreadable]:
        for each in self._documents(self.ranges_of(path), *self.places_of(path), last=True):
            yield each if isinstance(each, Unreadable) else len(each.tokens)

    def too_many(self, found: Sequence[TooLong], looked_at: int) -> BadRequest:
        longest = max(each.size for each in found)
        return BadRequest(
            f"documents of {self.name} are longer than a block",
            found=f"{len(found)} of the first {looked_at}, such as\n{found[0]}",
            expected=f"at most block = {self.block}, but for max_quarantined = {self.max_quarantined:g} of them",
            do='long_documents = "split" cuts them'
            + ("" if self.column is None else f"; or block = {longest}, the longest here"),
        )

    def measure_per_row(self) -> int:
        if self._of_old:
            return 1
        if self.pack:
            return BYTES_PER_TOKEN * self.block
        # each document begins a row: as many as there are, or more where they are split
        largest = max(self.paths(), key=lambda path: path.stat().st_size)
        return max(1, min(self.ranges_of(largest).mean_document(), BYTES_PER_TOKEN * self.block))

    def planned(self, path: Path) -> int:
        return len(self._whole(path).inputs_SL) if self._of_old else super().planned(path)

    def class_names(self) -> list[str]:
        return []

    def read_range(self, file: str, start: int, stop: int, *, last: bool) -> Iterator[RawSample]:
        first, beyond = self.places(file, start, stop)
        documents = list(self._documents(self.ranges_of(self.at(file)), first, beyond, last=last))
        end_of_text = self.bound.special(self.end_of_text)
        split = self.long_documents == "split"
        if self.document_mask:
            yield from parted(documents, f"{file}:{start}", self.block, end_of_text=end_of_text, split=split)
            return
        blocks = pack(documents, self.block, end_of_text=end_of_text, split=split, together=self.pack)
        for i in range(len(blocks.inputs_SL)):
            yield RawSample(f"{file}:{start}:{i}", *_row(blocks, i))

    def read(self, file: str, position: int, rows: int) -> Iterator[RawSample]:
        """Yield the samples of a cache from before ranges."""
        blocks = self._whole(self.at(file))
        for i in range(position, min(position + rows, len(blocks.inputs_SL))):
            yield RawSample(f"{file}:{i}", *_row(blocks, i))

    def buffer_bytes(self) -> int:
        if not self._of_old:
            return super().buffer_bytes()
        return BYTES_PER_BYTE * max(path.stat().st_size for path in self.paths())

    def sample_texts(self, most: int) -> Iterator[str]:
        return sample_texts([(self.ranges_of(path), *self.part_of(path)) for path in self.paths()], most, self.seed)

    @property
    def _columns(self) -> Columns | None:
        if self.column is None:
            return None
        texts = (self.column,) if self.prompt is None else (self.column, self.prompt)
        return Columns(texts, where=self.rows_where)

    def ranges_of(self, path: Path) -> Ranges[Row]:
        return ranges_of(path, self._columns)

    def _whole(self, path: Path) -> Blocks:
        """Return the blocks of a file as a cache from before ranges has them."""
        begin, end = self.part
        split, end_of_text = self.long_documents == "split", self.bound.special(self.end_of_text)
        layout = Layout(self.name, self._columns, (begin, end), self.block, end_of_text, split, self.pack)
        return whole_blocks(layout, self.bound.data, path, LocalFile.of(path))

    def places(self, file: str, start: int, stop: int) -> tuple[int, int]:
        if self._is_uncut:  # all of it in the range that it begins in
            size = self.planned(self.at(file))
            start, stop = (0, size) if start == 0 else (size, size)
        return super().places(file, start, stop)

    @property
    def _is_uncut(self) -> bool:
        """Whether a file is one document that is not to be cut."""
        return self.column is None and self.refuses_long

    def _documents(self, ranges: Ranges[Row], start: int, stop: int, *, last: bool) -> Iterator[Document | Unreadable]:
        """Yield what lies between two places, in tokens."""
        if self.column is None:
            try:
                yield self._running(ranges, start, stop, last=last)
            except TooLong as reason:
                yield reason
            return
        for batch in batches_of(ranges.documents(start, stop)):
            spelled = iter(self._spelled([row for _, row in batch if isinstance(row, Row)]))
            for place, row in batch:
                if isinstance(row, Unreadable):
                    yield Unreadable(f"{ranges.where(place)}: {row}")
                    continue
                document = next(spelled)
                try:
                    self._check_length(len(document.tokens) + 1, ranges, place)
                except TooLong as reason:
                    yield reason
                else:
                    yield document

    def _running(self, ranges: Ranges[Row], start: int, stop: int, *, last: bool) -> Document:
        """Return running text as one document, to the end of its file or of this range. Raises TooLong."""
        encode = encoder(self.bound.data, parse_special=self.parses_special)
        tokens: list[np.ndarray] = []
        remarks: dict[str, None] = {}
        for _, row in ranges.documents(start, stop):
            assert isinstance(row, Row)
            remarks |= dict.fromkeys(self.remarks_of(row.texts[0]))
            tokens += encode(row.texts)
            if sum(map(len, tokens)) > 2 * self.block:  # of a long file, its first piece says enough
                self._check_length(sum(map(len, tokens)), ranges, start, exactly=False)
        whole = np.concatenate(tokens) if tokens else np.empty(0, np.int32)
        self._check_length(len(whole) + 1, ranges, start)
        return Document(whole, 0, tuple(remarks), ends=last or self._is_uncut)

    def _check_length(self, size: int, ranges: Ranges[Row], place: int, *, exactly: bool = True) -> None:
        """Raise TooLong if a document of a size, with its end-of-text token, is longer than a block may be."""
        if size > self.block and self.refuses_long:
            told = f"{'' if exactly else 'at least '}{size} tokens, end-of-text among them"
            raise TooLong(f"{ranges.where(place)}: has {told}, of block = {self.block} at most", size)

    def _spelled(self, rows: list[Row]) -> list[Document]:
        """Return documents in tokens, a prompt and its answer as one text, cut where the tokens of the prompt end."""
        prompts = ["" if self.prompt is None else row.texts[1] for row in rows]
        whole = [f"{prompt}{row.texts[0]}" for prompt, row in zip(prompts, rows, strict=True)]
        remarks = [self.remarks_of(text) for text in whole]
        if self.prompt is None:
            tokens = in_pieces(whole, encoder(self.bound.data, parse_special=self.parses_special))
            return [Document(*each) for each in zip(tokens, [0] * len(whole), remarks, strict=True)]
        documents = []
        spelled = spelled_in_pieces(whole, spelling(self.bound.data, parse_special=self.parses_special))
        for prompt, (ids, offsets), told in zip(prompts, spelled, remarks, strict=True):
            # those that reach beyond the prompt, from the first on
            answer = np.flatnonzero(offsets[:, 1] > len(prompt))
            num_prompt = 0 if not prompt else int(answer[0]) if len(answer) else len(ids)
            shared = 0 < num_prompt < len(ids) and offsets[num_prompt, 0] < len(prompt)
            documents.append(Document(ids, num_prompt, (*told, SHARED) if shared else told))
        return documents


def _row(blocks: Blocks, number: int) -> tuple[np.ndarray | Unreadable, None, tuple[str, ...]]:
    """Return payload, label and remarks of a block: (2, L), tokens and what each is to predict."""
    pair_2L = np.stack([blocks.inputs_SL[number], blocks.labels_SL[number]])
    return blocks.unreadable.get(number) or pair_2L, None, blocks.remarks.get(number, ())
