"""What every encoding of soft targets offers: encode, decode, what it serves, what must be read for it, its size.

An encoding is a section of a job file and part of a teacher's promise. Soft targets are stored at temperature 1, before
any loss is chosen; an encoding says which of a loss's needs it can meet (`lacks`), so that nothing is approximated in
silence.

Shapes: B rows (for language models, positions), C classes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field, FiniteFloat, field_validator

from storage.options import Options

if TYPE_CHECKING:  # `cache status` reads specs, and should not pay two seconds for torch
    import numpy as np
    import torch
    from torch import Tensor

    from storage.targets.soft import SoftTargets


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
        vectors: answers that are no classes, whole.
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
        "vectors",
    ]
    temperature: float | None = None

    def __str__(self) -> str:
        return self.name if self.temperature is None else f"{self.name} at temperature {self.temperature:g}"


NO_VECTORS = 'task = "vector" in [[dataset]], and encoding = { kind = "vectors" }'
USES_NEVER = "never"  # in `uses`: −∞ in logits is a class that can never be
BF16_EXPONENT = 0x7F80
LSE, STATISTICS = "lse", "statistics"  # the arrays of `storage.encodings.statistics`

Temperature = Annotated[FiniteFloat, Field(gt=0)]


class Encoding(Options):
    """How one teacher's soft targets are stored.

    Attributes:
        temperatures: at which statistics are kept, and sparse targets served; 1 is always among them.
        standardised_temperatures: the same of logits with mean 0 and deviation 1.
        statistics: whether log-sum-exp, entropy and the like of each row are kept (`storage.encodings.statistics`).
        soft: whether there are soft targets at all.
        classes: whether they are scores of classes.
        array: the one that every row has.
    """

    soft: ClassVar[bool] = True
    classes: ClassVar[bool] = True
    array: ClassVar[str] = "logits"

    temperatures: list[Temperature] = Field(default=[1.0])
    standardised_temperatures: list[Temperature] = Field(default=[])
    statistics: bool = True

    @field_validator("temperatures", "standardised_temperatures")
    @classmethod
    def _ascending(cls, given: list[float], info: Any) -> list[float]:
        """Return each once, ascending: how a job orders them promises nothing."""
        return sorted({float(each) for each in given} | ({1.0} if info.field_name == "temperatures" else set()))

    @property
    def statistics_bytes_per_row(self) -> int:
        """What LSE and STATISTICS take of a row in memory."""
        temperatures, standardised = len(self.temperatures), len(self.standardised_temperatures)
        # float32 of LSE, float16 of STATISTICS
        return (4 * (temperatures + standardised) + 2 * (3 + 2 * temperatures)) * self.statistics

    def check(self, num_classes: int) -> None:
        """Check that these targets can be kept of so many classes. Raises BadRequest."""

    @property
    def serves(self) -> tuple[str, ...]:
        """What a loss may ask of these targets, in words."""
        raise NotImplementedError

    def lacks(self, need: Capability) -> str | None:
        """Return None if these targets meet a need, else the change to the cache job that would help."""
        raise NotImplementedError

    def stored(self, num_classes: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Return the type of every stored array, and its axes behind the rows (for language models, the positions)."""
        temperatures, standardised = len(self.temperatures), len(self.standardised_temperatures)
        if not self.statistics:
            return {}
        return {LSE: ("float32", (temperatures + standardised,)), STATISTICS: ("float16", (3 + 2 * temperatures,))}

    def array_names(self, needs: Iterable[Capability]) -> tuple[str, ...]:
        """Return the arrays that must be read to meet some needs, all of which are served."""
        raise NotImplementedError

    def bytes_per_row(self, num_classes: int) -> int:
        """Return the bytes of a row (of a position) in memory, all arrays together, before compression."""
        raise NotImplementedError

    @property
    def bf16_arrays(self) -> frozenset[str]:
        """Names of the arrays that are the bits of bfloat16 in uint16."""
        return frozenset()

    def uses(self, arrays: Mapping[str, np.ndarray]) -> tuple[str, ...]:
        """Return what a reader must know to decode stored arrays, (S, …) each, by name (FORMAT.md, section 9)."""
        return ()

    def fault(self, arrays: Mapping[str, np.ndarray], num_classes: int, uses: Collection[str] = ()) -> str | None:
        """Return what no digest can see of stored arrays, (S, …) each, or None: values that cannot have been encoded.

        Only some of the arrays may be given; `uses` is what their commit says.
        """
        for name, array_S in arrays.items():
            if not all_finite(array_S, bf16=name in self.bf16_arrays):
                return f"{name} holds NaN or infinity"
        return None

    def encode(self, logits_BC: Tensor, *, num_classes: int, labels_B: Tensor, keys_B: Tensor) -> dict[str, Tensor]:
        """Return the stored arrays by name, (B, …) each, on the device of the logits.

        Args:
            logits_BC: float32 scores at temperature 1, −∞ of a class that can never be (`encodings.never`); columns
                from `num_classes` on are padding of a vocabulary, and are cut off before anything is summed: a student
                has no such classes.
            num_classes: classes that a student has.
            labels_B: int64, −1 where there is none.
            keys_B: int64, one of each row's own (`storage.digests.sample_keys`): draws are a pure function of it.
        """
        return self.encode_and_tell(logits_BC, num_classes=num_classes, labels_B=labels_B, keys_B=keys_B)[0]

    def encode_and_tell(
        self, logits_BC: Tensor, *, num_classes: int, labels_B: Tensor, keys_B: Tensor
    ) -> tuple[dict[str, Tensor], Told]:
        """Return what `encode` does, and what the same look at the logits tells: a vocabulary is passed over once.

        Of classes nothing of it lies in the memory of the logits: whoever asked may write others there.
        """
        raise NotImplementedError

    def decode(self, arrays: dict[str, Tensor], num_classes: int) -> SoftTargets:
        """Return soft targets from the arrays that were read, on their device."""
        raise NotImplementedError


