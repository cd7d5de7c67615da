"""What every task answers to those who build caches and train students.

Shapes: S rows of a shard, B rows of a batch, `sites` the axes of a row's sites: () where a row is its only site, (L,)
where each of its L positions is one. C classes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:  # `cache status` asks how many sites a row has, and should not pay two seconds for torch
    from torch import Tensor

    from storage.format.specs import DatasetSpec
    from storage.inputs import Inputs, Stored

NO_LABEL = -1  # of a site without one
TARGET = "target"  # column of an ingest's commit: the numbers that are a row's label
LABELLED = "labelled"  # column of a teacher's commit: sites of a row that have a label, where a row has many sites

MOST_NATS = 700.0  # whose power is still a float
MOST_COUNTED = 1000  # classes, whose labels a commit counts one by one


def count_labelled(labels_S: Stored) -> np.ndarray:
    """Return how many sites of each row have a label, int64 (S,).

    >>> count_labelled(np.array([[3, NO_LABEL], [NO_LABEL, NO_LABEL]])).tolist()
    [1, 0]
    >>> from storage.inputs.ragged import Ragged
    >>> count_labelled(Ragged.of([[NO_LABEL, 0], [], [4, 5]], np.int32)).tolist()
    [1, 0, 2]
    """
    if isinstance(labels_S, np.ndarray):
        return np.asarray((labels_S > NO_LABEL).sum(tuple(range(1, labels_S.ndim)), dtype=np.int64))
    before = np.concatenate([np.zeros(1, np.int64), (np.asarray(labels_S.flat_T) > NO_LABEL).cumsum()])
    return np.asarray(np.diff(before[labels_S.offsets]))


class Answered(NamedTuple):
    """What a teacher's answers at labelled sites amount to: how many, how many right, and nats of cross-entropy.

    Where they are numbers, none is right, and in the place of nats are squares of what they are off by: of each row the
    mean over its numbers.
    """

    labelled: int
    correct: int
    nats: float


def perplexity_of(nats: float) -> float:
    """Return exp of a cross-entropy in nats; of a label that can never be, a float has no room for it.

    >>> round(perplexity_of(math.log(65)), 6), perplexity_of(1e4) == perplexity_of(700.0)
    (65.0, True)
    """
    return math.exp(min(nats, MOST_NATS))


class Task(ABC):
    """What is asked of a row.

    Attributes:
        name: in `dataset.json`, and in a job.
        inputs: kinds of rows of which it can be asked.
        site_name: what its sites are called where they are counted: "row", "token".
        unlabelled_sites: whether a site without a label is one to answer.
        label_array: the ingest's array that holds labels; None where a label is a column of the sample table.
        padded_classes: whether a teacher may give more logits than there are classes; the rest pads a vocabulary.
        figure: by which models are compared: "accuracy", "spearman"; or "cross_entropy" in nats and "rmse", where
            less is better.
        encodings: kinds of soft targets that a teacher may be asked for, the usual one first.
        no_better: what a teacher is called that is hardly better than one who knows nothing of a row.
        look_at: what is probably wrong with it then.
        has_classes: whether an answer is scores of classes, and a label the class of a site.
        numbers: whether a label is numbers, in the column `target` of the sample table.
        pooled_features: whether a teacher's features may be pooled over the axes behind the first two.
    """

    name: ClassVar[str]
    inputs: ClassVar[tuple[str, ...]]
    site_name: ClassVar[str]
    unlabelled_sites: ClassVar[bool]
    label_array: ClassVar[str | None]
    padded_classes: ClassVar[bool]
    pooled_features: ClassVar[bool]
    figure: ClassVar[str] = "accuracy"
    has_classes: ClassVar[bool] = True
    numbers: ClassVar[bool] = False
    encodings: ClassVar[tuple[str, ...]] = ("dense", "sparse", "none")
    no_better: ClassVar[str] = "near chance"
    look_at: ClassVar[str] = "the teacher's mean and std, at the dataset's size and at the order of classes"

    @abstractmethod
    def num_classes(self, dataset: DatasetSpec) -> int:
        """Return the number of scores that a model gives for each site; 0: nobody knows."""

    @abstractmethod
    def described(self, dataset: DatasetSpec) -> str:
        """Return what a model chooses among, in words: "10 classes"."""

    @abstractmethod
    def sites(self, input_shape: Sequence[int]) -> tuple[int, ...]:
        """Return the axes of the sites of a row of this shape; logits are (B, *sites, C)."""

    @abstractmethod
    def blank_labels(self, num_rows: int, input_shape: Sequence[int], kind: Inputs) -> dict[str, Any]:
        """Return the ingest's array of labels, (S, *sites) without any label yet; of none, nothing.

        Each is to be assigned by its number, as the inputs are, and stored as they are: of a row of its own length, a
        label of each item.
        """

    @abstractmethod
    def labels(self, table: pa.Table, read: Callable[[str], Stored], chosen_S: np.ndarray) -> np.ndarray:
        """Return the labels of some rows of a shard, (B, *sites) int64, NO_LABEL where there is none.

        Args:
            table: of the ingest's commit, or columns that are to become one.
            read: returns an array of the ingest by name, as it is stored.
            chosen_S: which rows, by a mask (S,) or their numbers. Those of their own length are padded with NO_LABEL
                to the longest of them, as `Inputs.shown` pads the inputs.
        """

    @abstractmethod
    def site_keys(self, keys_B: Tensor, input_shape: Sequence[int]) -> Tensor:
        """Return what draws are a function of at each site, (B, *sites) int64, from the keys of rows."""

    def answered_sites(self, labels: Tensor) -> Tensor:
        """Return at which sites a teacher is asked for an answer, and a cache has one, bool (B, *sites).

        Args:
            labels: (B, *sites), NO_LABEL where there is none.
        """
        return (labels > NO_LABEL) | self.unlabelled_sites

    def asked_sites(self, labels: Tensor) -> Tensor:
        """Return which of the flattened sites are looked at where some are enough, ascending, int64.

        Args:
            labels: (B, *sites). If no site is answered, every one is looked at.
        """
        import torch

        answered = self.answered_sites(labels).flatten().nonzero()[:, 0]
        return answered if len(answered) else torch.arange(labels.numel())

    @abstractmethod
    def row_columns(self, sites: dict[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
        """Return the per-sample columns of a teacher's commit, (B,) each; NaN, or class NO_LABEL, is no value.

        Args:
            sites: `top`, `top_probability`, `entropy`, `label_log_probability`, (B, *sites) each; the last is of no
                meaning where there is no label.
            labels: (B, *sites).
        """

    @abstractmethod
    def standing(
        self, answered: Answered, num_classes: int, labels: Sequence[int], deviations: Sequence[float] = ()
    ) -> tuple[str, bool]:
        """Return how a teacher stands beside chance, in words, and whether it is hardly better.

        Args:
            answered: over all labelled sites.
            num_classes: C.
            labels: how many there are of each class; empty where they are not counted.
            deviations: of each number that is told, in the dataset; empty where they are not known, or none is.
        """

    @abstractmethod
    def chance(self, num_classes: int, labels: Sequence[int]) -> float:
        """Return the task's figure of one who knows nothing but how common each class is, if that is counted.

        Args:
            num_classes: C.
            labels: how many there are of each class; empty where they are not counted.
        """
