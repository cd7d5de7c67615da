"""Several datasets whose rows are side by side in a batch: what they must have alike, and the share of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches

from storage.cache import Catalogue
from storage.errors import BadRequest, MissingCapability, NotInCache
from storage.format.specs import DatasetSpec, TeacherSpec
from storage.inputs import inputs_of
from storage.inputs.columns import check_same_columns
from storage.tasks import task_of
from student_train.feed.batches import ArrayKey, Needs
from student_train.feed.order.mixture import shared_out
from student_train.feed.selection import Selection
from student_train.options.by_dataset import teacher_of


def check_agree(dataset: DatasetSpec, held: DatasetSpec, what: str) -> None:
    """Raise BadRequest unless two datasets agree in what a row is, what is asked of it, and the names of classes."""

    def described(spec: DatasetSpec) -> str:
        classes = task_of(spec).described(spec)
        tokenizer = f", tokenizer {spec.tokenizer}" if spec.tokenizer is not None else ""
        names = f": {', '.join(spec.classes)}" if dataset.classes != held.classes else ""
        return f"{classes}{names}, inputs {spec.input_shape} {spec.input_dtype}{tokenizer}"

    check_same_columns(held.source, dataset.source, what)
    if (dataset.classes, described(dataset)) != (held.classes, described(held)):
        raise BadRequest(
            what,
            found=described(held),
            expected=f"the same classes: {described(dataset)}",
            do=f'tokenizer_of = "{dataset.name}" in the cache job\'s [[dataset]] {held.name}'
            if inputs_of(dataset).tokenised
            else "give both datasets the same `classes`, in one order, in the cache job"
            if dataset.classes != held.classes
            else None,
        )
    # a row of one document is one of several too, but who was trained on rows of one does not part them
    if inputs_of(held).packed and not inputs_of(dataset).packed:
        raise BadRequest(
            what,
            found=f"rows of several documents: pack = true of {held.name}",
            expected=f"rows of one document each, as of {dataset.name}",
            do="pack both; or the first of them, of which a student is made",
        )


def feature_shapes(catalogue: Catalogue, dataset: str, needs: Needs) -> dict[ArrayKey, tuple[int, ...]]:
    """Return the shape of one row of each feature, after checking that the cache holds it for a dataset.

    Raises:
        NotInCache: no such teacher, or no such feature of it; what there is, is named.
    """
    shapes: dict[ArrayKey, tuple[int, ...]] = {}
    for key in sorted(needs.features):
        own = teacher_of(key.teacher, dataset) or key.teacher
        teacher = catalogue.teacher(dataset, own)
        feature = key.array.removeprefix("feature/")
        if feature not in teacher.features:
            near = get_close_matches(feature, teacher.features, 1)
            raise NotInCache(
                f"teacher {own} has no feature {feature!r} for {dataset}",
                found=", ".join(sorted(teacher.features)) or "no features",
                do=f'feature = "{near[0]}"' if near else "add it to the teacher in the cache job, then build --as NAME",
            )
        if catalogue.view_names(dataset, own):  # else no row has it, which selecting rows will tell
            shapes[key] = catalogue.row_shape(dataset, own, key.array)
    return shapes


def check_alike(
    catalogue: Catalogue, found: Sequence[tuple[str, int, dict[ArrayKey, tuple[int, ...]]]], needs: Needs
) -> None:
    """Check that what is learned from in one dataset lies as in every other: a batch has rows of all of them.

    Args:
        catalogue: with the teachers.
        found: of each dataset its name, the number of classes, and shapes of features.
        needs: of one student.

    Raises:
        MissingCapability: two of the datasets differ, which are named with what they have.
    """
    (first, num_classes, shapes), *others = found
    for dataset, count, of_features in others:
        differing = {}
        if count != num_classes:
            differing["number of classes"] = f"{num_classes}", f"{count}"
        for name in needs.teachers:
            (one, here), (other, there) = _taught(catalogue, first, name), _taught(catalogue, dataset, name)
            if needs.of(name) and here.encoding != there.encoding:
                pair = (here.encoding.model_dump_json(), there.encoding.model_dump_json())
                differing[f"encoding of {one} and {other}"] = pair
        for key in sorted(shapes.keys() & of_features.keys()):
            (one, here), (other, there) = (_taught(catalogue, each, key.teacher) for each in (first, dataset))
            feature = key.array.removeprefix("feature/")
            one_is = f"{shapes[key]} as {here.features[feature].model_dump_json()}"
            other_is = f"{of_features[key]} as {there.features[feature].model_dump_json()}"
            if one_is != other_is:
                differing[f"feature {feature} of {one} and {other}"] = (one_is, other_is)
        for what, (one_is, other_is) in differing.items():
            raise MissingCapability(
                f"rows of {first} and {dataset} cannot be learned from together: they differ in the {what}",
                found=f"{dataset}: {other_is}",
                expected=f"as of {first}: {one_is}",
                do="give both teachers the same `encoding` and `features` in the cache job, then cache build --as NAME",
            )


def _taught(catalogue: Catalogue, dataset: str, name: str) -> tuple[str, TeacherSpec]:
    """Return the teacher of a dataset that a name means, and its promise."""
    teacher = teacher_of(name, dataset) or name
    return teacher, catalogue.teacher(dataset, teacher)


def mixed(selection: Selection, shares: Mapping[str, float] | None) -> Selection:
    """Return the same rows, of which an epoch takes those of each dataset by its share.

    Args:
        selection: of several datasets.
        shares: of each of them; None: every row is in an epoch once.

    Raises:
        BadRequest: a share is not one row of an epoch.
    """
    if shares is None:
        return selection
    rows = shared_out(shares, selection.num_rows)
    if none := [name for name, count in rows.items() if not count]:
        raise BadRequest(
            f"the mixture has no row of {', '.join(none)}",
            found=", ".join(f"{name} = {shares[name]:g}" for name in none) + f" of {selection.num_rows:,} rows",
            expected="one row of an epoch at least",
            do="a larger share; or leave the dataset out of `train` and `mixture`",
        )
    return replace(selection, taken=tuple(rows[dataset] for dataset in selection.datasets))


def told_of_mixture(selection: Selection) -> str | None:
    """Return what an epoch of a mixture has of each dataset, in words; None: it has each row once."""
    if not selection.taken:
        return None
    told = []
    for part, taken in zip(selection.parts, selection.taken, strict=True):
        held = len(part.rows)
        turn = f"each within {-(-held // taken)} epochs" if taken < held else f"each {_times(taken, held)}"
        told.append(f"{taken:,} of {part.dataset} ({taken / selection.num_rows:.1%}; it has {held:,}, {turn})")
    return f"an epoch of the mixture is {selection.num_rows:,} rows: {', '.join(told)}"


def _times(taken: int, held: int) -> str:
    """Return how many times each of some rows comes.

    >>> _times(7, 7), _times(14, 7), _times(15, 7)
    ('once', '2 times', '2 or 3 times')
    """
    rounds, more = divmod(taken, held)
    return f"{rounds} or {rounds + 1} times" if more else "once" if rounds == 1 else f"{rounds} times"
