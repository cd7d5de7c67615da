"""The causal transformer: what a position sees, its two parts, its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from storage.errors import BadRequest
from student_train.students import Blueprint, Student, build_student, load_student, save_student

TOKENS_BL = torch.randint(1, 11, (3, 8), generator=torch.Generator().manual_seed(0))


def spec(**options: Any) -> Blueprint:
    small = {"depth": 2, "width": 8, "heads": 2}
    return Blueprint(
        architecture="gpt",
        options=small | options,
        num_classes=11,
        input_shape=(8,),
        mean=None,
        std=None,
        tokenizer="t",
    )


def built(**options: Any) -> Student:
    torch.manual_seed(0)
    return build_student(spec(**options)).eval()


def changed(student: Student, position: int, tokens_BL: torch.Tensor = TOKENS_BL) -> list[bool]:
    """Return at which positions the logits notice another token at `position`."""
    other = tokens_BL.clone()
    other[:, position] = torch.where(other[:, position] == 1, 2, 1)
    return (student(tokens_BL) != student(other)).flatten(2).any(2).any(0).tolist()


def test_a_position_sees_itself_and_what_is_before_it() -> None:
    assert changed(built(), 3) == [False] * 3 + [True] * 5


def test_nothing_is_seen_across_the_end_of_a_document() -> None:
    tokens_BL = TOKENS_BL.clone()
    tokens_BL[:, 4] = 0
    assert changed(built(end_of_text=0), 2, tokens_BL) == [False] * 2 + [True] * 3 + [False] * 3
    assert changed(built(), 2, tokens_BL) == [False] * 2 + [True] * 6


def test_hidden_states_and_scores_make_the_logits() -> None:
    student = built()
    hidden_BLD = student.hidden(TOKENS_BL)
    assert hidden_BLD.shape == (3, 8, 8)
    torch.testing.assert_close(student.scores(hidden_BLD.flatten(0, 1)), student(TOKENS_BL).flatten(0, 1))


def test_a_tied_head_is_the_embedding_and_is_stored_once() -> None:
    tied, untied = built(), built(tied=False)
    assert untied.state_dict().keys() - tied.state_dict().keys() == {"network.head.weight"}
    before = tied(TOKENS_BL)
    with torch.no_grad():
        tied.network.body.tokens.weight[5] += 1
    assert not torch.equal(before[..., 5], tied(TOKENS_BL)[..., 5])


@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_transformer_comes_back_bit_for_bit(tmp_path: Path, tied: bool) -> None:
    student = built(tied=tied, end_of_text=0)
    save_student(tmp_path, spec(tied=tied, end_of_text=0), student.state_dict())
    assert torch.equal(load_student(tmp_path)(TOKENS_BL), student(TOKENS_BL))


def test_branches_begin_so_that_their_sum_has_the_deviation_of_one() -> None:
    deviations = {
        name.rpartition(".")[0].rpartition(".")[2]: parameter.std().item()
        for name, parameter in built(depth=8, width=64).named_parameters()
        if "blocks.0" in name and parameter.ndim == 2
    }
    assert deviations["into"] == pytest.approx(0.02, rel=0.05)
    assert deviations["out"] == pytest.approx(0.02 / 4, rel=0.05)


@pytest.mark.parametrize(
    "options",
    [
        {"depth": 0},
        {"depth": 10**9},
        {"width": 9},
        {"heads": 0},
        {"dropout": 1.0},
        {"end_of_text": 11},
        {"end_of_text": -1},
    ],
)
def test_a_size_that_cannot_be_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match="of this size"):
        built(**options)


def test_images_are_refused() -> None:
    with pytest.raises(BadRequest) as error:
        build_student(spec().model_copy(update={"input_shape": (3, 8, 8)}))
    assert error.value.expected == "tokens (L,)"
