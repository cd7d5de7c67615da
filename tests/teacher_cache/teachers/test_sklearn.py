"""Classifiers of scikit-learn as teachers: through skops, never through a pickle."""

from __future__ import annotations

import pickle
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skops.io
import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import SVC, LinearSVC

from storage.cache import Cache
from storage.errors import BadRequest, BadTeacher, BadWeights
from storage.format.specs import DatasetSpec
from teacher_cache.teachers.kinds import KINDS
from teacher_cache.teachers.loading import load_teacher
from teacher_cache.teachers.options import TeacherOptions
from tests.teacher_cache.toys import Silent, build, digits, write_digits, write_job

IMAGES, LABELS = digits(200)
FLAT = IMAGES.reshape(len(IMAGES), -1) / 255.0
DIGITS = DatasetSpec(name="d", source={}, classes=list("0123456789"), input_shape=(1, 8, 8), input_dtype="uint8")


def fitted(estimator: Any, labels: Any = LABELS, rows: Any = FLAT) -> Any:
    return estimator.fit(rows, labels)


def section(extra: str = "") -> str:
    return f'[[teacher]]\nname = "sk"\nkind = "sklearn"\npath = "model.skops"\nbatch_size = 16\n{extra}\n'


def asked(folder: Path, estimator: Any, extra: str = "", rows: int = 32) -> np.ndarray:
    """Save an estimator and build a cache of it; return the logits that are stored of the first rows."""
    skops.io.dump(estimator, folder / "model.skops")
    build(write_job(folder, write_digits(folder, rows, rows_per_shard=rows), section(extra)))
    return Cache.open(str(folder / "cache")).read_targets("digits", "sk", 0)["logits"]


def test_the_soft_targets_of_a_pipeline_are_its_own_probabilities(tmp_path: Path) -> None:
    model = fitted(make_pipeline(StandardScaler(), LogisticRegression()))
    stored = torch.tensor(asked(tmp_path, model))
    assert np.allclose(stored.softmax(1), model.predict_proba(FLAT[:32]), atol=1e-5)


def test_classes_are_matched_by_name(tmp_path: Path) -> None:
    names = np.array([f"digit-{label}" for label in LABELS])
    model = fitted(LogisticRegression(), names)
    skops.io.dump(model, tmp_path / "model.skops")
    turned = [f"digit-{label}" for label in range(9, -1, -1)]
    dataset = write_digits(tmp_path, 32, rows_per_shard=32)
    dataset = "\n".join(f"classes = {turned}" if line.startswith("classes") else line for line in dataset.splitlines())
    build(write_job(tmp_path, dataset.replace("'", '"'), section()))
    stored = torch.tensor(Cache.open(str(tmp_path / "cache")).read_targets("digits", "sk", 0)["logits"])
    assert np.allclose(stored.softmax(1).flip(1), model.predict_proba(FLAT[:32]), atol=1e-5)


def test_classes_that_differ_are_refused_with_the_difference(tmp_path: Path) -> None:
    names = np.array(["nought" if label == 0 else str(label) for label in LABELS])
    with pytest.raises(BadRequest, match="scores other classes") as refused:
        asked(tmp_path, fitted(LogisticRegression(), names))
    assert "(unknown: nought)" in str(refused.value)
    assert "(missing: 0)" in str(refused.value)


def test_votes_that_a_class_never_got_are_no_word_that_it_can_never_be(tmp_path: Path) -> None:
    forest = fitted(RandomForestClassifier(5, random_state=0, n_jobs=2))
    stored = asked(tmp_path, forest, 'trust_types = ["sklearn.tree._tree.Tree"]')  # its C code goes by what it reads
    assert np.allclose(torch.tensor(stored).softmax(1), forest.predict_proba(FLAT[:32]), atol=1e-5)
    assert np.isfinite(stored).all()
    assert stored.min() == np.log(np.finfo(np.float32).tiny)


def test_an_estimator_without_probabilities_is_asked_for_its_decision(tmp_path: Path) -> None:
    model = fitted(LinearSVC())
    with pytest.raises(BadTeacher, match="has no predict_proba") as refused:
        asked(tmp_path, model)
    assert refused.value.do == 'method = "decision_function"'
    stored = asked(tmp_path, model, 'method = "decision_function"')
    assert np.allclose(stored, model.decision_function(FLAT[:32]), atol=1e-5)


