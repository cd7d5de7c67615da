"""An adapter as a folder that peft loads on top of its base, which is named by its path and its digests."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from storage.errors import BadRequest
from storage.language.model_folder import CONFIG, import_transformers
from student_train.options.model import LoraOptions
from student_train.run_files.records import RunRecord
from student_train.students.files import load_adapter
from student_train.students.starting.start import start_digests
from student_train.using.settled import folders_of

ADAPTER_WEIGHTS = "adapter_model.safetensors"
UNDER = "base_model.model."  # before peft's names
MERGED = "export it merged, without --adapter"


def base_of(run: Path, record: RunRecord) -> Path:
    """Return the folder of the model that a run's adapter is on top of.

    Raises:
        BadRequest: the run has no adapter; or its base is none that transformers loads as it was, or has changed.
    """
    identity = record.identity
    if identity.get("student", {}).get("adapter") is None:
        raise BadRequest(f"{run.name} was not trained as an adapter", do=MERGED)
    if identity.get("layers") is not None or identity.get("student", {}).get("options"):
        raise BadRequest(
            f"the base of {run.name} is in no folder",
            found="a model cut from the layers of another, or with another config",
            expected="an adapter of a model as it was saved",
            do=MERGED,
        )
    folders = [folder for folder in folders_of(run) if (folder / CONFIG).exists()]
    same = [folder for folder in folders if start_digests(folder) == identity.get("start")]
    if not same:
        raise BadRequest(
            f"the base of {run.name} is not where its job says",
            found=", ".join(f"{folder}, with other weights" for folder in folders) or "no folder of a model",
            expected=", ".join(f"{name} of digest {value}" for name, value in identity.get("start", {}).items()),
            do=f"put it back; or {MERGED}",
        )
    return same[0]


def save_adapter(run: Path, record: RunRecord, base: Path, folder: Path) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors`."""
    from peft import LoraConfig

    options = LoraOptions.model_validate(record.identity["student"]["adapter"])
    tensors = load_adapter(run)
    targets = sorted({name.partition(".lora_")[0] for name in tensors})
    LoraConfig(
        r=options.rank,
        lora_alpha=options.scale,
        lora_dropout=options.dropout,
        target_modules=targets,
        base_model_name_or_path=str(base),
        task_type="CAUSAL_LM",
    ).save_pretrained(folder)
    save_file({UNDER + name: tensor for name, tensor in tensors.items()}, folder / ADAPTER_WEIGHTS)


def load_on_base(base: Path, folder: Path, what: str) -> Any:
    """Return the base with an adapter, in float32, as a user of peft loads them."""
    library = import_transformers(what)
    from peft import PeftModel

    model = library.AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, local_files_only=True, trust_remote_code=False
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the two libraries about each other
        return PeftModel.from_pretrained(model, folder)
