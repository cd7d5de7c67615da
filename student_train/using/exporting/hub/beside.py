"""What goes with an exported language model: its tokenizer, and what folders of that tokenizer say of chats and texts.

A run keeps the `tokenizer.json` that made its rows. What else there is, lies in the folders that the run was made from,
and is taken only where it is of the same tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.datasets.chat.template import read_template
from storage.errors import BadRequest, MissingSource
from storage.language.tokenizer import difference, parse_tokenizer, read_tokenizer
from student_train.students import Student
from student_train.students.files import TOKENIZER_FILE

TOKENIZER_CONFIG, GENERATION = "tokenizer_config.json", "generation_config.json"
TEMPLATE = "chat_template.jinja"
WANTED = (TOKENIZER_CONFIG, "special_tokens_map.json", "added_tokens.json", TEMPLATE, GENERATION)
WANTED_OF_TEXTS = WANTED[:3]  # by one that has an answer for each text
MISSED = (TOKENIZER_CONFIG, TEMPLATE, GENERATION)  # told where there is none


@dataclass(frozen=True)
class Beside:
    """Files to be written beside a model.

    Attributes:
        files: by name.
        told: where they are from, and which there are not.
    """

    files: dict[str, bytes]
    told: tuple[str, ...]


def beside(student: Student, folders: Sequence[Path], tokenizer: Path | None, *, adapter: bool = False) -> Beside:
    """Return what goes with a student.

    Args:
        student: a language model, or one of texts.
        folders: that may have it, in this order.
        tokenizer: a folder that is asked for; it must be of the same tokenizer.
        adapter: whether its adapter goes alone; a whole model is written with a generation config, if only the default.

    Raises:
        BadRequest: `tokenizer` is another than the student's.
        MissingSource: it is none.
    """
    own, speaks = student.tokenizer, student.blueprint.asked.label_array is not None
    wanted, missed = (WANTED, MISSED) if speaks else (WANTED_OF_TEXTS, ())
    if own is None:
        if tokenizer is None:
            return Beside({}, ("no tokenizer: the run has none, for its rows came as tokens; --tokenizer FOLDER",))
        own = read_tokenizer(tokenizer).data
    fingerprint = parse_tokenizer(own, "the tokenizer of the run").fingerprint
    if tokenizer is not None and (given := read_tokenizer(tokenizer)).fingerprint != fingerprint:
        raise BadRequest(
            f"{tokenizer} has another tokenizer than the student",
            found=difference(given, parse_tokenizer(own, "the tokenizer of the run")),
            expected=f"tokenizer {fingerprint}",
        )
    files, told = {TOKENIZER_FILE: own}, [f"{TOKENIZER_FILE} of the run"]
    for folder in [*([tokenizer] if tokenizer is not None else []), *folders]:
        if not (folder / TOKENIZER_FILE).exists() or read_tokenizer(folder).fingerprint != fingerprint:
            continue  # what it says is of other tokens
        found = {name: (folder / name).read_bytes() for name in wanted if (folder / name).exists()}
        if new := {name: data for name, data in found.items() if name not in files and not _foreign(data)}:
            files |= new
            told.append(f"{', '.join(new)} of {folder}")
            if {TEMPLATE, TOKENIZER_CONFIG} & new.keys() and (other := _another_template(student, folder)) is not None:
                told.append(other)
    missing = [name for name in missed if name not in files]
    if GENERATION in missing and not adapter:
        missing.remove(GENERATION)
        told.append(f"{GENERATION}: the default that transformers makes of a config")
    if TEMPLATE in missing and b"chat_template" in files.get(TOKENIZER_CONFIG, b""):
        missing.remove(TEMPLATE)  # as older versions had it
    if missing:
        told.append(f"no {', '.join(missing)}: no folder of this tokenizer had them; --tokenizer FOLDER names one")
    files.setdefault(TOKENIZER_CONFIG, json.dumps(_plain_config(student), indent=2).encode())
    return Beside(files, tuple(told))


def _another_template(student: Student, folder: Path) -> str | None:
    """Return in words that a folder has another chat template than made the rows; None: it has that one, or none."""
    promised = (student.blueprint.source or {}).get("template")
    try:
        template = read_template(folder, None)
    except MissingSource:
        return None
    if promised is None or template.digest == promised:
        return None
    return (
        f"warning: the chat template of {folder} is not the one that made the rows: another text, marks or special "
        "tokens; --tokenizer FOLDER, which the dataset in the cache job names, has that"
    )


def _foreign(data: bytes) -> bool:
    return b"auto_map" in data  # code from elsewhere


def _plain_config(student: Student) -> dict[str, Any]:
    """Return what makes a tokenizer.json one of transformers."""
    end = (student.blueprint.source or {}).get("end_of_text")
    special = {"eos_token": end} if isinstance(end, str) else {}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": student.blueprint.input_shape[0],
        "clean_up_tokenization_spaces": False,
    } | special
