"""Which view of its rows each epoch shows: view e mod count in epoch e."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from storage.cache import Catalogue
from storage.errors import BadRequest
from storage.format.specs import ViewsSpec
from storage.views import PLAIN, view_name
from student_train.feed.batches import Needs


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
    catalogue: Catalogue, datasets: Sequence[str], needs: Sequence[Needs], asked: int | None, *, allow_partial: bool
) -> EpochViews | None:
    """Return the views that all students of a job train on, or None for plain inputs.

    Args:
        catalogue: of the cache, with every teacher that is needed.
        datasets: of the trained rows.
        needs: of every student.
        asked: how many; 0 for plain inputs; None for as many as every needed teacher has, plain if that is none.
        allow_partial: whether a view with missing shards counts.

    Raises:
        BadRequest: the dataset has no views, and some are asked for; or one of several datasets has some, whose rows
            are trained on as they are.
    """
    for name in datasets:
        catalogue.dataset(name)  # raises if there is none
    if len(datasets) > 1:
        _check_plain(catalogue, datasets, asked)
        return None
    (dataset,) = datasets
    spec = None if asked == 0 else catalogue.views.get(dataset)
    if asked is not None and asked > 0 and spec is None:
        raise BadRequest(
            f"{catalogue.url}: {dataset} has no views",
            found=f"views = {asked} in the job",
            expected="a cache job with [views] that augments this dataset",
            do="add [views] to the cache job, then cache build; or drop `views` here",
        )
    if spec is None:
        return None
    if asked is not None:
        return EpochViews(spec, asked)
    teachers = sorted({teacher for need in needs for teacher in need.within(dataset).teachers})
    planned = {shard.shard for shard in catalogue.shards(dataset)} if teachers else set()

    def is_there(view: str) -> bool:
        committed = [catalogue.committed(dataset, teacher, view) for teacher in teachers]
        # as sets: every planned shard is there
        return all(shards if allow_partial else shards >= planned for shards in committed)

    count = 0
    while teachers and is_there(view_name(count)):
        count += 1
    if not count and teachers and not is_there(PLAIN):
        count = 1  # neither is whole, and what is being built are views: say what is missing of the first
    return EpochViews(spec, count) if count else None


def _check_plain(catalogue: Catalogue, datasets: Sequence[str], asked: int | None) -> None:
    augmented = [dataset for dataset in datasets if dataset in catalogue.views]
    if asked or (asked is None and augmented):
        raise BadRequest(
            f"{catalogue.url}: rows of several datasets have no views",
            found=f"views = {asked} in the job" if asked else f"views of {', '.join(augmented)}",
            expected="plain inputs, or one dataset",
            do="views = 0 in the student job, with plain = true in the cache job's [views]; or train on one of them",
        )


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
