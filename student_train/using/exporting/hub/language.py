"""A language model as a folder of transformers, or its adapter as one of peft."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from storage.language.model_folder import import_transformers
from student_train.run_files.records import RunRecord
from student_train.students import Student
from student_train.students.gpt import Gpt
from student_train.using.exporting.hub.beside import Beside
from student_train.using.exporting.hub.form import LOADED_AS, WHAT, Form
from student_train.using.exporting.hub.to_gpt2 import to_gpt2
from student_train.using.exporting.hub.to_peft import base_of, load_on_base, save_adapter


def form_of_language(student: Student, beside: Beside) -> Form:
    """Return the form of a whole language model, a `gpt` as GPT-2."""
    model: Any = to_gpt2(student, WHAT) if isinstance(student.network, Gpt) else student.network

    def write(folder: Path) -> None:
        for config in (model.config, model.config.get_text_config()):
            config.use_cache = True  # those who go on with a text want it
        model.save_pretrained(folder)

    def answers(folder: Path) -> Callable[[Tensor], Tensor]:
        auto = import_transformers(WHAT).AutoModelForCausalLM
        return _logits(student, auto.from_pretrained(folder, dtype=torch.float32, **LOADED_AS))

    return Form(type(model).__name__, write, answers, beside)


def form_of_adapter(run: Path, record: RunRecord, student: Student, beside: Beside) -> Form:
    """Return the form of a language model's adapter alone. Raises BadRequest: as `base_of`."""
    base = base_of(run, record)

    def write(folder: Path) -> None:
        save_adapter(run, record, base, folder)

    def answers(folder: Path) -> Callable[[Tensor], Tensor]:
        return _logits(student, load_on_base(base, folder, WHAT))

    return Form(type(student.network).__name__, write, answers, beside, library="peft", base=base)


def _logits(student: Student, model: Any) -> Callable[[Tensor], Tensor]:
    """Return a model's logits of the student's ids: those beyond are padding of its vocabulary."""
    model.eval()

    def logits(inputs: Tensor) -> Tensor:
        logits_BLV: Tensor = student.blueprint.made_of.call(model, inputs).logits
        return logits_BLV[..., : student.blueprint.num_classes]

    return logits
