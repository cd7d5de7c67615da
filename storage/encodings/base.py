"""What every encoding of soft targets offers: encode, decode, what it serves, what must be read for it, its size.

An encoding is a section of a job file and part of a teacher's promise. Soft targets are stored at temperature 1, before
any loss is chosen; an encoding says which of a loss's needs it can meet (`lacks`), so that nothing is approximated in
silence.

Shapes: B rows (for language models, positions), C classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from storage.options import Options

if TYPE_CHECKING:  # `cache status` reads specs, and should not pay two seconds for torch
    import torch
    from torch import Tensor

    from storage.encodings.targets import SoftTargets


class Capability(NamedTuple):
    """One thing that a loss may ask of soft targets.

    Names:
        logits: every logit.
        bucket: probabilities of some classes at `temperature`, and exactly what is left for all others together.
        draws: classes drawn from the teacher's whole distribution, temperature 1.
        stratified: some classes exactly, and draws from the rest, temperature 1.
        label_probability: that of the label, at `temperature`.
        sum_squares: Σ p² at `temperature`.
        moments: mean and deviation of the logits.
        entropy: of the distribution at temperature 1.
        standardised: as `bucket`, of logits with mean 0 and deviation 1.
    """

    name: Literal[
        "logits",
        "bucket",
        "draws",
        "stratified",
        "label_probability",
        "sum_squares",
        "moments",
        "entropy",
        "standardised",
    ]
    temperature: float | None = None

    def __str__(self) -> str:
        return self.name if self.temperature is None else f"{self.name} at temperature {self.temperature:g}"


class Encoding(Options):
    """How one teacher's soft targets are stored."""

    @property
    def serves(self) -> tuple[str, ...]:
        """What a loss may ask of these targets, in words."""
        raise NotImplementedError

    def lacks(self, need: Capability) -> str | None:
        """Return None if these targets meet a need, else the change to the cache job that would help."""
        raise NotImplementedError

    def array_names(self, needs: Iterable[Capability]) -> tuple[str, ...]:
        """Return the arrays that must be read to meet some needs, all of which are served."""
        raise NotImplementedError

    def bytes_per_row(self, num_classes: int) -> int:
        """Return the bytes of a row (of a position) in memory, all arrays together, before compression."""
        raise NotImplementedError

    def encode(self, logits_BC: Tensor, *, num_classes: int, labels_B: Tensor, keys_B: Tensor) -> dict[str, Tensor]:
        """Return the stored arrays by name, (B, …) each, on the device of the logits.

        Args:
            logits_BC: float32 scores at temperature 1; columns from `num_classes` on are padding of a vocabulary.
            num_classes: classes that a student has.
            labels_B: int64, −1 where there is none.
            keys_B: int64, one of each row's own (`storage.digests.sample_keys`): draws are a pure function of it.
        """
        raise NotImplementedError

    def decode(self, arrays: dict[str, Tensor], num_classes: int) -> SoftTargets:
        """Return soft targets from the arrays that were read, on their device."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Encoded:
    """Soft targets of some rows as they are stored, on a device; decoded where and when a loss needs them."""

    encoding: Encoding
    num_classes: int
    arrays: dict[str, Tensor]

    @classmethod
    def blank(cls, encoding: Encoding, num_classes: int, rows: int, device: torch.device) -> Encoded:
        """Return the targets of a teacher that knows nothing, for shapes and bytes; free on the meta device."""
        import torch

        one_row = torch.zeros(1, dtype=torch.int64)
        arrays = encoding.encode(torch.zeros(1, num_classes), num_classes=num_classes, labels_B=one_row, keys_B=one_row)
        repeated = {name: values.to(device).repeat(rows, *[1] * (values.ndim - 1)) for name, values in arrays.items()}
        return cls(encoding, num_classes, repeated)

    def decode(self) -> SoftTargets:
        """Return what a loss can use."""
        return self.encoding.decode(self.arrays, self.num_classes)

    def pick(self, positions_N: Tensor) -> Encoded:
        """Return the targets of some positions of arrays (B, L, …), numbered through B and L."""
        flat = {name: values.flatten(0, 1).index_select(0, positions_N) for name, values in self.arrays.items()}
        return Encoded(self.encoding, self.num_classes, flat)
