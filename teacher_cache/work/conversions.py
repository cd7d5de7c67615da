"""What soft targets may become without their teacher, and how.

| from ↓ to → | dense fp32 | dense fp16 | dense bf16 | dense int8 | values fp16 | values 8-bit | draws |
| --- | --- | --- | --- | --- | --- | --- | --- |
| dense fp32 | same | yes | yes | yes | yes | yes | yes |
| dense fp16 | – | same | yes | yes | yes | yes | yes |
| dense bf16 | – | – | same | yes | – | yes | – |
| dense int8 | – | – | – | same | – | yes | – |
| sparse fp16 | – | – | – | – | k no larger | k no larger | the same k, n, seed |
| sparse 8-bit | – | – | – | – | – | k no larger | the same k, n, seed |

Vectors become vectors of no more precision: fp32, fp16, int8.

Dense targets serve every temperature, so any may be asked for; of sparse ones, only temperatures that were declared,
and statistics only if they were kept. A nucleus cut `p` stays as it is; draws may be dropped, never made anew. All may
be dropped, so that features are left alone, of which nothing is ever made.

From dense fp32, what comes out is byte for byte what the teacher's own build would have stored; its tables, which stay
as they are, would differ by rounding. From anything else it
is what that holds: rounded twice, and statistics of the rounded logits, unless they are copied.

Shapes: N sites, B rows or sites, C classes, K kept classes, J of them stay, T and U temperatures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from storage.encodings import AnyEncoding, DenseEncoding, NoEncoding, SparseEncoding, VectorEncoding
from storage.encodings.base import LSE, STATISTICS
from storage.encodings.sparse import COUNTS, DRAWS, IDS, REST, STEP, VALUES

if TYPE_CHECKING:
    from torch import Tensor

# Ranks: whatever has less can be made of whatever has more.
DENSE_PRECISION = {"fp32": 3, "fp16": 2, "bf16": 1, "int8": 0}
VECTOR_PRECISION = {"fp32": 2, "fp16": 1, "int8": 0}
SPARSE_PRECISION = {"fp16": 2, "8bit": 0}  # the least that dense targets must have to give such values
DRAWS_PRECISION = 2  # likewise, to draw from: of rounder logits other classes would be drawn


def refusal(found: AnyEncoding, wanted: AnyEncoding) -> str | None:
    """Return what a source does not hold that another encoding needs, or None."""
    if found == wanted or isinstance(wanted, NoEncoding):
        return None
    if isinstance(found, NoEncoding):
        return "soft targets"
    if isinstance(found, VectorEncoding) or isinstance(wanted, VectorEncoding):
        return _vector_refusal(found, wanted)
    if isinstance(found, DenseEncoding):
        return _dense_refusal(found, wanted)
    if isinstance(wanted, DenseEncoding):
        return "logits of all classes"
    return _sparse_refusal(found, wanted)


def _vector_refusal(found: AnyEncoding, wanted: AnyEncoding) -> str | None:
    if not isinstance(found, VectorEncoding):
        return "vectors"
    if not isinstance(wanted, VectorEncoding):
        return "scores of classes"
    less = VECTOR_PRECISION[wanted.dtype] > VECTOR_PRECISION[found.dtype]
    return f"vectors in {wanted.dtype}" if less else None


def _dense_refusal(found: DenseEncoding, wanted: DenseEncoding | SparseEncoding) -> str | None:
    has = DENSE_PRECISION[found.dtype]
    if isinstance(wanted, DenseEncoding):
        return f"logits in {wanted.dtype}" if DENSE_PRECISION[wanted.dtype] > has else None
    if wanted.k and SPARSE_PRECISION[wanted.values] > has:
        return f"log-probabilities in {wanted.values}"
    return "logits in fp16 or better to draw from" if wanted.n and has < DRAWS_PRECISION else None


def _sparse_refusal(found: SparseEncoding, wanted: SparseEncoding) -> str | None:
    temperatures = {*wanted.temperatures} - {*found.temperatures}
    standardised = {*wanted.standardised_temperatures} - {*found.standardised_temperatures}
    drawn = f"{wanted.n} draws by seed {wanted.seed} from {'the rest' if wanted.k else 'all classes'}"
    precise = not wanted.k or SPARSE_PRECISION[wanted.values] <= SPARSE_PRECISION[found.values]
    lacking = (
        (wanted.k > found.k, f"the {wanted.k} largest classes"),
        (wanted.n and (wanted.k, wanted.n, wanted.seed) != (found.k, found.n, found.seed), drawn),
        (wanted.k and wanted.p != found.p, f"a nucleus cut p = {wanted.p or 'none'}"),
        (not precise, f"log-probabilities in {wanted.values}"),
        (temperatures, f"temperatures {', '.join(f'{t:g}' for t in sorted(temperatures))}"),
        (standardised, f"standardised temperatures {', '.join(f'{t:g}' for t in sorted(standardised))}"),
        (wanted.statistics and not found.statistics, "statistics"),
        (
            wanted.standardised_temperatures and wanted.k != found.k and not found.statistics,
            "the deviation of the logits, which is among the statistics",
        ),
    )
    return next((text for lacks, text in lacking if lacks), None)


def convert(
    arrays: dict[str, Tensor],
    found: AnyEncoding,
    wanted: AnyEncoding,
    *,
    labels_N: Tensor,
    keys_N: Tensor,
    num_classes: int,
) -> dict[str, Tensor]:
    """Return the arrays of another encoding, for which `refusal` is None.

    Args:
        arrays: as stored, (N, …).
        found, wanted: encodings.
        labels_N: int64.
        keys_N: of draws (`teacher_cache.work.rows.draw_keys`).
        num_classes: C.
    """
    if found == wanted:
        return arrays  # byte for byte, even where decoding and encoding would round again
    if isinstance(wanted, NoEncoding):
        return {}
    assert not isinstance(found, NoEncoding)
    if isinstance(found, SparseEncoding):
        assert isinstance(wanted, SparseEncoding)
        return _fewer(arrays, found, wanted, num_classes)
    if isinstance(found, VectorEncoding):
        vectors_ND = found.decode(arrays, num_classes).vectors_BD
        return wanted.encode(vectors_ND, num_classes=num_classes, labels_B=labels_N, keys_B=keys_N)
    logits_NC = found.decode(arrays, num_classes).logits_BC
    encoded = wanted.encode(logits_NC, num_classes=num_classes, labels_B=labels_N, keys_B=keys_N)
    if isinstance(wanted, DenseEncoding) and wanted.dtype == found.dtype:
        encoded |= {name: arrays[name] for name in wanted.array_names(())}  # 8 bits of 8 bits would not be the same
    if found.dtype != "fp32" and _declared(found, wanted):  # of fp32 they are the teacher's own, to the last bit
        encoded |= _statistics(arrays, found, wanted)
    return encoded


def _declared(found: AnyEncoding, wanted: AnyEncoding) -> bool:
    """Return whether statistics of the teacher's own logits are stored for all that is wanted."""
    return (
        found.statistics
        and {*wanted.temperatures} <= {*found.temperatures}
        and {*wanted.standardised_temperatures} <= {*found.standardised_temperatures}
    )


