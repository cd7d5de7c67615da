from __future__ import annotations

from math import exp, log

import pytest
import torch

from student_train.feed.batches import MixedLabels, Needs
from student_train.losses import LOSSES
from student_train.losses.labels import labels_cross_entropy
from tests.student_train.losses.toys import term


def test_labels_is_minus_the_log_probability_of_the_label() -> None:
    loss = labels_cross_entropy(torch.tensor([[0.0, log(3.0)], [0.0, 0.0]]), torch.tensor([1, 0]))
    assert loss.item() == pytest.approx((log(4 / 3) + log(2)) / 2)


def test_smoothing_spreads_its_share_evenly() -> None:
    loss = labels_cross_entropy(torch.tensor([[0.0, log(3.0)]]), torch.tensor([1]), smoothing=0.2)
    assert loss.item() == pytest.approx(-0.9 * log(3 / 4) - 0.1 * log(1 / 4))


def test_terms_agree_with_a_worked_example_in_nats() -> None:
    loss = labels_cross_entropy(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    assert loss.item() == pytest.approx(log(1 + exp(-1)))


def test_a_row_mixed_of_two_is_worth_both_labels_by_their_weights() -> None:
    mixed = MixedLabels(torch.tensor([0]), torch.tensor([0.75]))
    loss = labels_cross_entropy(torch.tensor([[0.0, log(3.0)]]), torch.tensor([1]), mixed=mixed)
    assert loss.item() == pytest.approx(-0.75 * log(3 / 4) - 0.25 * log(1 / 4))


def test_a_row_without_a_label_counts_as_0_where_only_some_have_one() -> None:
    scores, labels = torch.tensor([[0.0, log(3.0)], [0.0, 5.0], [0.0, 0.0]]), torch.tensor([1, -1, 0])
    for smoothing in (0.0, 0.2):
        all_three = labels_cross_entropy(scores, labels, smoothing=smoothing, where_labelled=True)
        two = labels_cross_entropy(scores[[0, 2]], labels[[0, 2]], smoothing=smoothing)
        assert all_three.item() == pytest.approx(two.item() * 2 / 3)
    assert LOSSES["labels"].needs(term("labels", where_labelled=True)) == Needs(some_labels=True)


def test_labels_need_labels_and_no_teacher() -> None:
    assert LOSSES["labels"].needs(term("labels")) == Needs(labels=True)
