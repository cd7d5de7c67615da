"""What soft targets cost: bytes of a token by encoding, mean KL of 8 bits, time beside a teacher's forward pass.

`python -m tests.benchmarks.encoding` prints every compression that was tried of every array.

Shapes: B rows, C classes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from storage.encodings import DenseEncoding, Encoding, SparseEncoding
from storage.format.arrays import pack
from tests.benchmarks.pairs import Figure, pairs
from tests.benchmarks.teachers import resnet9

if TYPE_CHECKING:
    from torch import Tensor

VOCABULARY = 128_256
TOKENS = 4096
BATCH = 256
K64, N50 = SparseEncoding(k=64, values="8bit"), SparseEncoding(n=50)


def tokens(rows: int, classes: int = VOCABULARY, seed: int = 0) -> Iterator[Tensor]:
    """Yield batches of logits (B, C) of an imagined language model, float32.

    A unigram distribution by Zipf's law, s = 1.05, over ids that follow frequency but for a factor of e^N(0, 1), as
    those of a byte-level BPE do; to it a context of rank 32, noise, and a sharpness of the row's own. That makes 2.2
    nats of entropy, a largest probability of 0.53 and 13 distinct classes in 50 draws.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    unigram_C = -1.05 * (torch.arange(1, classes + 1) * normal(classes).exp()).log()
    context_DC = normal(32, classes) / 32**0.5
    for _ in range(rows // BATCH):
        logits_BC = unigram_C + 2.5 * normal(BATCH, 32) @ context_DC + 0.5 * normal(BATCH, classes)
        yield logits_BC * (1.1 + 0.9 * torch.rand(BATCH, 1, generator=generator))


def encoded(encoding: Encoding, logits_BC: Tensor, first: int = 0) -> dict[str, Tensor]:
    """Return the arrays of some rows, numbered from `first`."""
    import torch

    numbers_B = torch.arange(first, first + len(logits_BC), device=logits_BC.device)
    labels_B = numbers_B % logits_BC.shape[1]
    return encoding.encode(logits_BC, num_classes=logits_BC.shape[1], labels_B=labels_B, keys_B=numbers_B)


def arrays_of_tokens(encodings: dict[str, Encoding], rows: int = TOKENS) -> dict[str, dict[str, np.ndarray]]:
    """Return what each encoding stores of some tokens, by name."""
    import torch

    parts: dict[str, list[dict[str, Tensor]]] = {name: [] for name in encodings}
    for number, logits_BC in enumerate(tokens(rows)):
        for name, encoding in encodings.items():
            parts[name].append(encoded(encoding, logits_BC, number * BATCH))
    return {
        name: {array: torch.cat([part[array] for part in each]).numpy() for array in each[0]}
        for name, each in parts.items()
    }


def stored_bytes(arrays: dict[str, np.ndarray]) -> dict[str, float]:
    """Return the stored bytes of a row, by array, without metadata."""
    objects = pack(arrays)
    rows = len(next(iter(arrays.values())))
    return {name: sum(len(o) for p, o in objects.items() if p.startswith(f"{name}/c")) / rows for name in arrays}


def measure(folder: Path) -> Iterator[Figure]:
    """Yield bytes, fidelity and cost."""
    statistics = {"lse", "statistics"}
    for name, arrays, bare, whole in zip(
        ("k = 64, 8-bit", "n = 50"),
        arrays_of_tokens({"k": K64, "n": N50}).values(),
        (150, 36),
        (165, 50),
        strict=True,
    ):
        sizes = stored_bytes(arrays)
        without = sum(size for array, size in sizes.items() if array not in statistics)
        yield Figure(f"bytes of a token, {name}", [without], bare, "at most", " B")
        yield Figure(f"bytes of a token, {name}, statistics", [sum(sizes.values())], whole, "at most", " B")
    yield Figure("mean KL of 8 bits, nat", [kl_of_8_bits(next(tokens(BATCH)))], 1e-3, "at most")
    yield from _costs(folder)


def kl_of_8_bits(logits_BC: Tensor) -> float:
    """Return the mean KL, nats, of 8-bit values to exact ones of the same 64 classes and their rest."""
    targets = K64.decode(encoded(K64, logits_BC), logits_BC.shape[1])
    log_p_BC = logits_BC.double().log_softmax(1)
    log_p_BK = log_p_BC.gather(1, targets.ids_BK)
    rest_B = log_p_BC.exp().scatter(1, targets.ids_BK, 0.0).sum(1)
    kl_B = (log_p_BK.exp() * (log_p_BK - targets.log_p_BK)).sum(1) + rest_B * (rest_B.log() - targets.log_rest(1.0))
    return float(kl_B.mean())


def _costs(folder: Path) -> Iterator[Figure]:
    """Yield time to encode a batch over time of the forward pass that gave it, on this machine's CPU."""
    import torch

    from student_train.students.gpt import gpt
    from teacher_cache.teachers.loading import load_teacher
    from teacher_cache.teachers.options import TeacherOptions

    resnet = load_teacher(TeacherOptions(name="t", **resnet9(folder), batch_size=BATCH), torch.device("cpu")).model
    images, ids = torch.rand(BATCH, 3, 32, 32), torch.randint(0, VOCABULARY, (1, 128))
    transformer = gpt(VOCABULARY, (128,), depth=12, width=768, heads=12).eval()
    for title, model, inputs, encodings in (
        ("ResNet-9", resnet, images, {"fp16": DenseEncoding(dtype="fp16"), "k = 4, n = 6": SparseEncoding(k=4, n=6)}),
        ("gpt, 12 × 768", transformer, ids, {"k = 64, 8-bit": K64, "n = 50": N50}),
    ):
        with torch.inference_mode():
            logits_BC = model(inputs).flatten(0, -2)

            def forward(model: torch.nn.Module = model, inputs: Tensor = inputs) -> float:
                return _seconds(lambda: model(inputs))

            for name, encoding in encodings.items():

                def encode(encoding: Encoding = encoding, logits_BC: Tensor = logits_BC) -> float:
                    return _seconds(lambda: encoded(encoding, logits_BC))

                ratios = [a / b for a, b in pairs(encode, forward)]
                yield Figure(f"encode {name} / forward pass of {title}", ratios, 0.05, "at most")
                arrays = encoded(encoding, logits_BC)
                classes = logits_BC.shape[1]
                decode = [_seconds(lambda e=encoding, a=arrays, c=classes: e.decode(a, c)) for _ in range(6)][1:]
                per_row = [1e6 * each / len(logits_BC) for each in decode]
                yield Figure(f"decode {name}, µs a row", per_row, 20, "at most", " µs")


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def compressions() -> Iterator[str]:
    """Yield a line for each array of 4,096 tokens: bytes of a token under each compression, best first."""
    from numcodecs import Blosc, Zstd

    tried = {f"zstd {level}": Zstd(level) for level in (3, 9)}
    for level in (3, 5, 9):
        tried[f"shuffle + zstd {level}"] = Blosc("zstd", level, Blosc.SHUFFLE)
        tried[f"bitshuffle + zstd {level}"] = Blosc("zstd", level, Blosc.BITSHUFFLE)
    stored = arrays_of_tokens({"k": K64, "h": SparseEncoding(k=64, statistics=False), "n": N50})
    ids_BK, codes_BK = stored["k"]["ids"].astype(np.int64).cumsum(1).astype(np.int32), stored["k"]["values"]
    ranks_BK = np.argsort(codes_BK, axis=1, kind="stable")
    by_rank_BK = np.take_along_axis(codes_BK, ranks_BK, 1)
    arrays = stored["k"] | {
        "ids, no differences": ids_BK,
        "ids, by rank": np.take_along_axis(ids_BK, ranks_BK, 1),
        "values, by rank, differences": np.diff(by_rank_BK, axis=1, prepend=by_rank_BK[:, :1]),
        "values, fp16": stored["h"]["values"],
        "draws": stored["n"]["draws"],
        "counts": stored["n"]["counts"],
    }
    for name, array in arrays.items():
        sizes = {
            f"{how}{', by column' * by_column}": len(
                codec.encode(np.ascontiguousarray(array.T if by_column else array))
            )
            / len(array)
            for how, codec in tried.items()
            for by_column in (False, True)
        }
        best = sorted(sizes.items(), key=lambda each: each[1])
        yield f"{name} ({array.dtype}): " + "; ".join(f"{how} {size:.1f}" for how, size in best)


if __name__ == "__main__":
    for line in compressions():
        print(line, flush=True)
