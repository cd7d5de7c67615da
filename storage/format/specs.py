"""What a cache promises: its format, its datasets, its teachers, each written before any of their data.

Every spec is one small JSON object, created once and never changed. A later build compares its own against it, field
by field; a difference is a `StaleCache` error that names the fields.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from storage.digests import differences, fingerprint
from storage.encodings import AnyEncoding, FeatureEncoding
from storage.encodings.base import USES_NEVER
from storage.encodings.none import FEATURES_ALONE
from storage.encodings.vectors import VECTOR_TARGETS
from storage.errors import CorruptObject, StaleCache, UnsupportedFormat
from storage.format.objects import Objects
from storage.inputs import find_inputs, inputs_of
from storage.tasks import implied_task, task_of
from storage.views import view_number
from storage.views.options import MIXING, AnyTransform

if TYPE_CHECKING:  # `cache status` reads specs, and should not pay two seconds for torch
    from storage.views.shown import View

FORMAT_VERSION = 3  # of caches that are made now; earlier ones are read
WEIGHTS_JSON = "weights.json"
NOTICE_JSON = "notice.json"
NEW_KEYS = ("uses", "task")  # since format 3, and left out where they say nothing
OWN_LENGTH, BYTE_RANGES, LABELLED_POSITIONS = "own_length", "byte_ranges", "labelled_positions"
PACKED, ENCODED = "packed_documents", "encoded_inputs"
USES = (
    OWN_LENGTH,
    USES_NEVER,
    BYTE_RANGES,
    LABELLED_POSITIONS,
    PACKED,
    ENCODED,
    FEATURES_ALONE,
    VECTOR_TARGETS,
)  # of the names in FORMAT.md, those that are known here


class Spec(BaseModel):
    """One promise, kept as JSON."""

    model_config = ConfigDict(frozen=True, extra="ignore")  # another version's may have other keys

    @model_serializer(mode="wrap")
    def _without_new_keys_unless_said(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what format 2 had no key for, where it says nothing: the same promise has one fingerprint."""
        return {key: value for key, value in handler(self).items() if key not in NEW_KEYS or value}

    @property
    def fingerprint(self) -> str:
        """The fingerprint of everything promised."""
        return fingerprint(self.model_dump(mode="json"))

    def to_json(self) -> bytes:
        """Return the readable JSON that lies on disk, with its own digest as the last key."""
        value = self.model_dump(mode="json")
        return (json.dumps(value | {"digest": fingerprint(value)}, indent=2) + "\n").encode()


class CacheSpec(Spec):
    """`cache.json`: the format version first, and the identity of this cache."""

    format: int
    id: str
    created: str
    created_by: str


class NoticeSpec(Spec):
    """`notice.json`: what may be done with a cache, in words for people."""

    text: str


