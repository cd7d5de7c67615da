"""A teacher's answers to the rows of a shard, batch by batch, so that no whole logits or features are ever held.

A GPU is never kept waiting: rows lie on it before it is their turn, and while it is at one batch a thread encodes the
one before and fetches what came of that. A batch that does not fit into memory is asked about in halves.

Shapes: B readable rows of a shard or of a batch, `sites` the axes of a row's sites (storage.tasks), C classes, V ≥ C
logits of a padded vocabulary.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from storage.encodings.dense import LOGITS
from storage.errors import BadTeacher, is_out_of_memory
from storage.format.specs import DatasetSpec, TeacherSpec
from storage.inputs import inputs_of
from storage.tasks import Task, task_of
from teacher_cache.teachers.model import TooLarge
from teacher_cache.work.checks import check_classes, finite_rows, logits_right, refuse_probabilities
from teacher_cache.work.rows import encode_rows
from teacher_cache.work.telling import rows_done

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from teacher_cache.teachers.model import Teacher

AHEAD = 2  # batches that are answered and not encoded yet, where a thread encodes: their logits are held meanwhile


class Question(NamedTuple):
    """What a teacher is asked: rows (B, …), labels (B, *sites) int64, −1: none, and keys of draws, likewise."""

    shown: Tensor
    labels: Tensor
    keys: Tensor

    def of(self, rows_B: Tensor) -> Question:
        """Return the question about some of the rows, by their numbers, which lie on the host."""
        return Question(*(_picked(values, rows_B) for values in self))


class ShardAnswers(NamedTuple):
    """What a teacher said of a shard, all on the host; B readable rows.

    Attributes:
        columns: of the commit's table, (B,) each.
        encoded: name of an array in the cache → stored form, (B, *sites, …).
        finite: name → (B,) bool, of the teacher's own values.
        in_range: name → (B,) bool, of the stored form.
        answered: fields of `storage.tasks.base.Answered`, (B,) each: sums over a row's labelled sites; and `never`, how
            many of its sites have a class that can never be.
    """

    columns: dict[str, Tensor]
    encoded: dict[str, Tensor]
    finite: dict[str, Tensor]
    in_range: dict[str, Tensor]
    answered: dict[str, Tensor]


Encode = Callable[[Callable[[], ShardAnswers]], Future[ShardAnswers]]
"""What makes the answers of a batch, given how; at once, or later."""


def send_ahead(question: Question, dataset: DatasetSpec, device: str) -> Question:
    """Return a question whose rows lie on a GPU; for a CPU, or where they do not fit, as it is.

    To be called before the teacher is free: a stream of its own copies while the GPU is at another shard.
    """
    import torch

    if device == "cpu":
        return question
    copies = _stream("copies", device)
    try:
        with torch.cuda.stream(copies):
            sent = question._replace(labels=_sent(question.labels, device), keys=_sent(question.keys, device))
            if inputs_of(dataset).sent_whole:
                sent = sent._replace(shown=_sent(question.shown, device))
            copied = copies.record_event()
        copied.synchronize()  # here, not where the GPU is fed; and from here on any stream may read them
        return sent
    except torch.OutOfMemoryError:
        return question


def _sent(values: Tensor, device: str) -> Tensor:
    """Return a tensor of the host on a GPU, once the current stream is there."""
    return values.pin_memory().to(device, non_blocking=True)


@lru_cache
def _stream(purpose: str, device: str) -> torch.cuda.Stream:
    """Return this process's stream of a purpose; one for all shards, for none is lent the memory that another had."""
    import torch

    return torch.cuda.Stream(device)


def answer_rows(
    teacher: Teacher, question: Question, spec: TeacherSpec, dataset: DatasetSpec, *, beside: bool
) -> ShardAnswers:
    """Return a teacher's answers to all rows.

    Args:
        teacher: its `batch_size` is lowered where a batch does not fit.
        question: about the rows.
        spec: what the cache is promised of the teacher.
        dataset: of the rows.
        beside: encode in a thread beside the teacher. On a CPU both would only wait for each other's processor.

    Raises:
        BadTeacher: the answers are not what the cache was promised, or one row alone does not fit into memory.
    """
    if not len(question.shown):  # nothing was readable; a blank tells the shapes, and models choke on no rows at all
        one = Question(*(values.new_zeros(1, *values.shape[1:]) for values in question))
        blank = answer_rows(teacher, one, spec, dataset, beside=beside)
        return ShardAnswers(*({name: values[:0] for name, values in tensors.items()} for tensors in blank))
    batches = inputs_of(dataset).batches(question.shown, teacher.batch_size)
    with _encoding(teacher.device, beside=beside) as encode:
        shard = _Shard(teacher, question, spec, dataset, encode, AHEAD if beside else 1, deque(batches))
        while shard.todo or shard.waiting:
            if shard.todo and len(shard.waiting) < shard.ahead:
                shard.ask(shard.todo.popleft())
            else:
                shard.collect()
                rows_done(sum(map(len, shard.asked)))
    return _joined(shard.asked, shard.parts, spec)


