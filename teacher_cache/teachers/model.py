"""A loaded teacher: a model in evaluation mode, what it is fed, and the layers that are tapped.

Its body runs once over a batch (`hear`), its head at some of the sites that are answered at a time (`scores`), so that
the logits of all sites never exist; of a model that is in one part they do, a batch's at a time. One that is asked for
features alone has no scores: its body is called where that gives the same features, and what it returns is let go.

Shapes: B rows of a batch, `sites` the axes of a row's sites (storage.tasks), P sites that are answered, C classes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from storage.errors import BadTeacher, StillroomError, is_out_of_memory
from storage.format.specs import DatasetSpec
from storage.inputs import inputs_of
from storage.inputs.packed import has_several, try_parted
from storage.tasks import task_of
from teacher_cache.teachers.classes import order_of
from teacher_cache.teachers.fed import fed
from teacher_cache.teachers.kinds import KINDS
from teacher_cache.teachers.loaded import tapped_layers, weights_digest
from teacher_cache.teachers.options import TeacherOptions
from teacher_cache.teachers.parts import Parts, find_body, find_parts, logits_of
from teacher_cache.teachers.probabilities import logits_from
from teacher_cache.teachers.spread import spread
from teacher_cache.teachers.steady import ROWS, check_parted, check_steady

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


# Of one float32 copy of the logits that are made at a time: large enough that a device is busy, small enough for a
# processor's caches; but of fewer sites a head of many classes would be read again and again.
PART_BYTES = {"cpu": 2**24, "cuda": 2**28}
PART_SITES = 256
TRIED_SITES = 8  # of a row, on which parts are compared with the whole, and answers with those before


def part_sites(device: str, num_classes: int) -> int:
    """Return of how many sites logits are made at a time on a kind of device.

    >>> part_sites("cpu", 32_000), part_sites("cpu", 128_256)
    (256, 256)
    """
    return max(PART_SITES, PART_BYTES.get(device, PART_BYTES["cpu"]) // (4 * num_classes))


class TooLarge(BadTeacher):
    """A batch whose answer does not fit into memory."""


class Heard(NamedTuple):
    """What a teacher has made of a batch before its scores, on its device.

    Attributes:
        hidden: of the P sites that are answered, in order of rows and sites: hidden states (P, D), or, of a model in
            one part, logits (P, V); of one that is asked for features alone nothing, (P, 0).
        features: by name, of these sites, (P, …).
    """

    hidden: Tensor
    features: dict[str, Tensor]


class Teacher:
    """A loaded model in evaluation mode on its device; call it with rows as a view shows them."""

    def __init__(self, options: TeacherOptions, model: nn.Module, device: torch.device):
        self.name, self.asked_batch_size = options.name, options.batch_size
        self.batch_size = options.batch_size  # lower from the first batch on that does not fit
        self.model = model.eval()  # no dropout, no batch statistics: one answer for each row
        for weight in model.parameters():  # one by one: TorchScript has no way for all
            weight.requires_grad_(False)
        self._options = options
        self.is_scored = options.encoding.soft  # else it is asked for features alone
        self.weights = weights_digest(model)
        self._class_names = KINDS[options.origin].classes(options)
        self._captured: dict[str, Tensor] = {}
        self._steady: set[str] = set()  # datasets at whose first batch it had one answer for each row
        self._parted: set[str] = set()  # datasets of which it was tried on a row of several documents
        self._parts: dict[str, Parts | None] = {}  # by dataset
        layers = tapped_layers(options, model)
        for name in options.features:
            layers[name].register_forward_hook(self._capture(name))
        self.to(device)

    def to(self, device: torch.device) -> None:
        """Move a teacher to a device: where rows are taken and answers given, and its layers, unless they are spread.

        Raises:
            BadRequest: its layers are to be where nothing is.
            BadTeacher: it cannot be moved there.
        """
        self.device = device
        if self._options.device_map is None:
            self._move(device)
        else:
            spread(self.model, self._options.device_map, device)  # once: afterwards it has no tensors to move
        self._constants: dict[object, Tensor] = {}

    def _move(self, device: torch.device) -> None:
        try:
            self.model.to(device)
        except StillroomError:
            raise
        except Exception as error:  # of a program's own; TorchScript cannot be on the meta device
            if is_out_of_memory(error):
                raise
            raise BadTeacher(
                f"teacher {self.name} cannot be moved to {device}", found=f"{type(error).__name__}: {error}"
            ) from error

    def __call__(self, shown_B: Tensor, dataset: DatasetSpec) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the logits of a batch at all sites, (B, *sites, C) float32, and its features by name, (B, …).

        For few rows: nothing bounds the bytes of the logits.

        Args:
            shown_B: rows, (B, …), as stored or as a view shows them.
            dataset: of the rows: what they are made of, and what is asked of them.

        Raises:
            TooLarge, BadTeacher: as `hear`.
        """
        heard = self.hear(shown_B, None, dataset)
        leading = self._leading(inputs_of(dataset).trimmed(shown_B), dataset)
        logits = self.scores(heard.hidden, dataset).float()
        features = {name: values.unflatten(0, leading) for name, values in heard.features.items()}
        return logits.unflatten(0, leading), features

    def hear(self, shown_B: Tensor, answered: Tensor | None, dataset: DatasetSpec) -> Heard:
        """Return what a teacher makes of a batch before its scores.

        Args:
            shown_B: rows, (B, …), as stored or as a view shows them.
            answered: which sites are, bool (B, *sites) on the host (`Task.answered_sites`); None: all.
            dataset: of the rows: what they are made of, and what is asked of them.

        Raises:
            TooLarge: there is no memory for it; what was made is given back when the error is.
            BadTeacher: the model failed on it, its output has another shape, or a feature is not one tensor (B, …), of
                tokens (B, L, …); or, seen at the first batch of a dataset, it has no one answer for each row.
        """
        with self._too_large():
            heard = self._hear(shown_B, answered, dataset)
            few = None if answered is None else answered[:ROWS]
            untold = dataset.name not in self._steady and (few is None or few.any())
            if untold and shown_B.device.type != "meta":  # there it says nothing at all
                self._check_steady(shown_B[:ROWS], few, dataset)
            if inputs_of(dataset).packed and dataset.name not in self._parted and shown_B.device.type != "meta":
                self._check_parted(shown_B, dataset)
        return heard

    def scores(self, hidden_P: Tensor, dataset: DatasetSpec, *, again: bool = False) -> Tensor:
        """Return the logits of some sites that were heard, (P, V) as the model says them, by the dataset's classes.

        Not of a teacher that is asked for features alone (`is_scored`). `again`: until the next such call.

        Raises:
            TooLarge: there is no memory for them.
        """
        import torch

        parts = self._parts.get(dataset.name)
        with self._too_large():
            if parts is not None:
                with torch.inference_mode(), self._autocast():
                    hidden_P = parts.scores(hidden_P, again=again)
            order = order_of(self._class_names, dataset.classes)
            hidden_P = hidden_P.to(self.device)  # from that of its last layer
            if order is not None and hidden_P.shape[-1] == len(order):  # of another number `check_classes` says so
                hidden_P = hidden_P[..., self._constant(dataset.name, order)]
            return logits_from(hidden_P, self.name) if self._options.output == "probabilities" else hidden_P

    def blocks(self, num_sites: int, num_classes: int) -> Iterator[slice]:
        """Yield which of so many sites to ask for scores at a time; how many, is no matter of what memory is free."""
        size = part_sites(self.device.type, num_classes)
        for start in range(0, num_sites, size):
            yield slice(start, min(start + size, num_sites))

    def find_parts(self, shown_B: Tensor, dataset: DatasetSpec) -> None:
        """Look, by a row of a dataset, whether the model is in two parts; once for each dataset, by its first rows.

        Before a dry run on the meta device, where there are no values to see it by.
        """
        import torch

        if dataset.name in self._parts:
            return
        has_sites = bool(task_of(dataset).sites(dataset.input_shape))
        if (self.is_scored and not has_sites) or shown_B.device.type == "meta":
            self._parts[dataset.name] = None
            return
        tapped = [feature.layer for feature in self._options.features.values()]
        row_1L = inputs_of(dataset).trimmed(shown_B[:1])
        parts = None
        # the whole row, for a model that takes blocks of one length alone
        for tried in (*[TRIED_SITES] * has_sites, row_1L.shape[1]):
            if parts is None:
                with torch.inference_mode(), self._autocast():
                    arguments_1L = self._arguments(row_1L[:, :tried], dataset)
                    call = partial(inputs_of(dataset).call, arguments_B=arguments_1L)
                    find = find_parts if self.is_scored else partial(find_body, heard=self._features_of)
                    parts = find(self.model, call, tapped)
        self._parts[dataset.name] = parts

    def _features_of(self, call: Callable[[], Any]) -> dict[str, Tensor]:
        self._captured = {}
        call()
        return self._captured

    def _hear(self, shown_B: Tensor, answered: Tensor | None, dataset: DatasetSpec) -> Heard:
        self.find_parts(shown_B, dataset)
        self._captured = {}  # a layer that is not called this time must not answer with the last batch
        inputs_B, output = self._forward(shown_B, dataset)
        leading = self._leading(inputs_B, dataset)
        if not self.is_scored:
            output = inputs_B.new_zeros(*leading, 0)  # whatever it returned
        elif self._parts[dataset.name] is None:
            output = self._checked_logits(output, leading)
        self._check_features(leading, dataset)
        places_P = None if answered is None else self._places(answered, leading)

        def picked(values: Tensor) -> Tensor:
            flat = values.flatten(0, len(leading) - 1)
            # of a model on several devices, each layer's values are where it is
            return (flat if places_P is None else flat[places_P.to(flat.device)]).to(self.device)

        return Heard(picked(output), {name: picked(values) for name, values in self._captured.items()})

    def _places(self, answered: Tensor, leading: tuple[int, ...]) -> Tensor | None:
        """Return where answered sites are among all of a batch, (P,) on the device; None: all are."""
        inside = answered[tuple(slice(size) for size in leading)]  # rows may be shown without what is padding in all
        if inside.all():
            return None
        places_P = inside.reshape(-1).nonzero()[:, 0]
        if self.device.type == "cuda":
            places_P = places_P.pin_memory()  # else the host would wait until the device is done
        return places_P.to(self.device, non_blocking=True)

    def _check_steady(self, shown_B: Tensor, answered: Tensor | None, dataset: DatasetSpec) -> None:
        """Check at a few sites of some rows that it has one answer for each of them. Raises BadTeacher."""
        import torch

        if task_of(dataset).sites(dataset.input_shape):
            if answered is None:
                answered = torch.ones(self._leading(inputs_of(dataset).trimmed(shown_B), dataset), dtype=torch.bool)
            answered = answered & (answered.flatten(1).cumsum(1).view(answered.shape) <= TRIED_SITES)

        def ask(rows: int) -> Tensor:
            return self._said(shown_B[:rows], None if answered is None else answered[:rows], dataset)

        check_steady(self.model, ask, len(shown_B), self.name, "logits" if self.is_scored else "features")
        self._steady.add(dataset.name)

    def _check_parted(self, shown_B: Tensor, dataset: DatasetSpec) -> None:
        """Check by a row of several documents, if there is one, that it parts them. Raises BadTeacher."""
        row_L = next((row_L for row_L in shown_B if has_several(row_L)), None)
        if row_L is not None:
            tried = try_parted(partial(self._said, dataset=dataset), row_L, task_of(dataset).num_classes(dataset))
            check_parted(tried, self.model, self.name)
            self._parted.add(dataset.name)

    def _said(self, shown_B: Tensor, answered: Tensor | None, dataset: DatasetSpec) -> Tensor:
        """Return what it says at some sites: scores, or features where there are none."""
        import torch

        heard = self._hear(shown_B, answered, dataset)
        if self.is_scored:
            return self.scores(heard.hidden, dataset).float()
        return torch.cat([values.flatten(1).float() for values in heard.features.values()], 1)

    @contextlib.contextmanager
    def _too_large(self) -> Iterator[None]:
        """Raise TooLarge for what does not fit into memory."""
        try:
            yield
        except TooLarge:
            raise
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise TooLarge(
                f"teacher {self.name} does not fit on {self.device}",
                found=str(error).split("\n", 1)[0],
                do="lower batch_size",
            ) from None

    def _leading(self, inputs_B: Tensor, dataset: DatasetSpec) -> tuple[int, ...]:
        """Return the axes of the sites of a batch, (B, *sites)."""
        return (len(inputs_B), *task_of(dataset).sites(inputs_B.shape[1:]))

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return the precision of what is computed within."""
        import torch

        half = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[self._options.autocast]
        # Autocast, not `half()`: what needs float32, such as a softmax, stays in it.
        return contextlib.nullcontext() if half is None else torch.autocast(self.device.type, half)

    def _arguments(self, shown_B: Tensor, dataset: DatasetSpec) -> Tensor:
        """Return what the model is called with, on its device, in one tensor."""
        from teacher_cache.teachers.runtime import fed_alone

        if self.device.type == "cuda" and shown_B.device.type == "cpu":
            shown_B = shown_B.pin_memory()  # else the host would wait until the device has done all before it
        # as bytes, and floats only there: a fourth of what is sent, and no work for this thread
        with fed_alone(self.model, shown_B):
            inputs_B = inputs_of(dataset).arguments(shown_B.to(self.device, non_blocking=True))
            return fed(inputs_B, self.model, self._options, dataset, self._constant)

    def _forward(self, shown_B: Tensor, dataset: DatasetSpec) -> tuple[Tensor, Any]:
        """Return what the model is called with, and what it, or the body of it, returns."""
        import torch

        kind, parts = inputs_of(dataset), self._parts[dataset.name]
        with torch.inference_mode(), self._autocast():
            inputs_B = self._arguments(kind.trimmed(shown_B), dataset)
            try:
                call = partial(kind.call, arguments_B=inputs_B)
                return inputs_B, call(self.model) if parts is None else parts.hidden(call)
            except StillroomError:
                raise
            except (Exception, SystemExit) as error:  # the user's own model
                if is_out_of_memory(error):
                    raise
                raise BadTeacher(
                    f"teacher {self.name} failed on inputs of shape {tuple(inputs_B.shape)}",
                    found=f"{type(error).__name__}: {error}",
                ) from error

    def _checked_logits(self, output: Any, leading: tuple[int, ...]) -> Tensor:
        """Return the logits in a model's output, (B, *sites, V). Raises BadTeacher: there are none."""
        import torch

        logits_BC = logits_of(output)
        if not isinstance(logits_BC, torch.Tensor) or tuple(logits_BC.shape[:-1]) != leading:
            raise BadTeacher(
                f"teacher {self._options.name} did not return logits",
                found=_shape(logits_BC),
                expected=f"a tensor ({', '.join(map(str, leading))}, C)",
            )
        return logits_BC

    def _check_features(self, leading: tuple[int, ...], dataset: DatasetSpec) -> None:
        one_site, num_rows = len(leading) == 1, leading[0]
        row = "row for each sample" if one_site else f"vector for each {task_of(dataset).site_name}"
        for name, feature in self._options.features.items():
            if not _begins(values := self._captured.get(name), leading):
                raise BadTeacher(
                    f"feature {name} of teacher {self._options.name} is not one tensor with a {row}",
                    found="the model never called this layer" if values is None else _shape(values),
                    expected=f"a tensor ({', '.join(map(str, leading))}, …) from layer {feature.layer}",
                    do="name another layer",
                )
            ragged = inputs_of(dataset).own_length and one_site
            if ragged and values is not None and values.ndim != 2:  # those of a shard could not lie side by side
                raise BadTeacher(
                    f"feature {name} of teacher {self._options.name} is no vector of a row, whose length is its own",
                    found=_shape(values),
                    expected=f"a tensor ({num_rows}, D) from layer {feature.layer}",
                    do="name a layer behind the pooling",
                )

    def _capture(self, name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            # A copy: what follows may work in place, as ReLU(inplace=True) does.
            self._captured[name] = output.clone() if hasattr(output, "clone") else output

        return hook

    def _constant(self, name: object, values: Sequence[float]) -> Tensor:
        """Return numbers as a tensor on the device, sent once: each sending would wait until the device is done."""
        import torch

        if (name, *values) not in self._constants:
            dtype = torch.float32 if isinstance(values[0], float) else torch.int64
            self._constants[name, *values] = torch.tensor(values, dtype=dtype, device=self.device)
        return self._constants[name, *values]


def _begins(value: Any, leading: tuple[int, ...]) -> bool:
    import torch

    return isinstance(value, torch.Tensor) and tuple(value.shape[: len(leading)]) == leading


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if hasattr(value, "shape") else type(value).__name__