def _columns(found: AnyEncoding, wanted: AnyEncoding) -> list[int]:
    """Return which of the T + U columns of `found` are those of `wanted`."""
    first = len(found.temperatures)
    return [
        *(found.temperatures.index(t) for t in wanted.temperatures),
        *(first + found.standardised_temperatures.index(t) for t in wanted.standardised_temperatures),
    ]


def _statistics(arrays: dict[str, Tensor], found: AnyEncoding, wanted: AnyEncoding) -> dict[str, Tensor]:
    """Return LSE and STATISTICS with fewer columns; nothing if they are not wanted."""
    if not wanted.statistics:
        return {}
    from storage.encodings.statistics import FIXED_COLUMNS

    num, places = len(found.temperatures), [found.temperatures.index(t) for t in wanted.temperatures]
    norms, labels = ([FIXED_COLUMNS + start + place for place in places] for start in (0, num))
    return {
        LSE: arrays[LSE][:, _columns(found, wanted)],
        STATISTICS: arrays[STATISTICS][:, [*range(FIXED_COLUMNS), *norms, *labels]],
    }


def _fewer(
    arrays: dict[str, Tensor], found: SparseEncoding, wanted: SparseEncoding, num_classes: int
) -> dict[str, Tensor]:
    """Return sparse arrays with fewer classes, temperatures, bits, or without draws or statistics."""
    encoded = _statistics(arrays, found, wanted)
    if wanted.n:  # as they are: what was not kept cannot be drawn from again
        encoded |= {name: arrays[name] for name in (DRAWS, COUNTS)}
    if not wanted.k:
        return encoded
    kept = arrays if wanted.k == found.k else _fewest(arrays, found, wanted.k, num_classes)
    encoded |= {IDS: kept[IDS], VALUES: kept[VALUES], REST: kept[REST][:, _columns(found, wanted)]}
    if found.values == wanted.values == "8bit":
        encoded[STEP] = kept[STEP]
    elif wanted.values == "8bit":
        encoded[VALUES], encoded[STEP] = _eight_bits(kept)
    return encoded