@dataclass
class _Shard:
    """The batches of a shard: those to be asked about, those that are being encoded, and what came of the others."""

    teacher: Teacher
    question: Question
    spec: TeacherSpec
    dataset: DatasetSpec
    encode: Encode
    ahead: int
    todo: deque[Tensor]
    waiting: deque[tuple[Tensor, Future[ShardAnswers]]] = field(default_factory=deque)
    asked: list[Tensor] = field(default_factory=list)
    parts: list[ShardAnswers] = field(default_factory=list)

    def ask(self, rows_B: Tensor) -> None:
        """Ask about a batch; if it does not fit, about its halves."""
        if self._fits(rows_B):
            return
        if self.waiting:  # perhaps their logits are what takes the room
            self.todo.appendleft(rows_B)
            while self.waiting:
                self.collect()
        else:
            self._halve(rows_B)

    def collect(self) -> None:
        """Take up the answers of the batch that has waited longest."""
        rows_B, encoded = self.waiting.popleft()
        try:
            self.parts.append(encoded.result())
            self.asked.append(rows_B)
            return
        except TooLarge:
            del encoded  # it holds the error, and that all that was made
        self._halve(rows_B)

    def _fits(self, rows_B: Tensor) -> bool:
        import torch

        first = not self.parts and not self.waiting  # a model that ends in a softmax does so in every batch
        try:
            batch = self.question.of(rows_B)
            logits, features = self.teacher(batch.shown, self.dataset)
        except (TooLarge, torch.OutOfMemoryError):
            return False
        make = _Batch(logits, features, batch, self.spec, self.dataset, first).answers
        self.waiting.append((rows_B, self.encode(make)))
        return True

    def _halve(self, rows_B: Tensor) -> None:
        """Put a batch back in halves, and make none after it any larger. Raises BadTeacher: it is a single row."""
        import torch

        teacher = self.teacher
        if len(rows_B) == 1:
            raise BadTeacher(
                f"a single row is too much for teacher {teacher.name} on {teacher.device}",
                found="no memory for its answer",
                do="ask where there is more memory, or for fewer features",
            )
        if teacher.device.type == "cuda":
            torch.cuda.empty_cache()  # of many small pieces it could make no large one
        teacher.batch_size = min(teacher.batch_size, -(-len(rows_B) // 2))
        self.todo = deque(part for batch_B in (rows_B, *self.todo) for part in batch_B.split(teacher.batch_size))


@contextlib.contextmanager
def _encoding(device: torch.device, *, beside: bool) -> Iterator[Encode]:
    """Yield what makes the answers of batches: at once, or in a thread with a stream of its own."""
    import torch

    if not beside:

        def at_once(make: Callable[[], ShardAnswers]) -> Future[ShardAnswers]:
            made = Future[ShardAnswers]()
            try:
                made.set_result(_fitting(make))
            except Exception as error:
                made.set_exception(error)
            return made

        yield at_once
        return
    stream = _stream("encoding", str(device)) if device.type == "cuda" else None

    def after(make: Callable[[], ShardAnswers], answered: torch.cuda.Event | None) -> ShardAnswers:
        if stream is None or answered is None:
            return _fitting(make)
        with torch.cuda.stream(stream):
            stream.wait_event(answered)
            made = _fitting(make)
            host = ShardAnswers(*({name: _fetched(t) for name, t in tensors.items()} for tensors in made))
            # `make` holds logits and features until then, so that nothing else is given their memory
            stream.synchronize()
        return host

    with ThreadPoolExecutor(1, thread_name_prefix="encode") as thread:
        yield lambda make: thread.submit(
            after, make, None if stream is None else torch.cuda.current_stream(device).record_event()
        )


def _fitting(make: Callable[[], ShardAnswers]) -> ShardAnswers:
    """Return the answers of a batch. Raises TooLarge if there is no memory to encode it."""
    try:
        return make()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    raise TooLarge("the answers do not fit beside the teacher")  # not within: the error holds all that was made


def _fetched(values: Tensor) -> Tensor:
    """Return a tensor of a GPU on the host, once the current stream is there."""
    import torch

    return torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)


def _picked(values: Tensor, rows_B: Tensor) -> Tensor:
    """Return some rows as a tensor of their own, without a wait of the host for a GPU."""
    if values.device.type == "cpu":
        return values[rows_B]
    if (rows_B.diff() == 1).all():
        return values[int(rows_B[0]) : int(rows_B[-1]) + 1].clone()
    return values[_sent(rows_B, str(values.device))]


def _joined(asked: list[Tensor], parts: list[ShardAnswers], spec: TeacherSpec) -> ShardAnswers:
    """Return the answers of all batches in the order of the shard."""
    import torch

    asked_B = torch.cat(asked)
    places_B = None if (asked_B.diff() == 1).all() else asked_B.argsort()

    def joined(dicts: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
        dicts = list(dicts)
        for name in dicts[0]:
            if len(shapes := {tuple(tensors[name].shape[1:]) for tensors in dicts}) > 1:
                raise BadTeacher(f"teacher {spec.name} changes the shape of {name} between batches", found=f"{shapes}")
        whole = {name: torch.cat([tensors[name].cpu() for tensors in dicts]) for name in dicts[0]}
        return whole if places_B is None else {name: values[places_B] for name, values in whole.items()}

    return ShardAnswers(*(joined(part[number] for part in parts) for number in range(len(ShardAnswers._fields))))


class _Batch(NamedTuple):
    """What was asked about a batch, and answered: `logits` (B, *sites, V)."""

    logits: Tensor
    features: dict[str, Tensor]
    question: Question
    spec: TeacherSpec
    dataset: DatasetSpec
    first: bool

    def answers(self) -> ShardAnswers:
        """Return the answers as they are stored, on the device. Raises BadTeacher: they are no answers."""
        logits, spec, task = self.logits, self.spec, task_of(self.dataset)
        check_classes(logits, self.question.labels, spec, self.dataset)
        if self.first:
            refuse_probabilities(logits.flatten(0, -2), spec)
        labels = self.question.labels.to(logits.device)
        encoded = encode_rows(spec.encoding, logits, labels, self.question.keys, spec.num_classes)
        in_range = {
            name: finite_rows(v, bf16=name in spec.encoding.bf16_arrays, but_never=name == LOGITS)
            for name, v in encoded.items()
        }
        classes = logits[..., : spec.num_classes]  # what pads a vocabulary is no class
        finite = {"logits": logits_right(logits, spec.num_classes)}
        for name, values in self.features.items():
            stored = encoded[f"feature/{name}"] = spec.features[name].encode(values)
            finite[f"feature/{name}"] = finite_rows(values)
            in_range[f"feature/{name}"] = finite_rows(stored, bf16=spec.features[name].dtype == "bf16")
        sites = _sites(classes, labels)
        answered = _answered(sites, labels) | {"never": _never(task, classes, labels)}
        return ShardAnswers(task.row_columns(sites, labels), encoded, finite, in_range, answered)


def _answered(sites: dict[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
    """Return sums over the labelled sites of each row, (B,): how many, how many right, nats of cross-entropy."""
    known = labels >= 0
    nats = -sites["label_log_probability"].double().masked_fill(~known, 0.0)
    counts = {"labelled": known, "correct": known & (sites["top"] == labels), "nats": nats}
    return {name: values.reshape(len(labels), -1).sum(1) for name, values in counts.items()}


def _never(task: Task, logits: Tensor, labels: Tensor) -> Tensor:
    """Return how many sites of each row that a student is asked about have a class that can never be, (B,)."""
    from storage.encodings.never import far_below

    asked = (labels >= 0) | task.unlabelled_sites
    return (far_below(*logits.aminmax(dim=-1)) & asked).reshape(len(labels), -1).sum(1)


def _sites(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return top class, its probability, entropy (nats) and log-probability of the label, (B, *sites) each.

    Args:
        logits: (B, *sites, C); −inf where a class can never be.
        labels: (B, *sites).
    """
    import torch

    from storage.targets.soft import NEVER

    log_total = logits.logsumexp(-1)
    top = logits.max(dim=-1)
    log_p = logits - log_total[..., None]
    return {
        "top": top.indices,
        "top_probability": (top.values - log_total).exp(),
        "entropy": -(log_p.exp() * log_p.masked_fill(log_p == -torch.inf, 0.0)).sum(-1),  # 0 · log 0 is 0
        "label_log_probability": log_p.gather(-1, labels.clamp(min=0)[..., None])[..., 0].clamp(min=NEVER),
    }
