"""How far what is stored of some sites is from what a teacher says of them now, aspect by aspect.

Shapes: N sites, C classes, K kept classes, n draws, D features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from storage.encodings import AnyEncoding, DenseEncoding, FeatureEncoding, SparseEncoding, VectorEncoding
from storage.encodings.sparse import COUNTS, DRAWS

if TYPE_CHECKING:
    from torch import Tensor

DRAWN = "draws"  # the one aspect that is counted, not in nats


class Gap(NamedTuple):
    """The difference in one aspect of each site.

    Attributes:
        off_N: how far off, ≥ 0: nats, or draws, or units of the feature.
        found_N, expected_N: what is stored and what the teacher says, where they differ most.
        class_N: int64, the class where that is; None where it is of none.
    """

    off_N: Tensor
    found_N: Tensor
    expected_N: Tensor
    class_N: Tensor | None = None


def gaps(encoding: AnyEncoding, stored: dict[str, Tensor], live_NC: Tensor, own: dict[str, Tensor]) -> dict[str, Gap]:
    """Return what differs between stored soft targets and a teacher's logits, by aspect.

    Args:
        encoding: of the stored targets.
        stored: its arrays, (N, …) each.
        live_NC: the teacher's logits now, float32, of the classes alone.
        own: arrays of the same encoding, of these logits.
    """
    import torch

    from storage.encodings import statistics
    from storage.encodings.never import never

    found: dict[str, Gap] = {}
    if isinstance(encoding, VectorEncoding):
        vectors_ND = encoding.decode(stored, live_NC.shape[1]).vectors_BD
        return {encoding.array: _widest(vectors_ND, live_NC)._replace(class_N=None)}
    if isinstance(encoding, DenseEncoding):
        stored_NC = encoding.decode(stored, live_NC.shape[1]).logits_BC
        if (never_NC := never(live_NC)) is not None and (stored_never_NC := never(stored_NC)) is not None:
            # By which number one says "never" is nobody's matter, and rounding it would hide all else.
            stored_NC, live_NC = (
                each.masked_fill(never_NC & stored_never_NC, -torch.inf) for each in (stored_NC, live_NC)
            )
        found["logits"] = _widest(stored_NC, live_NC)
    elif isinstance(encoding, SparseEncoding):
        if encoding.k:
            found |= _kept_gaps(encoding, stored, live_NC)
        if encoding.n:
            found[DRAWN] = _draws_gap(stored, own)
    told, tells = (statistics.decode(arrays, encoding) for arrays in (stored, own))
    if told is not None and tells is not None:
        found["log-sum-exp"] = _widest(told.lse_BT, tells.lse_BT)._replace(class_N=None)
        found["entropy"] = _widest(told.entropy_B[:, None], tells.entropy_B[:, None])._replace(class_N=None)
    return found


def size_of(live_NC: Tensor) -> float:
    """Return the largest absolute value of logits, of classes that can be."""
    from storage.encodings.never import never

    never_NC = never(live_NC)
    possible_NC = live_NC if never_NC is None else live_NC.masked_fill(never_NC, 0.0)
    return float(possible_NC.nan_to_num(0.0, 0.0, 0.0).abs().amax())


def feature_gap(encoding: FeatureEncoding, stored_BD: Tensor, live_BD: Tensor) -> Gap:
    """Return what differs between a stored feature and a teacher's own, which is pooled here, of each row."""
    whole = encoding.model_copy(update={"dtype": "fp32"})
    wide = (encoding.decode(stored_BD).flatten(1), whole.encode(live_BD).flatten(1))
    return _widest(*wide)._replace(class_N=None)


def _kept_gaps(encoding: AnyEncoding, stored: dict[str, Tensor], live_NC: Tensor) -> dict[str, Gap]:
    """Return the gaps in the kept classes, in which ones they are, and in the mass of the rest."""
    import torch

    from storage.targets.soft import NEVER, SparseTargets
    from storage.targets.support import kept_and_rest

    targets = encoding.decode(stored, live_NC.shape[1])
    assert isinstance(targets, SparseTargets)
    ids_NK, real_NK = targets.ids_BK, targets.log_p_BK > NEVER
    live_NK, live_rest_N = kept_and_rest(live_NC, ids_NK)
    kept = _widest(targets.log_p_BK.masked_fill(~real_NK, 0.0), live_NK.masked_fill(~real_NK, 0.0))
    rest = _widest(targets.log_rest(1.0)[:, None], live_rest_N[:, None])._replace(class_N=None)
    # No class outside may be likelier than one of those that are kept.
    outside = live_NC.scatter(1, ids_NK, -torch.inf).max(dim=1)
    least_N = live_NC.gather(1, ids_NK).masked_fill(~real_NK, torch.inf).amin(dim=1)
    short_N = (outside.values - least_N).clamp(min=0.0)
    choice = Gap(short_N, least_N, outside.values, outside.indices)
    assert kept.class_N is not None
    classes_N = ids_NK.gather(1, kept.class_N[:, None])[:, 0]
    return {"kept classes": kept._replace(class_N=classes_N), "rest": rest, "choice of classes": choice}


def _draws_gap(stored: dict[str, Tensor], own: dict[str, Tensor]) -> Gap:
    """Return how many draws of each site are others than those that the teacher gives now: draws are no chance."""
    import torch

    from storage.encodings.packing import from_differences, unsigned

    (ids_Nn, counts_Nn), (own_ids_Nn, own_counts_Nn) = (
        (from_differences(arrays[DRAWS]), unsigned(arrays[COUNTS])) for arrays in (stored, own)
    )
    ids, order = torch.cat([ids_Nn, own_ids_Nn], dim=1).sort(dim=1)
    counts = torch.cat([counts_Nn, -own_counts_Nn], dim=1).gather(1, order)
    # One sum for each class that either has drawn.
    place = torch.zeros_like(ids)
    place[:, 1:] = (ids.diff(dim=1) != 0).cumsum(dim=1)
    others_N = torch.zeros_like(counts).scatter_add(1, place, counts).clamp(min=0).sum(dim=1)
    total_N = own_counts_Nn.sum(dim=1)
    return Gap(others_N.float(), (total_N - others_N).float(), total_N.float())


def _widest(stored_NJ: Tensor, live_NJ: Tensor) -> Gap:
    """Return where two tensors differ most in each row; what is infinite in both does not differ."""
    import torch

    off_NJ = torch.where(stored_NJ == live_NJ, 0.0, (stored_NJ - live_NJ).abs())
    widest = off_NJ.max(dim=1)
    at_N1 = widest.indices[:, None]
    return Gap(widest.values, stored_NJ.gather(1, at_N1)[:, 0], live_NJ.gather(1, at_N1)[:, 0], widest.indices)
