"""How a teacher stands beside chance, by the labels of the dataset: a wrong mean, size or order of classes shows here.

Each commit of a teacher's shard has sums over its labelled sites, each ingest how many labels of each class it holds;
the ledger has them all, so that nothing is read for it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

import polars as pl

from storage.cache.catalogue import Catalogue
from storage.format.ledger import Ledger, two_classes
from storage.format.specs import DatasetSpec
from storage.inputs import inputs_of
from storage.inputs.columns import answers_of
from storage.tasks import Task, task_of
from storage.tasks.base import Answered
from storage.views import PLAIN

HARDLY_MIXED = 0.8  # of the share that is due
SHOWN_CLASSES = 12  # in a line
ONE_EACH = 20  # classes, from which on it is odd that none has two rows


class Standing(NamedTuple):
    """How one teacher stands over one dataset.

    Attributes:
        dataset, teacher, view: which; the first view that it was asked about.
        answered: what its labelled sites amount to; None of a cache whose commits do not say.
        text: in words, beside chance.
        is_near_chance: whether it is hardly better, so that something is probably wrong.
        look_at: then, with what.
        no_better: then, what it is called.
    """

    dataset: str
    teacher: str
    view: str
    answered: Answered | None
    text: str
    is_near_chance: bool
    look_at: str = Task.look_at
    no_better: str = Task.no_better

    def as_values(self) -> dict[str, Any]:
        """Return it as JSON."""
        return self._asdict() | {"answered": None if self.answered is None else self.answered._asdict()}

    @property
    def note(self) -> str:
        """Return a line for whoever built the cache, or is about to train from it."""
        if not self.is_near_chance:
            return f"{self.dataset}/{self.teacher}: {self.text}"
        return near_chance(self.text, self.look_at, f"{self.dataset}/{self.teacher} is ", self.no_better)


def near_chance(text: str, look_at: str, who: str = "", no_better: str = Task.no_better) -> str:
    """Return a warning of a teacher that is hardly better than chance, with what is to be looked at."""
    return f"warning: {who}{no_better}: {text}; look at {look_at}"


def standings(catalogue: Catalogue, ledger: Ledger) -> list[Standing]:
    """Return how each teacher stands that has answered a labelled site, by dataset and name."""
    found = []
    for dataset, teacher in sorted(catalogue.teachers):
        spec, task = catalogue.datasets[dataset], task_of(catalogue.datasets[dataset])
        view = next(iter(catalogue.view_names(dataset, teacher)), None)
        if view is None or not catalogue.teachers[dataset, teacher].encoding.soft:  # who says nothing stands nowhere
            continue
        said = (_look_at(spec, catalogue.teachers[dataset, teacher].model), task.no_better)
        commits, labels = ledger.of(dataset, teacher, view), ledger.labels(dataset)
        if commits["labelled"].null_count():
            text = "unknown beside chance: its shards were built before that was kept"
            found.append(Standing(dataset, teacher, view, None, text, False, *said))
        elif labelled := int(commits["labelled"].sum()):
            answered = Answered(labelled, int(commits["correct"].sum()), float(commits["nats"].sum()))
            deviations = (answers_of(spec.source) or ((), ()))[1]
            text, is_near_chance = task.standing(answered, task.num_classes(spec), labels, deviations)
            if spec.source.get("validation"):  # commits hold sums over all rows
                text += "; over train and validation, and a teacher trained on the former is better there"
            found.append(Standing(dataset, teacher, view, answered, text, is_near_chance, *said))
    return found


def _look_at(dataset: DatasetSpec, model: Mapping[str, Any]) -> str:
    """Return what is probably wrong with a teacher at chance; of pixels also the range in which it was given them."""
    task = task_of(dataset)
    if not inputs_of(dataset).scaled or not {"pixels", "mean"} & model.keys():
        return task.look_at
    if model.get("pixels") == "bytes":
        given = 'it was given pixels from 0 to 255 (pixels = "bytes"), and many a network wants 0 to 1, or -1 to 1'
    elif model.get("mean") is None:
        given = (
            'it was given pixels from 0 to 1, and many a network wants 0 to 255 (pixels = "bytes"), or -1 to 1 '
            "(mean = [0.5], std = [0.5])"
        )
    else:
        given = f"it was given pixels from 0 to 1, less {model['mean']} and over {model.get('std')}"
    return f"{task.look_at}: {given}"


def classes_told(catalogue: Catalogue, ledger: Ledger) -> list[str]:
    """Return a line for each dataset whose labels are counted: its classes in their order, each with its rows.

    A label that was misspelt is a class of its own, and a folder without an image one without rows: here both are seen.
    """
    lines = []
    for dataset, spec in sorted(catalogue.datasets.items()):
        counts = ledger.labels(dataset)
        if counts and not sum(counts):  # meant so, or `path` is a folder too deep
            lines.append(f"{dataset}: no row has a label; {_listed('class', 'classes', spec.classes)} by name alone")
        if not sum(counts):
            continue
        shown = [f"{name} {count:,}" for name, count in zip(spec.classes, counts, strict=True)]
        line = f"{dataset}: {len(shown)} classes of {sum(counts):,} labelled rows: {', '.join(shown[:SHOWN_CLASSES])}"
        if len(shown) > SHOWN_CLASSES:
            fewest = min(range(len(counts)), key=lambda number: counts[number])
            line += f", … (the fewest: {shown[fewest]})"
        lines.append(line)
        if max(counts) == 1 and len(counts) >= ONE_EACH:
            lines.append(
                f"note: {dataset}: each class has one row: is its label a number that is to be told, or an id?"
            )
        if empty := [name for name, count in zip(spec.classes, counts, strict=True) if not count]:
            lines.append(f"note: {dataset}: no row is of {_listed('class', 'classes', empty)}")
        lines += [
            f"note: {dataset}: {' and '.join(map(repr, names))} are {len(names)} classes, and look like one"
            for names in alike(spec.classes)
        ]
    return lines


def alike(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Return names that are probably one, written in several ways: one number, or one word in other letters.

    >>> alike(["1", "01", "2", "Cat", "cat", "dog", "-1", "2.0"])
    [('1', '01'), ('2', '2.0'), ('Cat', 'cat')]
    """
    meant: dict[str, list[str]] = {}
    for name in names:
        word = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
        is_number = re.fullmatch(r"-?\d+(\.\d+)?", word)
        meant.setdefault(str(Decimal(word).normalize()) if is_number else word, []).append(name)
    return [tuple(same) for same in meant.values() if len(same) > 1]


