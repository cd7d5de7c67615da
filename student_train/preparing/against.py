"""On which rows a student is measured, against which teacher, and what that takes of the cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from storage.cache import Catalogue
from storage.encodings import Capability, Encoding, SparseEncoding
from storage.inputs.encoded import OwnSize
from storage.tasks import task_of
from storage.views import PLAIN
from student_train.feed.batches import Needs, SoftNeed
from student_train.feed.selection import Integers, Selection
from student_train.options.by_dataset import named_together, teacher_of
from student_train.options.sections import datasets_of
from student_train.options.terms import ObjectiveTerm
from student_train.preparing.selections import Selections, seen_plain
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


class OfSeveral(NamedTuple):
    """One of a student's several teachers, each of which it is measured against.

    Attributes:
        name: as the objective has it.
        against: of tasks that are measured site by site.
        tops_N: of others, its top class of each held row, or NO_CLASS.
    """

    name: str
    against: Against | None = None
    tops_N: Integers | None = None


class Held(NamedTuple):
    """The rows that a student is measured on, and the teachers beside which it is.

    Attributes:
        rows: they.
        agree_with: the teacher whose top classes of them are known, or None.
        against: the teacher that it is measured against site by site, where its task is.
        why_not_against: why there is none, where one was due.
        several: its teachers, where it has several, as far as it can be measured against them.
        told: what cannot be measured, in words.
    """

    rows: Selection
    agree_with: str | None
    against: Against | None
    why_not_against: str | None
    several: tuple[OfSeveral, ...]
    told: tuple[str, ...]


def find_held(
    selections: Selections,
    wanted: str | Sequence[str],
    terms: Sequence[ObjectiveTerm],
    num_classes: int,
    own: OwnSize | None,
) -> Held:
    """Return the rows that a student is measured on, and beside which of its teachers.

    Args:
        selections: of rows.
        wanted: which, as the job has it.
        terms: of the student's objective.
        num_classes: of the student.
        own: its own size of pictures; None: the dataset's.
    """
    catalogue, datasets = selections.catalogue, datasets_of(wanted)
    named = [name for term in terms for name in term.teacher_names]
    soft = [name for name in named if not any(_has_features_alone(catalogue, of, name) for of in datasets)]
    agree_with = _agreeing(catalogue, datasets, soft)
    rows = selections.find(wanted, Needs(), agree_with=agree_with, own=own)
    against, why_not = measured_against(catalogue, rows, soft or named, num_classes)

    def tops_of(teacher: str) -> Integers | None:
        return selections.find(wanted, Needs(), agree_with=teacher).tops_N

    several, told = beside_each(rows, soft, against, num_classes, tops_of)
    if why_not is None:
        told += _told_of_features_alone(named, soft)
    return Held(rows, agree_with, against, why_not, several, tuple(told))


def _agreeing(catalogue: Catalogue, datasets: Sequence[str], soft: Sequence[str]) -> str | None:
    """Return the first teacher that any term names and that says a class, if it was asked about the rows as they are.

    Held rows are plain: with a teacher that never saw them so, there is nothing to agree with.
    """
    if not soft or not task_of(catalogue.dataset(datasets[0])).has_classes:
        return None
    return soft[0] if any(seen_plain(catalogue, name, soft[0]) is not None for name in datasets) else None


def _has_features_alone(catalogue: Catalogue, dataset: str, name: str) -> bool:
    """Return whether the teacher of a dataset that a name means was asked for features alone."""
    spec = catalogue.teachers.get((dataset, teacher_of(name, dataset) or name))
    return spec is not None and not spec.encoding.soft


def _told_of_features_alone(named: Sequence[str], soft: Sequence[str]) -> list[str]:
    """Return a line for a student all of whose teachers say nothing of classes."""
    alone = dict.fromkeys(name for name in named if name not in soft)
    if soft or not alone:
        return []
    return [f"no agreement with {', '.join(alone)}, which {'has' if len(alone) == 1 else 'have'} features alone"]


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


def beside_each(
    held: Selection,
    named: Sequence[str],
    first: Against | None,
    num_classes: int,
    tops_of: Callable[[str], Integers | None],
) -> tuple[tuple[OfSeveral, ...], list[str]]:
    """Return the teachers of a student that has several, as it is measured against each; and why not against some.

    Args:
        held: the held rows.
        named: teachers of the objective that say something of classes, or vectors, in its order.
        first: what the student is measured against in any case; None: nobody, which is told elsewhere.
        num_classes: of the student.
        tops_of: returns a teacher's top class of each held row; None: it was asked about none of them as they are.
    """
    names, task = tuple(dict.fromkeys(named)), TASKS[task_of(held.spec).name]
    if len(names) < 2:
        return (), []
    found, told = list[OfSeveral](), list[str]()
    for name in names:
        if task.beside_teacher:
            each, why_not = measured_against(held.catalogue, held, [name], num_classes)
            each_of = None if each is None else OfSeveral(name, each)
        else:
            tops_N, why_not = tops_of(name), f"teacher {name} was not asked about the held rows as they are"
            each_of = None if tops_N is None else OfSeveral(name, tops_N=tops_N)
        if each_of is not None:
            found.append(each_of)
        elif not task.beside_teacher or first is not None:
            told.append(f"no figures beside teacher {name} on the held rows: {why_not}")
    return tuple(found), told


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
