"""What rows at hand weigh of a layer: words by how often they come, padding never, pictures of any size."""

from __future__ import annotations

import pytest
import torch

from storage.inputs.texts import PADDING
from student_train.students import Blueprint, build_student
from teacher_cache.making.rows import Rows
from teacher_cache.making.sizes import Target
from teacher_cache.making.subject import Subject
from teacher_cache.making.ways.lowrank import RIDGE, UNSEEN, LowRankOptions, _places, _seen, _spectra, lowrank

IDS, WIDTH = 200, 24
OFTEN = 12  # ids from 1 that rows have; no other


@pytest.fixture(scope="module")
def subject() -> Subject:
    torch.manual_seed(0)
    options = {"depth": 1, "width": WIDTH, "heads": 2}
    blueprint = Blueprint(
        architecture="encoder",
        options=options,
        num_classes=3,
        input_shape=(16,),
        mean=None,
        std=None,
        inputs="texts",
        vocabulary=IDS,
    )
    rows = torch.randint(1, 1 + OFTEN, (40, 16), dtype=torch.int32)
    rows[torch.arange(16) >= torch.randint(2, 17, (40, 1))] = PADDING
    return Subject(build_student(blueprint).eval(), Rows(rows, torch.zeros(40, dtype=torch.int64)))


def test_entries_of_a_table_weigh_as_often_as_rows_have_them_and_padding_never(subject: Subject) -> None:
    shown = subject.rows.shown_B
    times = torch.bincount(shown[shown != PADDING].long(), minlength=IDS).double()
    _, shares = _seen(subject, [], ["tokens"])
    torch.testing.assert_close(shares["tokens"], (1 - UNSEEN) * times / times.sum() + UNSEEN / IDS)
    assert shares["tokens"][0] == shares["tokens"][IDS - 1]  # what padding is given as an id


def test_layers_are_weighed_by_what_they_are_given_of_rows_and_not_of_padding(subject: Subject) -> None:
    layer = "blocks.0.attention.queries_keys_values"
    scales = _seen(subject, [layer], [])[0]
    alone = [
        _seen(subject._replace(rows=Rows(row[None, row != PADDING], torch.zeros(1, dtype=torch.int64))), [layer], [])[0]
        for row in subject.rows.shown_B
    ]
    lengths = (subject.rows.shown_B != PADDING).sum(1).double()
    means = [scale[layer] @ scale[layer].T for scale in alone]
    expected = sum(mean * length for mean, length in zip(means, lengths, strict=True)) / lengths.sum()
    torch.testing.assert_close(scales[layer] @ scales[layer].T, expected, rtol=1e-3, atol=1e-5)


def test_words_that_rows_have_are_nearer_than_by_the_table_alone(subject: Subject) -> None:
    table = subject.student.network.tokens.weight
    off = {}
    for by in ("plain", "activations"):
        small, _ = lowrank(subject, LowRankOptions(Target("parameters", 0.8), None, by, ("tokens",)))
        with torch.no_grad():
            errors = (small.network.tokens(torch.arange(IDS)) - table).square().sum(1) / table.square().sum(1)
        (change,) = small.blueprint.changes
        off[by] = (change.rank, float(errors[1 : 1 + OFTEN].mean()), float(errors.mean()))
    assert off["activations"][0] == off["plain"][0] == 10
    assert off["activations"][1] < 0.2 * off["plain"][1]
    assert off["activations"][2] < 0.65  # and something is left of those that no row has


def test_features_that_are_as_many_as_positions_are_not_taken_for_them() -> None:
    """What a pooler is given, (B, D), in a batch whose longest row has D tokens; what heads are given, (B, H, L, D)."""
    inside = torch.tensor([[True, True, False], [True, False, False]])
    assert _places(torch.nn.Linear(3, 2), torch.ones(2, 3), inside).shape == (2, 3)
    assert _places(torch.nn.Linear(5, 2), torch.ones(2, 3, 3, 5), inside).shape == (18, 5)
    assert _places(torch.nn.Linear(5, 2), torch.ones(2, 3, 5), inside).shape == (3, 5)


def test_a_layer_that_gives_little_of_much_is_weighed_by_what_it_gives() -> None:
    torch.manual_seed(0)
    blueprint = Blueprint(
        architecture="mlp", options={"hidden": [6]}, num_classes=3, input_shape=(1, 250, 250), mean=(0.0,), std=(1.0,)
    )  # whose inputs' products would be 62,500² numbers, 31 GB
    rows = torch.randint(256, (20, 1, 250, 250), dtype=torch.uint8)
    wide = Subject(build_student(blueprint).eval(), Rows(rows, torch.zeros(20, dtype=torch.int64)))
    (name,) = [name for name, layer in wide.student.network.named_modules() if getattr(layer, "in_features", 0) > 6]
    (spectrum,) = _spectra(wide, [name], "activations").values()
    given = rows.flatten(1).double() / 255
    ridge = RIDGE * float(given.square().mean()) + 1e-12
    weight = wide.student.network.get_submodule(name).weight.detach().double()
    by_hand = torch.linalg.svdvals(torch.cat([weight @ given.T / 20**0.5, ridge**0.5 * weight], 1))
    torch.testing.assert_close(spectrum.values, by_hand, rtol=1e-4, atol=0)
    torch.testing.assert_close((spectrum.left * spectrum.values) @ spectrum.right, weight)
