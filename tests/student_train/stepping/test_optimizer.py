"""What an optimiser is made of: which weights decay, and with which betas."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from student_train.stepping.state import make_optimizer, norms_and_biases
from tests.student_train.toys import student


class Scale(nn.Module):
    """A norm of nobody's library, with two axes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 3))


class OwnRMSNorm(Scale):
    pass


def network() -> nn.Sequential:
    return nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3), nn.LayerNorm((2, 3)), Scale(), OwnRMSNorm())


def test_norms_and_biases_are_told_by_their_module_and_by_their_axes() -> None:
    model = network()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert [names[id(p)] for p in norms_and_biases([model])] == ["1.bias", "2.weight", "2.bias", "4.weight"]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("decays", [True, False])
def test_norms_and_biases_decay_unless_the_job_says_not(optimizer: str, decays: bool) -> None:
    model = network()
    for parameter in model.parameters():
        nn.init.ones_(parameter).grad = torch.zeros_like(parameter)
    options = student(optimizer=optimizer, learning_rate=0.5, weight_decay=1.0, decay_norms_and_biases=decays)
    make_optimizer(options, list(model.parameters()), [model]).step()
    changed = {name for name, parameter in model.named_parameters() if (parameter != 1).all()}
    matrices = {"0.weight", "1.weight", "3.weight"}
    assert changed == (set(dict(model.named_parameters())) if decays else matrices)


def test_both_betas_and_eps_reach_adamw() -> None:
    model = network()
    options = student(optimizer="adamw", betas=(0.8, 0.95), eps=1e-5)
    (group,) = make_optimizer(options, list(model.parameters()), [model]).param_groups
    assert (group["betas"], group["eps"]) == ((0.8, 0.95), 1e-5)
