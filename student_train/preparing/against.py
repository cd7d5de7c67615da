"""Against which teacher a student is measured on the held rows, and what that takes of the cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from storage.cache import Catalogue
from storage.encodings import Capability, Encoding, SparseEncoding
from storage.tasks import task_of
from storage.views import PLAIN
from student_train.feed.batches import Needs, SoftNeed
from student_train.feed.selection import Selection
from student_train.tasks import TASKS

KL_NEED = Capability("bucket", 1.0)  # serves the likeliest class too


class Against(NamedTuple):
    """A teacher that a student is measured against.

    Attributes:
        teacher: its name.
        over: over which classes their KL divergence is taken, in words.
    """

    teacher: str
    over: str

    def __str__(self) -> str:
        return f"teacher {self.teacher}, over {self.over}"

    @property
    def needs(self) -> Needs:
        """Return what must be read of it for each held row."""
        return Needs(soft=frozenset([SoftNeed(self.teacher, KL_NEED)]))


def measured_against(
    catalogue: Catalogue, held: Selection, named: Sequence[str], num_classes: int
) -> tuple[Against | None, str | None]:
    """Return the teacher that a student is measured against, if its task is; else why there is none, if one was due.

    It is the first that the student's objective names; of one that learns from labels alone the only one there is.

    Args:
        catalogue: of the cache.
        held: the held rows.
        named: teachers of the objective, in its order.
        num_classes: of the student.
    """
    if not TASKS[task_of(catalogue.dataset(held.dataset)).name].beside_teacher:
        return None, None
    names = list(named) or catalogue.teacher_names(held.dataset)
    if not named and len(names) != 1:  # which of several, nobody says
        return None, None
    why_not = _why_not(catalogue, held, names[0], num_classes)
    if why_not is not None:
        return None, why_not
    return Against(names[0], over_which(catalogue.teacher(held.dataset, names[0]).encoding)), None


def _why_not(catalogue: Catalogue, held: Selection, teacher: str, num_classes: int) -> str | None:
    """Return why nobody can be measured against a teacher on the held rows; None: one can."""
    if (held.dataset, teacher) not in catalogue.teachers:
        return f"teacher {teacher} was not asked about {held.dataset}"
    spec = catalogue.teacher(held.dataset, teacher)
    if spec.num_classes != num_classes:
        return f"teacher {teacher} has {spec.num_classes} classes, the student {num_classes}"
    if spec.encoding.lacks(KL_NEED) is not None:
        return f"of teacher {teacher} is stored: {'; '.join(spec.encoding.serves)}"
    absent = set(held.shards_S) - catalogue.committed(held.dataset, teacher, PLAIN)
    return f"teacher {teacher} lacks {len(absent)} of {len(held.shards_S)} held shards" if absent else None


def over_which(encoding: Encoding) -> str:
    """Return over which classes a divergence from such targets is taken, in words.

    >>> from storage.encodings import DenseEncoding, SparseEncoding
    >>> over_which(DenseEncoding())
    'all classes'
    >>> over_which(SparseEncoding(k=16))
    'its 16 largest classes and the rest as one bucket, which is never more than over all'
    """
    if encoding.lacks(Capability("logits")) is None:
        return "all classes"
    assert isinstance(encoding, SparseEncoding)  # the one other kind that serves a bucket
    kept = f"{'at most ' * (encoding.p is not None)}{encoding.k} largest classes" if encoding.k > 1 else "largest class"
    return f"its {kept} and the rest as one bucket, which is never more than over all"
