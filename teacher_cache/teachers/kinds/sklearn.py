"""An estimator of scikit-learn in a file of skops, which names every type that it has: never a pickle, which is code.

Of types that skops does not know by itself, those load that the job names.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from zipfile import is_zipfile

from storage.digests import file_digest
from storage.errors import BadTeacher, BadWeights, missing_extra
from teacher_cache.teachers.spoken import Spoken, longest, wants_around  # noqa: F401 - of a Kind

if TYPE_CHECKING:
    from torch import nn

    from storage.format.specs import DatasetSpec
    from teacher_cache.teachers.options import TeacherOptions

KEYS: tuple[str, ...] = ("path", "method", "trust_types", "classes", "pixels", "mean", "std")
EXTRA = "sklearn"
WHAT = 'kind = "sklearn"'
METHODS = ("predict_proba", "decision_function")
NUMBERS = "predict"  # of a regressor, as in sklearn_model.py, which imports torch
BINARY = 2  # classes, of which there is one number in any case
PAIRS = ("decision_function_shape", "ovo")  # of SVC and its like


class Loaded(NamedTuple):
    """An estimator, and what was said when it was loaded, such as that another version saved it."""

    estimator: Any
    warnings: list[str]


def told(options: TeacherOptions) -> dict[str, Any]:
    """Return what the job itself tells: what it is asked for, and what its classes are named."""
    keys = ("method", "classes", "pixels", "mean", "std")
    return {"kind": "sklearn", **{key: getattr(options, key) for key in keys}}


def digests(options: TeacherOptions) -> dict[str, Any]:
    """Return the digest of the file. Raises BadWeights: it is none of skops, or has types that nobody trusts."""
    digest = file_digest(_path(options))
    check_types(_path(options), options.trust_types or ())
    return {"estimator": digest}


def spoken(options: TeacherOptions) -> Spoken:
    """Return that it has no tokenizer."""
    return Spoken(None, "an estimator of scikit-learn has none")


def classes(options: TeacherOptions) -> list[str] | None:
    """Return the names of its scores: those of the job, or its own `classes_`, in their order."""
    if options.classes is not None:
        return options.classes
    if _scoring(options)[1] == NUMBERS:
        return None
    found = getattr(load_estimator(options).estimator, "classes_", None)
    return None if found is None else [str(name) for name in found.tolist()]


def dimension(options: TeacherOptions) -> int | None:
    """Return how many numbers a regressor gives for a row; None: it does not say. Raises BadTeacher: it has none."""
    estimator, method = _scoring(options)
    if method != NUMBERS:
        raise BadTeacher(
            f"the {type(estimator).__name__} in {_path(options)} scores classes",
            expected="a regressor, of a dataset whose answers are numbers",
        )
    found = getattr(estimator, "n_outputs_", None)
    return None if found is None else int(found)


def notes(options: TeacherOptions) -> list[str]:
    """Return what skops warned of, and how its columns are found, where it has names for them."""
    loaded = load_estimator(options)
    names = getattr(loaded.estimator, "feature_names_in_", None)
    if names is None:
        return loaded.warnings
    shown = ", ".join(map(str, names[:12])) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
    by_name = (
        f"it was fitted on columns with names, {shown}: of a table those are found by name; other data go by place"
    )
    return [*loaded.warnings, by_name]


def check_files(options: TeacherOptions, dataset: DatasetSpec) -> None:
    """Check that the estimator has the method that scores its classes."""
    _scoring(options)


def import_libraries() -> None:
    """Import torch, scikit-learn and skops. Raises BadRequest: they are not installed."""
    import torch  # noqa: F401

    _import_skops()


def load(options: TeacherOptions) -> nn.Module:
    """Return the estimator as a module.

    Raises:
        BadRequest: scikit-learn or skops is not installed.
        BadWeights: the file is none of skops, or has types that nobody trusts.
        BadTeacher: it is no classifier, or cannot be asked as the job says.
    """
    from teacher_cache.teachers.kinds.sklearn_model import SklearnModel

    estimator, method = _scoring(options)
    return SklearnModel(_path(options), estimator, method, file_digest(_path(options)), options.classes)


def _scoring(options: TeacherOptions) -> tuple[Any, str]:
    """Return the estimator, and the method that scores its classes. Raises BadTeacher: it has it not."""
    path, estimator = _path(options), load_estimator(options).estimator
    from sklearn.base import is_regressor

    method = options.method or (NUMBERS if is_regressor(estimator) else METHODS[0])
    if method == NUMBERS and not is_regressor(estimator):
        raise BadTeacher(
            f"the {type(estimator).__name__} in {path} is no regressor, so what it predicts are names of classes",
            found=f'method = "{NUMBERS}"',
            do="leave `method` out",
        )
    if not hasattr(estimator, method):
        others = [each for each in METHODS if hasattr(estimator, each)]
        raise BadTeacher(
            f"the {type(estimator).__name__} in {path} has no {method}",
            found=", ".join(others) or "neither predict_proba nor decision_function",
            expected="a classifier that scores its classes",
            do=f'method = "{others[0]}"' if others else None,
        )
    if method == "decision_function" and len(getattr(estimator, "classes_", ())) > BINARY:
        _check_scores_classes(path, estimator)
    return estimator, method


def _check_scores_classes(path: Path, estimator: Any) -> None:
    """Raise BadTeacher if a decision is one number for each pair of classes: of three there are three pairs as well."""
    parameters: dict[str, Any] = getattr(estimator, "get_params", dict)()
    pairs = [key for key, value in parameters.items() if (key.rpartition("__")[2], value) == PAIRS]
    if pairs:
        raise BadTeacher(
            f"the {type(estimator).__name__} in {path} scores pairs of classes, and no classes",
            found=f'{pairs[0]} = "ovo"',
            expected="one number for each class",
            do=f'estimator.set_params({pairs[0]}="ovr") before it is dumped: nothing is fitted again',
        )


def check_types(path: Path, trusted: Sequence[str]) -> None:
    """Raise BadWeights if a file is none of skops, or has types that neither skops nor the job trusts."""
    skops = _import_skops()
    if not is_zipfile(path):
        raise BadWeights(
            f"{path} is no file of skops",
            found=f"{path.suffix or 'a file'} that is no zip; a pickle, joblib's too, could execute code",
            expected="what skops.io.dump writes, or ONNX",
            do='python -c \'import joblib, skops.io; skops.io.dump(joblib.load("model.joblib"), "model.skops")\' '
            "where you trust the pickle",
        )
    try:
        unknown = sorted(set(skops.get_untrusted_types(file=path)) - set(trusted))
    except Exception as error:  # of a zip of anything else
        raise BadWeights(f"{path} is no file of skops", found=f"{type(error).__name__}: {error}"[:300]) from None
    if unknown:
        raise BadWeights(
            f"{path} has types that skops does not know to be harmless",
            found=", ".join(unknown),
            expected="those that skops knows, most of scikit-learn and NumPy, or such that the job trusts",
            do=f"read what they do when they are loaded; then trust_types = {[*trusted, *unknown]}".replace("'", '"'),
        )


def load_estimator(options: TeacherOptions) -> Loaded:
    """Return the estimator of a job, loaded once for as long as its file is the same."""
    path = _path(options)
    return _load(path, file_digest(path), tuple(options.trust_types or ()))


@lru_cache(maxsize=2)
def _load(path: Path, digest: str, trusted: tuple[str, ...]) -> Loaded:
    skops = _import_skops()
    check_types(path, trusted)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            estimator = skops.load(path, trusted=list(trusted))
        except Exception as error:  # skops and scikit-learn raise any class
            raise BadWeights(f"{path} cannot be loaded", found=f"{type(error).__name__}: {error}"[:300]) from None
    return Loaded(estimator, sorted({str(each.message).split("\n", 1)[0] for each in said}))


def _import_skops() -> Any:
    try:
        import sklearn  # noqa: F401
        import skops.io
    except ImportError:
        raise missing_extra(WHAT, "no scikit-learn and skops", EXTRA) from None
    return skops.io


def _path(options: TeacherOptions) -> Path:
    assert options.path is not None
    return options.path
