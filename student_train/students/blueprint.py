"""What a student is, as data: all that is needed to build one, weights apart."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, SerializerFunctionWrapHandler, ValidationInfo, field_validator, model_serializer

from storage.format.specs import DatasetSpec
from storage.inputs import INPUTS, Inputs
from storage.inputs.encoded import OwnSize
from storage.inputs.pixels import OwnFilter
from storage.options import Options
from storage.tasks import TASKS, Task, implied_task
from student_train.students.remade.changes import Change

Size = Annotated[int, Field(ge=1)]
Numbers = Annotated[tuple[float, ...], Field(strict=False, min_length=1)]
NEW_KEYS = (
    "adapter_digest",
    "answer_mean",
    "answer_std",
    "changes",
    "classes",
    "filter",
    "inputs",
    "made",
    "size",
    "source",
    "task",
    "teacher_code",
    "vocabulary",
)  # that the first student.json had not


class Blueprint(Options):
    """All that is needed to build a student, weights apart.

    Attributes:
        architecture: a built-in one, or `module:factory`.
        options: of the architecture.
        num_classes: scores that it gives for each site.
        input_shape: of one row, (L,) for tokens.
        mean, std: normalisation of its inputs; None for tokens, which have none.
        answer_mean, answer_std: of each number that it tells, by which its last layer's are scaled: part of the model.
        tokenizer: fingerprint of the tokenizer whose ids it knows, if that was known.
        classes: names in the order of its scores; empty: they have none, or it was trained before they were kept.
        inputs: what its rows are made of, of `storage.inputs`; None: tokens if it does not normalise, else pixels.
        vocabulary: number of ids, of a student whose classes are other than those.
        task: what is asked of them, of `storage.tasks`; None: what is implied of such inputs.
        source: how a sample became a row, as the dataset promises it (`source` of its dataset.json); None: it was
            trained before that was kept.
        changes: what of its layers is other than the architecture builds them, in order, of one that `student make` has
            made of a teacher.
        size: height and width that its network sees, of one of pictures that has a size of its own: rows that have
            another are resized within it. None: that of its rows.
        filter: by which, of `size`.
        teacher_code: fingerprint of the file of a teacher's factory, of one that was made of such a teacher: it is
            called with `options` alone, as a cache job's `arguments`. None: the architecture is a student's own.
    """

    architecture: str
    options: dict[str, Any] = Field(default={})
    num_classes: Size
    input_shape: Annotated[tuple[Size, ...], Field(strict=False, min_length=1)]
    mean: Numbers | None
    std: Numbers | None
    tokenizer: str | None = None
    classes: Annotated[tuple[str, ...], Field(strict=False)] = ()
    vocabulary: Size | None = None
    inputs: str | None = None
    task: str | None = None
    source: dict[str, Any] | None = None
    changes: Annotated[tuple[Change, ...], Field(strict=False)] = ()
    teacher_code: str | None = None
    answer_mean: Numbers | None = None
    answer_std: Numbers | None = None
    size: Annotated[tuple[Size, Size], Field(strict=False)] | None = None
    filter: OwnFilter | None = None

    @field_validator("inputs")
    @classmethod
    def _unsaid_inputs(cls, inputs: str | None, info: ValidationInfo) -> str | None:
        """Return None for the kind that is implied anyway: two blueprints of the same student are the same."""
        if inputs is not None and inputs not in INPUTS:
            raise ValueError(f"inputs are one of {', '.join(INPUTS)}, not {inputs!r}")
        # Of one name and another, not of what either means.
        return None if inputs == _implied_inputs(info.data.get("mean")) else inputs

    @field_validator("task")
    @classmethod
    def _unsaid_task(cls, task: str | None, info: ValidationInfo) -> str | None:
        if task is not None and task not in TASKS:
            raise ValueError(f"a task is one of {', '.join(TASKS)}, not {task!r}")
        inputs = info.data.get("inputs") or _implied_inputs(info.data.get("mean"))
        return None if task == implied_task(INPUTS[inputs]) else task  # likewise

    @model_serializer(mode="wrap")
    def _without_unsaid(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what a student.json had no key for, where it says nothing: older versions read it as before."""
        return {key: value for key, value in handler(self).items() if key not in NEW_KEYS or value}

    @property
    def of_inputs(self) -> dict[str, Any]:
        """What a factory is told besides classes and shape: `vocabulary`, where those do not say it."""
        # A row's ids are no number of its shape, and its classes are others: only then is there a vocabulary.
        return {} if self.vocabulary is None else {"vocabulary": self.vocabulary}

    @property
    def network_shape(self) -> tuple[int, ...]:
        """The shape of a row as its network is given it."""
        return self.input_shape if self.size is None else (self.input_shape[0], *self.size)

    @property
    def resized_within(self) -> dict[str, Any] | None:
        """To which size, and by which filter, its rows are resized within it; None: they come as its network's."""
        if self.size is None or self.network_shape == self.input_shape:
            return None
        return {"size": list(self.size), "filter": self.filter, "antialias": self.filter != "nearest"}

    @property
    def made_of(self) -> Inputs:
        """What its rows are made of."""
        return INPUTS[self.inputs or _implied_inputs(self.mean)]

    @property
    def asked(self) -> Task:
        """What is asked of its rows."""
        return TASKS[self.task or implied_task(self.made_of)]


def _implied_inputs(mean: Numbers | None) -> str:
    return "tokens" if mean is None else "pixels"  # what student.json said before it had a key for it


def keeps_whole(dataset: DatasetSpec) -> bool:
    """Return whether a dataset keeps whole pictures, of which each model may be shown its own size."""
    source = dataset.source
    return dataset.encoded and (source.get("reencode") is None or source.get("shorter_side") is not None)


def decoded_at(blueprint: Blueprint, dataset: DatasetSpec) -> OwnSize | None:
    """Return at which size the pictures of a dataset are decoded for a student; None: at the dataset's."""
    at_all = blueprint.size is not None and blueprint.resized_within is None and keeps_whole(dataset)
    if not at_all or blueprint.network_shape == tuple(dataset.input_shape):
        return None
    assert blueprint.size is not None
    assert blueprint.filter is not None
    return OwnSize(blueprint.size, blueprint.filter)
