"""Students made of language models of transformers: tied heads, neurons by the names of layers, codes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from student_train.students import Blueprint, build_student
from student_train.using.exporting.hub.smaller import of_its_config
from teacher_cache.making.rows import Rows
from teacher_cache.making.sizes import Target, measured, size_like
from teacher_cache.making.subject import Subject
from teacher_cache.making.ways.lowrank import LowRankOptions, lowrank
from teacher_cache.making.ways.perceptrons import find_neurons
from teacher_cache.making.ways.prune import PruneOptions, prune
from teacher_cache.making.ways.quantize import QuantizeOptions, quantize

pytest.importorskip("transformers")

IDS, LENGTH, WIDTH = 24, 8, 24
COMMON = {"vocab_size": IDS, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "max_position_embeddings": LENGTH}
USUAL = {"hidden_size": 16, "intermediate_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4}
KINDS: dict[str, dict[str, Any]] = {
    "llama": USUAL | {"num_key_value_heads": 2},
    "gemma": USUAL | {"num_key_value_heads": 2, "head_dim": 4},
    "phi3": USUAL | {"num_key_value_heads": 2},
    "gpt_neox": USUAL,
    "phi": USUAL,
    "opt": {key: value for key, value in USUAL.items() if key != "intermediate_size"}
    | {"ffn_dim": WIDTH, "word_embed_proj_dim": 16},
}
TIED = ("gemma", "opt")


def subject_of(kind: str) -> Subject:
    torch.manual_seed(0)
    config = {"model_type": kind} | COMMON | KINDS[kind]
    blueprint = Blueprint(
        architecture="transformers",
        options={"config": config},
        num_classes=IDS,
        input_shape=(LENGTH,),
        mean=None,
        std=None,
    )
    student = build_student(blueprint).eval()
    for parameter in student.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    tokens = torch.randint(IDS, (6, LENGTH), dtype=torch.int32)
    return Subject(student, Rows(tokens, tokens.long().roll(-1, 1)))


@pytest.fixture(scope="module")
def subjects() -> Callable[[str], Subject]:
    made: dict[str, Subject] = {}
    return lambda kind: made.setdefault(kind, subject_of(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_a_size_that_is_foretold_is_that_of_the_student_with_a_tied_head_too(
    kind: str, subjects: Callable[[str], Subject]
) -> None:
    student = subjects(kind).student
    assert student.network.config.tie_word_embeddings == (kind in TIED)
    assert size_like(student, [], "parameters") == measured(student, "parameters")


@pytest.mark.parametrize("kind", KINDS)
def test_neurons_of_perceptrons_are_pruned(kind: str, subjects: Callable[[str], Subject]) -> None:
    subject = subjects(kind)
    assert [each.width for each in find_neurons(subject.student.network)] == [WIDTH, WIDTH]
    whole = measured(subject.student, "parameters")
    made, told = prune(subject, PruneOptions(Target("parameters", 0.9), "magnitude", 0, "neurons"))
    assert told == []
    assert 0.8 < measured(made, "parameters") / whole <= 0.9
    layers = {
        name: tuple(layer.weight.shape) for name, layer in made.network.named_modules() if hasattr(layer, "weight")
    }
    readers = [shape for name, shape in layers.items() if name.endswith(("down_proj", "dense_4h_to_h", "fc2"))]
    assert len(readers) == 2
    assert all(0 < width < WIDTH for _, width in readers)


@pytest.mark.parametrize("kind", KINDS)
def test_narrower_perceptrons_are_those_of_a_config(kind: str, subjects: Callable[[str], Subject]) -> None:
    subject = subjects(kind)
    made, _ = prune(subject, PruneOptions(Target("parameters", 0.9), "magnitude", 0, "neurons"))
    plain = of_its_config(made, "made")
    assert plain.blueprint.changes == ()
    with torch.inference_mode():
        assert torch.equal(plain(subject.rows.shown_B.long()), made(subject.rows.shown_B.long()))


@pytest.mark.parametrize("kind", ["llama", "gemma", "gpt_neox"])
def test_a_language_model_is_written_as_codes(kind: str, subjects: Callable[[str], Subject]) -> None:
    subject = subjects(kind)
    made, _ = quantize(subject, QuantizeOptions("channel"))
    with torch.inference_mode():
        said, expected = (each(subject.rows.shown_B.long()) for each in (made, subject.student))
    assert (said - expected).abs().max() < 0.1 * expected.abs().max()


@pytest.mark.parametrize("kind", TIED)
def test_a_tied_model_is_cut_to_a_lower_rank(kind: str, subjects: Callable[[str], Subject]) -> None:
    subject = subjects(kind)
    made, _ = lowrank(subject, LowRankOptions(Target("parameters", 0.9), None, "plain"))
    assert measured(made, "parameters") <= 0.9 * measured(subject.student, "parameters")


def test_names_of_perceptrons_say_nothing_of_a_network_of_ones_own() -> None:
    """Between them may be anything, and other layers beside them: only a graph of dependencies sees those."""

    class Lenet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc1, self.fc2 = nn.Conv2d(1, 4, 3), nn.Linear(16, 8), nn.Linear(8, 2)

    assert find_neurons(Lenet()) == ()
