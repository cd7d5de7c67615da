"""Which view of its rows each epoch shows, and how a batch becomes it: as the teacher's shard did, to the byte.

Epoch e shows view e mod count. N fed rows, B rows of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from storage.cache import Cache
from storage.errors import BadRequest
from storage.spec import ViewsSpec
from storage.views import PLAIN, view_name
from storage.views.shown import View
from student_train.needs import Needs

if TYPE_CHECKING:
    from student_train.selection import Selection


@dataclass(frozen=True)
class EpochViews:
    """Views of a dataset, in turn.

    Attributes:
        spec: which function of a sample they are.
        count: how many of them.
    """

    spec: ViewsSpec
    count: int

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of all of them."""
        return tuple(map(view_name, range(self.count)))

    def of_epoch(self, epoch: int) -> str:
        """Return the name of the view that an epoch (from 0) shows."""
        return view_name(epoch % self.count)


def choose_views(
    cache: Cache, dataset: str, needs: Sequence[Needs], asked: int | None, *, allow_partial: bool
) -> EpochViews | None:
    """Return the views that all students of a job train on, or None for plain inputs.

    Args:
        cache: where they are.
        dataset: of the trained rows.
        needs: of every student.
        asked: how many; 0 for plain inputs; None for as many as every needed teacher has, plain if that is none.
        allow_partial: whether a view with missing shards counts.

    Raises:
        BadRequest: the dataset has no views, and some are asked for.
    """
    spec = None if asked == 0 else cache.views(dataset)
    if asked is not None and asked > 0 and spec is None:
        raise BadRequest(
            f"{cache.url}: {dataset} has no views",
            found=f"views = {asked} in the job",
            expected="a cache job with [views] that augments this dataset",
            do="add [views] to the cache job, then cache build; or drop `views` here",
        )
    if spec is None:
        return None
    if asked is not None:
        return EpochViews(spec, asked)
    teachers = sorted({teacher for need in needs for teacher in need.teachers})
    planned = {shard.shard for shard in cache.shards(dataset)} if teachers else set()

    def is_there(view: str) -> bool:
        committed = [cache.committed(dataset, teacher, view) for teacher in teachers]
        return all(shards if allow_partial else shards >= planned for shards in committed)

    count = 0
    while teachers and is_there(view_name(count)):
        count += 1
    if not count and teachers and not is_there(PLAIN):
        count = 1  # neither is whole, and what is being built are views: say what is missing of the first
    return EpochViews(spec, count) if count else None


def check_one_class(student: str, needs: Needs, views: EpochViews | None) -> None:
    """Raise BadRequest if a loss wants one true class of rows that are mixed of two."""
    if views is not None and views.spec.mixes and needs.one_class:
        kinds = [step.kind for step in views.spec.transforms]
        raise BadRequest(
            f"student {student}: {', '.join(sorted(needs.one_class))} wants one true class, and these views mix two",
            found=f"transforms {', '.join(kinds)} ({views.spec.name}/views.json)",
            expected="views without mixup and cutmix",
            do="views = 0 in the student job, with plain = true in the cache job's [views]; another loss; "
            "or a cache whose [views] do not mix",
        )


def check_first_view(student: str, first_view: int, views: EpochViews | None) -> None:
    """Raise BadRequest if a student is to begin with a view that there is not."""
    count = 0 if views is None else views.count
    if first_view and first_view >= count:
        raise BadRequest(
            f"student {student} cannot begin with view {first_view}",
            found=f"{count} views" if count else "plain inputs, without views",
            expected=f"first_view below {count}" if count else "a cache job with [views]",
            do="lower first_view, or drop it",
        )


class Shown:
    """One view of all fed rows, on the device of a feed.

    Args:
        selection: the rows; it has views.
        name: of the view.
        device: where batches are.
    """

    def __init__(self, selection: Selection, name: str, device: torch.device):
        assert selection.views is not None
        self.name = name
        self._view: View = selection.views.spec.view(name)
        self._keys_N = torch.from_numpy(selection.keys_N).to(device)
        self._partners_N: dict[torch.device, Tensor] = {}  # positions among the fed rows, there and on the host
        if self._view.mixing:
            partners_N = torch.from_numpy(_partners(selection, self._view))
            self._partners_N = {on: partners_N.to(on) for on in (self._keys_N.device, partners_N.device)}

    @property
    def mixes(self) -> bool:
        """Whether every row has a partner."""
        return bool(self._partners_N)

    def partners(self, rows_B: Tensor) -> Tensor:
        """Return the positions of some rows' partners, where the rows' own are: on the device or on the host."""
        return self._partners_N[rows_B.device].index_select(0, rows_B)

    def show(self, inputs: Tensor, partner_inputs: Tensor | None, rows_B: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return a batch as the view shows it, uint8, and float32 weights of its rows' own labels, None for all 1."""
        keys_B = self._keys_N.index_select(0, rows_B)
        if partner_inputs is None:
            return self._view.show(inputs, keys_B).images, None
        partner_keys_B = self._keys_N.index_select(0, self.partners(rows_B))
        mixed = self._view.show(inputs, keys_B, partner_inputs, partner_keys_B)
        return mixed.images, mixed.own_weight_B


def _partners(selection: Selection, view: View) -> np.ndarray:
    """Return the position of each fed row's partner, (N,): in its shard and split, of which every row is fed."""
    stops_S = np.cumsum(selection.shard_sizes_S)
    parts = [
        start + view.partners(selection.keys_N[start:stop], selection.splits_N[start:stop])
        for start, stop in zip(stops_S - selection.shard_sizes_S, stops_S, strict=True)
    ]
    return np.concatenate(parts)
