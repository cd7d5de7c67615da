"""Layers of lower rank: the singular values that matter least are left out, until a size is met, or an energy kept.

Each layer keeps as many as hold the same share of its energy, the sum of squares; where two layers of that rank would
not be smaller than the one, it stays whole. So does an embedding where operations are counted, of which it costs none,
a layer that shares its weights with another, for both would be there afterwards, and a layer whose cut saves next to
nothing, as that of a classifier's head of ten classes: the energy that it would lose is as dear to the answer as any.

W is a layer's weight as (out, in · kernel), X what it is given, a row for each place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from storage.errors import BadRequest
from teacher_cache.making.asking import read_otherwise, watch
from teacher_cache.making.sizes import Target, largest_share, measured, size_like
from teacher_cache.making.subject import Subject
from teacher_cache.making.ways.slices import check_named_once, with_changes

if TYPE_CHECKING:
    from torch import Tensor

    from student_train.students import Factored, Student

Weighing = Literal["plain", "activations"]
RIDGE = 1e-5  # of the mean variance, added: some inputs may never have been other than 0
MOST_PLACES = 2048  # of a batch, that are looked at
LIGHT = 0.1  # of the cost of the mean layer, below which one stays whole: all of these are less than a tenth of all
UNSEEN = 0.1  # of what a table's entries weigh, spread evenly: rows at hand show few of them


class LowRankOptions(NamedTuple):
    """How a teacher is factorised.

    Attributes:
        target: how large the student is to be; None: as it follows from the energy.
        energy: share of it that every layer keeps; None: as it follows from the target.
        by: whether errors count as they are, or by what they do to what layers are given.
        layers: names of those to factorise; None: all that can be, but for those whose cut saves next to nothing.
    """

    target: Target | None
    energy: float | None
    by: Weighing
    layers: tuple[str, ...] | None = None


class Spectrum(NamedTuple):
    """A layer's decomposition, W = left · diag(values) · right, values falling."""

    left: Tensor
    values: Tensor
    right: Tensor
    full: tuple[int, int]

    def rank(self, energy: float) -> int:
        """Return of how many values the squares are this share of all, 1 at least."""
        squares = self.values.double().square().cumsum(0)
        return min(len(squares), int((squares < energy * squares[-1]).sum()) + 1)

    def is_smaller(self, rank: int) -> bool:
        """Return whether two layers of a rank have fewer weights than the one."""
        return rank * sum(self.full) < self.full[0] * self.full[1]


def lowrank(subject: Subject, options: LowRankOptions) -> tuple[Student, list[str]]:
    """Return a student of factorised layers, and in words which are not.

    Raises:
        BadRequest: a layer that was named cannot be factorised, or none can; or the target cannot be reached.
    """
    from student_train.students import Factored, build_student

    whole = subject.student
    check_named_once(whole.network)
    names, left = _layers(subject, options)
    spectra = _spectra(subject, names, options.by)
    light = [] if options.layers else _light(subject, names, options.target)

    def changes_at(energy: float) -> list[Factored]:
        ranks = {name: spectrum.rank(energy) for name, spectrum in spectra.items() if name not in light}
        return [Factored(layer=name, rank=rank) for name, rank in ranks.items() if spectra[name].is_smaller(rank)]

    energy = options.energy
    if (target := options.target) is not None:
        sizes: dict[str, float] = {}

        def size_at(energy: float) -> float:
            changes = changes_at(energy)
            key = repr(changes)
            if key not in sizes:
                sizes[key] = size_like(whole, changes, target.measure)
            return sizes[key]

        whole_size = measured(whole, target.measure)
        if light and size_at(0.0) > target.share * whole_size:
            light = []  # every layer is needed
        energy = largest_share(size_at, target, whole_size, size_at(0.0))
    assert energy is not None
    changes = changes_at(energy)
    if not changes:
        raise BadRequest(
            "no layer would be smaller as two",
            found=f"an energy of {energy:g} in each of {len(spectra) - len(light)} layers",
            do="a lower --energy, or a smaller --flops or --parameters",
        )
    blueprint = whole.blueprint.model_copy(update={"changes": with_changes(whole.blueprint.changes, changes)})
    student = build_student(blueprint).eval()
    student.network.load_state_dict(_tensors(whole.network, spectra, changes))
    student.tokenizer = whole.tokenizer
    cut = {change.layer for change in changes}.union(light)
    kept = [*left, *(f"{name}: two would be larger" for name in spectra if name not in cut)]
    told = [f"each layer keeps {energy:.4f} of its energy", *(f"left whole: {each}" for each in kept)]
    if light:
        told.append(f"left whole, for little is saved there: {', '.join(light)} (--layers cuts them)")
    return student, told


