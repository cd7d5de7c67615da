"""Where a student fails and the teacher does not: the images, or the text, of those rows.

A shard is read for each image that is shown, so galleries share MOST_SHARDS of them, whatever the size of the cache.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import numpy as np
import polars as pl
from PIL import Image

from storage.cache import Cache
from storage.errors import StillroomError
from storage.inputs import inputs_of
from storage.language.tokenizer import decoder
from student_train.run_files.predictions import HeldTable
from student_train.tasks import ReportFacts
from student_train.tasks.held import DATASET

MOST_SHARDS = 16  # for all galleries together
THUMBNAIL_PIXELS = 112  # larger images are made smaller; smaller ones are scaled up by the browser
CONTEXT_TOKENS = 40  # up to a mistake, itself included
MOST_TOKENS = 80  # of a text that is shown


@dataclass(frozen=True)
class Card:
    """One row, or position, that a student gets wrong.

    Attributes:
        sample_id: of the row.
        label, teacher, student: what it is, and what they say; names of classes, or tokens as text.
        teacher_probability, student_probability: of what they say; None: unknown.
        picture: a PNG as a data URI; None of what is no image, or without the cache.
        context: the text before the token in question, or that of the row; None of what is no text.
        note: a line more.
    """

    sample_id: str
    label: str
    teacher: str
    student: str
    teacher_probability: float | None = None
    student_probability: float | None = None
    picture: str | None = None
    context: str | None = None
    note: str | None = None

    @property
    def is_wrong(self) -> bool:
        """Whether the student is; of rows that most students get wrong, the best may get some right."""
        return self.student != self.label


@dataclass
class Shower:
    """Shows held rows, from the cache if it is at hand.

    Attributes:
        cache: None: it cannot be opened, and rows are named only.
        datasets: of the rows, whose classes and tokenizer are alike.
        task: what there is to show of what is asked of them.
        left_out: why something is not shown, each reason once.
    """

    cache: Cache | None
    datasets: Sequence[str]
    task: ReportFacts
    left_out: dict[str, None] = field(default_factory=dict)
    _pictures: dict[int, str | None] = field(default_factory=dict)
    _shards: set[tuple[str, int]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._classes: list[str] = []
        self._decode: Callable[[Sequence[int]], str] | None = None
        self._texts: dict[int, str | None] = {}
        if self.cache is None:
            return
        self._classes = self.cache.dataset(self.datasets[0]).classes
        if self.task.mistakes == "pictures":
            return
        try:
            tokenizer = self.cache.tokenizer(self.datasets[0])
            self._decode = None if tokenizer is None else decoder(tokenizer.data)
        except StillroomError as error:  # the library is an extra
            self.left_out[f"text is shown as token ids: {error.what}"] = None

    def class_name(self, number: int | None) -> str:
        """Return the name of a class; of tokens, the token as text with its spaces to be seen."""
        if number is None:
            return "–"
        if self._decode is not None and self.task.token_classes:
            return visible(self._decode([number]))
        return self._classes[number] if 0 <= number < len(self._classes) else f"{number}"

    def cards(self, failed: pl.DataFrame, held: HeldTable, most: int) -> list[Card]:
        """Return cards of the first of `failed`."""
        return CARDS[self.task.mistakes](self, failed, held, most)

    def contexts(self, failed: pl.DataFrame, held: HeldTable, most: int) -> list[Card]:
        """Return cards with the text before each; one of each block and of each label, or it would be one mistake."""
        failed = failed.unique("label", keep="first", maintain_order=True)
        failed = failed.unique("position", keep="first", maintain_order=True)
        return [self._card(row, context=self._context(held.table, row)) for row in failed.head(most).to_dicts()]

    def pictures(self, failed: pl.DataFrame, held: HeldTable, most: int) -> list[Card]:
        """Return cards with pictures, as far as shards may be read."""
        chosen = self._chosen(failed, most)
        self._read(chosen, "images", self._pictures, picture_of)
        return [self._card(row, picture=self._pictures.get(row["position"])) for row in chosen]

    def texts(self, failed: pl.DataFrame, held: HeldTable, most: int) -> list[Card]:
        """Return cards with the text of each row, as far as shards may be read."""
        chosen = self._chosen(failed, most)
        self._read(chosen, "texts", self._texts, self._spelled)
        return [self._card(row, context=self._texts.get(row["position"])) for row in chosen]

    def _chosen(self, failed: pl.DataFrame, most: int) -> list[dict[str, Any]]:
        """Return the first rows whose shards may be read."""
        chosen: list[dict[str, Any]] = []
        for row in failed.to_dicts():
            if len(chosen) == most:
                break
            if (shard := self._shard(row)) in self._shards or len(self._shards) < MOST_SHARDS:
                self._shards.add(shard)
                chosen.append(row)
        return chosen

    def _shard(self, row: dict[str, Any]) -> tuple[str, int]:
        """Return the dataset of a row and its shard."""
        return row.get(DATASET, self.datasets[0]), row["shard"]

    def _card(self, row: dict[str, Any], *, picture: str | None = None, context: str | None = None) -> Card:
        return Card(
            sample_id=row["sample_id"] or f"row {row['row']}",
            label=self.class_name(row["label"]),
            teacher=self.class_name(row["teacher_top"]),
            student=self.class_name(row["top"]),
            teacher_probability=row["teacher_top_probability"],
            student_probability=row["top_probability"],
            picture=picture,
            context=context,
            note=row.get("note"),
        )

    def _read(
        self,
        rows: list[dict[str, Any]],
        what: str,
        shown: dict[int, str | None],
        show: Callable[[np.ndarray], str | None],
    ) -> None:
        """Show rows that are not shown yet, a shard at a time."""
        if self.cache is None:
            return
        # of no teacher: only the plan is wanted
        catalogue = self.cache.catalogue(self.datasets, ())
        starts = {(of, shard.shard): shard.start for of in self.datasets for shard in catalogue.shards(of)}
        for shard in sorted({self._shard(row) for row in rows if row["position"] not in shown}):
            try:
                inputs_S, kind = self.cache.read_rows(*shard), inputs_of(self.cache.dataset(shard[0]))
            except StillroomError as error:
                self.left_out[f"some {what} are not shown: {error.what}"] = None
                continue
            for row in rows:
                if self._shard(row) == shard:
                    shown[row["position"]] = show(kind.one(inputs_S, row["row"] - starts[shard]))

    def _spelled(self, ids: np.ndarray) -> str:
        return self._text(ids[:MOST_TOKENS].tolist()) + ("…" if len(ids) > MOST_TOKENS else "")

    def _text(self, ids: list[int]) -> str:
        return " ".join(map(str, ids)) if self._decode is None else self._decode(ids)  # without the library, ids

    def _context(self, table: pl.DataFrame, row: dict[str, Any]) -> str:
        """Return the text up to a position, itself included."""
        block = table.filter(pl.col("position") == row["position"], pl.col("at") <= row["at"]).sort("at")
        ids = block["token"].tail(CONTEXT_TOKENS).to_list()
        text = self._text(ids)
        return text if len(ids) == len(block) else f"…{text}"


# How mistakes are shown, by what their task says.
CARDS: dict[str, Callable[[Shower, pl.DataFrame, HeldTable, int], list[Card]]] = {
    "contexts": Shower.contexts,
    "pictures": Shower.pictures,
    "texts": Shower.texts,
}


def picture_of(values: np.ndarray) -> str | None:
    """Return an input as a PNG in a data URI; None if it is no image.

    Args:
        values: (C, H, W) or (H, W); uint8, or floats, which are stretched from black to white.
    """
    if values.ndim == 2:
        values = values[None]
    # Values of any shape may be an image, which a kind of inputs does not say.
    if values.ndim != 3 or values.shape[0] not in (1, 3) or 0 in values.shape:
        return None
    if values.dtype != np.uint8:
        low, high = float(values.min()), float(values.max())
        # `or`: all may be one value
        values = ((values - low) * (255 / ((high - low) or 1.0))).astype(np.uint8)
    # Pillow takes (H, W) or (H, W, C)
    image = Image.fromarray(values[0] if values.shape[0] == 1 else np.ascontiguousarray(values.transpose(1, 2, 0)))
    image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS), Image.Resampling.LANCZOS)
    sink = BytesIO()
    image.save(sink, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(sink.getvalue()).decode()}"


def visible(text: str) -> str:
    """Return a token's text with what cannot be seen made visible."""
    shown = text.replace("\n", "⏎").replace("\t", "⇥")
    stripped = shown.strip(" ")
    left = len(shown) - len(shown.lstrip(" "))
    return "␣" * left + stripped + "␣" * (len(shown) - left - len(stripped) if stripped else 0) or "(empty)"
