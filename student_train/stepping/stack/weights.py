"""The memory of stacked students: parameters as rows of one matrix, buffers side by side, and the optimiser's update.

M students, P parameters of each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn

from student_train.stepping.state import TrainState, norms_and_biases


class StackedWeights:
    """M modules' parameters as the rows of one matrix; the modules' own become views of it.

    Args:
        modules: of one layout.
        trained: whether gradients are wanted.

    Attributes:
        values_MP: the matrix.
        blocks: each parameter of all modules, (M, *shape), views of the matrix; leaves of autograd if trained.
        reached: names of those that had a part in any loss whose gradient was asked for.

    Raises:
        ValueError: parameters are frozen, or of several types.
    """

    def __init__(self, modules: Sequence[nn.Module], *, trained: bool = True):
        parameters = [dict(module.named_parameters()) for module in modules]
        self._shapes = {name: parameter.shape for name, parameter in parameters[0].items()}
        # where each parameter's columns begin and end
        edges = accumulate((shape.numel() for shape in self._shapes.values()), initial=0)
        self._columns = {name: slice(*pair) for name, pair in zip(self._shapes, pairwise(edges), strict=True)}
        first = list(parameters[0].values())
        if trained and not all(p.requires_grad and p.dtype == first[0].dtype for p in first):
            raise ValueError("some parameters are frozen, or of another type than others")
        self.values_MP = torch.stack(
            [torch.cat([own[name].detach().flatten() for name in self._shapes]) for own in parameters]
        )
        self.blocks = self.split(self.values_MP)
        self.reached: set[str] = set()
        for place, own in enumerate(parameters):
            for name, parameter in own.items():
                parameter.grad = None  # gradients are of the blocks from now on
                # the same Parameter in other memory: optimisers still know it
                parameter.data = self.blocks[name][place]
        for block in self.blocks.values():
            block.requires_grad_(trained)

    def split(self, rows_MP: Tensor) -> dict[str, Tensor]:
        """Return a matrix of this layout by parameter, (M, *shape) each, as views."""
        return {name: self._block(rows_MP, name) for name in self._shapes}

    def add_gradients(
        self,
        grads_MP: Tensor,
        outputs: Sequence[Tensor],
        grad_outputs: Sequence[Tensor] | None = None,
        *,
        beside: Sequence[Tensor] = (),
        keep_graph: bool = False,
    ) -> list[Tensor | None]:
        """Add the gradient of some outputs to a matrix, nothing where a parameter has no part in it.

        Args:
            grads_MP: added to.
            outputs: of any shape; those without a graph are left out.
            grad_outputs: of each output its own gradient; None: the outputs are scalars.
            beside: other tensors whose gradients are wanted.
            keep_graph: for another call.

        Returns:
            The gradient of each tensor of `beside`; None where it has no part in the outputs.
        """
        given = [None] * len(outputs) if grad_outputs is None else grad_outputs
        pairs = [(each, grad) for each, grad in zip(outputs, given, strict=True) if each.requires_grad]
        if not pairs:
            return [None] * len(beside)
        asked = [each for each in beside if each.requires_grad]
        gradients = torch.autograd.grad(
            [each for each, _ in pairs],
            [*asked, *self.blocks.values()],
            [grad for _, grad in pairs],
            retain_graph=keep_graph,
            allow_unused=True,
        )
        own = dict(zip(self.blocks, gradients[len(asked) :], strict=True))
        found = {name: each for name, each in own.items() if each is not None}
        self.reached |= found.keys()
        if found:
            torch._foreach_add_([self._block(grads_MP, name) for name in found], list(found.values()))
        of_asked = iter(gradients)
        return [next(of_asked) if each.requires_grad else None for each in beside]

    @contextmanager
    def unreached_kept(self) -> Iterator[None]:
        """Leave parameters that no loss reaches as they are, as torch's optimisers do, whatever the block does."""
        kept = {name: block.detach().clone() for name, block in self.blocks.items() if name not in self.reached}
        yield
        for name, values in kept.items():
            self.blocks[name].detach().copy_(values)

    def _block(self, rows_MP: Tensor, name: str) -> Tensor:
        return rows_MP[:, self._columns[name]].view(len(rows_MP), *self._shapes[name])


