"""Which losses an encoding serves, as `cache build` and `cache plan` tell it."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.show.serving import losses_served, served_lines
from storage.encodings import DenseEncoding, SparseEncoding, VectorEncoding
from student_train.losses import LOSSES
from student_train.options.terms import SoftTerm
from tests.student_train.losses.toys import remedies, term

SPARSE = SparseEncoding(k=16)
ENCODINGS = [
    SPARSE,
    SparseEncoding(k=16, temperatures=[1.0, 4.0], standardised_temperatures=[2.0]),
    SparseEncoding(k=16, n=50),
    SparseEncoding(n=50),
    SparseEncoding(k=16, statistics=False),
    DenseEncoding(dtype="fp16"),
]


def test_a_sparse_encoding_serves_these_losses_at_temperature_1() -> None:
    assert served_lines("big", SPARSE, "language_model") == [
        "big serves at T = 1: kd, marginal_smoothing, topk_biased, dkd, nkd, jsd, skewed_kl, skewed_reverse_kl, "
        "total_variation",
        "  not: random_sampling, stratified, dist, standardised, reverse_kl, logit_mse",
    ]


def test_teachers_of_one_encoding_are_told_together() -> None:
    one = served_lines("big", SPARSE, "language_model")
    assert served_lines(["big"], SPARSE, "language_model") == one
    assert served_lines(["big", "old"], SPARSE, "language_model")[0] == one[0].replace(
        "big serves", "big and old serve"
    )
    many = served_lines([*"abcdef"], SPARSE, "language_model")
    assert many[0].startswith("a, b, c, d and 2 more serve at T = 1: kd")


def test_a_loss_that_does_not_run_as_a_job_leaves_it_is_told_with_its_temperature() -> None:
    assert served_lines("big", SPARSE, "image_classification")[2:] == [
        "  say their temperature: kd, dkd, which a job that leaves it out means at 4"
    ]
    assert losses_served(SparseEncoding(k=16, temperatures=[1.0, 4.0]), "image_classification").unsaid == {}


def test_a_dense_one_serves_all_but_draws() -> None:
    served = losses_served(DenseEncoding(), "image_classification")
    assert served.never == ["random_sampling", "stratified"]
    assert set(served.at) == {"any T", ""}
    assert served.at[""] == ["logit_mse"]


@pytest.mark.parametrize("encoding", ENCODINGS, ids=repr)
def test_what_is_told_is_what_training_would_take(encoding: Any) -> None:
    served = losses_served(encoding, "image_classification")
    of_each = {name: where for where, names in served.at.items() for name in names}
    soft = [name for name in LOSSES if name in of_each or name in served.never]
    assert {name for name in soft if isinstance(term(name), SoftTerm)} == set(soft)
    assert len(soft) == len(of_each) + len(served.never) == 15
    for name in soft:
        if "temperature" not in type(term(name)).model_fields:
            assert (not remedies(term(name), encoding)) == (name in of_each)
            continue
        for temperature in (1.0, 2.0, 4.0, 8.0):
            told = of_each.get(name, "")
            numbers = told.removeprefix("T = ").replace(" and ", ", ").split(", ")
            assert (not remedies(term(name, temperature=temperature), encoding)) == (
                told == "any T" or f"{temperature:g}" in numbers
            )


def test_losses_that_compare_rows_are_not_served_where_a_part_of_the_positions_is_computed_at_a_time() -> None:
    assert "dist" in losses_served(DenseEncoding(), "language_model").never


def test_of_one_number_no_loss_on_directions_is_served() -> None:
    of_one, of_two = (losses_served(VectorEncoding(), "regression", width) for width in (1, 2))
    assert of_one.at == {"": ["vector_mse", "vector_similarity"]}
    assert of_one.never == ["vector_cosine", "vector_rkd", "vector_pkt", "infonce"]
    assert not of_two.never
