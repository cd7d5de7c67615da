"""What one encoding takes of a row: bytes, seconds to make and to read, and how far it is from the dense targets."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from storage.encodings import AnyEncoding
from storage.format.arrays import METADATA, pack, unpack

if TYPE_CHECKING:
    from teacher_cache.pilot.fidelity import Fidelity, PilotAnswers

TIMED_RUNS = 3


class Cost(NamedTuple):
    """What one encoding takes of a row, and how near it comes.

    Attributes:
        bytes_per_row: as stored, in a full shard.
        encode_s, read_s: seconds; reading is unpacking and decoding.
    """

    bytes_per_row: float
    encode_s: float
    read_s: float
    fidelity: Fidelity


def cost_of(answers: PilotAnswers, encoding: AnyEncoding, rows_per_shard: float) -> Cost | str:
    """Return what one encoding takes of a row, or why it cannot be used.

    Args:
        answers: to store.
        encoding: how.
        rows_per_shard: of the big run.
    """
    import torch

    from teacher_cache.pilot.fidelity import measure

    rows = len(answers.labels_N)
    encoded = {name: values.cpu().numpy() for name, values in answers.encoded(encoding).items()}
    if (fault := encoding.fault(encoded, answers.num_classes, encoding.uses(encoded))) is not None:
        return fault
    # A single row takes what opening the arrays takes, and hardly more.
    first = pack({name: values[:1] for name, values in encoded.items()})
    objects = pack(encoded)

    def read(objects: dict[str, bytes]) -> None:
        arrays = {name: torch.from_numpy(array) for name, array in unpack(objects, encoded).items()}
        encoding.decode(arrays, answers.num_classes)

    encode_s = _quickest(lambda: answers.encoded(encoding))
    of_one_s, of_all_s = _quickest(lambda: read(first)), _quickest(lambda: read(objects))
    read_s = max(0.0, of_all_s - of_one_s) / rows + of_one_s / rows_per_shard  # opening arrays costs a shard, not a row
    return Cost(bytes_per_row(objects, rows, rows_per_shard), encode_s / rows, read_s, measure(answers, encoding))


def _quickest(work: Callable[[], object]) -> float:
    """Return seconds of the quickest of a few runs: what others do on the machine only adds."""
    seconds = []
    for _ in range(TIMED_RUNS):
        began = time.monotonic()
        work()
        seconds.append(time.monotonic() - began)
    return min(seconds)


def bytes_per_row(objects: dict[str, bytes], rows: int, rows_per_shard: float) -> float:
    """Return the bytes of a row in a full shard: a pilot's rows carry the same metadata, but are fewer."""
    metadata = sum(len(data) for path, data in objects.items() if path.split("/")[-1] == METADATA)
    return (sum(map(len, objects.values())) - metadata) / rows + metadata / rows_per_shard
