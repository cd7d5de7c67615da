"""What a job says of a teacher, and what a cache is promised of it.

Reading both costs no torch, so that a build with nothing to do ends in under a second.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, FiniteFloat, model_validator

from storage.digests import fingerprint
from storage.encodings import AnyEncoding, DenseEncoding, FeatureEncoding
from storage.encodings.naming import as_toml
from storage.encodings.none import FEATURES_ALONE
from storage.encodings.vectors import VECTOR_TARGETS
from storage.errors import BadRequest
from storage.format.specs import DatasetSpec, TeacherSpec
from storage.inputs import inputs_of
from storage.inputs.pixels import OwnFilter
from storage.language.folder_code import CODE_NAME
from storage.language.pooling import Pooling
from storage.language.tokenizer import TokenizerFile, around, difference
from storage.options import Factory, JobPath, Name, Options
from storage.tasks import task_of
from teacher_cache.teachers.kinds import KINDS

Trusted = Annotated[
    list[Annotated[str, Field(pattern=CODE_NAME)]],
    Field(min_length=1),
    BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
]
"""Names of code in a model's folder, or one alone: a file without `.py`, and a class in it."""

OneEach = BeforeValidator(lambda value: [value] if type(value) in (int, float) else value)
"""Of numbers, one a channel: one alone is that of pictures in grey."""

Place = Annotated[str, Field(pattern=r"^(cpu|disk|cuda:\d+)$")]
"""Where layers of a model are."""

Side = Annotated[int, Field(ge=1, le=16384)]
"""Pixels."""

COMPUTED_ELSEWHERE = ("onnx", "sklearn")  # kinds whose models another library computes


