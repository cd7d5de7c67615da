"""Which rows each student of a job is fed: found once for all students that want the same."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

from storage.cache import Catalogue, Samples
from storage.inputs.encoded import OwnSize
from storage.views import PLAIN
from student_train.feed.batches import Needs
from student_train.feed.order.views import EpochViews
from student_train.feed.selection import Selection, join_selections, select_rows
from student_train.options.by_dataset import teacher_of
from student_train.options.sections import datasets_of, listed


class Selections:
    """Selections of rows, each computed once for all students that want it."""

    def __init__(self, samples: Samples, *, allow_partial: bool):
        self._samples = samples
        self._allow_partial = allow_partial
        self._tokenizers: dict[str, bytes | None] = {}
        self._found: dict[Hashable, Selection] = {}

    def tokenizer(self, dataset: str) -> bytes | None:
        """Return the `tokenizer.json` of a dataset's rows, read once for all students."""
        if dataset not in self._tokenizers:
            found = self.catalogue.tokenizer(dataset)
            self._tokenizers[dataset] = None if found is None else found.data
        return self._tokenizers[dataset]

    @property
    def catalogue(self) -> Catalogue:
        """Return what the cache holds."""
        return self._samples.catalogue

    def find(
        self,
        rows: str | Sequence[str],
        needs: Needs,
        *,
        agree_with: str | None = None,
        views: EpochViews | None = None,
        own: OwnSize | None = None,
    ) -> Selection:
        """Return the rows for which the cache holds what is needed.

        Args:
            rows: of the job, `dataset` or `dataset/split`, one or several.
            needs: of a student's losses.
            agree_with: the teacher whose top classes are wanted beside; None: nobody's.
            views: that the rows are shown in; None: as they are.
            own: of a student's own size, at which pictures are decoded; None: the dataset's.
        """
        # `is None` will do: all students of a job train on the same views
        key = (listed(rows), needs.teachers, needs.labels, agree_with, views is None, own)
        if key not in self._found:
            found = [
                select_rows(
                    self._samples,
                    each,
                    needs,
                    allow_partial=self._allow_partial,
                    agree_with=seen_plain(self.catalogue, dataset, agree_with),
                    views=views,
                )
                for each, dataset in zip(listed(rows), datasets_of(rows), strict=True)
            ]
            self._found[key] = replace(join_selections(found), own=own)
        return self._found[key]


def seen_plain(catalogue: Catalogue, dataset: str, name: str | None) -> str | None:
    """Return the teacher of a dataset that a name means, if it was asked about the plain inputs."""
    teacher = None if name is None else teacher_of(name, dataset)
    return teacher if teacher is not None and PLAIN in catalogue.view_names(dataset, teacher) else None