class DatasetSpec(Spec):
    """`<dataset>/dataset.json`: what makes the content of its rows.

    `source` holds the options that decide content (never the path, so that data may move), `input_shape` the shape of
    one input without the row axis. `uses` names what a reader must know to read the rows: with `own_length`, they may
    differ in their first axis, and `input_shape` has the longest that one may be; with `byte_ranges`, shards are
    planned in bytes, and how many rows one has is in its commit; with `packed_documents`, a row may have several
    documents; with `encoded_inputs`, pictures are stored as bytes of images. A dataset of tokens has a `vocabulary`,
    the number of ids, and the fingerprint of its `tokenizer`, if one is known; what that is, lies beside in
    `tokenizer.json`. `task` says what is asked of a row; None: what is implied (`storage.tasks`).
    """

    name: str
    source: dict[str, Any]
    classes: list[str]
    input_shape: tuple[int, ...]
    input_dtype: str
    vocabulary: int | None = None
    tokenizer: str | None = None
    uses: tuple[str, ...] = ()
    task: str | None = None

    @property
    def own_length(self) -> bool:
        """Whether each row of the inputs has a length of its own, up to that in `input_shape`."""
        return OWN_LENGTH in self.uses

    @property
    def packed(self) -> bool:
        """Whether a row may have several documents, of which none may see another."""
        return PACKED in self.uses

    @property
    def encoded(self) -> bool:
        """Whether the cache holds the bytes of images, which are decoded when rows are read."""
        return ENCODED in self.uses

    @property
    def byte_ranges(self) -> bool:
        """Whether shards are planned in bytes, and a shard's rows are as many as its commit says."""
        return BYTE_RANGES in self.uses

    def places(self, planned: tuple[int, int], rows: tuple[int, int]) -> bool:
        """Return whether a shard of some rows, [start, stop), may be the one that was planned so."""
        if self.byte_ranges:  # of which a row takes one or more
            return rows[0] == planned[0] and rows[0] <= rows[1] <= planned[1]
        return rows == planned

    @property
    def planned_in(self) -> str | None:
        """What its shards are planned in, if not in rows."""
        return "bytes" if self.byte_ranges else None

    @property
    def num_classes(self) -> int:
        """The number of scores that a model of this dataset gives for each site; 0: nobody knows."""
        return task_of(self).num_classes(self)

    @field_validator("task")
    @classmethod
    def _unsaid(cls, task: str | None, info: ValidationInfo) -> str | None:
        """Return None for the task that is implied anyway: two promises of the same are the same."""
        said = info.data
        own_length, packed = (name in said.get("uses", ()) for name in (OWN_LENGTH, PACKED))
        kind = find_inputs(
            said.get("vocabulary"), said.get("input_dtype", ""), own_length=own_length, packed=packed, task=task
        )
        return None if task == implied_task(kind) else task  # of one name and another, not of what either means

    @model_validator(mode="after")
    def _fits(self) -> Self:
        task, kind = task_of(self), inputs_of(self).name
        if kind not in task.inputs:
            raise ValueError(f"task {task.name} is of {' or '.join(task.inputs)}, and {self.name} is {kind}")
        return self


