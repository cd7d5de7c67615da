"""The class of an image, or of a row of any values."""

from __future__ import annotations

from storage.tasks.one_class import OneClass


class ImageClassification(OneClass):
    """One class for a row of pixels, or of values: a table's columns, a frozen model's features."""

    name = "image_classification"
    inputs = ("pixels", "values")
