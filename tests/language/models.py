"""Folders of small models as transformers writes them, and students of the counting language made from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from student_train.options.sections import StudentOptions
from tests.language.toys import IDS, small_gpt

PADDED = 16  # ids of the models: those of the counting language, and padding

LLAMA = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "tie_word_embeddings": True,
}


def config_folder(folder: Path, kind: str = "llama", **fields: Any) -> Path:
    """Write the config of a small model, and nothing else; return its folder."""
    from transformers import AutoConfig

    values = LLAMA if kind == "llama" else {}
    common = {"vocab_size": PADDED, "bos_token_id": 0, "eos_token_id": 9, "initializer_range": 0.2}
    AutoConfig.for_model(kind, **(values | common | fields)).save_pretrained(folder)
    return folder


def model_folder(folder: Path, kind: str = "llama", seed: int = 0, **fields: Any) -> Path:
    """Write a small model with weights; return its folder."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    config_folder(folder, kind, **fields)
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(folder)
    return folder


def hf_student(folder: Path, name: str = "hf", **options: Any) -> StudentOptions:
    """Return a student of such a folder that trains in a moment; options replace its own."""
    plain = small_gpt(name).model_dump(exclude={"architecture", "options"}, exclude_unset=True)
    return StudentOptions.model_validate(plain | {"architecture": "transformers", "path": str(folder)} | options)


__all__ = ["IDS", "LLAMA", "PADDED", "config_folder", "hf_student", "model_folder"]
