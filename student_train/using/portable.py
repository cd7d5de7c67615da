"""All that must go along with a model's weights, as text: in an ONNX file or a .pt2, and beside safetensors.

stillroom.blueprint      what it is, classes and the promise of its data among it: what `student predict` goes by
stillroom.preprocessing  how a sample becomes an input, for whoever has nothing of ours
stillroom.tokenizer      the `tokenizer.json` of its text, where it has one
stillroom.student        name and digest of the student
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from storage.datasets.table import Layout
from storage.errors import CorruptObject
from student_train.students import Blueprint

BLUEPRINT, PREPROCESSING = "stillroom.blueprint", "stillroom.preprocessing"
TOKENIZER, STUDENT = "stillroom.tokenizer", "stillroom.student"
SPLIT_KEYS = {"kind", "validation", "seed", "inputs"}  # of a source, that say nothing of a sample


def preprocessing(blueprint: Blueprint) -> dict[str, Any]:
    """Return how a sample becomes an input of a student, in plain words and numbers.

    Its normalisation is a part of the network, so that nobody can apply it twice or forget it.
    """
    source = blueprint.source or {}
    said = {key: value for key, value in source.items() if key not in SPLIT_KEYS}
    layout = Layout.promised(source)
    values = "pixels / 255, float32 in [0, 1], channels first" if blueprint.made_of.scaled else "float32, as they are"
    of_values = {
        "values": values,
        **({} if layout is None else {"places": layout.places}),  # what each number of a row is
        **({} if blueprint.resized_within is None else {"resized_within": blueprint.resized_within}),
        "normalised_within": {"mean": blueprint.mean, "std": blueprint.std},
    }
    return {
        "inputs": blueprint.made_of.name,
        "input_shape": list(blueprint.input_shape),
        **(of_values if blueprint.made_of.normalised else {}),
        "samples": said,
        "tokenizer": blueprint.tokenizer,
        "task": blueprint.asked.name,
        "classes": list(blueprint.classes),
    }


def metadata(blueprint: Blueprint, tokenizer: bytes | None, student: Mapping[str, Any]) -> dict[str, str]:
    """Return what goes along with a model, each value a text."""
    said = {
        BLUEPRINT: json.dumps(blueprint.model_dump(mode="json", include=set(Blueprint.model_fields))),
        PREPROCESSING: json.dumps(preprocessing(blueprint)),
        STUDENT: json.dumps(dict(student)),
    }
    return said if tokenizer is None else said | {TOKENIZER: tokenizer.decode()}


def as_file(blueprint: Blueprint) -> str:
    """Return `preprocessing.json`: the same, for whoever opens the folder."""
    return json.dumps(preprocessing(blueprint), indent=2) + "\n"


def read_metadata(said: Mapping[str, str], where: str) -> tuple[Blueprint, bytes | None, dict[str, Any]] | None:
    """Return blueprint, tokenizer and student of what went along with a model; None: nothing of ours did.

    Raises:
        CorruptObject: it is no such metadata.
    """
    if BLUEPRINT not in said:
        return None
    try:
        blueprint = Blueprint.model_validate_json(said[BLUEPRINT])
        student = dict(json.loads(said.get(STUDENT, "{}")))
    except ValueError as error:
        raise CorruptObject(f"{where} has metadata that describe no student", found=str(error)) from None
    tokenizer = said.get(TOKENIZER)
    return blueprint, None if tokenizer is None else tokenizer.encode(), student
