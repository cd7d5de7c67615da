"""Sparse soft targets: the largest classes exactly, draws from the rest, and exactly how much the rest is.

What is stored of each row, at most (k and n as the job says):

    ids     uint8, uint16 or int32 (B, k)   the kept classes, ascending, as differences; 0: no more are kept
    values  float16 or uint8 (B, k)         their log-probabilities at temperature 1; 8-bit: steps below the largest
    step    float16 (B, 1)                  8-bit: of one step
    rest    float16 (B, T + U)              log of the mass outside of them, at each temperature
    draws   as ids (B, n)                   distinct classes that were drawn, ascending, as differences
    counts  uint8 or uint16 (B, n)          how often each was; 0: no more were drawn

Decoding scales the kept values so that they have all mass that `rest` leaves, at each temperature by itself. So what is
decoded is a distribution, however few bits its values have, and no rounding is taken for tail.

A class that can never be (`never`) is not kept, nor drawn: where fewer than k can be, no more are kept, and the rest is
nothing.

Shapes: B rows, C classes, V ≥ C columns of logits, K kept classes, N draws, T and U temperatures.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, FiniteFloat, model_validator

from storage.encodings.base import LSE, NO_VECTORS, STATISTICS, Capability, Encoding, Told
from storage.errors import BadRequest

if TYPE_CHECKING:  # `cache status` reads specs, and should not pay two seconds for torch
    import numpy as np
    from torch import Tensor

    from storage.encodings.largest import Kept
    from storage.encodings.statistics import Rows
    from storage.targets.soft import SparseTargets

IDS, VALUES, STEP, REST, DRAWS, COUNTS = "ids", "values", "step", "rest", "draws", "counts"
LOWEST = -9000.0  # of a log-probability, above `targets.NEVER`, which marks what is no class at all


class SparseEncoding(Encoding):
    """The k largest log-probabilities, n draws from the rest (from all classes if k is 0), or both.

    Attributes:
        k: classes that are kept exactly.
        n: draws, with replacement; about a quarter of them are distinct under a language model.
        values: precision of the kept log-probabilities; "8bit" costs about 10⁻⁴ nat.
        p: keep only the largest classes that have this mass together, k at most.
        seed: of the draws.
    """

    kind: Literal["sparse"] = "sparse"
    k: Annotated[int, Field(ge=0)] = 0
    n: Annotated[int, Field(ge=0, le=2**16 - 1)] = 0  # counts are uint16 at most
    values: Literal["fp16", "8bit"] = "fp16"
    p: Annotated[FiniteFloat, Field(gt=0, lt=1)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0  # an int64 of torch

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.k and not self.n:
            raise ValueError("give `k`, the classes to keep, `n`, the draws, or both")
        if self.p is not None and not self.k:
            raise ValueError("`p` cuts the kept classes short; give `k`, how many there are at most")
        return self

    def check(self, num_classes: int) -> None:
        if self.k + self.n > num_classes:
            raise BadRequest(
                f"a sparse encoding wants more classes than the {num_classes} that there are",
                found=f"k = {self.k}, n = {self.n}",
                expected=f"k, n and their sum at most {num_classes}",
                do="lower k or n, or store every logit: " + 'encoding = { kind = "dense", dtype = "fp16" }',
            )

    @property
    def serves(self) -> tuple[str, ...]:
        at = ", ".join(f"{each:g}" for each in self.temperatures)
        standardised = ", ".join(f"{each:g}" for each in self.standardised_temperatures)
        cut = f" (those of mass {self.p:g})" if self.p is not None else ""
        return (
            *[f"the {self.k} largest classes{cut} and the mass of the rest, at temperature {at}"] * bool(self.k),
            *[f"the same of standardised logits, at temperature {standardised}"] * bool(self.k and standardised),
            *[f"{self.n} draws from {'the rest' if self.k else 'all classes'}, at temperature 1"] * bool(self.n),
            *[f"label's probability and sum of squares at temperature {at}, entropy, moments"] * self.statistics,
        )

    def lacks(self, need: Capability) -> str | None:
        temperature = 1.0 if need.temperature is None else need.temperature
        undeclared = (
            None if temperature in self.temperatures else _declare("temperatures", self.temperatures, temperature)
        )
        statistics = None if self.statistics else "encoding.statistics = true"
        match need.name:
            case "logits":
                remedy: str | None = 'encoding = { kind = "dense", dtype = "fp16" }'
            case "vectors":
                remedy = NO_VECTORS
            case "draws":
                remedy = None if self.n and not self.k else 'encoding = { kind = "sparse", n = 50 }'
            case "stratified":
                remedy = None if self.n and self.k else 'encoding = { kind = "sparse", k = 16, n = 50 }'
            case "bucket" | "standardised" if not self.k:
                remedy = 'encoding = { kind = "sparse", k = 64 }'
            case "bucket":
                remedy = undeclared
            case "standardised" if temperature not in self.standardised_temperatures:
                remedy = _declare("standardised_temperatures", self.standardised_temperatures, temperature)
            case "label_probability" | "sum_squares":
                remedy = statistics or undeclared
            case _:
                remedy = statistics
        return remedy

    def stored(self, num_classes: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        # as `packing.id_dtype` has it, but without torch
        ids = "uint8" if num_classes <= 2**8 else "uint16" if num_classes <= 2**16 else "int32"
        arrays = super().stored(num_classes)
        if self.k:
            arrays[IDS] = (ids, (self.k,))
            arrays[VALUES] = ("uint8" if self.values == "8bit" else "float16", (self.k,))
            arrays[REST] = ("float16", (len(self.temperatures) + len(self.standardised_temperatures),))
            if self.values == "8bit":
                arrays[STEP] = ("float16", (1,))
        if self.n:
            arrays[DRAWS] = (ids, (self.n,))
            arrays[COUNTS] = ("uint8" if self.n < 2**8 else "uint16", (self.n,))  # from 0 to n
        return arrays

    def array_names(self, needs: Iterable[Capability]) -> tuple[str, ...]:
        names = {need.name for need in needs}
        kept = names & {"bucket", "stratified", "standardised"}
        drawn = names & {"draws", "stratified"}
        described = names & {"label_probability", "sum_squares", "moments", "entropy", "standardised"}
        return (
            *([IDS, VALUES, REST, *[STEP] * (self.values == "8bit")] if kept else []),
            *([DRAWS, COUNTS] if drawn else []),
            *([LSE, STATISTICS] if described else []),
        )

    def bytes_per_row(self, num_classes: int) -> int:
        # as `packing.id_dtype` has it, but without torch
        id_bytes = 1 if num_classes <= 2**8 else 2 if num_classes <= 2**16 else 4
        # 8bit: and the step, float16
        kept = self.k * (id_bytes + 1) + 2 if self.values == "8bit" else self.k * (id_bytes + 2)
        rest = 2 * (len(self.temperatures) + len(self.standardised_temperatures))
        drawn = self.n * (id_bytes + (1 if self.n < 2**8 else 2))
        return (kept + rest if self.k else 0) + drawn + self.statistics_bytes_per_row

    def encode_and_tell(
        self, logits_BC: Tensor, *, num_classes: int, labels_B: Tensor, keys_B: Tensor
    ) -> tuple[dict[str, Tensor], Told]:
        from storage.encodings.statistics import in_blocks

        def block(logits_BV: Tensor, labels_B: Tensor, keys_B: Tensor) -> tuple[dict[str, Tensor], Told]:
            return self._encode(logits_BV[:, :num_classes], logits_BV[:, num_classes:], labels_B, keys_B)

        return in_blocks(block, logits_BC, labels_B, keys_B)

    def _encode(
        self, logits_BC: Tensor, padding: Tensor, labels_B: Tensor, keys_B: Tensor
    ) -> tuple[dict[str, Tensor], Told]:
        from storage.encodings.draws import counted, draw, uniforms
        from storage.encodings.packing import id_dtype, to_differences
        from storage.encodings.statistics import Rows, describe

        rows = Rows.of(logits_BC, self, self.k)
        kept = self._largest(rows)
        described = describe(rows, kept, labels_B, self, self.n)
        arrays = dict(described.arrays)
        if self.k:
            # in float64 until the difference is taken
            log_p_BK = (rows.above(kept.ids_BK).double() - described.log_total_B[:, None]).float()
            arrays |= self._values(log_p_BK, kept.real_BK)
            arrays[IDS] = to_differences(kept.ids_BK, rows.logits_BC.shape[1])
            arrays[REST] = described.log_rest_BT.half()
        if self.n:

            def weigh(ids_BJ: Tensor) -> Tensor:
                return rows.above(ids_BJ).exp().masked_fill_(kept.holds(ids_BJ), 0.0)  # never one that is kept

            drawn_BN = draw(described.edges_BE, weigh, uniforms(self.seed, keys_B, self.n), rows.logits_BC.shape[1])
            distinct_BN, counts_BN = counted(drawn_BN)
            arrays[DRAWS] = to_differences(distinct_BN, rows.logits_BC.shape[1])
            arrays[COUNTS] = counts_BN.to(id_dtype(self.n + 1))  # from 0 to n
        return arrays, rows.told(described, padding)

    def _largest(self, rows: Rows) -> Kept:
        """Return the k largest classes, or the fewest of them that have mass p together."""
        from storage.encodings.largest import Kept, largest
        from storage.encodings.never import NO_SCORE
        from storage.encodings.statistics import describe

        ids_BK = largest(rows.logits_BC, self.k, rows.maxima_BE)
        real_BK = rows.logits_BC.gather(1, ids_BK) > NO_SCORE  # what can never be is no class to keep
        if self.p is not None:
            none = SparseEncoding(k=self.k, statistics=False)  # temperature 1 alone: only its total is wanted
            whole = describe(rows, Kept(ids_BK[:, :0], real_BK[:, :0]), ids_BK[:, 0], none, entropy=False)
            p_BK = (rows.above(ids_BK).double() - whole.log_total_B[:, None]).exp()
            real_BK &= p_BK.cumsum(1) - p_BK < self.p  # less its own: the class that reaches p is kept
        return Kept.of(ids_BK, real_BK)

    def _values(self, log_p_BK: Tensor, real_BK: Tensor) -> dict[str, Tensor]:
        from storage.encodings.packing import to_codes

        if self.values == "fp16":
            return {VALUES: log_p_BK.clamp(min=LOWEST).half()}
        codes_BK, step_B1 = to_codes(log_p_BK.clamp(min=LOWEST), real_BK)
        return {VALUES: codes_BK, STEP: step_B1}

    def decode(self, arrays: dict[str, Tensor], num_classes: int) -> SparseTargets:
        import torch

        from storage.encodings import statistics
        from storage.encodings.packing import from_codes, from_differences, unsigned
        from storage.targets.soft import SparseTargets, spread

        described = statistics.decode(arrays, self)
        draws_BN = from_differences(arrays[DRAWS]) if DRAWS in arrays else None
        counts_BN = unsigned(arrays[COUNTS]).float() if DRAWS in arrays else None
        if IDS not in arrays:
            some = next(iter(arrays.values()))
            none_BK = torch.empty(len(some), 0, device=some.device)
            return SparseTargets(num_classes, none_BK.long(), none_BK, draws_BN, counts_BN, described)
        ids_BK, values_BK = from_differences(arrays[IDS]), arrays[VALUES]
        real_BK = torch.ones_like(ids_BK, dtype=torch.bool)
        real_BK[:, 1:] = unsigned(arrays[IDS][:, 1:]) != 0  # a difference of 0 repeats the class before
        scores_BK = from_codes(values_BK, arrays[STEP]) if self.values == "8bit" else values_BK.float()
        log_rest_BT = arrays[REST].float()
        return SparseTargets(
            num_classes,
            ids_BK,
            spread(scores_BK, real_BK, log_rest_BT[:, self.temperatures.index(1.0)]),
            draws_BN,
            counts_BN,
            described,
            temperatures=tuple(self.temperatures),
            log_rest_BT=log_rest_BT[:, : len(self.temperatures)],
            standardised_temperatures=tuple(self.standardised_temperatures),
            standardised_log_rest_BU=log_rest_BT[:, len(self.temperatures) :],
        )

    def fault(self, arrays: Mapping[str, np.ndarray], num_classes: int, uses: Collection[str] = ()) -> str | None:
        from storage.encodings.packing import differences_fault

        if found := super().fault(arrays, num_classes, uses):
            return found
        for name in (IDS, DRAWS):
            if name in arrays and (found := differences_fault(name, arrays[name], num_classes)):
                return found
        if COUNTS in arrays and not set(arrays[COUNTS].sum(axis=-1, dtype="int64").ravel().tolist()) <= {0, self.n}:
            return f"{COUNTS} do not add up to {self.n}"
        if REST in arrays and (arrays[REST] > 0).any():
            return f"{REST} holds a probability above 1"
        return None


def _declare(option: str, declared: list[float], temperature: float) -> str:
    return f"encoding.{option} = {sorted({*declared, temperature})}"