class TeacherOptions(Options):
    """One `[[teacher]]` of a cache job.

    Attributes:
        name: its folder in the cache.
        factory: `module:function` that returns the model; its weights come from `weights`.
        arguments: keyword arguments of the factory.
        weights: safetensors, or a checkpoint that torch reads with `weights_only`.
        student: instead of a factory, the folder of a trained student.
        kind: instead of either, what lies in `path`: a language model, classifier or encoder as transformers saves
            it, an ONNX graph, an estimator of scikit-learn.
        path: its folder, or its file.
        model: of timm or torchvision, its name there.
        input_names: of an ONNX graph, in the order of what the dataset's inputs are called with; needed of several.
        output_name: of its tensor that has the scores, an output or an inner one; needed where it has several outputs.
        layout: how it takes images: channels first, or last.
        method: of an estimator of scikit-learn, that scores the classes, by default its probabilities; or `predict`,
            that gives the numbers of a regression.
        trust_types: of its file, types that skops does not know to be harmless, and that may be loaded.
        trust: digest of a file that is code as well as weights, and may run: an exported program, or TorchScript.
        output: what it says of the classes: scores before a softmax, or probabilities.
        pixels: the range of a pixel that it takes: 0 to 1, or that of bytes, 0 to 255.
        size: height and width of the pictures that it takes, a number for a square, where that is not the dataset's.
        filter: by which pictures are resized to it.
        dtype: precision of its weights, and of what it computes; by default as they are stored.
        attention: how it computes attention, by transformers' own names.
        pooling: how an encoder's hidden states become an embedding; by default as its folder says (`modules.json`).
        normalize: whether each embedding is scaled to length 1; likewise.
        trust_code: names of code in its folder that may run, as its config's `auto_map` has them: all of them.
        device_map: which of its layers are where, for one that is too large for a GPU: "auto", or by name.
        architecture: the student's own `module:function`, needed if it was not a built-in.
        mean, std: per channel, of inputs in [0, 1]; one number is of one channel. Applied before the model. A student
            carries its own.
        autocast: precision of the forward pass.
        encoding: how soft targets are stored.
        features: name → layer, pooling and precision of an intermediate tensor to store beside.
        batch_size: rows of one forward pass.
        tokenizer: the `tokenizer.json` that a factory's model speaks, over text. A student carries its own.
        classes: names of its scores, in their order; without them, that of the dataset. A student has its own, as has
            a classifier of transformers whose config names them.
        dimension: numbers of the vectors that a factory's model gives, of a dataset whose task is `vector`.
        datasets: which of the job's datasets it is run over; by default all.
    """

    name: Name
    factory: Factory | None = None
    arguments: dict[str, Any] = Field(default_factory=dict)
    weights: JobPath | None = None
    student: JobPath | None = None
    kind: Literal["transformers", "onnx", "exported", "torchscript", "sklearn", "timm", "torchvision"] | None = None
    path: JobPath | None = None
    model: str | None = None
    input_names: Annotated[list[str], Field(min_length=1)] | None = None
    output_name: str | None = None
    layout: Literal["nchw", "nhwc"] | None = None
    method: Literal["predict_proba", "decision_function", "predict"] | None = None
    trust_types: Annotated[list[str], Field(min_length=1)] | None = None
    trust: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")] | None = None
    output: Literal["logits", "probabilities"] = "logits"
    pixels: Literal["unit", "bytes"] = "unit"
    size: Side | Annotated[list[Side], Field(min_length=2, max_length=2)] | None = None
    filter: OwnFilter = "bilinear"
    dtype: Literal["fp32", "bf16", "fp16"] | None = None
    attention: Literal["eager", "sdpa", "flash_attention_2", "flex_attention"] | None = None
    pooling: Pooling | None = None
    normalize: bool | None = None
    trust_code: Trusted | None = None
    device_map: Literal["auto"] | Annotated[dict[str, Place], Field(min_length=1)] | None = None
    architecture: Factory | None = None
    mean: Annotated[list[FiniteFloat], Field(min_length=1), OneEach] | None = None
    std: Annotated[list[Annotated[FiniteFloat, Field(gt=0)]], OneEach] | None = None
    autocast: Literal["fp32", "bf16", "fp16"] = "fp32"
    encoding: AnyEncoding = DenseEncoding()
    features: dict[Name, FeatureEncoding] = Field(default_factory=dict)
    batch_size: Annotated[int, Field(ge=1)] = 256
    tokenizer: JobPath | None = None
    classes: Annotated[list[str], Field(min_length=1)] | None = None
    dimension: Annotated[int, Field(ge=1, le=2**20)] | None = None
    datasets: list[Name] | None = None

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        given = self._origins
        if len(given) != 1:
            raise ValueError("give either `factory` or `student`, or `kind` and `path`")
        if (self.path is None) == (self.kind is not None and "path" in KINDS[self.kind].KEYS):
            raise ValueError("give `kind` and `path` together")
        if "model" in KINDS[given[0]].KEYS and (self.model is None or self.weights is None):
            raise ValueError(f"a `{given[0]}` needs `model`, its name there, and `weights`, a file of its own")
        for other in (each for each in KINDS if each not in given):
            for key in KINDS[other].KEYS:
                if key in KINDS[given[0]].KEYS or getattr(self, key) == type(self).model_fields[key].get_default(
                    call_default_factory=True
                ):
                    continue
                raise ValueError(f"`{key}` belongs to a `{other}`; a `{given[0]}` has its own, or needs none")
        if self.size is None and self.filter != "bilinear":
            raise ValueError("without `size` nothing is resized, so leave out `filter`")
        if self.pixels == "bytes" and self.mean is not None:
            raise ValueError('`mean` and `std` are of pixels from 0 to 1; `pixels = "bytes"` gives them from 0 to 255')
        if given[0] in COMPUTED_ELSEWHERE and self.autocast != "fp32":
            raise ValueError(f"`autocast` is of torch; a `{given[0]}` computes as its file says")
        try:
            fingerprint(self.arguments)  # they are part of the promise
        except (TypeError, ValueError) as error:
            raise ValueError(f"`arguments` may hold what JSON can: no dates, no nan, no inf ({error})") from None
        if (self.mean is None) != (self.std is None) or len(self.mean or []) != len(self.std or []):
            raise ValueError("give `mean` and `std` together, one number per channel each")
        if not self.encoding.soft and not self.features:
            raise ValueError(
                'nothing would be stored: with `encoding = { kind = "none" }` give one of `features` or more'
            )
        return self

    @property
    def origin(self) -> str:
        """The key of `KINDS` that it is of."""
        (origin,) = self._origins
        return origin

    @property
    def _origins(self) -> list[str]:
        return [origin for origin in KINDS if origin == self.kind or getattr(self, origin, None) is not None]

    def told(self) -> dict[str, Any]:
        """Return what the job itself tells of the model, without any of its files."""
        resized = {} if self.size is None else {"size": self.size, "filter": self.filter}
        return {"autocast": self.autocast} | resized | KINDS[self.origin].told(self)

    def promise(self, num_classes: int, uses: tuple[str, ...] = ()) -> TeacherSpec:
        """Return what the cache is promised of this teacher, from its files' digests, without loading it.

        Args:
            num_classes: scores of each site (`num_scores`).
            uses: what a reader must know of how its targets are laid down, by name; that it has none is added here.

        Raises:
            MissingSource: the weights or the student's folder are not there.
            BadRequest: the encoding wants more classes than there are.
        """
        self.encoding.check(num_classes)
        # Batch size, datasets and places are left out: they decide how a teacher is run, not what it says.
        return TeacherSpec(
            name=self.name,
            model=self.told() | KINDS[self.origin].digests(self),
            num_classes=num_classes,
            encoding=self.encoding,
            features=self.features,
            uses=self.promised_uses(uses),
        )

    def promised_uses(self, uses: tuple[str, ...]) -> tuple[str, ...]:
        """Return what a reader must know, from how targets are laid down: whether there are any, too."""
        said = {FEATURES_ALONE: not self.encoding.soft, VECTOR_TARGETS: not self.encoding.classes}
        return (*(name for name in uses if name not in said), *(name for name in said if said[name]))


