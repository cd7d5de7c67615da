"""A student's forward pass: with what some of its layers gave, compiled where a job asks for it, and tried once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._functorch import config as functorch_config
from torch.nn.modules.batchnorm import _BatchNorm

from storage.errors import BadRequest
from storage.inputs.packed import mark_first, try_parted
from student_train.losses.outputs import Outputs
from student_train.students import Student
from student_train.tasks import task_of

TRIED_TOKENS = 8  # of a row of two documents
# Of the largest logit: what is masked has no weight at all; a document alone is rounded otherwise.
CROSSING, APART = 1e-5, 1e-3


class LayerNotRun(Exception):
    """A layer was not called by the forward pass that was to tap it."""

    def __init__(self, layer: str):
        super().__init__(f"the forward pass does not run {layer}")
        self.layer = layer


class Tapped(nn.Module):
    """A student that also returns what some of its layers gave; one in two parts, hidden states in place of logits."""

    def __init__(self, student: Student, layers: Sequence[str]):
        super().__init__()
        self.student = student
        self.layers = tuple(layers)
        self._seen: dict[str, Tensor] = {}
        self._looking = False  # not in a backward pass, which may run layers again
        self._hooks = [student.get_submodule(layer).register_forward_hook(self._tap(layer)) for layer in layers]

    def forward(self, inputs: Tensor) -> Outputs:
        """Return what `student.scores` makes logits of, (B, *sites, D or C), and the layers' outputs.

        Raises:
            LayerNotRun: a layer is none that is called.
        """
        self._looking = True
        logits_BC = self.student.hidden(inputs)
        self._looking = False
        for layer in self.layers:
            if layer not in self._seen:
                raise LayerNotRun(layer)
        layers = {layer: self._seen[layer] for layer in self.layers}
        self._seen.clear()  # or a graph would live until the next step
        return Outputs(logits_BC, layers)

    def release(self) -> None:
        """Leave the student as it was."""
        for hook in self._hooks:
            hook.remove()

    def _tap(self, layer: str) -> Callable[[nn.Module, object, Tensor | tuple[Tensor, ...]], None]:
        def keep(module: nn.Module, inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
            # layers of transformers may return what else they have beside their states
            if self._looking:
                self._seen[layer] = output[0] if isinstance(output, tuple) else output

        return keep


def compiled(function: Callable[..., Any], wanted: bool) -> Callable[..., Any]:
    """Return a function that gives the same, perhaps faster after its first calls.

    Compiled, what it saves for the backward pass is kept for further ones: in this whole process, torch knows no less.
    """
    if not wanted:
        return function
    # Shares of terms take a backward pass for each; torch asks this when they are run, not only when it compiles.
    functorch_config.donated_buffer = False
    return torch.compile(function)


def check_student(
    student: Student, layers: Sequence[str], input_shape: tuple[int, ...], num_classes: int
) -> dict[str, tuple[int, ...]]:
    """Return the shape of each of a student's layers for one row, after a forward pass that checks its output.

    Raises:
        BadRequest: no such layer, or the output is not (B, *sites, C).
    """
    _check_layers(student, layers)
    _check_head(student)
    training = student.training
    tapped = Tapped(student, layers)
    short = task_of(student.blueprint).tried_shape(input_shape)
    try:
        with torch.no_grad():
            outputs = tapped.eval()(student.blank(2, input_shape))
            tried = student.blank(2, short)
            logits, scores = student(tried), student.scores(student.hidden(tried))
            if student.blueprint.made_of.packed and tried.device.type != "meta":
                _check_parted(student, input_shape[0], num_classes)
            # where each position has an answer, losses are given those of a layer that are at sites with a label
            if student.blueprint.made_of.own_length and student.blueprint.asked.sites(input_shape) == ():
                one_item = tapped(student.blank(2, (1, *input_shape[1:])))
                _check_lengths(outputs.layers, one_item.layers)
    except LayerNotRun as error:
        raise BadRequest(
            f"the student's forward pass does not run its layer {error.layer!r} as a module of its own",
            expected="a layer that is called, and gives a tensor; of tokens one below the network's body",
            do="choose another student_layer",
        ) from None
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError) as error:
        raise BadRequest(
            f"the student cannot take inputs of shape {input_shape}", found=f"{type(error).__name__}: {error}"
        ) from error
    finally:
        tapped.release()
        student.train(training)
    _check_logits(logits, (2, *student.blueprint.asked.sites(short), num_classes))
    if student.in_two_parts:
        _check_parts(scores, logits)
    return {layer: tuple(output.shape[1:]) for layer, output in outputs.layers.items()}


def _check_layers(student: Student, layers: Sequence[str]) -> None:
    """Raise BadRequest unless a student has layers of these names."""
    modules = dict(student.named_modules())
    for layer in layers:
        if layer not in modules:
            near = get_close_matches(layer, modules, 3, cutoff=0.4)
            raise BadRequest(
                f"the student has no layer {layer!r}",
                found=", ".join(name for name in modules if name)[:400],
                do=f'student_layer = "{near[0]}"' if near else None,
            )


def _check_logits(logits: Any, expected: tuple[int, ...]) -> None:
    """Raise BadRequest unless a student has returned a tensor of this shape, (B, *sites, C)."""
    if not isinstance(logits, Tensor) or logits.shape != expected:
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits)
        raise BadRequest(
            "the student does not return one logit per class",
            found=f"{found} for a batch of {expected[0]}",
            expected=f"a tensor of shape {expected}",
        )


def _check_lengths(longest: dict[str, Tensor], shortest: dict[str, Tensor]) -> None:
    """Check that layers give rows of any length the same shape: losses compare them across batches."""
    for layer, values in longest.items():
        if values.shape != shortest[layer].shape:
            raise BadRequest(
                f"the student's layer {layer} gives something for each position of a text",
                found=f"{tuple(values.shape)} of the longest texts, {tuple(shortest[layer].shape)} of the shortest",
                expected="a vector for each row",
                do='a student_layer behind the mean over positions; of an encoder "network.pool" or "network.norm"',
            )


def _check_parted(student: Student, length: int, num_classes: int) -> None:
    """Check that a student answers about each document of a packed row as if it were alone."""
    ids_L = np.arange(min(TRIED_TOKENS, length)) % num_classes
    row_L = np.concatenate([mark_first(part_L) for part_L in np.array_split(ids_L, 2)])  # at least a token each

    def ask(rows_BL: Tensor, sites_BL: Tensor) -> Tensor:
        logits_PC: Tensor = student(student.blueprint.made_of.arguments(rows_BL))[sites_BL.to(rows_BL.device)]
        return logits_PC.float()

    tried = try_parted(ask, torch.from_numpy(row_L).to(student.device), num_classes)
    crosses = tried.crossing > CROSSING * tried.largest
    if crosses or tried.off > APART * tried.largest:
        raise BadRequest(
            "the student does not part the documents of a packed row",
            found=f"architecture {student.blueprint.architecture!r}, whose logits at the end of a document "
            + (f"change by {tried.crossing:.3g} with the one before it" if crosses else f"are {tried.off:.3g} off")
            + f", of {tried.largest:.3g} at most",
            expected="those of the document alone: attention and positions that begin anew with it",
            do="a dataset with pack = false; or another architecture, such as gpt or a Llama",
        )


def _check_head(student: Student) -> None:
    """Check that a head treats each position by itself, since it is given a part of them at a time."""
    coupling = [name for name, module in student.network.named_modules() if isinstance(module, _BatchNorm)]
    in_head = [name for name in coupling if name.partition(".")[0] == "head"]
    if student.in_two_parts and in_head:
        raise BadRequest(
            "the student's head compares positions with each other",
            found=f"batch norm: {', '.join(in_head)}",
            expected="one that treats each position by itself, since it is given a part of them at a time",
            do="move it into the body, or use LayerNorm",
        )


def _check_parts(scores_BLC: Tensor, logits_BLC: Tensor) -> None:
    """Check that a network in two parts is no more than both: training never runs its own forward.

    Args:
        scores_BLC: what its head makes of what its body gives.
        logits_BLC: what it gives itself.
    """
    same = scores_BLC.shape == logits_BLC.shape
    if same and scores_BLC.device.type != "meta":
        # as far as rounding goes
        same = torch.allclose(scores_BLC.float(), logits_BLC.float(), rtol=1e-3, atol=1e-4)
    if not same:
        raise BadRequest(
            "the student's network is more than its `body` and its `head`",
            found="its forward gives other logits than head(body(tokens))",
            expected="the same, since losses are computed a part of the positions at a time",
            do="move what is between or after them into one of them; or name them otherwise",
        )
