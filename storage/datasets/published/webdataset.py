"""The kind `webdataset` of a job: tars of pictures, each with its class in a member of the same key."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import polars as pl
from pydantic import Field, PrivateAttr, model_validator

from storage.datasets.base import FILE_SCHEMA, LocalFile, RawSample, Recorded, Unreadable
from storage.datasets.images import ImageSource
from storage.datasets.listing import told
from storage.datasets.published.tar_names import find_tars, left_out, root_of
from storage.datasets.published.tars import EVERY, TarSample, Walk, places_of
from storage.errors import BadRequest, LabelOutOfRange, MissingSource
from storage.format.stores.mirror import SourcePath

MOST_IMAGE_BYTES = 2**28
MOST_LABEL_BYTES = 2**20
LOOKED_AT = 1000  # samples, for what their labels are

Suffix = Annotated[str, Field(pattern=r"^[a-z0-9_][a-z0-9_.]*$")]


class WebDatasetSource(ImageSource):
    """Samples of tars: a picture, and its class.

    Attributes:
        path: a tar; a folder of them, to any depth; or a pattern such as `shard-{000000..000012}.tar`.
        images: what follows the key of a picture.
        label: what follows the key of its class: a number, its place in `classes`, or its name; "" for none.
        label_key: of JSON, the key that has it.
        classes: the names, in the order of the numbers: nothing in a tar says them.
    """

    kind: Literal["webdataset"]
    path: SourcePath
    images: Annotated[list[Suffix], Field(min_length=1)] = Field(default=["jpg", "jpeg", "png", "webp"])
    label: Suffix | Literal[""] = "cls"
    label_key: str | None = None

    _recorded: Recorded = PrivateAttr(default={})
    _passed: Counter[str] = PrivateAttr(default_factory=Counter)  # of the tars that were counted

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if (self.label_key is None) == self._in_json:
            raise ValueError('`label_key` is the key of a label in JSON: give it with label = "json", and only then')
        if self.label in self.images:
            raise ValueError(f"`label` and `images` are both *.{self.label}")
        return self

    def content(self) -> dict[str, Any]:
        said = {} if self.label_key is None else {"label_key": self.label_key}
        return super().content() | {"images": self.images, "label": self.label} | said

    def prepared(self, tokenizer: bytes | None, recorded: Recorded) -> Self:
        copy = self.model_copy()
        copy._recorded, copy._passed = recorded, Counter()  # noqa: SLF001 - its own
        return copy

    def files(self) -> pl.DataFrame:
        root, names = self._tars()
        rows = []
        for name in names:
            file, known = LocalFile.of(root / name), self._recorded.get(name)
            if known is not None and (known.size, known.version) == file:
                rows.append((name, *file, known.rows))
                continue
            counted = places_of(root / name).count()
            self._passed.update(counted.passed_over)
            rows.append((name, *file, counted.rows))
        return pl.DataFrame(rows, schema=FILE_SCHEMA, orient="row")

    def look_at(self, file: str) -> LocalFile:
        return LocalFile.of(self._root / file)

    def class_names(self) -> list[str]:
        if self.classes is None and self.label:
            raise BadRequest(
                f"dataset {self.name} does not say what its classes are called",
                found=f"*.{self.label} with {self._labels_seen()}",
                expected="`classes`, in the order of their numbers: nothing in a tar names them",
                do='classes = ["…", …]; or label = "", for pictures without labels',
            )
        return self.classes or []

    def notes(self) -> list[str]:
        notes = left_out(self.path, self._recorded)
        return [*notes, *([f"passed over in tars: {passed}"] if (passed := told(self._passed)) else [])]

    def read(self, file: str, position: int, rows: int) -> Iterator[RawSample]:
        numbers = {name: number for number, name in enumerate(self.classes or ())}
        for walk, sample in places_of(self._root / file).samples(position, rows):
            sample_id = f"{file}/{sample.key}"
            if not sample_id.isprintable():  # surrogates stand for bytes that are not UTF-8, which no table can hold
                raise MissingSource(
                    f"a name in {file} is not printable UTF-8", found=repr(sample.key), do="write the tar anew"
                )
            yield self._sample(walk, sample, sample_id, numbers)

    def runs(self, file: str, position: int, rows: int) -> list[int]:
        """Return the rows between two places that are kept: to get to one, all before it are passed by."""
        cuts = [position, *range((position // EVERY + 1) * EVERY, position + rows, EVERY), position + rows]
        return [stop - start for start, stop in pairwise(cuts)]

    def _sample(self, walk: Walk, sample: TarSample, sample_id: str, numbers: dict[str, int]) -> RawSample:
        try:
            label = self._number(walk, sample, sample_id, numbers) if self.label else None
            return RawSample(sample_id, self._picture(walk, sample), label)
        except Unreadable as reason:
            return RawSample(sample_id, reason, None)

    def _picture(self, walk: Walk, sample: TarSample) -> bytes:
        """Return the bytes of the picture. Raises Unreadable: there is none, or several."""
        kinds = [kind for kind in self.images if kind in sample.members]
        if len(kinds) != 1:
            has = ", ".join(f"*.{kind}" for kind in kinds or sample.members)
            raise Unreadable(f"has {'several pictures' if kinds else 'no picture'}: {has}")
        if (size := sample.members[kinds[0]].size) > MOST_IMAGE_BYTES:
            raise Unreadable(f"has a picture of {size:,} bytes")
        return walk.bytes_of(sample.members[kinds[0]]) or _none("has a picture of 0 bytes")

    def _number(self, walk: Walk, sample: TarSample, sample_id: str, numbers: dict[str, int]) -> int:
        """Return the number of a sample's class.

        Raises:
            Unreadable: there is none.
            LabelOutOfRange: it is no class, or could be two.
        """
        label = self._label(walk, sample)
        number = int(label) if re.fullmatch(r"-?\d{1,18}", label) else None
        named = numbers.get(label)
        if number is None and named is None:
            raise LabelOutOfRange(
                f"sample {sample_id} has a label that is no class",
                found=repr(label),
                expected=", ".join(numbers) + "; or the number of one",
                do="name it in `classes`, or mend it",
            )
        if None not in (number, named) and number != named:
            raise LabelOutOfRange(
                f"sample {sample_id} has a label that is the number of one class and the name of another",
                found=repr(label),
                expected=f"class {number} by number, class {named} by name",
                do="call the classes otherwise: numbers go by their place in `classes`",
            )
        return int(named if number is None else number)  # type: ignore[arg-type]  # one of them is there

    def _label(self, walk: Walk, sample: TarSample) -> str:
        """Return what is written as a sample's class. Raises Unreadable: nothing is."""
        member = sample.members.get(self.label)
        if member is None:
            has = ", ".join(f"*.{kind}" for kind in sample.members)
            raise Unreadable(f"has no *.{self.label}; it has {has}")
        if member.size > MOST_LABEL_BYTES:
            raise Unreadable(f"has a *.{self.label} of {member.size:,} bytes")
        try:
            text = walk.bytes_of(member).decode()
            if self._in_json:
                value = json.loads(text)
                found = value.get(self.label_key) if isinstance(value, dict) else None
                if isinstance(found, bool) or not isinstance(found, int | str):
                    told_as = f"is {json.dumps(found)[:40]}" if found is not None else "is not there"
                    raise Unreadable(f"has a *.{self.label} whose {self.label_key} {told_as}")
                text = str(found)
        except (ValueError, RecursionError) as error:
            raise Unreadable(f"has a *.{self.label} that cannot be read: {error}") from None
        return text.strip() or _none(f"has a *.{self.label} of nothing")

    @property
    def _in_json(self) -> bool:
        return self.label.rpartition(".")[2] == "json"

    def _labels_seen(self) -> str:
        """Return the labels of the first samples, in words."""
        root, names = self._tars()
        found: set[str] = set()
        for walk, sample in islice((each for n in names for each in places_of(root / n).samples(0, 2**62)), LOOKED_AT):
            try:
                found.add(self._label(walk, sample))
            except Unreadable:
                continue
        if found and all(label.isdecimal() for label in found):
            return f"numbers up to {max(map(int, found))}"
        return ", ".join(sorted(found)[:10]) or "nothing in the first samples"

    @property
    def _root(self) -> Path:
        return root_of(self.path)

    def _tars(self) -> tuple[Path, list[str]]:
        """Return a folder, and the names of the tars below it, in order. Raises MissingSource: some are not there."""
        return find_tars(self.path, self._recorded)


def _none(reason: str) -> Any:
    raise Unreadable(reason)
