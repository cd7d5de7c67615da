from __future__ import annotations

from math import exp, log

import pytest
import torch

from student_train.feed.batches import ArrayKey, Needs
from student_train.losses import LOSSES
from student_train.losses.on_features.crd import crd
from tests.student_train.losses.toys import compare, feature_loss, normal, term


def test_each_row_is_told_from_its_negatives() -> None:
    # two rows at right angles, τ = 1, N = 1, M = 2: h = e^f/(e^f + 1/2)
    negatives_BB = torch.tensor([[False, True], [True, False]])
    value = crd(torch.eye(2), 3 * torch.eye(2), temperature=1.0, negatives_BB=negatives_BB)
    own, other = exp(1) / (exp(1) + 0.5), 1 / (1 + 0.5)
    assert value.item() == pytest.approx(-log(own) - log(1 - other))


def test_a_row_without_negatives_is_drawn_to_its_own_feature_only() -> None:
    value = crd(torch.eye(2), torch.eye(2), temperature=1.0, negatives_BB=torch.zeros(2, 2, dtype=torch.bool))
    assert value.item() == pytest.approx(-log(exp(1) / (exp(1) + 0.5)))


def test_rows_of_one_class_are_no_negatives_of_each_other() -> None:
    made = feature_loss("crd", (4,), (4,), width=4)
    layer, feature = normal(4, 4), normal(4, 4, seed=1)
    apart = compare(made, layer, feature, torch.tensor([0, 1, 2, 3]))
    alike = compare(made, layer, feature, torch.tensor([0, 0, 0, 0]))
    assert alike < apart
    every = feature_loss("crd", (4,), (4,), width=4, same_class_negatives=True)
    every.load_state_dict(made.state_dict())
    torch.testing.assert_close(compare(every, layer, feature), apart)


def test_it_needs_labels_that_are_one_class_unless_every_other_row_is_a_negative() -> None:
    key = frozenset([ArrayKey("t", "feature/f")])
    given = {"feature": "f", "student_layer": "x"}
    by_class = Needs(labels=True, one_class=frozenset(["crd"]), features=key)
    assert LOSSES["crd"].needs(term("crd", **given)) == by_class
    assert LOSSES["crd"].needs(term("crd", same_class_negatives=True, **given)) == Needs(features=key)


def test_a_student_that_meets_its_teacher_is_worth_less_than_one_that_does_not() -> None:
    rows_BW = normal(16, 8)
    negatives_BB = ~torch.eye(16, dtype=torch.bool)
    met = crd(rows_BW, rows_BW, temperature=0.1, negatives_BB=negatives_BB)
    assert met < crd(normal(16, 8, seed=1), rows_BW, temperature=0.1, negatives_BB=negatives_BB)


def test_it_learns_a_map_of_each_side() -> None:
    made = feature_loss("crd", (3, 4, 4), (6,), width=5)
    assert {name: tuple(p.shape) for name, p in made.named_parameters()} == {
        "student.weight": (5, 3),
        "student.bias": (5,),
        "teacher.weight": (5, 6),
        "teacher.bias": (5,),
    }