def floats(stored: np.ndarray, *, bf16: bool) -> np.ndarray:
    """Return an array's values; the bits of bfloat16 are the high half of a float32."""
    import numpy as np

    return (stored.astype(np.uint32) << 16).view(np.float32) if bf16 else stored


def all_finite(stored: np.ndarray, *, bf16: bool) -> bool:
    """Return whether an array holds neither NaN nor infinity."""
    import numpy as np

    if bf16:
        return not bool(((stored & BF16_EXPONENT) == BF16_EXPONENT).any())  # what is not finite has all of its bits
    return bool(np.isfinite(stored).all())


class Told(NamedTuple):
    """What a look at logits tells of each row for its table and its checks, whatever is stored, (B,) each.

    Attributes:
        top: int64, the likeliest class, the first of several.
        top_probability, entropy, label_log_probability: float32, at temperature 1, entropy in nats; the last is of no
            meaning where there is no label.
        never: bool, whether some class can never be.
        right: bool, whether these are logits: neither NaN nor +∞, and some class can be; what pads a vocabulary may be
            −∞, but nothing that would be the top class.
    """

    top: Tensor
    top_probability: Tensor
    entropy: Tensor
    label_log_probability: Tensor
    never: Tensor
    right: Tensor


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

        # one row, on the CPU: the meta device has no values to encode
        one_row = torch.zeros(1, dtype=torch.int64)
        arrays = encoding.encode(torch.zeros(1, num_classes), num_classes=num_classes, labels_B=one_row, keys_B=one_row)
        repeated = {name: values.to(device).repeat(rows, *[1] * (values.ndim - 1)) for name, values in arrays.items()}
        return cls(encoding, num_classes, repeated)

    def decode(self) -> SoftTargets:
        """Return what a loss can use."""
        return self.encoding.decode(self.arrays, self.num_classes)

    def pick(self, rows: Tensor) -> Encoded:
        """Return the targets of some rows, by their numbers."""
        picked = {name: values.index_select(0, rows) for name, values in self.arrays.items()}
        return Encoded(self.encoding, self.num_classes, picked)

    def part(self, rows: slice) -> Encoded:
        """Return the targets of some rows that follow each other, over the memory of all."""
        return Encoded(self.encoding, self.num_classes, {name: values[rows] for name, values in self.arrays.items()})
