"""The kind `chat` of a job: chats in JSON lines or Parquet, a row each."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

import numpy as np
from pydantic import Field, PrivateAttr, model_validator

from storage.datasets.base import RawSample, Unreadable
from storage.datasets.chat.answers import Answers, find_answers
from storage.datasets.chat.cutting import first_that_fits, shorter
from storage.datasets.chat.reading import Chat, ChatColumns, Role
from storage.datasets.chat.template import ChatTemplate, Renderer, read_template
from storage.datasets.text.blocks import BYTES_PER_TOKEN
from storage.datasets.text.ranged import RangedFiles, TooLong
from storage.datasets.text.reading.cutting import PIECE
from storage.datasets.text.reading.opening import compressed, kind_of
from storage.datasets.text.reading.ranges import Ranges, table_of
from storage.datasets.text.reading.rows import IN_COLUMNS
from storage.datasets.text.tokenising import spelled_in_pieces
from storage.errors import BadRequest, MissingSource
from storage.language.tokenizer import Spelled, read_tokenizer, spelling
from storage.options import JobPath
from storage.tasks import NO_LABEL
from storage.tasks.language_model import LanguageModel

PRINTS_DATE = "strftime_now"  # what a template calls
SHARED = "chats with an answer that begins or ends in the middle of a token, which is predicted as its own"
SPOKEN = "chats that spell out {}, which is that special token to the tokenizer"
CUT = "chats longer than `length`, cut at a turn from the {}"


class ChatSource(RangedFiles):
    """Chats of up to `length` tokens, at their own length; the tokens of the assistant's turns are to be predicted.

    Attributes:
        path: a `.jsonl` or `.parquet` file, or a folder, to any depth, of such files; JSON lines compressed too.
        column: of messages; by default `messages`, `conversations`, or `prompt` and `completion`, if there is one.
        prompt, completion: columns of these, under other names.
        roles: what is written for a role = the role, where that is not known.
        tokenizer: a folder with `tokenizer.json` and a chat template, as `save_pretrained` writes it.
        template: a file in Jinja, in place of the folder's.
        template_arguments: what else the template is told, such as { enable_thinking = false }.
        date: that the template prints; by default the day on which the dataset was first built.
        length: tokens of a row at most.
        long_chats: what becomes of a longer one.
        pack: several chats in a row of up to `length` tokens, of which none sees another.
    """

    kind: Literal["chat"]
    column: str | None = None
    prompt: str | None = None
    completion: str | None = None
    roles: dict[str, Role] = Field(default={})
    tokenizer: JobPath
    template: JobPath | None = None
    template_arguments: dict[str, bool | int | float | str] = Field(default={})
    date: Annotated[datetime.date, Field(strict=False)] | None = None
    length: Annotated[int, Field(ge=2, le=2**20)]
    long_chats: Literal["refuse", "cut_front", "cut_back"] = "refuse"
    pack: bool = False

    _promised: Mapping[str, Any] = PrivateAttr(default={})

    suffixes = (".jsonl", ".parquet")

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if (self.prompt is None) != (self.completion is None):
            raise ValueError("`prompt` and `completion` name two columns that are one chat: give both, or neither")
        if self.column is not None and self.prompt is not None:
            raise ValueError("`column` is of whole chats: give it, or `prompt` and `completion`")
        return self

    def content(self) -> dict[str, Any]:
        keys = ("part", "column", "prompt", "completion", "roles", "template_arguments", "length", "long_chats")
        value = self.model_dump(mode="json")
        prints_date = self._template.reads(PRINTS_DATE)
        if self.date is not None and not prints_date:
            raise BadRequest(
                f"dataset {self.name} has a date that nothing prints",
                found=f"date = {self.date}, and no {PRINTS_DATE} in {self._template.path}",
                do="leave `date` out",
            )
        date = {"date": str(self._date)} if prints_date else {}
        packed = {"pack": True} if self.pack else {}  # said where it is not as it always was
        content = super().content() | {key: value[key] for key in keys}
        return content | {"template": self._template.digest} | date | packed

    def as_promised(self, content: Mapping[str, Any]) -> Self:
        copy = self.model_copy()
        copy._promised = dict(content)  # noqa: SLF001 - its own
        return copy

    def find_tokenizer(self, of: Callable[[str], bytes | None]) -> bytes:
        return read_tokenizer(self.tokenizer).data

    def task_name(self) -> str:
        return LanguageModel.name

    def class_names(self) -> list[str]:
        return []

    def longest_row(self) -> int:
        return self.length

    @property
    def row_tokens(self) -> int:
        return self.length

    @property
    def refuses_long(self) -> bool:
        return self.long_chats == "refuse"

    def sizes(self, path: Path) -> Iterator[int | Unreadable]:
        for sample in self._samples(path.name, self.ranges_of(path), *self.places_of(path)):
            yield sample.payload if isinstance(sample.payload, Unreadable) else len(self.decode(sample.payload))

    def too_many(self, found: Sequence[TooLong], looked_at: int) -> BadRequest:
        longest = max(each.size for each in found)
        return BadRequest(
            f"chats of {self.name} are longer than a row may be",
            found=f"{len(found)} of the first {looked_at}, such as\n{found[0]}",
            expected=f"at most length = {self.length}, but for max_quarantined = {self.max_quarantined:g} of them",
            do=f'long_chats = "cut_front" or "cut_back" cuts them at a turn; or length = {longest}, the longest here',
        )

    @property
    def packs(self) -> bool:
        return self.pack

    def measure_per_row(self) -> int:
        if self.pack:
            return BYTES_PER_TOKEN * self.length
        largest = max(self.paths(), key=lambda path: path.stat().st_size)
        return self.ranges_of(largest).mean_document()

    def paths(self) -> list[Path]:
        if self.path.is_file() and kind_of(self.path) not in self.suffixes:
            raise MissingSource(
                f"{self.path} is no table of chats",
                found=kind_of(self.path) or "a name without a suffix",
                expected=", ".join(f"*{suffix}" for suffix in compressed(self.suffixes)),
                do=f"jq -c '.[]' {self.path.name} > {self.path.stem}.jsonl    # of a list in JSON"
                if kind_of(self.path) == ".json"
                else None,
            )
        return super().paths()

    def notes(self) -> list[str]:
        printed = (
            f"the chat template prints the date, in this dataset {self._date} for good; another is `date` in the job"
        )
        return [*super().notes(), *([printed] if self.date is None and self._template.reads(PRINTS_DATE) else [])]

    def read_range(self, file: str, start: int, stop: int, *, last: bool) -> Iterator[RawSample]:
        ranges, (first, beyond) = self.ranges_of(self.at(file)), self.places(file, start, stop)
        yield from self._samples(file, ranges, first, beyond)

    @property
    def _template(self) -> ChatTemplate:
        return read_template(self.tokenizer, self.template)

    @property
    def _date(self) -> datetime.date:
        promised = self._promised.get("date")
        return self.date or (today() if promised is None else datetime.date.fromisoformat(promised))

    @property
    def _renderer(self) -> Renderer:
        template = self._template
        if (promised := self._promised.get("template")) not in (None, template.digest):
            raise MissingSource(
                f"the chat template of dataset {self.name} changed during the build",
                found=f"digest {template.digest}  ({template.path})",
                expected=f"digest {promised}, as when the build began",
                do="leave it alone while it is read, then run the same command again",
            )
        return Renderer(template, self._date, json.dumps(self.template_arguments, sort_keys=True))

    def ranges_of(self, path: Path) -> Ranges[Chat]:
        in_columns = kind_of(path) in IN_COLUMNS
        roles = tuple(sorted(self.roles.items()))
        columns = ChatColumns(self.column, self.prompt, self.completion, roles, not in_columns, self.rows_where)
        return table_of(path, columns)

    def _samples(self, file: str, ranges: Ranges[Chat], start: int, stop: int) -> Iterator[RawSample]:
        """Yield the chats between two places, each with its place as its number."""
        maker = _Maker(self._renderer, self.bound.data, self.bound.specials)
        for batch in _batches(ranges.documents(start, stop), maker):
            spelled = iter(maker.spell([answers for _, _, answers in batch if isinstance(answers, Answers)]))
            for place, chat, answers in batch:
                sample_id = f"{file}:{place}"
                try:
                    if isinstance(answers, Unreadable):
                        raise answers
                    assert isinstance(chat, Chat)
                    made = self._fitted(maker, chat, next(spelled), ranges, place)
                except Unreadable as reason:
                    yield RawSample(sample_id, _placed(reason, ranges.where(place)), None)
                else:
                    yield RawSample(sample_id, made.pair_2L, None, made.remarks)

    def _fitted(self, maker: _Maker, chat: Chat, made: _Made, ranges: Ranges[Chat], place: int) -> _Made:
        """Return a chat as it is, or cut. Raises Unreadable: nothing is left of it, or it is not to be cut."""
        if (size := made.pair_2L.shape[1]) <= self.length:
            return made.checked()
        if self.long_chats == "refuse":
            raise TooLong(f"has {size} tokens, of length = {self.length} at most; `long_chats` may cut it", size)
        left = first_that_fits(
            shorter(chat, self.long_chats), maker.make, lambda each: each.pair_2L.shape[1], self.length
        )
        if left is None:
            raise Unreadable(f"has {size} tokens, of length = {self.length} at most, and no answer when it is cut")
        told = CUT.format("front" if self.long_chats == "cut_front" else "back")
        return left.checked()._replace(remarks=(*left.remarks, told))


def _placed(reason: Unreadable, where: str) -> Unreadable:
    told = f"{where}: {reason}"
    return TooLong(told, reason.size) if isinstance(reason, TooLong) else Unreadable(told)


class _Made(NamedTuple):
    """A row.

    Attributes:
        pair_2L: int32, tokens and what each is to predict.
        remarks: what is to be told of it.
    """

    pair_2L: np.ndarray
    remarks: tuple[str, ...]

    def checked(self) -> _Made:
        """Return it. Raises Unreadable: no token of it is to be predicted."""
        if (self.pair_2L[1] == NO_LABEL).all():
            raise Unreadable("has no token that is to be predicted")
        return self


class _Maker:
    """Makes rows of chats by one template and one tokenizer."""

    def __init__(self, renderer: Renderer, tokenizer: bytes, specials: tuple[str, ...]):
        self._renderer, self._specials = renderer, specials
        self._spell = spelling(tokenizer, parse_special=True)  # as transformers has it: a template's text has them

    def answers(self, chat: Chat) -> Answers:
        found = find_answers(chat, self._renderer, self._specials)
        said = "".join(str(message.get("content") or "") for message in chat.messages)
        spoken = [SPOKEN.format(name) for name in self._specials if name in said]
        return found._replace(remarks=(*chat.remarks, *found.remarks, *spoken))

    def spell(self, chats: list[Answers]) -> list[_Made]:
        spelled = spelled_in_pieces([answers.text for answers in chats], self._spell)
        return [_row(*both) for both in zip(chats, spelled, strict=True)]

    def make(self, chat: Chat) -> _Made:
        return self.spell([self.answers(chat)])[0]


def _row(answers: Answers, spelled: Spelled) -> _Made:
    """Return the tokens of a chat, and the next one where that is of an answer, of which a part is enough."""
    ids, offsets = spelled
    is_answer, shared = np.zeros(len(ids), np.bool_), False
    for start, stop in answers.spans:
        within = (offsets[:, 0] < stop) & (offsets[:, 1] > start)
        shared |= bool((within & ((offsets[:, 0] < start) | (offsets[:, 1] > stop))).any())
        is_answer |= within
    labels = np.full(len(ids), NO_LABEL, np.int32)
    labels[:-1] = np.where(is_answer[1:], ids[1:], NO_LABEL)
    return _Made(np.stack([ids, labels]), (*answers.remarks, SHARED) if shared else answers.remarks)


Found = tuple[int, "Chat | Unreadable", "Answers | Unreadable"]


def _batches(chats: Iterator[tuple[int, Chat | Unreadable]], maker: _Maker) -> Iterator[list[Found]]:
    """Yield chats as text, in batches of up to PIECE characters, and the last of each whole."""
    batch: list[Found] = []
    size = 0
    for place, chat in chats:
        answers: Answers | Unreadable
        try:
            answers = chat if isinstance(chat, Unreadable) else maker.answers(chat)
        except Unreadable as reason:
            answers = reason
        batch.append((place, chat, answers))
        size += len(answers.text) if isinstance(answers, Answers) else 0
        if size >= PIECE:
            yield batch
            batch, size = [], 0
    yield batch


def today() -> datetime.date:
    """Return the day on which a dataset is first built; what it prints in a chat is promised from then on."""
    return _today()


@lru_cache(maxsize=1)
def _today() -> datetime.date:
    # once in each process, or a build at midnight would promise one day and render another
    return datetime.datetime.now().astimezone().date()
