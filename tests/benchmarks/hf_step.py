"""A step of a student of transformers from a cache against one on labels, written by hand with transformers.

A Llama-like of 4 × 128 over 32,000 ids, 1,024 positions, the largest 64 classes of each. On a CPU on one thread and by
the clock of the process, whatever else runs on the machine. Memory is the peak of a process of its own above what it
held before its first step.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from storage.encodings import Encoded, SparseEncoding
from student_train.feed.batches import Batch
from student_train.options.sections import StudentOptions
from student_train.stepping.alone import Alone
from student_train.stepping.state import TrainState
from student_train.students import Blueprint
from student_train.students.transformers import embedded
from tests.benchmarks.pairs import NO_CUDA, Figure, Skipped, gpu_bytes, gpu_s, pairs

VOCABULARY, ROWS, LENGTH, K = 32_000, 4, 256, 64
PEAK = 4.0  # deviation of the logits
RATE = 1e-4
RUNS = 15
LLAMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
LARGE = LLAMA | {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12}
LARGE |= {"num_key_value_heads": 12}
Step = Callable[[], object]


def measure(folder: Path) -> Iterator[Figure]:
    """Yield the ratios of time and of memory."""
    torch.set_num_threads(1)
    steps = {name: make(folder) for name, make in MAKERS.items()}
    taken = pairs(lambda: _seconds(steps["cache"]), lambda: _seconds(steps["labels"]), RUNS)
    yield Figure("HF student from a cache / labels by hand", [a / b for a, b in taken], 1.05, "at most")
    memory = pairs(lambda: _peak(folder, "cache"), lambda: _peak(folder, "labels"), 3, warm=False)
    yield Figure("the same, memory of a step", [a / b for a, b in memory], 1.0, "at most")


def measure_gpu(folder: Path) -> Iterator[Figure | Skipped]:
    """Yield the same ratios on a GPU, of a model of 12 × 768."""
    if not torch.cuda.is_available():
        yield Skipped("HF student from a cache / labels by hand, GPU", NO_CUDA)
        return
    cache, labels = (make(folder, "cuda", LARGE, 8 * ROWS) for make in MAKERS.values())
    taken = pairs(lambda: gpu_s(cache), lambda: gpu_s(labels), RUNS)
    yield Figure("HF student from a cache / labels, GPU", [a / b for a, b in taken], 1.05, "at most")
    memory = pairs(lambda: gpu_bytes(cache), lambda: gpu_bytes(labels), 3)
    yield Figure("the same, memory of a step", [a / b for a, b in memory], 1.0, "at most")


def _from_cache(folder: Path, device: str = "cpu", llama: dict[str, int] = LLAMA, rows: int = ROWS) -> Step:
    _write_config(folder, llama)
    blueprint = Blueprint(
        architecture="transformers",
        options=embedded(folder, {}),
        num_classes=VOCABULARY,
        input_shape=(LENGTH,),
        mean=None,
        std=None,
    )
    section: dict[str, Any] = {"name": "s", "architecture": "transformers", "path": str(folder)}
    section["objective"] = [{"loss": "kd", "teacher": "t", "temperature": 1.0}]
    student = Alone(TrainState.fresh(StudentOptions.model_validate(section), blueprint, {}, torch.device(device)))
    tokens_BL, labels_BL = (values.to(device) for values in _tokens(rows))
    encoding = SparseEncoding(k=K)
    # a part at a time, as a build does: the memory of all logits would be that of the process from then on
    parts = []
    draw = torch.Generator().manual_seed(1)
    for labels_N in labels_BL.flatten().split(64):
        logits_NC = PEAK * torch.randn(len(labels_N), VOCABULARY, generator=draw)
        logits_NC, keys_N = logits_NC.to(device), torch.arange(len(labels_N), device=device)
        parts.append(encoding.encode(logits_NC, num_classes=VOCABULARY, labels_B=labels_N, keys_B=keys_N))
    stored = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    batch = Batch(tokens_BL, labels_BL, {"t": Encoded(encoding, VOCABULARY, stored)})
    return lambda: student.step([batch], [RATE], 0, measure_shares=False)


def _by_hand(folder: Path, device: str = "cpu", llama: dict[str, int] = LLAMA, rows: int = ROWS) -> Step:
    from transformers import AutoConfig, AutoModelForCausalLM

    _write_config(folder, llama)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32).train().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=5e-4, fused=True)
    tokens_BL, labels_BL = (values.to(device) for values in _tokens(rows))

    def step() -> None:
        logits_BLC = model(input_ids=tokens_BL, use_cache=False).logits
        functional.cross_entropy(logits_BLC.flatten(0, 1), labels_BL.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


MAKERS: dict[str, Callable[..., Step]] = {"cache": _from_cache, "labels": _by_hand}


def _write_config(folder: Path, llama: dict[str, int]) -> None:
    from transformers import LlamaConfig

    LlamaConfig(**llama).save_pretrained(folder)


def _tokens(rows: int = ROWS) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    tokens_BL, labels_BL = torch.randint(VOCABULARY, (2, rows, LENGTH), generator=draw)
    return tokens_BL, labels_BL


def _seconds(step: Step) -> float:
    began = time.process_time()
    step()
    return time.process_time() - began


def _peak(folder: Path, name: str) -> float:
    command = [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.hf_step", str(folder), name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def _held_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def main() -> None:
    """Print how much more than before its first step this process has held."""
    torch.set_num_threads(1)
    step = MAKERS[sys.argv[2]](Path(sys.argv[1]))
    before = _held_bytes()
    for _ in range(2):
        step()
    print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before))


if __name__ == "__main__":
    main()