def _listed(one: str, many: str, names: Sequence[str]) -> str:
    more = f", and {len(names) - SHOWN_CLASSES} more" if len(names) > SHOWN_CLASSES else ""
    return f"{one if len(names) == 1 else many} {', '.join(names[:SHOWN_CLASSES])}{more}"


def mixing_told(catalogue: Catalogue, ledger: Ledger) -> list[str]:
    """Return a warning for each dataset whose views mix rows that are mostly of one class: partners are of the shard.

    Beside the share of pairs of a shard that are of two classes stands that of all pairs of the dataset.
    """
    lines = []
    for dataset, views in sorted(catalogue.views.items()):
        shards = ledger.of(dataset, None, PLAIN).drop_nulls("two_classes").filter(pl.col("rows") > 0)
        due = two_classes(ledger.labels(dataset))
        if not views.mixes or not len(shards) or due is None:
            continue
        found = float((shards["two_classes"] * shards["rows"]).sum()) / int(shards["rows"].sum())
        if found < HARDLY_MIXED * due:
            lines.append(
                f"warning: {dataset}: {found:.0%} of the rows that mixup and cutmix mix are of two classes, "
                f"where rows drawn from the whole dataset would be {due:.0%}: its rows lie by class; a new cache, "
                "built with --as NAME, lays them in no order (row groups of Parquet stay whole: write smaller ones)"
            )
    return lines
