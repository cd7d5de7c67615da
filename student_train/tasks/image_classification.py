"""Students that say the class of an image, or of a row of any values."""

from __future__ import annotations

from storage.tasks import TASKS
from student_train.tasks.one_class import OneClassStudent


class ImageClassification(OneClassStudent):
    """One class for a row of pixels or values."""

    asked = TASKS["image_classification"]
    pipeline_tag = "image-classification"
