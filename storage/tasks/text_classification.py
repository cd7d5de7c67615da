"""The class of a text, which is a row of tokens at its own length."""

from __future__ import annotations

from typing import ClassVar, Literal

from storage.tasks.one_class import OneClass


class TextClassification(OneClass):
    """One class for a text."""

    name: ClassVar[Literal["text_classification"]] = "text_classification"
    inputs = ("texts",)
    look_at = "whether teacher and dataset have one tokenizer, at the order of classes and at the teacher's weights"