def _light(subject: Subject, names: Sequence[str], target: Target | None) -> list[str]:
    """Return the layers whose cut would save next to nothing."""
    from student_train.students import flops_of_layers

    if target is not None and target.measure == "flops":
        costs = flops_of_layers(subject.student, names)
    else:
        layers = dict(subject.student.network.named_modules())
        costs = {name: layers[name].weight.numel() for name in names}
    return [name for name, cost in costs.items() if cost < LIGHT * sum(costs.values()) / len(costs)]


def _layers(subject: Subject, options: LowRankOptions) -> tuple[list[str], list[str]]:
    """Return the layers that can be factorised, and in words the others. Raises BadRequest."""
    from student_train.students import full_rank, is_table, shared_layers

    network = subject.student.network
    modules = dict(network.named_modules())
    weighty = {name: module for name, module in modules.items() if getattr(module, "weight", None) is not None}
    shared = shared_layers(network)
    can = [name for name, module in weighty.items() if full_rank(module) is not None and name not in shared]
    of_operations = options.target is not None and options.target.measure != "parameters"
    tables = [name for name in can if is_table(modules[name])] if of_operations and not options.layers else []
    left = [*tables, *read_otherwise(subject, [name for name in can if name not in tables])]
    can = [name for name in can if name not in left]
    why = {name: f" with the weights of {other}" for name, other in shared.items()}
    for name in options.layers or ():
        if name not in can:
            what = "there is no such layer" if name not in modules else f"a {type(modules[name]).__name__}"
            groups = getattr(modules.get(name), "groups", 1)
            read = " whose weights are read without calling it" if name in left else ""
            raise BadRequest(
                f"layer {name} cannot be factorised",
                found=what + (f" in {groups} groups" if groups != 1 else "") + why.get(name, read),
                expected="a linear layer, a convolution in one group, or an embedding, with weights of its own: "
                + ", ".join(can)[:400],
            )
    if not can:
        raise BadRequest("no layer of this teacher can be factorised", found=", ".join(weighty)[:300] or "no weights")
    if options.layers:
        return list(options.layers), []
    cannot = [
        f"{name}, a {type(module).__name__}" + why.get(name, "")
        for name, module in modules.items()
        if name not in can and any(own.ndim > 1 for own in module.parameters(recurse=False))
    ]
    return can, cannot


def _spectra(subject: Subject, names: Sequence[str], by: Weighing) -> dict[str, Spectrum]:
    """Return the decomposition of each layer.

    Weighted, W · S is decomposed, S the Cholesky factor of XᵀX: what is left out of it is the error of the outputs. Of
    a layer that gives less than it is given, by the eigenvectors of W XᵀX Wᵀ: XᵀX of a picture may be any size.
    What an embedding is given are ids: each entry weighs as often as rows have it, P = diag(shares), and entries are
    projected onto the first right vectors of √P · W, which also says something of those that no row at hand has.

    Source: Wang et al. 2024 (SVD-LLM), arXiv 2403.07378, section 3.1; of tables Chen et al. 2018 (GroupReduce), arXiv
    1806.06950, section 3.2, with one group.
    """
    import torch

    from student_train.students import is_table

    layers = dict(subject.student.network.named_modules())
    tables = [name for name in names if is_table(layers[name])]
    whitening: dict[str, Tensor] = {}
    shares: dict[str, Tensor] = {}
    if by == "activations":
        whitening, shares = _seen(subject, [name for name in names if name not in tables], tables)
    found = {}
    for name in names:
        layer: Any = layers[name]
        weight = layer.weight.detach().flatten(1).double()
        if (share := shares.get(name)) is not None:
            _, values, right = torch.linalg.svd(weight * share.sqrt()[:, None], full_matrices=False)
            left = weight @ right.T / values.clamp(min=1e-12 * float(values[0]))
        elif (told := whitening.get(name)) is not None and weight.shape[0] < weight.shape[1]:
            squares, left = torch.linalg.eigh(told)
            values, left = squares.clamp(min=0).sqrt().flip(0), left.flip(1)
            right = left.T @ weight / values[:, None].clamp(min=1e-12 * float(values[0]))
        else:
            left, values, right = torch.linalg.svd(weight if told is None else weight @ told, full_matrices=False)
            if told is not None:
                right = torch.linalg.solve_triangular(told, right, upper=False, left=False)  # right · S⁻¹
        found[name] = Spectrum(left, values, right, (weight.shape[0], weight.shape[1]))
    return found