def num_scores(teacher: TeacherOptions, dataset: DatasetSpec) -> int:
    """Return how many numbers a teacher gives for each site of a dataset: its classes, or the width of a vector.

    Raises:
        BadRequest: nobody knows; or its encoding is none for what is asked of the dataset.
    """
    task, encoding = task_of(dataset), teacher.encoding
    if encoding.kind not in task.encodings:
        dtype = ', dtype = "fp16"'
        raise BadRequest(
            f"teacher {teacher.name} is to store other answers than dataset {dataset.name} asks for: "
            f"{task.described(dataset)}",
            found=as_toml(encoding),
            expected=f"encoding = {{ kind = one of: {', '.join(task.encodings)} }}",
            # a number in its own units may be beyond 65,504, which is the largest of fp16
            do=f'encoding = {{ kind = "{task.encodings[0]}"{"" if task.numbers else dtype} }} in [[teacher]] '
            f"{teacher.name}, or keep it off that dataset with `datasets = [...]`",
        )
    if teacher.dimension is not None and dataset.num_classes:
        raise BadRequest(
            f"teacher {teacher.name} says how wide its vectors are, and dataset {dataset.name} asks for classes",
            found=f"dimension = {teacher.dimension}, and {dataset.num_classes} classes",
            do="leave `dimension` out; or keep the teacher off that dataset with `datasets = [...]`",
        )
    if not encoding.soft or dataset.num_classes:
        return dataset.num_classes
    if encoding.classes:
        raise BadRequest(
            f"dataset {dataset.name} has no classes, so teacher {teacher.name} cannot be checked against them",
            do="give the dataset's `classes`, or keep the teacher off it with `datasets = [...]`",
        )
    dimension = KINDS[teacher.origin].dimension(teacher)
    if dimension is None:
        raise BadRequest(
            f"teacher {teacher.name} does not say how wide its vectors are",
            expected="their dimension, which the cache is promised before anything is asked",
            do="dimension = … in [[teacher]]",
        )
    return dimension


