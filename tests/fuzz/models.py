"""Readers of models that others made: a folder of transformers, a graph of ONNX."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tests.fuzz import changes
from tests.fuzz.reader import Reader, safetensors_header, whole_file


def models(folder: Path) -> Iterator[Reader]:
    """Yield the readers of models."""
    yield from _transformers(folder / "llama")
    yield from _onnx(folder)


def _transformers(folder: Path) -> Iterator[Reader]:
    """A language model of two shards: config, index and weights, taken as a teacher's."""
    from storage.format.specs import DatasetSpec
    from teacher_cache.teachers.kinds import transformers
    from teacher_cache.teachers.options import TeacherOptions
    from tests.chats.toys import CHATML, write_llama

    model, _ = write_llama(folder, CHATML)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="12KB")
    texts = DatasetSpec(name="chats", source={}, classes=[], input_shape=(8,), input_dtype="uint16", vocabulary=16)
    options = TeacherOptions(name="llama", kind="transformers", path=str(folder))

    def load() -> object:
        transformers.check_files(options, texts)
        loaded = transformers.load(options).state_dict()
        return transformers.digests(options), {name: tensor.numpy().tobytes() for name, tensor in loaded.items()}

    json_ = (changes.any_bytes, changes.plain_json)
    shard = sorted(folder.glob("*.safetensors"))[0]
    for path, forges in (
        (folder / "config.json", json_),
        (folder / "model.safetensors.index.json", json_),
        (shard, (changes.any_bytes, safetensors_header)),
    ):
        yield whole_file(folder, path, load, f"transformers: {path.name}", forges=forges, weight=0.1)


def _onnx(folder: Path) -> Iterator[Reader]:
    """A graph by itself, and one with its weights beside it, computed by onnxruntime."""
    import torch

    from storage.format.specs import DatasetSpec
    from teacher_cache.teachers.kinds import onnx
    from teacher_cache.teachers.options import TeacherOptions
    from tests.teacher_cache.teachers.onnx_toys import save, save_beside

    options: Any = {"name": "net", "kind": "onnx", "layout": "nhwc", "output": "probabilities"}

    digits = DatasetSpec(name="d", source={}, classes=list("0123456789"), input_shape=(1, 8, 8), input_dtype="uint8")

    def answers(path: Path) -> object:
        teacher = TeacherOptions(**options, path=str(path))
        onnx.check_files(teacher, digits)
        return onnx.load(teacher)(torch.zeros(2, 1, 8, 8)).numpy().tobytes()

    for name, write in (("onnx", save), ("onnx, weights beside", save_beside)):
        own = folder / name
        own.mkdir()
        path = write(own)
        read: Callable[[], object] = partial(answers, path)
        yield whole_file(folder, path, read, f"{name}: {path.name}", forges=(changes.any_bytes,), weight=0.1)