def _seen(subject: Subject, names: Sequence[str], tables: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return what rows at hand give to layers, padding left out.

    Returns:
        of each layer S, lower triangular, with S Sᵀ the mean of xᵀx over what it is given, (in · kernel)², or
        W S Sᵀ Wᵀ, (out, out), where that is smaller; of each table the share of its entries in what is asked of it.
    """
    import torch

    layers = dict(subject.student.network.named_modules())
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    squares: dict[str, float] = {}
    weights = {name: layers[name].weight.detach().flatten(1) for name in names}
    narrow = {name: weight.double() for name, weight in weights.items() if weight.shape[0] < weight.shape[1]}
    times = {name: torch.zeros(layers[name].num_embeddings, dtype=torch.float64) for name in tables}
    inside: list[Tensor | None] = [None]

    def watching(name: str) -> Any:
        def hook(layer: Any, given: tuple[Tensor, ...]) -> None:
            places = _places(layer, given[0].detach(), inside[0])
            step = max(1, len(places) // MOST_PLACES)
            seen = places[::step].double()
            squares[name] = squares.get(name, 0.0) + float(seen.square().sum()) / seen.shape[1]
            if name in narrow:
                seen = seen @ narrow[name].T
            sums[name] = sums.get(name, 0) + seen.T @ seen
            counts[name] = counts.get(name, 0) + len(seen)

        return hook

    def counting(name: str) -> Any:
        def hook(layer: Any, given: tuple[Tensor, ...]) -> None:
            ids_N = _within(given[0], given[0].shape, inside[0]).flatten()
            times[name] += torch.bincount(ids_N, minlength=len(times[name]))

        return hook

    hooks = {layers[name]: watching(name) for name in names} | {layers[name]: counting(name) for name in tables}
    watch(subject, before=hooks, inside=lambda mask: inside.__setitem__(0, mask))
    found = {}
    for name, total in sums.items():
        mean, ridge = total / counts[name], RIDGE * squares[name] / counts[name] + 1e-12
        if name in narrow:
            found[name] = mean + ridge * narrow[name] @ narrow[name].T
        else:
            found[name] = torch.linalg.cholesky(mean + ridge * torch.eye(len(mean)))
    return found, {
        name: (1 - UNSEEN) * each / each.sum().clamp(min=1) + UNSEEN / len(each) for name, each in times.items()
    }


def _within(inputs: Tensor, places: Sequence[int], inside: Tensor | None) -> Tensor:
    """Return what a layer is given where rows are, (places, …); as it is if its places are not those of rows."""
    return inputs if inside is None or tuple(places) != tuple(inside.shape) else inputs[inside]


def _places(layer: Any, inputs: Tensor, inside: Tensor | None) -> Tensor:
    """Return what a layer is given at each place, (places, in · kernel)."""
    from torch.nn import functional

    if getattr(layer, "kernel_size", None) is None:
        return _within(inputs, inputs.shape[:-1], inside).flatten(0, -2)
    if inputs.ndim != 4 or isinstance(layer.padding, str):
        raise BadRequest(
            "what this convolution is given cannot be laid out place by place",
            found=f"a {type(layer).__name__} with padding {layer.padding!r}",
            do="--by plain",
        )
    patches = functional.unfold(
        inputs, layer.kernel_size, dilation=layer.dilation, padding=layer.padding, stride=layer.stride
    )
    return patches.transpose(1, 2).flatten(0, 1)


def _tensors(network: Any, spectra: Mapping[str, Spectrum], changes: Sequence[Factored]) -> dict[str, Tensor]:
    """Return the tensors of a network whose layers are two."""
    from student_train.students import is_table

    layers = dict(network.named_modules())
    tensors = dict(network.state_dict())
    for change in changes:
        layer, spectrum, rank = layers[change.layer], spectra[change.layer], change.rank
        root = spectrum.values[:rank].clamp(min=0).sqrt()
        weight = tensors.pop(f"{change.layer}.weight")
        if is_table(layer):
            tensors[f"{change.layer}.first.weight"] = (spectrum.left[:, :rank] * root).to(weight.dtype)
            tensors[f"{change.layer}.second.weight"] = (root[:, None] * spectrum.right[:rank]).T.to(weight.dtype)
            continue
        kernel = weight.shape[2:]
        first = (root[:, None] * spectrum.right[:rank]).to(weight.dtype).reshape(rank, *weight.shape[1:])
        second = (spectrum.left[:, :rank] * root).to(weight.dtype)
        tensors[f"{change.layer}.first.weight"] = first
        tensors[f"{change.layer}.second.weight"] = second.reshape(*second.shape, *[1] * len(kernel))
        if layer.bias is not None:
            tensors[f"{change.layer}.second.bias"] = tensors.pop(f"{change.layer}.bias")
    return tensors