class StackedBuffers:
    """M modules' buffers, such as batch norm's statistics, side by side; the modules' own become views of them.

    Attributes:
        blocks: each buffer of all modules, (M, *shape), each in memory of its own: batch norm writes into it.
    """

    def __init__(self, modules: Sequence[nn.Module]):
        buffers = [dict(module.named_buffers()) for module in modules]
        self.blocks = {name: torch.stack([own[name] for own in buffers]) for name in buffers[0]}
        for place, module in enumerate(modules):
            for name, block in self.blocks.items():
                owner, _, leaf = name.rpartition(".")
                module.get_submodule(owner)._buffers[leaf] = block[place]  # noqa: SLF001 - a setter would copy

    def snapshot(self) -> list[Tensor]:
        """Return a copy of all buffers: a forward pass that fails half-way has changed some."""
        return [block.clone() for block in self.blocks.values()]

    def restore(self, snapshot: Sequence[Tensor]) -> None:
        """Go back to a snapshot."""
        for block, kept in zip(self.blocks.values(), snapshot, strict=True):
            block.copy_(kept)

    def follow(self, other: StackedBuffers, weight_M: Tensor) -> None:
        """Move each student's buffers towards another's by a weight; whole numbers become the other's."""
        for block, target in zip(self.blocks.values(), other.blocks.values(), strict=True):
            if block.is_floating_point():
                block.lerp_(target, weight_M.view(-1, *[1] * (block.ndim - 1)))
            else:
                block.copy_(target)


