"""Every loss on features is refused, before the first step, what it cannot be computed from."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest

from storage.cache import Cache
from storage.errors import BadRequest, NotInCache
from student_train.options.terms import FeatureTerm, ProjectedTerm
from student_train.preparing.prepare import prepare
from tests.language.toys import counting_cache, request, small_gpt
from tests.student_train.losses.test_relations import COUPLING
from tests.student_train.toys import LABELS, request_of, student

TERMS = [*FeatureTerm.__subclasses__(), *ProjectedTerm.__subclasses__()]
FEATURES = sorted(name for each in TERMS for name in get_args(each.model_fields["loss"].annotation))


def on(feature: str, loss: str, teacher: str = "sage") -> dict[str, Any]:
    return {"loss": loss, "teacher": teacher, "feature": feature, "student_layer": "network.hidden1"}


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return counting_cache(tmp_path_factory.mktemp("tokens"), rows=20)


@pytest.mark.parametrize("loss", FEATURES)
def test_a_feature_that_is_not_in_the_cache_is_refused_with_the_nearest(
    toy_cache: Cache, tmp_path: Path, loss: str
) -> None:
    wanted = request_of(toy_cache, tmp_path, student(objective=[LABELS, on("poled", loss)]))
    with pytest.raises(NotInCache, match="teacher sage has no feature 'poled' for toy") as refusal:
        prepare(wanted)
    assert (refusal.value.found, refusal.value.do) == ("map, pooled", 'feature = "pooled"')


@pytest.mark.parametrize("loss", sorted({*FEATURES} - {*COUPLING}))
def test_a_map_is_refused_for_a_layer_of_vectors(toy_cache: Cache, tmp_path: Path, loss: str) -> None:
    wanted = request_of(toy_cache, tmp_path, student(objective=[LABELS, on("map", loss)]))
    with pytest.raises(BadRequest, match="cannot be taught by feature sage/feature/map") as refusal:
        prepare(wanted)
    assert refusal.value.found == "the layer has shape (16,), the feature (5, 3, 3)"
    assert refusal.value.do is not None


@pytest.mark.parametrize("loss", COUPLING)
def test_tokens_are_refused_where_rows_would_be_compared(tokens: Cache, tmp_path: Path, loss: str) -> None:
    objective = [LABELS, on("any", loss, "right")]
    with pytest.raises(BadRequest, match="losses that compare rows, and those of counting are tokens") as refusal:
        prepare(request(tokens, tmp_path, small_gpt(objective=objective)))
    assert refusal.value.found == loss
    assert refusal.value.do == "choose other losses"


def test_the_columns_of_dist_are_refused_for_tokens_and_its_rows_are_not(tokens: Cache, tmp_path: Path) -> None:
    dist = {"loss": "dist", "teacher": "right"}
    with pytest.raises(BadRequest, match="losses that compare rows") as refusal:
        prepare(request(tokens, tmp_path, small_gpt(objective=[LABELS, dist])))
    assert refusal.value.do == "gamma = 0 in dist, which leaves what is within a row; or choose other losses"
    assert prepare(request(tokens, tmp_path, small_gpt(objective=[LABELS, dist | {"gamma": 0.0}])))
