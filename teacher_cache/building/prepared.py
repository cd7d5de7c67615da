"""What a build is asked for, and what it will do, stage by stage: facts only, nothing is done yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from storage.cache import Catalogue
from storage.datasets import Source
from storage.format.rows import RowPlan, Segment, ShardRows
from storage.format.shards import INGEST
from storage.format.specs import DatasetSpec, TeacherSpec, ViewsSpec
from storage.inputs import inputs_of
from storage.language.tokenizer import TokenizerFile, parse_tokenizer
from storage.views import PLAIN
from storage.views.options import ViewOptions
from teacher_cache.teachers.kinds import KINDS
from teacher_cache.teachers.options import TeacherOptions


@dataclass(frozen=True)
class BuildRequest:
    """What a build is asked for.

    Attributes:
        cache: address of the cache.
        job: the job's file, for messages.
        sources, teachers, views: sections of the job.
        part: (i, n), this process does number i of n.
        device: of teachers: auto, cpu, cuda.
        threads: of torch, per worker.
        notice: what may be done with the cache; None: the job does not say it.
    """

    cache: str
    job: str
    sources: tuple[Source, ...]
    teachers: tuple[TeacherOptions, ...]
    part: tuple[int, int] = (0, 1)
    device: str = "auto"
    threads: int = 1
    views: ViewOptions | None = None
    notice: str | None = None


@dataclass(frozen=True)
class PreparedDataset:
    """A dataset as this build will leave it.

    Attributes:
        rows: the plan, with `segment` at its end if the dataset is new or has grown.
        mended: shard → attempt of the commits whose quarantined samples can be read now; they are built again.
        tokenizer: of text, its `tokenizer.json`.
        views: which function of a sample its views are; None: it is not augmented.
        notes: on its samples, such as what is passed over.
        withdrawn: rows that could never be read and whose files are gone by now.
        measure_per_row: of a dataset in ranges, about how many bytes make a row; else 1.
    """

    source: Source
    spec: DatasetSpec
    rows: RowPlan
    segment: Segment | None
    mended: dict[int, str]
    tokenizer: bytes | None = None
    views: ViewsSpec | None = None
    notes: tuple[str, ...] = ()
    withdrawn: int = 0
    measure_per_row: int = 1

    def guess_rows(self, measure: int) -> int:
        """Return the rows of a stretch of the plan: of a dataset in ranges a guess, until it is read."""
        return -(-measure // self.measure_per_row)

    def tokenizer_file(self) -> TokenizerFile | None:
        """Return what `tokenizer` says; None: there is none."""
        return None if self.tokenizer is None else parse_tokenizer(self.tokenizer, f"the tokenizer of {self.spec.name}")


def stage_name(dataset: str, teacher: str | None, view: str) -> str:
    """Return how a stage is called where people read it: its folder, but for the view that most stages have.

    >>> stage_name("digits", None, PLAIN), stage_name("digits", "cnn", PLAIN), stage_name("digits", "cnn", "view-003")
    ('digits/ingest', 'digits/cnn', 'digits/cnn/view-003')
    """
    name = f"{dataset}/{INGEST if teacher is None else teacher}"
    return name if view == PLAIN else f"{name}/{view}"


@dataclass(frozen=True)
class Stage:
    """The ingest of a dataset (no teacher), or one teacher over one view of it.

    Attributes:
        shards: those that fall to this part of the build.
        todo: those of them that are missing.
    """

    dataset: PreparedDataset
    teacher: TeacherOptions | None
    spec: TeacherSpec | None
    shards: Sequence[ShardRows]
    todo: Sequence[ShardRows]
    view: str = PLAIN

    @property
    def name(self) -> str:
        return stage_name(self.dataset.spec.name, None if self.teacher is None else self.teacher.name, self.view)


@dataclass(frozen=True)
class PreparedBuild:
    """Everything that a build will do; nothing is done yet.

    Attributes:
        catalogue: what its cache held when it was prepared; None: there was no cache.
    """

    request: BuildRequest
    stages: tuple[Stage, ...]
    catalogue: Catalogue | None

    @property
    def notes(self) -> list[str]:
        """What a user should know of datasets, and of teachers that will be asked, before that is done, a line each."""
        ingests = [stage.dataset for stage in self.stages if stage.teacher is None]
        asked = {stage.teacher.name: stage.teacher for stage in self.stages if stage.teacher is not None and stage.todo}
        return (
            [f"note: {dataset.spec.name}: {note}" for dataset in ingests for note in dataset.notes]
            + [
                f"note: teacher {name}: {note}"
                for name, teacher in asked.items()
                for note in KINDS[teacher.origin].notes(teacher)
            ]
            + [note for stage in self.stages if (note := _reads_on(stage)) is not None]
        )

    @property
    def num_missing(self) -> int:
        """Shards to compute."""
        return sum(len(stage.todo) for stage in self.stages)

    @property
    def asks(self) -> bool:
        """Whether a teacher is to be asked."""
        return any(stage.teacher is not None and stage.todo for stage in self.stages)


def _reads_on(stage: Stage) -> str | None:
    """Return a note if a teacher is asked about more of a text than its library would give it."""
    if stage.teacher is None or not stage.todo or stage.view != PLAIN or not inputs_of(stage.dataset.spec).tokenised:
        return None
    longest, length = KINDS[stage.teacher.origin].longest(stage.teacher), stage.dataset.spec.input_shape[0]
    if longest is None or longest >= length:
        return None
    name = stage.dataset.spec.name
    return (
        f"note: teacher {stage.teacher.name}: its folder says that texts are cut at {longest} tokens, and those of "
        f"{name} have up to {length}, all of which it is given; "
        f"length = {longest} in [[dataset]] {name} cuts them too"
    )