def test_a_decision_for_each_pair_of_three_classes_is_none_for_each_class(tmp_path: Path) -> None:
    three = LABELS < 3
    model = SVC(decision_function_shape="ovo").fit(FLAT[three], LABELS[three])
    assert model.decision_function(FLAT[:2]).shape == (2, 3)  # as many pairs as classes
    skops.io.dump(make_pipeline(StandardScaler(), model), tmp_path / "model.skops")
    options = TeacherOptions(name="sk", kind="sklearn", path=tmp_path / "model.skops", method="decision_function")
    with pytest.raises(BadTeacher, match="scores pairs of classes") as refused:
        KINDS["sklearn"].check_files(options, DIGITS)
    assert refused.value.do is not None
    assert 'svc__decision_function_shape="ovr"' in refused.value.do


def test_one_number_for_two_classes_becomes_two_logits(tmp_path: Path) -> None:
    model = fitted(LogisticRegression(), LABELS % 2)
    skops.io.dump(model, tmp_path / "model.skops")
    options = TeacherOptions(name="sk", kind="sklearn", path=tmp_path / "model.skops", method="decision_function")
    logits = load_teacher(options, torch.device("cpu")).model(torch.tensor(FLAT[:8]))
    assert np.allclose(logits.softmax(1), model.predict_proba(FLAT[:8]), atol=1e-5)


@pytest.mark.parametrize("suffix", [".joblib", ".pkl", ".skops"])
def test_a_pickle_is_refused_with_what_to_do_and_not_executed(tmp_path: Path, suffix: str) -> None:
    proof, path = tmp_path / "proof", tmp_path / f"model{suffix}"
    path.write_bytes(pickle.dumps(Executes(proof)))
    with pytest.raises(BadWeights, match="is no file of skops") as refused:
        load_teacher(TeacherOptions(name="sk", kind="sklearn", path=path), torch.device("cpu"))
    assert "skops.io.dump" in str(refused.value)
    assert not proof.exists()


class Executes:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return Path.write_text, (self.path, "executed")


def test_types_that_skops_does_not_know_are_loaded_where_the_job_names_them(tmp_path: Path) -> None:
    model = fitted(make_pipeline(FunctionTransformer(partial(np.multiply, 2.0)), LogisticRegression()))
    skops.io.dump(model, tmp_path / "model.skops")
    unknown = skops.io.get_untrusted_types(file=tmp_path / "model.skops")
    assert unknown
    with pytest.raises(BadWeights, match="does not know to be harmless") as refused:
        asked(tmp_path, model)
    assert [name for name in unknown if name not in str(refused.value.do)] == []
    with pytest.raises(BadWeights) as refused:
        asked(tmp_path, model, 'trust_types = ["numpy.dtype"]')
    assert 'trust_types = ["numpy.dtype", "' in str(refused.value.do)  # a line to be pasted in its place
    stored = asked(tmp_path, model, f"trust_types = {unknown}".replace("'", '"'))
    assert np.allclose(torch.tensor(stored).softmax(1), model.predict_proba(FLAT[:32]), atol=1e-5)


def test_rows_of_another_width_and_what_is_no_classifier_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadTeacher, match="takes other rows") as refused:
        asked(tmp_path, fitted(LogisticRegression(), rows=FLAT[:, :60]))
    assert (refused.value.found, refused.value.expected) == ("64 numbers a row", "60")
    with pytest.raises(BadTeacher, match="is a regressor, and digits asks for 10 classes"):
        asked(tmp_path, fitted(LinearRegression()))


def test_columns_with_names_are_told_to_be_matched_by_their_place(tmp_path: Path) -> None:
    model = fitted(LogisticRegression())
    model.feature_names_in_ = np.array([f"pixel-{number}" for number in range(64)], object)
    skops.io.dump(model, tmp_path / "model.skops")
    watcher = Silent()
    build(write_job(tmp_path, write_digits(tmp_path, 32), section()), watcher=watcher)
    (note,) = [each for each in watcher.notes if "fitted on columns with names, pixel-0, pixel-1" in each]
    assert note.endswith("pixel-11 and 52 more: of a table those are found by name; other data go by place")
