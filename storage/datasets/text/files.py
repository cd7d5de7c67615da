"""What all text has: files, taken by name, to any depth, and a tokenizer, given, learned or another dataset's."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, PrivateAttr, model_validator

from storage.datasets.arrow import instead, several_splits
from storage.datasets.base import Density, LocalFile, Recorded, Source, TokenFacts
from storage.datasets.listing import lacking, list_files, passed_over
from storage.datasets.text.density import measure_density
from storage.datasets.text.reading.opening import compressed
from storage.datasets.text.reading.where import Where
from storage.errors import MissingSource
from storage.format.stores.mirror import SourcePath
from storage.language.tokenizer import TokenizerFile, parse_tokenizer, read_tokenizer, train_tokenizer
from storage.options import JobPath, Name, Options, is_name

SAMPLE_MB = 64
# At the peak of tokenising, a piece of text and what a line has more; measured on English in 1,024 tokens: 148 for each
# byte, most of it the library's own.
BUFFER_BYTES = 256 * 2**20


Domains = Annotated[list[str], Field(min_length=1)] | Annotated[dict[str, str], Field(min_length=1)]
_LEARNED: dict[tuple[object, ...], bytes] = {}  # the last one: datasets of one table learn it once


class TrainTokenizer(Options):
    """A byte-level BPE learned from the dataset's own text, once."""

    vocabulary: Annotated[int, Field(ge=257, le=2**20)]  # 256 bytes and the end-of-text token at least
    sample_mb: Annotated[int, Field(ge=1, le=4096)] = SAMPLE_MB  # of a text that is larger, drawn by the dataset's seed

    def content(self) -> dict[str, int]:
        """Return what decides the tokenizer, as JSON; the sample where it is not as it always is."""
        return {name: value for name, value in self if (name, value) != ("sample_mb", SAMPLE_MB)}


class TokenisedFiles(Source):
    """Files of text, and a tokenizer that makes ids of it.

    Attributes:
        path: a file, or a folder of files, to any depth, taken by name.
        part: from which share to which, of each file's characters, or of its rows.
        where: column = what is written there, of the rows that are this dataset's; others are another's.
        domain: a column by which this section is several datasets, one for each of
        domains: what is written there; or what is written there = the end of its dataset's name.
    """

    path: SourcePath
    part: Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=2, max_length=2)] = Field(
        default=[0.0, 1.0]
    )
    where: Annotated[dict[str, str], Field(min_length=1)] | None = None
    domain: str | None = None
    domains: Domains | None = None

    _tokenizer: TokenizerFile | None = PrivateAttr(default=None)
    _recorded: Recorded = PrivateAttr(default={})
    _densities: list[Density | None] = PrivateAttr(default_factory=list)  # once it was measured

    suffixes: ClassVar[tuple[str, ...]]  # of the files that are taken from a folder

    @model_validator(mode="after")
    def _a_part(self) -> Self:
        if self.part[0] >= self.part[1]:
            raise ValueError("`part` goes from a smaller share to a larger")
        if (self.domain is None) != (self.domains is None):
            raise ValueError("`domain` is a column and `domains` what is written there: give both, or neither")
        for source in self.by_domain():
            if not is_name(source.name):
                raise ValueError(
                    f"`domains` makes a dataset {source.name!r}, which is no name of a folder: write "
                    'domains = { "what is written there" = "end-of-a-name" }'
                )
        return self

    def content(self) -> dict[str, Any]:
        # said where there is something to say: which rows those are is not decided by who else there is
        return super().content() | ({} if self.where is None else {"where": self.where})

    def by_domain(self) -> list[Self]:
        if self.domain is None or self.domain in (self.where or {}):
            return [self]
        ends = self.domains if isinstance(self.domains, dict) else {value: value for value in self.domains or ()}
        return [
            self.model_copy(update={"name": f"{self.name}-{end}", "where": {**(self.where or {}), self.domain: value}})
            for value, end in ends.items()
        ]

    @property
    def rows_where(self) -> Where:
        """Which rows of its tables are its own."""
        return Where(tuple((self.where or {}).items()), self.domain, tuple(self.domains or ()))

    def everywhere(self) -> Self:
        """Return the source of all rows of its tables, whatever dataset they are of."""
        return self.model_copy(update={"where": None, "domain": None, "domains": None})

    def look_at(self, file: str) -> LocalFile:
        return LocalFile.of(self.at(file))

    def prepared(self, tokenizer: bytes | None, recorded: Recorded) -> Self:
        assert tokenizer is not None
        copy = self.model_copy()
        copy._tokenizer = parse_tokenizer(tokenizer, f"the tokenizer of {self.name}")  # noqa: SLF001 - its own
        copy._recorded = recorded  # noqa: SLF001
        copy._densities = []  # noqa: SLF001 - not that of another tokenizer
        return copy

    def density(self) -> Density | None:
        if not self._densities:
            self._densities.append(measure_density(self) if self.by_ranges else None)
        return self._densities[0]

    def notes(self) -> list[str]:
        elsewhere = [] if self.where is None else [f"rows of another {' or '.join(self.where)} are not of this dataset"]
        return [*self.passed_over(), *elsewhere]

    def passed_over(self) -> list[str]:
        """Return a note on what of a folder is none of its files."""
        paths, passed = self.paths(), passed_over(self.path, compressed(self.suffixes), deep=True)
        return [*passed, *several_splits(paths), *lacking(self.path, paths)]

    def tokenizer_file(self) -> TokenizerFile:
        return self.bound

    def tokens(self) -> TokenFacts:
        return TokenFacts(self.bound.vocabulary, self.bound.fingerprint)

    def buffer_bytes(self) -> int:
        return BUFFER_BYTES

    @property
    def bound(self) -> TokenizerFile:
        """The tokenizer of a prepared source."""
        assert self._tokenizer is not None, "a source of text is prepared first"
        return self._tokenizer

    def recorded_rows(self, path: Path) -> int | None:
        """Return the rows of a file, if a cache has counted them and it is as it was then."""
        known = self._recorded.get(self.file_of(path))
        return known.rows if known is not None and (known.size, known.version) == LocalFile.of(path) else None

    def at(self, file: str) -> Path:
        """Return where a file lies."""
        return self.path / file if self.path.is_dir() else self.path

    def file_of(self, path: Path) -> str:
        """Return what a file is called in a plan: its path below the folder."""
        return path.relative_to(self.path).as_posix() if self.path.is_dir() else path.name

    def paths(self) -> list[Path]:
        """Return the files by name. Raises MissingSource: there are none."""
        if not self.path.is_dir():
            LocalFile.of(self.path)  # raises if there is none
            return [self.path]
        known = {path for name in self._recorded if (path := self.path / name).is_file()}  # a row stays a row
        paths = sorted({*list_files(self.path, compressed(self.suffixes)).files, *known})
        if not paths:
            wanted = " or ".join(f"*{suffix}" for suffix in self.suffixes)
            raise MissingSource(f"{self.path} holds no {wanted} file", do=instead(self.path))
        for path in paths:
            if not (name := self.file_of(path)).isprintable():  # surrogates stand for what is no UTF-8, nor for a table
                raise MissingSource(
                    f"a file name in {self.path} is not printable UTF-8", found=repr(name), do="rename the file"
                )
        return paths


