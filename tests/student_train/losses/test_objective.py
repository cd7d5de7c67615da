from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from storage.cache import Cache
from storage.encodings import Capability, SparseEncoding
from storage.errors import BadRequest, MissingCapability, NotInCache
from storage.targets.soft import DenseTargets
from student_train.feed.batches import ArrayKey, Needs, SoftNeed, Supervision
from student_train.feed.together import feature_shapes
from student_train.losses.objective import Objective, objective_needs, student_layers
from student_train.losses.outputs import Outputs, Shapes
from student_train.preparing.served import check_served, count_classes
from student_train.stepping.forward import Tapped, check_student
from student_train.students import Blueprint, build_student
from tests.student_train.toys import HINT, KD, LABELS, Recipe, student, write_cache


def terms(*sections: dict[str, Any]) -> Any:
    return student(objective=list(sections)).objective


def toy_student() -> Any:
    spec = Blueprint(architecture="mlp", num_classes=4, input_shape=(1, 6, 6), mean=(0.5,), std=(0.5,))
    return build_student(spec)


def test_the_total_is_the_weighted_sum_of_the_terms() -> None:
    objective = Objective(terms(LABELS | {"weight": 0.25}, KD | {"weight": 3.0}), Shapes({}, {}))
    given = Supervision(torch.arange(5) % 4, {"sage": DenseTargets(torch.randn(5, 4))})
    total, (labels, kd), parts = objective(Outputs(torch.randn(5, 4)), given)
    assert torch.allclose(total, 0.25 * labels + 3 * kd)
    assert torch.allclose(torch.stack(parts), torch.stack([0.25 * labels, 3 * kd]))


def test_every_term_has_a_name_of_its_own() -> None:
    mixed = {"loss": "kd", "teachers": ["sage", "owl"]}
    objective = Objective(terms(LABELS, KD, KD | {"temperature": 1.0}, mixed), Shapes({}, {}))
    assert objective.names == ["labels", "kd:sage", "kd:sage#2", "kd:sage+owl"]


def test_an_objective_needs_what_its_terms_need() -> None:
    expected = Needs(
        labels=True,
        soft=frozenset({SoftNeed("sage", Capability("bucket", 2.0))}),
        features=frozenset({ArrayKey("sage", "feature/pooled")}),
    )
    assert objective_needs(terms(LABELS, KD, HINT)) == expected


def test_labels_alone_need_no_teacher() -> None:
    assert objective_needs(terms(LABELS)).teachers == ()


@pytest.mark.parametrize(
    "check",
    [
        lambda cache: check_served(cache.catalogue(), "toy", terms(KD | {"teacher": "sag"})),
        lambda cache: check_served(cache.catalogue(), "toy", terms({"loss": "kd", "teachers": ["sage", "sag"]})),
        lambda cache: feature_shapes(cache.catalogue(), "toy", objective_needs(terms(HINT | {"teacher": "sag"}))),
    ],
)
def test_a_teacher_that_is_not_there_is_refused_with_those_there_are(toy_cache: Cache, check: Any) -> None:
    with pytest.raises(NotInCache) as refusal:
        check(toy_cache)
    assert (refusal.value.found, "sag" in refusal.value.what) == ("sage", True)


def test_a_feature_that_is_not_there_is_refused_with_the_nearest(toy_cache: Cache) -> None:
    with pytest.raises(NotInCache) as refusal:
        feature_shapes(toy_cache.catalogue(), "toy", objective_needs(terms(HINT | {"feature": "poled"})))
    assert (refusal.value.found, refusal.value.do) == ("map, pooled", 'feature = "pooled"')


def test_shapes_are_those_of_one_row(toy_cache: Cache) -> None:
    found = feature_shapes(toy_cache.catalogue(), "toy", objective_needs(terms(KD, HINT, HINT | {"feature": "map"})))
    assert {str(key): shape for key, shape in found.items()} == {
        "sage/feature/map": (5, 3, 3),
        "sage/feature/pooled": (5,),
    }


