"""Copies and whole blocks; heads of attention."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import nn

from storage.errors import BadRequest
from student_train.students import Blueprint, build_student
from teacher_cache.making.rows import Rows
from teacher_cache.making.sizes import Target
from teacher_cache.making.subject import Subject
from teacher_cache.making.ways.blocks import SCORES, find_blocks
from teacher_cache.making.ways.copying import CopyOptions, copy_of
from teacher_cache.making.ways.lowrank import LowRankOptions, lowrank
from teacher_cache.making.ways.prune import PruneOptions, prune
from teacher_cache.making.ways.quantize import QuantizeOptions, quantize
from teacher_cache.making.ways.scores import By
from tests.teacher_cache.making.test_prune import subject_of


@pytest.fixture(scope="module")
def subject(pantry: Path) -> Subject:
    return subject_of(pantry)


@pytest.fixture(scope="module")
def speaker() -> Subject:
    torch.manual_seed(0)
    blueprint = Blueprint(
        architecture="gpt",
        options={"depth": 3, "width": 12, "heads": 3},
        num_classes=20,
        input_shape=(8,),
        mean=None,
        std=None,
    )
    tokens = torch.randint(20, (6, 8), dtype=torch.int32)
    return Subject(build_student(blueprint).eval(), Rows(tokens, tokens.long().roll(-1, 1)))


def test_a_whole_copy_says_what_its_teacher_says(subject: Subject) -> None:
    student, told = copy_of(subject, CopyOptions(None, None, 1.0, "first"))
    assert (student.blueprint, told) == (subject.blueprint, [])
    assert all(map(torch.equal, student.state_dict().values(), subject.student.state_dict().values()))


def test_every_second_block_is_copied_with_its_weights(speaker: Subject) -> None:
    student, told = copy_of(speaker, CopyOptions(2, None, 1.0, "first"))
    assert told == ["2 of 3 blocks: body.blocks.0, body.blocks.2"]
    tokens = speaker.rows.shown_B.long()
    network = speaker.student.network
    hidden = network.body.tokens(tokens) + network.body.positions.weight
    by_hand = network.head(network.body.norm(network.body.blocks[2](network.body.blocks[0](hidden, None), None)))
    torch.testing.assert_close(student(tokens), by_hand)


def test_named_blocks_are_copied_and_an_unknown_one_is_refused(subject: Subject) -> None:
    assert find_blocks(subject) == ["layer.0", "layer.1", "layer.2"]
    student, _ = copy_of(subject, CopyOptions(None, ("layer.0", "layer.2"), 1.0, "first"))
    names = {name.split(".")[2] for name in student.state_dict() if name.startswith("network.layer.")}
    assert names == {"0", "2"}
    with pytest.raises(BadRequest, match="no such block"):
        copy_of(subject, CopyOptions(None, ("layer.7",), 1.0, "first"))


@pytest.mark.parametrize("units", ["first", "strongest"])
def test_a_narrower_copy_has_the_units_that_were_asked_for(units: str, subject: Subject) -> None:
    student, _ = copy_of(subject, CopyOptions(None, None, 0.5, units))  # type: ignore[arg-type]
    hidden, whole = student.network.hidden.bias, subject.student.network.hidden.bias
    assert len(hidden) == len(whole) // 2
    assert torch.equal(hidden, whole[: len(hidden)]) == (units == "first")


@pytest.mark.parametrize("by", get_args(By))
def test_blocks_that_matter_least_are_left_out_until_the_target_is_met(by: By, subject: Subject) -> None:
    student, told = prune(subject, PruneOptions(Target("flops", 0.8), by, 0, "blocks"))
    left = {name.split(".")[2] for name in student.state_dict() if name.startswith("network.layer.")}
    scores = SCORES[by](subject, find_blocks(subject), 0)
    assert min(scores, key=lambda name: scores[name]).removeprefix("layer.") not in left
    assert told[0].endswith("of 3 blocks")


def test_a_block_that_changes_nothing_goes_first(pantry: Path) -> None:
    subject = subject_of(pantry)
    with torch.no_grad():
        subject.student.network.layer[1].body[1][1].weight.zero_()
        subject.student.network.layer[1].body[1][1].bias.zero_()
    scores = SCORES["activation"](subject, find_blocks(subject), 0)
    assert scores["layer.1"] == pytest.approx(0, abs=1e-3)
    assert min(scores, key=lambda name: scores[name]) == "layer.1"


def test_without_all_blocks_it_is_still_larger_and_that_is_refused(subject: Subject) -> None:
    with pytest.raises(BadRequest, match="without any of its 3 blocks"):
        prune(subject, PruneOptions(Target("flops", 0.01), "first", 0, "blocks"))


@pytest.mark.parametrize("by", ["magnitude", "taylor", "activation", "random"])
def test_heads_of_attention_are_left_out_whole(by: By, speaker: Subject) -> None:
    # the smaller network is compared with the whole one as it is made
    student, _ = prune(speaker, PruneOptions(Target("parameters", 0.9), by, 0, "heads"))
    attention = student.network.body.blocks[0].attention
    assert (attention.heads, tuple(attention.queries_keys_values.weight.shape)) == (2, (24, 12))
    again = build_student(student.blueprint).eval()
    again.load_state_dict(student.state_dict())
    assert torch.equal(again(speaker.rows.shown_B.long()), student(speaker.rows.shown_B.long()))


def test_neurons_of_a_language_model_are_pruned_and_what_stays_whole_is_told(speaker: Subject) -> None:
    student, told = prune(speaker, PruneOptions(Target("parameters", 0.8), "taylor", 0, "neurons"))
    assert student.network.body.blocks[0].perceptron.into.out_features < 48
    assert any("LayerNorm" in text or "Embedding" in text for text in told)


def test_a_teacher_without_heads_says_so(subject: Subject) -> None:
    with pytest.raises(BadRequest, match="no heads that could be pruned"):
        prune(subject, PruneOptions(Target("flops", 0.5), "first", 0, "heads"))


class Tied(nn.Module):
    def __init__(self, num_classes: int):
        super().__init__()
        self.table, self.hidden = nn.Embedding(num_classes, 12), nn.Linear(12, 12)
        self.head = nn.Linear(12, num_classes, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.head(self.hidden(self.table(tokens)))
        return scores


def tied(num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    return Tied(num_classes)


def speaking(architecture: str, **options: object) -> Subject:
    torch.manual_seed(0)
    blueprint = Blueprint(
        architecture=architecture, options=options, num_classes=40, input_shape=(8,), mean=None, std=None
    )
    tokens = torch.randint(40, (6, 8), dtype=torch.int32)
    return Subject(build_student(blueprint).eval(), Rows(tokens, tokens.long().roll(-1, 1)))


def test_layers_that_share_their_weights_stay_whole_and_in_floats() -> None:
    teacher, head = speaking(f"{__name__}:tied"), "head, a Linear with the weights of table"
    small, told = quantize(teacher, QuantizeOptions("channel"))
    assert f"left in floats: {head}" in told
    assert small.network.head.weight is small.network.table.weight
    small, told = lowrank(teacher, LowRankOptions(None, 0.5, "plain"))
    assert f"left whole: {head}" in told
    assert [change.layer for change in small.blueprint.changes] == ["hidden"]
    with pytest.raises(BadRequest, match="layer head cannot be factorised") as caught:
        lowrank(teacher, LowRankOptions(None, 0.5, "plain", ("head",)))
    assert "with the weights of table" in str(caught.value)


def test_a_table_whose_weights_the_network_reads_itself_stays_whole() -> None:
    own_head = speaking("gpt", depth=1, width=12, heads=3, tied=False)
    small, told = lowrank(own_head, LowRankOptions(None, 0.5, "plain"))
    assert "body.tokens" in {change.layer for change in small.blueprint.changes}
    assert "left whole: body.positions, a Embedding" in told  # whose first rows are taken
    teacher = speaking("gpt", depth=1, width=12, heads=3, tied=True)
    small, told = lowrank(teacher, LowRankOptions(None, 0.5, "plain"))
    assert "left whole: body.tokens, a Embedding" in told  # which is the head, too
    with pytest.raises(BadRequest, match=r"layer body.tokens cannot be factorised") as caught:
        lowrank(teacher, LowRankOptions(None, 0.5, "plain", ("body.tokens",)))
    assert "whose weights are read without calling it" in str(caught.value)