class TextFiles(TokenisedFiles):
    """Text in files, and the tokenizer that makes ids of it.

    Attributes:
        tokenizer: a `tokenizer.json`,
        train_tokenizer: or one to learn from this text,
        tokenizer_of: or that of another dataset of the cache.
        end_of_text: the token between documents.
        special_tokens: what the name of a special token in a text is: spelled out, or parsed as that token.
    """

    tokenizer: JobPath | None = None
    train_tokenizer: TrainTokenizer | None = None
    tokenizer_of: Name | None = None
    end_of_text: Annotated[str, Field(min_length=1)] = "<|endoftext|>"
    special_tokens: Literal["spelled", "parsed"] = "spelled"

    @model_validator(mode="after")
    def _one_tokenizer(self) -> Self:
        if sum(given is not None for given in (self.tokenizer, self.train_tokenizer, self.tokenizer_of)) != 1:
            raise ValueError("give one of `tokenizer`, `train_tokenizer` and `tokenizer_of`")
        return self

    def content(self) -> dict[str, Any]:
        learned = None if self.train_tokenizer is None else self.train_tokenizer.content()
        # said where it is not as it always was
        special = {"special_tokens": self.special_tokens} if self.parses_special else {}
        return super().content() | {"train_tokenizer": learned} | special

    @property
    def parses_special(self) -> bool:
        """Whether the name of a special token in a text is that token."""
        return self.special_tokens == "parsed"

    def remarks_of(self, text: str) -> tuple[str, ...]:
        """Return what is to be told of a text: the special tokens whose names are spelled out in it."""
        if self.parses_special or (pattern := _any_of(self.bound.specials)) is None:
            return ()
        named = sorted(set(pattern.findall(text)))
        return tuple(f'texts spell out {name}, which special_tokens = "parsed" makes a special token' for name in named)

    def sample_texts(self, most: int) -> Iterator[str]:
        """Yield texts to learn a tokenizer from, those that can be read: all, or about `most` bytes by the seed."""
        raise NotImplementedError

    def _learned(self, options: TrainTokenizer) -> bytes:
        """Return a tokenizer of all rows, whatever dataset of its tables they are of: so all of them have the same."""
        whole = self.everywhere().model_copy(update={"name": "any"})
        key = (whole.model_dump_json(), *((path, LocalFile.of(path)) for path in self.paths()))
        if key not in _LEARNED:
            learned = train_tokenizer(
                whole.sample_texts(options.sample_mb * 2**20), options.vocabulary, self.end_of_text
            )
            _LEARNED.clear()
            _LEARNED[key] = learned
        return _LEARNED[key]

    def find_tokenizer(self, of: Callable[[str], bytes | None]) -> bytes:
        if self.tokenizer is not None:
            return read_tokenizer(self.tokenizer).data
        taken = self.tokenizer_of or self.name
        # first: one that was learned is learned once
        if (data := of(taken)) is not None:
            return data
        if self.train_tokenizer is not None:
            return self._learned(self.train_tokenizer)
        raise MissingSource(
            f"dataset {self.name} wants the tokenizer of {taken}",
            found="no such dataset of text in the cache, nor above it in the job",
            do=f"put [[dataset]] {taken} before {self.name}",
        )


@lru_cache(maxsize=4)
def _any_of(names: tuple[str, ...]) -> re.Pattern[str] | None:
    """Return a pattern of any of some names, longer ones first; None if there are none."""
    return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True)))) if names else None