def test_a_teacher_of_other_classes_cannot_teach_logits(tmp_path: Path) -> None:
    cache = write_cache(tmp_path, Recipe(teacher_classes=7))
    with pytest.raises(MissingCapability, match="do not agree") as refusal:
        count_classes(cache.catalogue(), "toy", objective_needs(terms(KD)))
    assert refusal.value.found == "dataset toy: 4, teacher sage: 7"


def test_a_teacher_of_other_classes_can_give_a_hint(tmp_path: Path) -> None:
    cache = write_cache(tmp_path, Recipe(teacher_classes=7))
    assert count_classes(cache.catalogue(), "toy", objective_needs(terms(LABELS, HINT))) == 4


def test_a_layer_that_is_not_there_is_refused_with_the_nearest() -> None:
    with pytest.raises(BadRequest) as refusal:
        check_student(toy_student(), ["network.hiden1"], (1, 6, 6), 4)
    assert refusal.value.do == 'student_layer = "network.hidden1"'


def test_a_model_of_other_classes_is_refused() -> None:
    with pytest.raises(BadRequest, match="one logit per class") as refusal:
        check_student(toy_student(), [], (1, 6, 6), 10)
    assert (refusal.value.found, refusal.value.expected) == ("(2, 4) for a batch of 2", "a tensor of shape (2, 10)")


def test_a_model_for_other_inputs_is_refused() -> None:
    with pytest.raises(BadRequest, match=r"cannot take inputs of shape \(1, 9, 9\)"):
        check_student(toy_student(), [], (1, 9, 9), 4)


def test_checking_a_student_leaves_it_as_it_was() -> None:
    model = toy_student()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    check_student(model, ["network.hidden1"], (1, 6, 6), 4)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert (model.training, len(model.network.hidden1._forward_hooks)) == (True, 0)


def test_a_tapped_student_returns_its_layers_and_keeps_nothing() -> None:
    tapped = Tapped(toy_student(), ["network.hidden1"])
    outputs = tapped(torch.rand(3, 1, 6, 6))
    assert (outputs.layers["network.hidden1"].shape, tapped._seen) == ((3, 256), {})


def test_a_term_that_an_encoding_cannot_serve_is_refused_with_the_change_that_would_help(toy_cache: Cache) -> None:
    with pytest.raises(MissingCapability) as refusal:
        check_served(toy_cache.catalogue(), "toy", terms(LABELS, KD, {"loss": "stratified", "teacher": "sage"}))
    error = refusal.value
    assert error.what == "stratified:sage needs what the soft targets of teacher sage for toy do not serve"
    assert (error.found, error.expected) == ("every logit, at every temperature", "stratified")
    assert error.do == (
        'in the cache job: encoding = { kind = "sparse", k = 16, n = 50 }; then cache build JOB.toml --as NAME'
    )


def test_all_that_a_term_lacks_is_told_at_once(tmp_path: Path) -> None:
    cache = write_cache(tmp_path, Recipe(rows=10, encoding=SparseEncoding(k=2)))
    with pytest.raises(MissingCapability) as refusal:
        check_served(cache.catalogue(), "toy", terms({"loss": "dkd", "teacher": "sage", "temperature": 3.0}))
    assert refusal.value.expected == "bucket at temperature 3; label_probability at temperature 3"
    assert refusal.value.do is not None
    assert refusal.value.do.count("encoding.temperatures = [1.0, 3.0]") == 1
    assert refusal.value.do.endswith("; or temperature = 1 in the term")  # which costs no build


def test_no_temperature_is_offered_that_would_not_help(tmp_path: Path) -> None:
    cache = write_cache(tmp_path, Recipe(rows=10, encoding=SparseEncoding(n=2)))
    with pytest.raises(MissingCapability) as refusal:
        check_served(cache.catalogue(), "toy", terms({"loss": "kd", "teacher": "sage", "temperature": 3.0}))
    assert refusal.value.do is not None
    assert "temperature =" not in refusal.value.do


def test_layers_are_those_of_every_loss_on_features() -> None:
    crd = HINT | {"loss": "crd", "student_layer": "network.hidden2"}
    assert student_layers(terms(HINT, KD, crd, LABELS)) == ("network.hidden1", "network.hidden2")
