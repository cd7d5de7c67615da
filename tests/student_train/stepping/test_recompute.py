"""Blocks that run again in the backward pass: the same weights to the bit, and less kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from storage.cache import Cache
from storage.errors import BadRequest, Interrupted
from student_train.options.sections import FleetOptions, StudentOptions
from student_train.preparing.prepare import prepare
from student_train.preparing.request import Request
from student_train.preparing.weighing.step_memory import measure_step
from student_train.running.events import Event, StackingChosen
from student_train.running.train import train_students
from student_train.stepping.forward import Tapped
from student_train.stepping.recompute import recompute_blocks
from student_train.students import Blueprint, Student, build_student
from tests.language.models import config_folder, hf_student
from tests.language.toys import IDS, counting_cache, request, small_gpt
from tests.student_train.running.test_loop import stop_after, weights
from tests.student_train.toys import LABELS, request_of, student

RESNET: dict[str, Any] = {"architecture": "resnet", "options": {"depth": 14, "width": 4}, "epochs": 1}
GPT: dict[str, Any] = {"options": {"depth": 3, "width": 16, "heads": 2, "dropout": 0.2}, "ema_decay": 0.9}


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return counting_cache(tmp_path_factory.mktemp("tokens"))


def train(asked: Request, **keywords: Any) -> None:
    for error in train_students(asked, **keywords).errors.values():
        raise error


@pytest.mark.parametrize("kind", ["gpt", "resnet"])
def test_what_runs_again_ends_at_the_very_same_weights(
    toy_cache: Cache, tokens: Cache, tmp_path: Path, kind: str
) -> None:
    """Dropout draws the same again; batch norm counts each batch once."""

    def asked(runs: str, **options: Any) -> Request:
        if kind == "gpt":
            return request(tokens, tmp_path / runs, small_gpt("a", **GPT | options))
        return request_of(toy_cache, tmp_path / runs, student("a", **RESNET | options))

    train(asked("kept"))
    train(asked("again", recompute=True))
    assert weights(tmp_path / "again") == weights(tmp_path / "kept")
    train(asked("parts", recompute=True, **({"micro_batch_size": 2} if kind == "gpt" else {})))


def test_a_run_may_go_on_with_what_it_began_without(tokens: Cache, tmp_path: Path) -> None:
    train(request(tokens, tmp_path / "whole", small_gpt("a", **GPT)))
    with pytest.raises(Interrupted):
        train(request(tokens, tmp_path / "parts", small_gpt("a", **GPT)), stop=stop_after(3))
    train(request(tokens, tmp_path / "parts", small_gpt("a", **GPT, recompute=True)))
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")


def gpt(**options: Any) -> Student:
    torch.manual_seed(0)
    given = {"depth": 3, "width": 16, "heads": 2} | options
    return build_student(
        Blueprint(architecture="gpt", options=given, num_classes=IDS, input_shape=(12,), mean=None, std=None)
    )


def gradients(model: Student, layers: list[str], tokens_BL: Tensor) -> tuple[list[Tensor], int]:
    """Return gradients of a loss on logits and layers, and how many tensors were kept for them."""
    kept = 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += 1
        return tensor

    tapped = Tapped(model, layers)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = tapped(tokens_BL)
        loss = model.scores(outputs.logits_BC).square().mean()
        for values in outputs.layers.values():
            loss = loss + values.square().mean()
    before = kept
    loss.backward()
    assert tapped._seen == {}
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None], before


@pytest.mark.parametrize("layer", ["network.body.blocks.1", "network.body.blocks.1.perceptron"])
def test_layers_of_blocks_that_run_again_are_looked_at_once(layer: str) -> None:
    tokens_BL = torch.arange(24).view(2, 12) % IDS
    kept, kept_tensors = gradients(gpt().train(), [layer], tokens_BL)
    model = gpt().train()
    recompute_blocks(model)
    again, again_tensors = gradients(model, [layer], tokens_BL)
    assert all(torch.equal(one, other) for one, other in zip(kept, again, strict=True))
    assert again_tensors < kept_tensors / 2


@pytest.mark.parametrize(
    "options", [{"architecture": "mlp"}, {"architecture": "cnn", "options": {"widths": [4]}}], ids=["mlp", "cnn"]
)
def test_where_it_does_nothing_it_is_refused(toy_cache: Cache, tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match="recompute = true would do nothing"):
        train(request_of(toy_cache, tmp_path, student(**options, recompute=True)))


def test_students_that_run_blocks_again_are_not_stacked_and_it_is_told(tokens: Cache, tmp_path: Path) -> None:
    events: list[Event] = []
    students = [small_gpt(f"s{i}", seed=i, recompute=True, epochs=1) for i in range(2)]
    asked = request(tokens, tmp_path, *students)
    fleet = FleetOptions.model_validate({"stacking": "always"})
    train(Request(asked.cache, asked.runs, asked.data, asked.students, "cpu", fleet), report=events.append)
    (choice,) = [event for event in events if isinstance(event, StackingChosen)]
    assert (choice.students, choice.stacked) == (("s0", "s1"), False)


def test_the_bound_on_memory_knows_what_is_not_kept(tokens: Cache, tmp_path: Path) -> None:
    def activations(each: StudentOptions) -> int:
        (prepared,) = prepare(request(tokens, tmp_path, each))
        step = measure_step(prepared)
        return step.activations - step.batch

    deep: dict[str, Any] = {"options": {"depth": 12, "width": 64, "heads": 2}, "objective": [LABELS], "batch_size": 15}
    assert activations(small_gpt(**deep, recompute=True)) < 0.4 * activations(small_gpt(**deep))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # of torch's own compiler
def test_a_compiled_student_runs_blocks_again_too(tokens: Cache, tmp_path: Path) -> None:
    options: dict[str, Any] = {"options": {"depth": 2, "width": 16, "heads": 2}, "epochs": 1, "optimizer": "sgd"}
    train(request(tokens, tmp_path / "eager", small_gpt("a", **options)))
    train(request(tokens, tmp_path / "again", small_gpt("a", **options, compile=True, recompute=True)))
    eager, again = (load_file(tmp_path / run / "a/student.safetensors") for run in ("eager", "again"))
    assert all(torch.allclose(eager[name], again[name], atol=1e-3) for name in eager)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_layers_of_transformers_run_again_too(tokens: Cache, tmp_path: Path, kind: str) -> None:
    pytest.importorskip("transformers")
    fields = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64} if kind == "gpt2" else {}  # with dropout
    folder = config_folder(tmp_path / "model", kind, **fields)
    train(request(tokens, tmp_path / "kept", hf_student(folder, "a", epochs=1)))
    again = hf_student(folder, "a", epochs=1, recompute=True)
    train(request(tokens, tmp_path / "again", again))
    assert weights(tmp_path / "again") == weights(tmp_path / "kept")
    (prepared,) = prepare(request(tokens, tmp_path / "new", again))
    assert measure_step(prepared).activations > 0