class StackedOptimizer:
    """SGD with Nesterov's momentum, or AdamW, for all students in a few operations; each with its own constants.

    The state of each student's own torch optimiser becomes views of this one's, so that a checkpoint of a stacked
    student is that of a student alone.

    Args:
        states: whose optimisers are of one class and have taken the same steps.
        weights: theirs.
    """

    def __init__(self, states: Sequence[TrainState], weights: StackedWeights):
        options = [state.options for state in states]
        self._weights = weights
        self._device = weights.values_MP.device
        self._first_beta_M1 = self._column([o.momentum if o.optimizer == "sgd" else o.adamw_betas[0] for o in options])
        self._decay_M1 = self._column([o.weight_decay for o in options])
        # of all of a stack the same
        self._second_beta, self._eps = options[0].adamw_betas[1], options[0].eps
        self._decayed = None if options[0].decay_norms_and_biases else self._decayed_names(states[0])
        limits = [o.clip_norm for o in options if o.clip_norm is not None]  # all of a stack have one, or none has
        self._limit_M1 = self._column(limits) if limits else None
        self._rates_M1 = self._column([0.0] * len(states))
        self._steps_M = torch.zeros(len(states), device=self._device)
        self._states = states
        self._of_sgd = options[0].optimizer == "sgd"
        if self._of_sgd:
            self._first_MP = self._gathered(states, "momentum_buffer")  # named as torch's own does, for checkpoints
        else:
            self._first_MP = self._gathered(states, "exp_avg")
            self._second_MP = self._gathered(states, "exp_avg_sq")
            self._taken(states)

    def set_rates(self, rates: Sequence[float]) -> None:
        """Set the learning rates of the next step, which does not wait for it."""
        # from pinned memory the copy is not waited for
        host_M1 = torch.tensor(rates, dtype=torch.float32)[:, None]
        self._rates_M1.copy_(host_M1.pin_memory() if self._rates_M1.is_cuda else host_M1, non_blocking=True)

    @torch.no_grad()
    def step(self, grads_MP: Tensor) -> None:
        """Update all weights with a learning rate each; the gradients are used up.

        What needs memory comes first: where there is none, nothing has changed.
        """
        if self._limit_M1 is not None:  # as `torch.nn.utils.clip_grad_norm_` does
            norm_M1 = grads_MP.norm(dim=1, keepdim=True)
            grads_MP.mul_((self._limit_M1 / (norm_M1 + 1e-6)).clamp(max=1.0))
        if self._of_sgd:
            self._sgd(grads_MP)
        else:
            self._adamw(grads_MP)

    def release(self) -> None:
        """Give each parameter a count of steps of its own again: torch's optimisers add 1 to each of them."""
        for state in self._states:
            for moments in state.optimizer.state.values():
                if "step" in moments:
                    moments["step"] = moments["step"].clone()

    def _sgd(self, grads_MP: Tensor) -> None:
        if self._decayed is None:
            grads_MP.addcmul_(self._weights.values_MP, self._decay_M1)
        else:
            pairs = (self._weights.split(grads_MP), self._weights.blocks)
            grads, weights = ([blocks[name] for name in self._decayed] for blocks in pairs)
            torch._foreach_addcmul_(grads, weights, [_beside(self._decay_M1, block) for block in weights])
        self._first_MP.mul_(self._first_beta_M1).add_(grads_MP)
        grads_MP.addcmul_(self._first_MP, self._first_beta_M1)  # Nesterov
        self._weights.values_MP.addcmul_(grads_MP, self._rates_M1, value=-1)

    def _adamw(self, grads_MP: Tensor) -> None:
        root_MP = torch.empty_like(grads_MP)
        self._steps_M += 1
        steps_M1, rates_M1 = self._steps_M[:, None], self._rates_M1
        kept_M1, beta2 = 1 - rates_M1 * self._decay_M1, self._second_beta  # decoupled: not through the gradient
        if self._decayed is None:
            self._weights.values_MP.mul_(kept_M1)
        else:
            decayed = [self._weights.blocks[name] for name in self._decayed]
            torch._foreach_mul_(decayed, [_beside(kept_M1, block) for block in decayed])
        self._first_MP.lerp_(grads_MP, 1 - self._first_beta_M1)
        self._second_MP.mul_(beta2).addcmul_(grads_MP, grads_MP, value=1 - beta2)
        # each divided by what its start at 0 has left out
        torch.sqrt(self._second_MP, out=root_MP).div_((1 - beta2**steps_M1).sqrt()).add_(self._eps)
        update_MP = torch.div(self._first_MP, root_MP, out=root_MP)
        self._weights.values_MP.addcmul_(update_MP, rates_M1 / (1 - self._first_beta_M1**steps_M1), value=-1)

    def _decayed_names(self, state: TrainState) -> list[str]:
        """Return the names of the weights' blocks that are neither norms nor biases."""
        spared = {id(parameter) for parameter in norms_and_biases([state.student, state.objective])}
        return [name for name, p in zip(self._weights.blocks, state.trained, strict=True) if id(p) not in spared]

    def _gathered(self, states: Sequence[TrainState], key: str) -> Tensor:
        """Return one kind of state of all students, (M, P), of which their own optimisers' become views."""
        values_MP = torch.zeros_like(self._weights.values_MP)
        blocks = list(self._weights.split(values_MP).values())
        for place, state in enumerate(states):
            for parameter, block in zip(state.trained, blocks, strict=True):
                moments = state.optimizer.state[parameter]
                if key in moments:  # else it has taken no step yet
                    block[place].copy_(moments[key])
                moments[key] = block[place]
        return values_MP

    def _taken(self, states: Sequence[TrainState]) -> None:
        """Make each student's count of steps a view, whatever number of parameters have one."""
        for place, state in enumerate(states):
            for parameter in state.trained:
                moments = state.optimizer.state[parameter]
                if "step" in moments:
                    self._steps_M[place] = moments["step"]
                moments["step"] = self._steps_M[place]

    def _column(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self._device)[:, None]


def _beside(values_M1: Tensor, block: Tensor) -> Tensor:
    """Return a number for each student such that it meets all of a block (M, *shape)."""
    return values_M1.view(-1, *[1] * (block.ndim - 1))