def _eight_bits(kept: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return VALUES and STEP of 8 bits from values of float16."""
    import torch

    from storage.encodings.packing import to_codes, unsigned

    # Ids are differences, and a repeated id is padding; the first is no difference, and always real.
    real_BJ = torch.ones_like(kept[VALUES], dtype=torch.bool)
    real_BJ[:, 1:] = unsigned(kept[IDS][:, 1:]) != 0
    return to_codes(kept[VALUES].float(), real_BJ)


def _fewest(arrays: dict[str, Tensor], found: SparseEncoding, k: int, num_classes: int) -> dict[str, Tensor]:
    """Return IDS, VALUES, STEP and REST of the k largest of the kept classes; the mass of the others joins the rest."""
    import torch

    from storage.encodings.packing import to_differences
    from storage.targets.soft import NEVER, SparseTargets

    targets = found.decode(arrays, num_classes)
    assert isinstance(targets, SparseTargets)
    real_BK = targets.log_p_BK > NEVER
    chosen_BJ = targets.log_p_BK.masked_fill(~real_BK, -torch.inf).topk(k, dim=1).indices
    # Fewer than k may be real: the last real one is repeated, as an encoding does.
    real_BJ = real_BK.gather(1, chosen_BJ)
    last_B1 = chosen_BJ.masked_fill(~real_BJ, -1).amax(dim=1, keepdim=True)
    chosen_BJ = torch.where(real_BJ, chosen_BJ, last_B1).sort(dim=1).values
    ids_BJ = targets.ids_BK.gather(1, chosen_BJ)
    stays_BK = torch.zeros_like(real_BK).scatter(1, chosen_BJ, value=True)
    dropped_BK = real_BK & ~stays_BK

    def rest(log_p_BK: Tensor, log_rest_B: Tensor) -> Tensor:
        return torch.logaddexp(log_rest_B, log_p_BK.masked_fill(~dropped_BK, -torch.inf).logsumexp(dim=1))

    columns = [rest(targets.kept_log_p(t), targets.log_rest(t)) for t in found.temperatures]
    columns += [rest(*targets.standardised(t)) for t in found.standardised_temperatures if found.statistics]
    fewer = {
        IDS: to_differences(ids_BJ, num_classes),
        VALUES: arrays[VALUES].gather(1, chosen_BJ),
        REST: torch.stack(columns, dim=1).clamp(max=-(2.0**-24)).half(),  # in float16, 0 would leave the kept nothing
    }
    return fewer | {name: arrays[name] for name in (STEP,) if name in arrays}
