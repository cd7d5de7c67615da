"""Whether a cache serves what losses need: classes, soft targets that can do what is asked of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from storage.cache import Catalogue
from storage.encodings import Encoding
from storage.errors import BadRequest, MissingCapability
from storage.format.ledger import Ledger
from storage.tasks import task_of
from student_train.feed.batches import Needs
from student_train.feed.selection import Selection
from student_train.losses import LOSSES
from student_train.options.terms import ObjectiveTerm


def count_classes(catalogue: Catalogue, dataset: str, needs: Needs) -> int:
    """Return the number of logits that a student must give: the dataset's classes, or its teachers' if it has none.

    Raises:
        BadRequest: there are neither classes nor logits.
        MissingCapability: two teachers' logits, or a teacher's and the dataset's classes, are of different numbers.
        NotInCache: no such teacher.
    """
    classes = catalogue.dataset(dataset).num_classes
    counts = {f"dataset {dataset}": classes} if classes else {}
    needs = needs.within(dataset)
    for name in needs.teachers:
        teacher = catalogue.teacher(dataset, name)
        if needs.of(name):
            counts[f"teacher {name}"] = teacher.num_classes
    if len(set(counts.values())) > 1:
        raise MissingCapability(
            f"the logits for {dataset} do not agree on the number of classes",
            found=", ".join(f"{name}: {count}" for name, count in counts.items()),
            expected="one number of classes",
            do="use that teacher for a hint only, or another teacher",
        )
    if not counts:
        raise BadRequest(
            f"{dataset} has no classes and the objective no teacher's logits",
            expected="a number of classes for the student",
            do='add a "kd" term, or label the dataset',
        )
    return next(iter(counts.values()))


def check_some_labelled(train: Selection) -> str | None:
    """Return which rows a term is of that wants labels where there are some, in words; None: it is of all.

    Raises:
        BadRequest: no row has a label; or a row has many.
    """
    if task_of(train.spec).label_array is not None:
        raise BadRequest(
            "labels of rows that have many are looked at where there are some anyway",
            found=f"where_labelled = true, and {train.datasets[0]} has a label at each position",
            do="leave it out",
        )
    counts = {rows.datasets[0]: (int(rows.labelled_mask.sum()), rows.num_rows) for rows in train.apart()}
    if not any(labelled for labelled, _ in counts.values()):
        raise BadRequest(
            "a term wants labels where there are some, and there are none",
            found=f"{train.num_rows:,} rows of {', '.join(counts)} without a label",
            do='drop the "labels" term; or train on rows that have labels besides',
        )
    told = ", ".join(f"{labelled:,} of {rows:,} rows of {name}" for name, (labelled, rows) in counts.items())
    return None if all(labelled == rows for labelled, rows in counts.values()) else f"labels are of {told}"


def check_served(catalogue: Catalogue, dataset: str, terms: Sequence[ObjectiveTerm]) -> None:
    """Check that what losses want of soft targets is there; nothing is approximated in silence (invariant 9).

    Raises:
        NotInCache: no such teacher; what there is, is named.
        MissingCapability: a teacher's encoding does not serve a term, which is named with all that it lacks, and with
            the changes to the cache job that would help; or a term is on directions, and its answers are one number.
    """
    for term in terms:
        soft = sorted(LOSSES[term.loss].needs(term).within(dataset).soft)  # a set has no order, and a message should
        for teacher in dict.fromkeys(need.teacher for need in soft):
            encoding = catalogue.teacher(dataset, teacher).encoding
            remedies = {need.capability: encoding.lacks(need.capability) for need in soft if need.teacher == teacher}
            lacking = {capability: remedy for capability, remedy in remedies.items() if remedy is not None}
            if lacking:
                changes = "; ".join(dict.fromkeys(lacking.values()))
                allowed = "".join(f"; or {change} in the term" for change in _changes(term, encoding, dataset, teacher))
                raise MissingCapability(
                    f"{term.name} needs what the soft targets of teacher {teacher} for {dataset} do not serve",
                    found="; ".join(encoding.serves),
                    expected="; ".join(map(str, lacking)),
                    do=f"in the cache job: {changes}; then cache build JOB.toml --as NAME{allowed}",
                )
            if LOSSES[term.loss].by_direction(term) and catalogue.teacher(dataset, teacher).num_classes == 1:
                raise MissingCapability(
                    f"{term.name} looks at the directions of vectors, and one number has none but its sign",
                    found=f"answers of teacher {teacher} for {dataset} that are one number each",
                    expected="vectors of two numbers or more",
                    do="angle = 0 in the term" if getattr(term, "distance", 0) else 'loss = "vector_mse"',
                )


def check_never(catalogue: Catalogue, ledger: Ledger, dataset: str, terms: Sequence[ObjectiveTerm]) -> None:
    """Check that no term learns from a teacher whose classes it could not bear (invariant 9).

    Raises:
        MissingCapability: a teacher says that a class can never be, and a term has no value there.
    """
    never: Counter[str] = Counter()
    for (of, teacher, _), commits in ledger.stages.items():
        if of == dataset and teacher is not None:
            never[teacher] += int(commits["never"].sum())
    for term in terms:
        for teacher in dict.fromkeys(need.teacher for need in LOSSES[term.loss].needs(term).within(dataset).soft):
            if never[teacher] and not LOSSES[term.loss].takes_never:
                site = task_of(catalogue.dataset(dataset)).site_name
                raise MissingCapability(
                    f"{term.name} has no value where a class can never be, which teacher {teacher} says",
                    found=f"{never[teacher]:,} {site}s of {dataset} with a logit of -inf, or 1,000 below the largest",
                    expected="classes that all can be",
                    do="a loss that takes them: kd, jsd, skewed_kl, skewed_reverse_kl or total_variation",
                )


def _changes(term: ObjectiveTerm, encoding: Encoding, dataset: str, teacher: str) -> list[str]:
    """Return changes to a term, each enough with the encoding of a dataset's teacher.

    They are an approximation that is allowed, or a temperature that the encoding serves.
    """
    fields = type(term).model_fields
    changes: dict[str, dict[str, object]] = {
        f"{name} = true": {name: True} for name in fields if name.startswith("allow_") and not getattr(term, name)
    }
    if "temperature" in fields:
        changes |= {f"temperature = {each:g}": {"temperature": each} for each in encoding.temperatures}

    def enough(change: dict[str, object]) -> bool:
        needs = LOSSES[term.loss].needs(term.model_copy(update=change)).within(dataset)
        return not any(encoding.lacks(capability) for capability in needs.of(teacher))

    return [text for text, change in changes.items() if enough(change)]
