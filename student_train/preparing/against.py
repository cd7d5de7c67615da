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
from student_train.options.by_dataset import named_together, teacher_of
from student_train.tasks import TASKS


class Against(NamedTuple):
    """A teacher that a student is measured against.

    Attributes:
        teacher: its name.
        over: over which classes their KL divergence is taken, in words.
        need: what of its soft targets that takes.
    """

    teacher: str
    over: str
    need: Capability

    def __str__(self) -> str:
        return f"teacher {self.teacher}, over {self.over}"

    @property
    def needs(self) -> Needs:
        """Return what must be read of it for each held row."""
        return Needs(soft=frozenset([SoftNeed(self.teacher, self.need)]))


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
    task = TASKS[task_of(held.spec).name]
    if not task.beside_teacher:
        return None, None
    name = named[0] if named else _only_teacher(catalogue, held.datasets)
    if name is None:  # which of several, nobody says
        return None, None
    for rows in held.apart():
        why_not = _why_not(catalogue, rows, name, num_classes, task.beside)
        if why_not is not None:
            return None, why_not
    encodings = [catalogue.teacher(of, teacher_of(name, of) or name).encoding for of in held.datasets]
    if any(encoding != encodings[0] for encoding in encodings):
        return None, f"of {name} is stored something else in each of {', '.join(held.datasets)}"
    return Against(name, over_which(encodings[0]), task.beside), None


def _only_teacher(catalogue: Catalogue, datasets: Sequence[str]) -> str | None:
    """Return the name of the only teacher of some datasets, or of the only one of each; None where it is not one."""
    teachers = {dataset: catalogue.teacher_names(dataset) for dataset in datasets}
    if any(len(names) != 1 for names in teachers.values()):
        return None
    only = {dataset: names[0] for dataset, names in teachers.items()}
    return named_together(only) if len(set(only.values())) > 1 else only[datasets[0]]


def _why_not(catalogue: Catalogue, held: Selection, name: str, num_classes: int, need: Capability) -> str | None:
    """Return why nobody can be measured against a teacher on the held rows of a dataset; None: one can."""
    (dataset,) = held.datasets
    teacher = teacher_of(name, dataset)
    if teacher is None:
        return f"{name} names no teacher of {dataset}"
    if (dataset, teacher) not in catalogue.teachers:
        return f"teacher {teacher} was not asked about {dataset}"
    spec = catalogue.teacher(dataset, teacher)
    if spec.num_classes != num_classes:
        return f"teacher {teacher} has {spec.num_classes} classes, the student {num_classes}"
    if spec.encoding.lacks(need) is not None:
        return f"of teacher {teacher} is stored: {'; '.join(spec.encoding.serves)}"
    absent = set(held.shards_S) - catalogue.committed(dataset, teacher, PLAIN)
    return f"teacher {teacher} lacks {len(absent)} of {len(held.shards_S)} held shards" if absent else None


def over_which(encoding: Encoding) -> str:
    """Return over which classes a divergence from such targets is taken, in words.

    >>> from storage.encodings import DenseEncoding, SparseEncoding
    >>> over_which(DenseEncoding())
    'all classes'
    >>> over_which(SparseEncoding(k=16))
    'its 16 largest classes and the rest as one bucket, which is never more than over all'
    """
    if not encoding.classes:
        return "vectors"
    if encoding.lacks(Capability("logits")) is None:
        return "all classes"
    assert isinstance(encoding, SparseEncoding)  # the one other kind that serves a bucket
    kept = f"{'at most ' * (encoding.p is not None)}{encoding.k} largest classes" if encoding.k > 1 else "largest class"
    return f"its {kept} and the rest as one bucket, which is never more than over all"
