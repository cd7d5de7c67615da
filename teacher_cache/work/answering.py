"""A teacher's answers to the rows of a shard, batch by batch, so that no whole logits or features are ever held.

Its body runs once over a batch. Head, encoding, statistics and checks are of the sites that are answered alone
(`Task.answered_sites`: of tokens those with a label), a block of them at a time: (B, L, V) exists of no batch, unless a
model is in one part (`teachers.parts`).

A GPU is never kept waiting: rows lie on it before it is their turn, and while it is at one batch a thread encodes the
one before and fetches what came of that. A batch that does not fit into memory is asked about in halves.

Shapes: B readable rows of a shard or of a batch, `sites` the axes of a row's sites (storage.tasks), P sites of all
these rows that are answered, C classes, V ≥ C logits of a padded vocabulary.
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
from storage.tasks import task_of
from teacher_cache.teachers.model import TooLarge
from teacher_cache.work.checks import check_classes, finite_rows, refuse_probabilities
from teacher_cache.work.telling import rows_done

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from teacher_cache.teachers.model import Heard, Teacher

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
    """What a teacher said of a shard, all on the host: of its B readable rows, and of their P answered sites.

    What is of sites is flat: first those of row 0, in order of its sites, then those of row 1, …; which they are, and
    how many a row has, `Task.answered_sites` says of the shard's labels. A row may have none. How they are laid down
    on disk, is the matter of who asked.

    Attributes:
        columns: of the commit's table, (B,) each.
        answered: fields of `storage.tasks.base.Answered`, (B,) each: sums over a row's labelled sites; and `never`, how
            many of its answered sites have a class that can never be.
        encoded: name of an array in the cache → stored form, (P, …).
        finite: name → (P,) bool, of the teacher's own values.
        in_range: name → (P,) bool, of the stored form.
    """

    columns: dict[str, Tensor]
    answered: dict[str, Tensor]
    encoded: dict[str, Tensor]
    finite: dict[str, Tensor]
    in_range: dict[str, Tensor]

    @property
    def of_sites(self) -> tuple[dict[str, Tensor], ...]:
        return self.encoded, self.finite, self.in_range

    @property
    def of_rows(self) -> tuple[dict[str, Tensor], ...]:
        return self.columns, self.answered


Encode = Callable[[Callable[[], ShardAnswers]], Future[ShardAnswers]]
"""What makes the answers of a batch, given how; at once, or later."""


def send_ahead(question: Question, dataset: DatasetSpec, device: str) -> Question:
    """Return a question whose rows lie on a GPU; for a CPU, or where they do not fit or may not, as it is.

    Labels and keys stay on the host, which must know which sites are answered. To be called before the teacher is free:
    a stream of its own copies while the GPU is at another shard.
    """
    import torch

    if device == "cpu" or not inputs_of(dataset).sent_whole:
        return question
    copies = _stream("copies", device)
    try:
        with torch.cuda.stream(copies):
            sent = question._replace(shown=_sent(question.shown, device))
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
        question: about the rows; labels and keys are on the host.
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
    return _joined(shard, spec)


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
            answered = task_of(self.dataset).answered_sites(batch.labels)
            if not answered.any():
                answered.view(-1)[0] = True  # of nothing, nobody could tell the shapes; it is left out in the end
            heard = self.teacher.hear(batch.shown, answered, self.dataset)
        except (TooLarge, torch.OutOfMemoryError):
            return False
        make = _Batch(self.teacher, heard, answered, batch, self.spec, self.dataset, first).answers
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


def _joined(shard: _Shard, spec: TeacherSpec) -> ShardAnswers:
    """Return the answers of all batches in the order of the shard."""
    import torch

    asked_B = torch.cat(shard.asked)
    in_order = bool((asked_B.diff() == 1).all())
    counts_B = task_of(shard.dataset).answered_sites(shard.question.labels).reshape(len(asked_B), -1).sum(1)
    rows_P = asked_B.repeat_interleave(counts_B[asked_B])  # of each site, in the order in which they were asked about

    def joined(dicts: Iterable[dict[str, Tensor]], order_B: Tensor) -> dict[str, Tensor]:
        dicts = list(dicts)
        for name in dicts[0]:
            if len(shapes := {tuple(tensors[name].shape[1:]) for tensors in dicts}) > 1:
                raise BadTeacher(f"teacher {spec.name} changes the shape of {name} between batches", found=f"{shapes}")
        whole = {name: torch.cat([tensors[name].cpu() for tensors in dicts]) for name in dicts[0]}
        if in_order:
            return whole
        places = order_B.argsort(stable=True)
        return {name: values[places] for name, values in whole.items()}

    parts = shard.parts
    return ShardAnswers(
        *(joined(each, asked_B) for each in zip(*(part.of_rows for part in parts), strict=True)),
        *(joined(each, rows_P) for each in zip(*(part.of_sites for part in parts), strict=True)),
    )


class _Batch(NamedTuple):
    """What was asked about a batch, and heard. `answered`: bool (B, *sites), of which the teacher was heard."""

    teacher: Teacher
    heard: Heard
    answered: Tensor
    question: Question
    spec: TeacherSpec
    dataset: DatasetSpec
    first: bool

    def answers(self) -> ShardAnswers:
        """Return the answers as they are stored, on the device. Raises BadTeacher: they are no answers."""
        import torch

        spec, task = self.spec, task_of(self.dataset)
        labels_P, keys_P = self.question.labels[self.answered], self.question.keys[self.answered]
        device = self.heard.hidden.device
        blocks = [
            self._block(at, _on(labels_P[at], device), _on(keys_P[at], device))
            for at in self.teacher.blocks(len(labels_P), spec.num_classes)
        ]
        encoded, said, finite, in_range = (
            {name: torch.cat([block[number][name] for block in blocks]) for name in blocks[0][number]}
            for number in range(4)
        )
        for name, values in self.heard.features.items():
            path = f"feature/{name}"
            encoded[path] = spec.features[name].encode(values)
            finite[path] = finite_rows(values)
            in_range[path] = finite_rows(encoded[path], bf16=spec.features[name].dtype == "bf16")
        labels = _on(self.question.labels, device)
        sites = {name: self._spread(values) for name, values in said.items()}
        never = sites.pop("never").reshape(len(labels), -1).sum(1)
        answered = _answered(sites, labels) | {"never": never}
        if not task.answered_sites(self.question.labels).any():  # one was asked about, for its shapes
            answered["never"] = torch.zeros_like(never)
            encoded, finite, in_range = (
                {name: values[:0] for name, values in each.items()} for each in (encoded, finite, in_range)
            )
        return ShardAnswers(task.row_columns(sites, labels), answered, encoded, finite, in_range)

    def _block(self, at: slice, labels_P: Tensor, keys_P: Tensor) -> tuple[dict[str, Tensor], ...]:
        """Return of some sites what is stored, what the table and the checks need of them, and both checks."""
        spec = self.spec
        logits_PV = self.teacher.scores(self.heard.hidden[at], self.dataset)
        check_classes(logits_PV, labels_P, spec, self.dataset)
        if self.first and at.start == 0:
            refuse_probabilities(logits_PV, spec)
        encoded, told = spec.encoding.encode_and_tell(
            logits_PV, num_classes=spec.num_classes, labels_B=labels_P, keys_B=keys_P
        )
        in_range = {
            name: finite_rows(v, bf16=name in spec.encoding.bf16_arrays, but_never=name == LOGITS)
            for name, v in encoded.items()
        }
        said = told._asdict()
        return encoded, said, {"logits": said.pop("right")}, in_range

    def _spread(self, values_P: Tensor) -> Tensor:
        """Return what was said of answered sites at their places among all of the batch, (B, *sites), 0 elsewhere."""
        if self.answered.all():
            return values_P.view(self.answered.shape)
        places_P = _on(self.answered.view(-1).nonzero()[:, 0], values_P.device)
        return values_P.new_zeros(self.answered.numel()).index_copy_(0, places_P, values_P).view(self.answered.shape)


def _on(values: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the host on a device, without a wait for it."""
    return values if device.type == "cpu" else _sent(values, str(device))


def _answered(sites: dict[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
    """Return sums over the labelled sites of each row, (B,): how many, how many right, nats of cross-entropy."""
    known = labels >= 0
    nats = -sites["label_log_probability"].double().masked_fill(~known, 0.0)
    counts = {"labelled": known, "correct": known & (sites["top"] == labels), "nats": nats}
    return {name: values.reshape(len(labels), -1).sum(1) for name, values in counts.items()}
