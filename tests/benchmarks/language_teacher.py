"""Building from a language model: beside its forward passes, and where few tokens of a chat have a label.

One thread, CPU seconds of this process, for a machine that others use counts those alike; random weights, and every
position with a label unless it is said.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from storage.encodings import SparseEncoding
from storage.format.specs import DatasetSpec, TeacherSpec
from tests.benchmarks.pairs import NO_CUDA, Figure, Skipped, gpu_s, pairs

if TYPE_CHECKING:
    from torch import Tensor

LENGTH, K, BATCH = 256, 64, 4


class Sizes(NamedTuple):
    """Of a Llama-like teacher, and how many rows of `LENGTH` tokens it is asked about."""

    layers: int
    width: int
    ids: int
    rows: int


SMALL, LARGE = Sizes(4, 128, 32_000, 16), Sizes(12, 768, 128_256, 4)
ON_GPU = LARGE._replace(rows=256)


def measure(folder: Path) -> Iterator[Figure]:
    """Yield ratios of rates."""
    small = Asked(SMALL)
    ratios = [bare / ours for ours, bare in pairs(small.build, small.bare_with_topk)]
    yield Figure("4 × 128, 32,000 ids / forward, softmax, topk", ratios, 1.0, "at least")
    few, every = Asked(SMALL, labelled=0.115), Asked(SMALL)
    ratios = [some / whole for some, whole in pairs(few.build, every.build)]
    yield Figure("11.5 % labelled / every position, time", ratios, 0.6, "at most")
    large = Asked(LARGE)
    ratios = [bare / ours for ours, bare in pairs(large.build, large.bare, runs=3)]
    yield Figure("12 × 768, 128,256 ids / forward passes", ratios, 0.9, "at least")


def measure_gpu(_: Path) -> Iterator[Figure | Skipped]:
    """Yield the last ratio on a GPU, in single precision and in half; by the clock."""
    import torch

    if not torch.cuda.is_available():
        yield Skipped("12 × 768, 128,256 ids / forward passes, GPU", NO_CUDA)
        return
    for dtype in ("float32", "bfloat16"):
        asked = Asked(ON_GPU, device="cuda", batch=16, dtype=getattr(torch, dtype))
        ratios = [bare / ours for ours, bare in pairs(asked.build, asked.bare, runs=5)]
        yield Figure(f"12 × 768, 128,256 ids / forward, GPU, {dtype}", ratios, 0.9, "at least")


class Asked:
    """A teacher, and what it is asked; each method returns seconds, on a CPU those of its process."""

    def __init__(
        self, sizes: Sizes, labelled: float = 1.0, *, device: str = "cpu", batch: int = BATCH, dtype: Any = None
    ):
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        from teacher_cache.teachers.model import Teacher
        from teacher_cache.teachers.options import TeacherOptions
        from teacher_cache.work.batch import Question

        torch.set_num_threads(1)
        torch.manual_seed(0)
        layers, width, ids, rows = sizes
        config = LlamaConfig(
            vocab_size=ids,
            hidden_size=width,
            intermediate_size=width * 8 // 3,
            num_hidden_layers=layers,
            num_attention_heads=width // 32,
            use_cache=False,
            initializer_range=0.05,
        )
        self.model: Any = LlamaForCausalLM(config).eval().to(device, dtype)
        told = {"name": "t", "factory": "of/no:matter", "batch_size": batch}
        self._teacher = Teacher(TeacherOptions.model_validate(told), self.model, torch.device(device))
        self._dataset = DatasetSpec(
            name="d", source={}, classes=[], input_shape=(LENGTH,), input_dtype="int32", vocabulary=ids
        )
        self._spec = TeacherSpec(name="t", model={}, num_classes=ids, encoding=SparseEncoding(k=K), features={})
        self.tokens = torch.randint(0, ids, (rows, LENGTH), dtype=torch.int32)
        labels = self.tokens.long().masked_fill(torch.rand(rows, LENGTH) >= labelled, -1)
        self._device, self._batch = device, batch
        self._question = Question(self.tokens, labels, torch.arange(rows * LENGTH).view(rows, LENGTH))

    def build(self) -> float:
        """Ask about all rows as a build does, up to what is written."""
        from teacher_cache.work.answering import answer_rows, send_ahead

        def answer() -> None:
            question = send_ahead(self._question, self._dataset, self._device)
            answer_rows(self._teacher, question, self._spec, self._dataset, beside=self._device == "cuda")

        return self._seconds(answer)

    def bare(self) -> float:
        """Run the model over all rows."""
        return self._seconds(lambda: self._forward(lambda logits: None))

    def bare_with_topk(self) -> float:
        """Run it, and take the largest log-probabilities of all positions."""
        return self._seconds(lambda: self._forward(lambda logits: logits.log_softmax(-1).topk(K)))

    def _forward(self, after: Callable[[Tensor], Any]) -> None:
        import torch

        with torch.inference_mode():
            for rows_BL in self.tokens.to(self._device).long().split(self._batch):
                after(self.model(rows_BL).logits)

    def _seconds(self, run: Callable[[], Any]) -> float:
        return gpu_s(run) if self._device == "cuda" else _cpu_s(run)


def _cpu_s(run: Callable[[], Any]) -> float:
    began = time.process_time()
    run()
    return time.process_time() - began
