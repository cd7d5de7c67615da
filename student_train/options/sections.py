"""The sections of a student job: its data, and each student with its objective.

No torch here, so that a job file is checked before anything slow is imported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationInfo, model_validator

from storage.inputs.pixels import OwnFilter
from storage.options import Factory, JobPath, Name, Options, Url
from student_train.options.model import LoraOptions, Quantize, Start
from student_train.options.terms import ObjectiveTerm
from student_train.options.training import LATER_KEYS, Figure, TrainingOptions

BUILT_IN = ("cnn", "encoder", "gpt", "mlp", "resnet", "transformers")  # `students.ARCHITECTURES` holds what builds them

_FACTORY: TypeAdapter[str] = TypeAdapter(Factory)

Choice = Literal["auto", "always", "never"]  # of what is done where it helps, in any case, or not
ResidencyChoice = Literal["auto", "device", "host", "stream"]

# Of a student's keys: they do not change what is computed. Of what `path` and `start` name the content decides.
NOT_IDENTITY = {"name", "recompute", "path", "start", "checkpoint_every_steps"}


def _dataset_and_split(value: str) -> str:
    dataset, slash, split = value.partition("/")
    if not dataset or (slash and split not in ("train", "validation")):
        raise ValueError(
            'write "<dataset>", "<dataset>/train" or "<dataset>/validation", the halves that `validation` of its '
            f"section in the cache job makes; samples to test on are a [[dataset]] of their own (found {value!r})"
        )
    return value


def _architecture(value: str, info: ValidationInfo) -> str:
    if ":" in value:
        return _FACTORY.validate_python(value, context=info.context)
    if value not in BUILT_IN:
        raise ValueError(f"{value!r} is none of {', '.join(BUILT_IN)}, and no module:factory")
    return value


def _of_one_or_several(value: Any) -> Any:
    """Return rows as they are meant, those of one dataset as one text; what is neither text nor texts, as it is."""
    if not isinstance(value, str | list | tuple) or not all(isinstance(each, str) for each in value):
        return value
    rows = tuple(map(_dataset_and_split, listed(value)))
    if not rows:
        raise ValueError("name the rows of one dataset at least")
    datasets = datasets_of(rows)
    if twice := sorted({name for name in datasets if datasets.count(name) > 1}):
        raise ValueError(f'a dataset is named once, "<dataset>" for both of its halves (twice: {", ".join(twice)})')
    return rows if len(rows) > 1 else rows[0]


Rows = Annotated[str | tuple[str, ...], BeforeValidator(_of_one_or_several)]
"""Rows of the cache: `<dataset>/<split>`, or `<dataset>` for all of them; or a list of such, of several datasets."""

Shares = dict[str, Annotated[float, Field(gt=0, lt=1)]]
SHARES_OFF = 0.002  # that shares together may be off 1: thirds are written 0.333

Architecture = Annotated[str, AfterValidator(_architecture)]
OwnSides = (
    Annotated[int, Field(ge=1, le=16384)]
    | Annotated[tuple[Annotated[int, Field(ge=1, le=16384)], ...], Field(strict=False, min_length=2, max_length=2)]
)
PerChannel = Annotated[tuple[float, ...], Field(strict=False, min_length=1)]


def listed(rows: str | Sequence[str]) -> tuple[str, ...]:
    """Return rows of a cache as a list of those of each dataset.

    >>> listed("digits/train"), listed(["law/train", "code/train"])
    (('digits/train',), ('law/train', 'code/train'))
    """
    return (rows,) if isinstance(rows, str) else tuple(rows)


def datasets_of(rows: str | Sequence[str]) -> tuple[str, ...]:
    """Return the datasets of rows of a cache, in their order."""
    return tuple(each.partition("/")[0] for each in listed(rows))


def _check_shares(shares: Mapping[str, float], datasets: Sequence[str]) -> None:
    """Raise ValueError unless there is a share of each of several datasets, and together they are 1."""
    if len(datasets) < 2:
        raise ValueError("a mixture is of several datasets: `train` is a list of them")
    if unknown := [name for name in shares if name not in datasets]:
        raise ValueError(f"mixture has a share of {', '.join(unknown)}, not in `train`: {', '.join(datasets)}")
    if absent := [name for name in datasets if name not in shares]:
        raise ValueError(f"mixture has no share of {', '.join(absent)}; leave out of `train` what has none")
    if abs(sum(shares.values()) - 1) > SHARES_OFF:
        told = " + ".join(f"{share:g}" for share in shares.values())
        raise ValueError(f"the shares of the mixture are 1 together (found {told} = {sum(shares.values()):g})")


def told(rows: str | Sequence[str]) -> str:
    """Return rows of a cache as they are told."""
    return " + ".join(listed(rows))


def share_rows(train: str | Sequence[str], validation: str | Sequence[str]) -> bool:
    """Return whether rows of a cache, such as "digits/train" and "digits", have some in common."""

    def shared(ours: str, theirs: str) -> bool:
        (dataset, _, trained), (other, _, held) = ours.partition("/"), theirs.partition("/")
        # without a split all rows are meant, those of any split too
        return dataset == other and (trained == held or not trained or not held)

    return any(shared(ours, theirs) for ours in listed(train) for theirs in listed(validation))


class DataOptions(Options):
    """Which rows of the cache are trained and evaluated on, and how they reach the device."""

    train: Rows
    validation: Rows
    mixture: Shares | None = None  # of each dataset of `train` its share of an epoch; None: an epoch has each row once
    allow_partial: bool = False  # train on the rows that are committed when some are missing
    residency: ResidencyChoice = "auto"  # never changes what is computed
    views: Annotated[int, Field(ge=0)] | None = None  # 0: plain inputs; None: as many as every needed teacher has
    # Rows are shuffled within windows of this many shards; as many as the dataset has, or more, is a full shuffle.
    window_shards: Annotated[int, Field(ge=1)] = 16
    order_seed: Annotated[int, Field(ge=0, lt=2**63)] = 0  # of the shuffle, which all students of the job share

    @model_validator(mode="after")
    def _shares(self) -> Self:
        if self.mixture is not None:
            _check_shares(self.mixture, datasets_of(self.train))
        return self

    @property
    def measures_trained_rows(self) -> bool:
        """Whether validation rows are among those that are trained on."""
        return share_rows(self.train, self.validation)


class HalvingOptions(Options):
    """Early decisions: at each rung only the best go on.

    Attributes:
        first_epochs: of the first rung; each further one is `factor` times later.
        factor: one in so many goes on.
        metric: on the held rows; None: what is best by default of the task.
    """

    first_epochs: Annotated[int, Field(ge=1)]
    factor: Annotated[int, Field(ge=2)] = 3
    metric: Figure | None = None

    def by(self, figure: Figure) -> HalvingOptions:
        """Return the same with a metric: its own, or this one."""
        return self if self.metric is not None else self.model_copy(update={"metric": figure})


class TrackOptions(Options):
    """Who else is told of metrics; the Parquet files are always written.

    Attributes:
        tensorboard: event files in each student's folder.
        mlflow: a folder, or the URI of a tracking server or database; one MLflow run there for each student.
        experiment: of MLflow, "stillroom" by default.
    """

    tensorboard: bool = False
    mlflow: Url | None = None
    experiment: Annotated[str, Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _agree(self) -> TrackOptions:
        if self.experiment is not None and self.mlflow is None:
            raise ValueError('experiment is MLflow\'s: say where, as mlflow = "FOLDER or URI", or drop it')
        return self


class FleetOptions(Options):
    """How the students of a job are trained together; `halving` alone changes what is computed.

    Attributes:
        stacking: whether students of one architecture and batch size become one program: "auto" times both ways.
        cuda_graphs: whether steps on a GPU are recorded and replayed: "auto" leaves out a user's own architectures.
        at_once: how many students share a pass, at most; None: all.
        halving: early decisions among the students of a pass.
        track: who else is told of metrics.
    """

    stacking: Choice = "auto"
    cuda_graphs: Choice = "auto"
    at_once: Annotated[int, Field(ge=1)] | None = None
    halving: HalvingOptions | None = None
    track: TrackOptions = TrackOptions()


class StudentOptions(TrainingOptions):
    """One student: what it is, what it learns from, and how it is trained."""

    name: Name
    architecture: Architecture | None = None  # None: as the folder has it that it starts from
    options: dict[str, Any] = Field(default={})  # keyword arguments of the architecture's function
    path: JobPath | None = None  # of "transformers": a folder with the config, whose keys `options` replace
    start: Start = None  # weights that it starts from
    adapter: LoraOptions | None = None  # those stay, and products of low rank are trained
    quantize: Quantize = None  # "int8": weights and inputs of layers are rounded in training, and weights written so

    # Normalisation of inputs in [0, 1], one value for all channels or one for each; part of the model.
    # None: 0.5, or of a table what it promises of each column.
    mean: PerChannel | None = None
    std: PerChannel | None = None
    size: OwnSides | None = None  # height and width that it sees, a number for a square; None: the dataset's
    filter: OwnFilter = "bilinear"  # by which pictures become that

    objective: Annotated[tuple[ObjectiveTerm, ...], Field(strict=False)]

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0  # of the first weights and of dropout; rows have `order_seed`
    first_view: Annotated[int, Field(ge=0)] = 0  # epoch e shows view (first_view + e - 1) mod count

    @model_validator(mode="after")
    def _agree(self) -> StudentOptions:
        if not self.objective:
            raise ValueError("a student needs one [[student.objective]] or more")
        if self.architecture == "transformers" and self.path is None:
            raise ValueError('architecture = "transformers" needs a `path`, a folder with its config')
        if self.architecture != "transformers" and self.path is not None:
            said = "none" if self.architecture is None else f"'{self.architecture}'"
            raise ValueError(
                f'`path` ({self.path}) is of architecture = "transformers" alone, and this one has {said}; what is in '
                "[defaults] is each student's: write `path` into those that have it"
            )
        as_it_is = self.start is not None and self.start.path is not None and not (self.options or self.start.layers)
        if self.architecture is None and not as_it_is:
            raise ValueError(
                "say its `architecture`; or no more than `start`, the folder of a student that is started from as it is"
            )
        if self.start is not None and self.starts_from is None:
            raise ValueError("`start` = true takes the weights in `path`, and there is none: name a file or a folder")
        if self.adapter is not None and self.start is None:
            raise ValueError("an `adapter` is trained on top of weights that stay as they are: say which in `start`")
        others = {"an adapter": self.adapter is not None, "micro_batch_size": self.micro_batch_size is not None}
        if self.quantize is not None and (
            with_it := [n for n, on in (others | {"recompute": self.recompute}).items() if on]
        ):
            raise ValueError(
                f"`quantize` looks at each batch once and whole, and does not go with {', '.join(with_it)}"
            )
        if self.size is None and self.filter != "bilinear":
            raise ValueError("without `size` nothing is resized, so leave out `filter`")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError(f"std must be above 0, found {min(self.std)}")
        return self

    def said(self, *, exclude_none: bool = False) -> dict[str, Any]:
        """Return all options as JSON has them: what it is and learns from, then how it is trained."""
        dumped = self.model_dump(mode="json", exclude_none=exclude_none)
        return {key: dumped[key] for key in sorted(dumped, key=lambda key: key in TrainingOptions.model_fields)}

    def made_from(self) -> dict[str, Any]:
        """Return the options that decide what is computed, of which a run keeps what it was made from."""
        said = {key: value for key, value in self.said().items() if key not in NOT_IDENTITY}
        # said where no projection is learned: before there was the key one always was; of labels, where not all are
        for term in said["objective"]:
            if term.get("projection"):
                del term["projection"]
            if not term.get("where_labelled"):
                term.pop("where_labelled", None)
        # a key that runs of before had not is left out where it says nothing, or theirs would be others
        return {key: value for key, value in said.items() if key not in LATER_KEYS or value != _UNSAID[key]}

    @property
    def starts_from(self) -> Path | None:
        """Return where the weights are that it starts from; None: its own are drawn."""
        return None if self.start is None else self.start.path or self.path

    @property
    def losses(self) -> tuple[ObjectiveTerm, ...]:
        """Return the terms of the objective, each with weight 1: what is computed before they are weighed."""
        return tuple(term.model_copy(update={"weight": 1.0}) for term in self.objective)


_UNSAID = {name: StudentOptions.model_fields[name].default for name in LATER_KEYS}
