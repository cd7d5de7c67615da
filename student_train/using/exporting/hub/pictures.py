"""A classifier of pictures as a folder of transformers, with the image processor that makes its inputs of pictures.

C classes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from storage.errors import BadRequest
from storage.inputs.policy import FILTERS, UNSAID, ImagePolicy
from storage.language.answering import ImageClassifier
from storage.language.model_folder import import_transformers
from student_train.students import Blueprint, Student
from student_train.using.exporting.hub.beside import Beside
from student_train.using.exporting.hub.encoders import named_classes
from student_train.using.exporting.hub.form import LOADED_AS, WHAT, Form

PROCESSOR_FILE = "preprocessor_config.json"
WHITE = 255
USE = """```python
from transformers import pipeline

classify = pipeline("image-classification", ".")
classify("a picture.png")
```
"""
USE_OF_GREY = """```python
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

prepare, model = AutoImageProcessor.from_pretrained("."), AutoModelForImageClassification.from_pretrained(".")
grey = Image.open("a picture.png").convert("L")  # a pipeline would give it three channels
model.config.id2label[int(model(**prepare(grey, return_tensors="pt")).logits.argmax())]
```
"""


def answers_pictures(student: Student) -> bool:
    """Return whether a student of transformers scores classes of pictures."""
    return isinstance(student.network, ImageClassifier)


def form_of_pictures(student: Student) -> Form:
    """Return the form of a classifier of pictures.

    Raises:
        BadRequest: its pictures are resized within it, which no folder of transformers says.
    """
    blueprint = student.blueprint
    if blueprint.resized_within is not None:
        raise BadRequest(
            "pictures are resized within this student, after they were made those of its dataset",
            found=f"{blueprint.input_shape[1:]} to {blueprint.network_shape[1:]}",
            expected="pictures of one size, which an image processor of transformers makes",
            do="--format onnx, safetensors or pt2, which have it within",
        )
    model = named_classes(student)
    processor, told = processor_of(blueprint)

    def answers(folder: Path) -> Callable[[Tensor], Tensor]:
        library: Any = import_transformers(WHAT)
        prepare = library.AutoImageProcessor.from_pretrained(folder, **LOADED_AS)
        written = library.AutoModelForImageClassification.from_pretrained(folder, dtype=torch.float32, **LOADED_AS)
        written.eval()

        def logits(pixels_BCHW: Tensor) -> Tensor:
            pictures = [_picture(pixels_CHW) for pixels_CHW in pixels_BCHW]
            logits_BC: Tensor = written(**prepare(pictures, return_tensors="pt")).logits
            return logits_BC

        return logits

    beside = Beside({PROCESSOR_FILE: json.dumps(processor, indent=2).encode() + b"\n"}, (told,))
    use = USE if blueprint.input_shape[0] > 1 else USE_OF_GREY
    return Form(type(model).__name__, model.save_pretrained, answers, beside, use=use)


def processor_of(blueprint: Blueprint) -> tuple[dict[str, Any], str]:
    """Return the config of the image processor that makes a student's inputs of pictures, and in words what it does.

    What no image processor says, as a background around pictures that `fit`, is told, and pictures of another size are
    not resized then: the model refuses them.
    """
    channels, height, width = blueprint.input_shape
    policy = ImagePolicy.promised({"channels": channels, **(blueprint.source or {})})  # rows that were no files
    by = policy.filter if blueprint.filter is None else blueprint.filter
    sized = policy.size is not None or blueprint.size is not None
    stretched = sized and policy.resize == "stretch"
    cropped = sized and policy.resize == "crop" and height == width
    mean, std = (list(each or (other,)) for each, other in ((blueprint.mean, 0.0), (blueprint.std, 1.0)))
    processor: dict[str, Any] = {
        "image_processor_type": "ViTImageProcessor",
        "do_convert_rgb": channels > 1,
        "do_resize": stretched or cropped,
        "size": {"shortest_edge": height} if cropped else {"height": height, "width": width},
        "resample": int(FILTERS[by]),
        "do_center_crop": cropped,
        "do_rescale": True,
        "rescale_factor": 1 / WHITE,
        "do_normalize": True,
        "image_mean": mean * (channels // len(mean)),
        "image_std": std * (channels // len(std)),
    } | ({"crop_size": {"height": height, "width": width}} if cropped else {})
    how = f"{by}, the middle of other shapes" if cropped else by
    told = f"{PROCESSOR_FILE}: pictures of {'colours' if channels > 1 else 'grey'} to {width}×{height} by {how}"
    if not (stretched or cropped):
        why = f', for no image processor has resize = "{policy.resize}"' if sized else ""
        told = f"{PROCESSOR_FILE}: pictures must have {width}×{height} pixels{why}"
    if policy.background != UNSAID["background"]:
        told += "; what is transparent shows its hidden colours there, not a background"
    return processor, told


def _picture(pixels_CHW: Tensor) -> Image.Image:
    """Return a row of a student as the picture that it was."""
    bytes_CHW = (pixels_CHW * WHITE).round().to(torch.uint8).numpy()
    return Image.fromarray(bytes_CHW[0] if len(bytes_CHW) == 1 else bytes_CHW.transpose(1, 2, 0))