class TeacherSpec(Spec):
    """`<dataset>/<teacher>/teacher.json`: which function made the targets, and how they are stored.

    `uses` names what a reader must know to read them: with `labelled_positions` they are of those positions alone,
    with `features_alone` there are no soft targets, with `vector_targets` there are vectors, whose `dimension` is
    `num_classes` here: the numbers that a student gives for each site.
    """

    name: str
    model: dict[str, Any]
    num_classes: int
    encoding: AnyEncoding
    features: dict[str, FeatureEncoding]
    uses: tuple[str, ...] = ()

    @property
    def labelled_positions(self) -> bool:
        """Whether there are targets of labelled sites alone, one after another, in place of some at each site."""
        return LABELLED_POSITIONS in self.uses

    @model_validator(mode="after")
    def _says_so(self) -> Self:
        promised = {FEATURES_ALONE: not self.encoding.soft, VECTOR_TARGETS: not self.encoding.classes}
        if any((name in self.uses) != wanted for name, wanted in promised.items()):
            raise ValueError(f"encoding {self.encoding.kind}, and uses = {', '.join(self.uses) or 'nothing'}")
        return self

    @model_validator(mode="before")
    @classmethod
    def _dimension(cls, value: Any) -> Any:
        if isinstance(value, dict) and VECTOR_TARGETS in value.get("uses", ()) and "dimension" in value:
            return {key: each for key, each in value.items() if key != "dimension"} | {
                "num_classes": value["dimension"]
            }
        return value

    @model_serializer(mode="wrap")
    def _as_stored(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        value = {key: each for key, each in handler(self).items() if key not in NEW_KEYS or each}
        if VECTOR_TARGETS not in self.uses:
            return value
        return {"dimension" if key == "num_classes" else key: each for key, each in value.items()}

    @field_validator("encoding", mode="before")
    @classmethod
    def _of_format_1(cls, encoding: Any) -> Any:
        """Return the encoding of a cache of format 1 as what it was: dense, without statistics."""
        return {"statistics": False} | encoding if isinstance(encoding, dict) else encoding


class WeightsSpec(Spec):
    """`<dataset>/<teacher>/weights.json`: the digest of the teacher's weights as the first worker loaded them."""

    weights: str


class ViewsSpec(Spec):
    """`<dataset>/views.json`: which function of a sample its views are; how many there are is not promised."""

    name: str
    seed: int
    transforms: tuple[AnyTransform, ...]

    def view(self, name: str) -> View:
        """Return the view of a name such as "view-000"."""
        from storage.views.shown import View

        number = view_number(name)
        assert number is not None
        return View(self.transforms, self.seed, number)

    @property
    def mixes(self) -> bool:
        """Whether two samples become one, and a row has two labels."""
        return any(isinstance(step, MIXING) for step in self.transforms)


AnySpec = TypeVar("AnySpec", bound=Spec)


def read_spec(objects: Objects, path: str, kind: type[AnySpec]) -> AnySpec:
    """Return a spec from its JSON. Raises as `read_promise`."""
    return read_promise(objects, path, kind)[0]


def read_promise(objects: Objects, path: str, kind: type[AnySpec]) -> tuple[AnySpec, str]:
    """Return a spec from its JSON, and its digest as it was written: another version's spec may have other keys.

    Raises:
        UnsupportedFormat: it was written by a later format, or uses what this version cannot read.
        CorruptObject: it is not the JSON of such a spec.
    """
    data = objects.get(path)
    try:
        value = json.loads(data)
        version = value.get("format", FORMAT_VERSION)  # only cache.json says one
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            raise ValueError(f"format {version!r} is no number of a format")
        if version > FORMAT_VERSION:
            raise UnsupportedFormat(
                f"{objects.url} is a cache of a later format",
                found=f"format {version} ({path}, written by {value.get('created_by', 'unknown')})",
                expected=f"format {FORMAT_VERSION} or earlier",
                do="upgrade stillroom",
            )
        if (written := value.pop("digest")) != fingerprint(value):  # of all but itself
            raise ValueError("it does not match its digest")
        check_uses(f"{objects.url}/{path}", value.get("uses", ()))
        spec = kind.model_validate(value)
    # whatever JSON of another shape leads to
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise CorruptObject(
            f"{objects.url}/{path} is not a whole {kind.__name__}",
            found=str(error),
            do="restore it from a copy of the cache",
        ) from None
    # a name is that of its folder: else it was put here from elsewhere
    if getattr(spec, "name", None) not in (None, *path.split("/")[-2:-1]):
        raise CorruptObject(f"{objects.url}/{path} is not its own", found=f"the {kind.__name__} of {spec.name}")  # type: ignore[attr-defined]
    return spec, written


def check_uses(what: str, uses: Iterable[str]) -> None:
    """Raise UnsupportedFormat if something is stored in a way that this version does not know, by the name of it."""
    if unknown := [str(name) for name in uses if name not in USES]:
        raise UnsupportedFormat(
            f"{what} uses what this version cannot read",
            found=", ".join(unknown),
            expected=f"nothing but {', '.join(USES)}",
            do="upgrade stillroom; FORMAT.md says what each of these names is",
        )


def write_spec(objects: Objects, path: str, spec: AnySpec, job: str) -> None:
    """Create a spec; if one is there already, check that it is the same. Raises StaleCache."""
    if not objects.create(path, spec.to_json()):
        check_spec(objects, path, spec, job)


def check_spec(objects: Objects, path: str, spec: AnySpec, job: str) -> None:
    """Check that the spec at `path` is the one that a job asks for.

    Args:
        objects: the cache.
        path: of the spec, in the cache.
        spec: what this job promises.
        job: the job's file, for the message.

    Raises:
        StaleCache: what is there differs; every differing field is named.
    """
    check_promise(objects.url, path, read_spec(objects, path, type(spec)), spec, job)


def check_promise(url: str, path: str, found: AnySpec, spec: AnySpec, job: str) -> None:
    """Check that a spec that was found at `path` of a cache is the one that a job asks for. Raises StaleCache."""
    fields = differences(found.model_dump(mode="json"), spec.model_dump(mode="json"))
    if fields:
        raise StaleCache(
            f"{url} was built by another job: {path} differs in {', '.join(name for name, _, _ in fields)}",
            found="\n".join(f"{name} = {was!r}" for name, was, _ in fields),
            expected="\n".join(f"{name} = {now!r}" for name, _, now in fields) + f"  ({job})",
            do=f"cache build {job} --as NAME    # a new cache beside it; this one stays as it is",
        )