def check_tokens(
    teacher: TeacherOptions,
    dataset: DatasetSpec,
    tokenizer: Callable[[], TokenizerFile | None],
    unbuilt: str | None = None,
) -> None:
    """Check that a teacher and a dataset of tokens mean the same by an id; reads files, and loads no teacher.

    Of datasets that no tokenizer made there is nothing to check.

    Args:
        teacher: of a job.
        dataset: likewise.
        tokenizer: returns the dataset's; called for a message only.
        unbuilt: where the first build will put the dataset's tokenizer, learned or not; None once it has.

    Raises:
        BadRequest: they do not, or one of them does not say; or the teacher has options that are of images.
        MissingSource: the teacher's tokenizer or folder is not there.
    """
    if not inputs_of(dataset).tokenised:
        return
    spoken, said_by, file = KINDS[teacher.origin].spoken(teacher)
    if spoken != dataset.tokenizer:
        do = "tokenizer = …, the teacher's own tokenizer.json, in [[dataset]] and, for a factory, in [[teacher]]"
        if unbuilt is not None and teacher.factory is not None and dataset.tokenizer is not None:
            do += f'; of one that is learned here, cache build without the teacher first, then tokenizer = "{unbuilt}"'
        expected = "(this job)" if unbuilt is not None else f"({dataset.name}/dataset.json)"
        raise BadRequest(
            f"teacher {teacher.name} does not say which tokenizer it has, and dataset {dataset.name} was made by one"
            if spoken is None
            else f"teacher {teacher.name} has a tokenizer, and dataset {dataset.name} was made by none"
            if dataset.tokenizer is None
            else f"teacher {teacher.name} has another tokenizer than dataset {dataset.name}",
            found=said_by
            if spoken is None
            else f"fingerprint {spoken}  ({said_by})" + _first_difference(file, tokenizer()),
            expected=f"ids of no tokenizer  {expected}"
            if dataset.tokenizer is None
            else f"fingerprint {dataset.tokenizer}  {expected}",
            do=do,
        )

    _check_around(teacher, dataset, file)
    # What is of images alone: channels to normalise, places to pool over.
    pooled = [name for name, feature in teacher.features.items() if feature.pool != "none"]
    if task_of(dataset).pooled_features:
        pooled = []
    if teacher.mean is not None or pooled:
        raise BadRequest(
            f"teacher {teacher.name} cannot be asked so about {dataset.name}, which is tokens",
            found=f"a pool of {', '.join(pooled)}" if pooled else "mean and std",
            expected='features with pool = "none", a vector for each position; and no normalisation',
        )


def _check_around(teacher: TeacherOptions, dataset: DatasetSpec, file: TokenizerFile | None) -> None:
    """Check that a teacher which was trained with special tokens around its texts has them."""
    of_positions = task_of(dataset).sites(dataset.input_shape) != ()
    if of_positions or dataset.source.get("add_special_tokens") or not KINDS[teacher.origin].wants_around(teacher):
        return
    if file is not None and not around(file.data).num_tokens:
        return
    raise BadRequest(
        f"teacher {teacher.name} was trained with special tokens around a text, which {dataset.name} has not",
        found="texts alone",
        expected="what its tokenizer's template puts before and behind them, such as [CLS] and [SEP]",
        do=f"add_special_tokens = true in [[dataset]] {dataset.name}",
    )


def _first_difference(teachers: TokenizerFile | None, datasets: TokenizerFile | None) -> str:
    """Return a line that says where two tokenizers part, if both are at hand."""
    return "" if teachers is None or datasets is None else f"\nfirst {difference(teachers, datasets)}"
