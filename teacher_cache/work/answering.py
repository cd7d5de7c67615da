"""A teacher's answers to the rows of a shard, batch by batch, so that no whole logits or features are ever held.

Its body runs once over a batch. Head, encoding, statistics and checks are of the sites that are answered alone
(`Task.answered_sites`: of tokens those with a label), a block of them at a time: (B, L, V) exists of no batch, unless a
model is in one part (`teachers.parts`).

On a CPU, batches of few numbers, such as ten logits a row, are encoded together: most of their time is the calls.

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
from typing import TYPE_CHECKING

from storage.errors import BadTeacher, is_out_of_memory
from storage.format.specs import DatasetSpec, TeacherSpec
from storage.inputs import inputs_of
from storage.tasks import task_of
from teacher_cache.teachers.model import TooLarge
from teacher_cache.work.batch import Batch, Question, ShardAnswers, sent_to
from teacher_cache.work.telling import rows_done

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from teacher_cache.teachers.model import Teacher

AHEAD = 2  # batches that are answered and not encoded yet, where a thread encodes: their logits are held meanwhile
TOGETHER = 2**16  # numbers that are encoded at once where batches have fewer: a processor's caches hold them

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
            sent = question._replace(shown=sent_to(question.shown, device))
            copied = copies.record_event()
        copied.synchronize()  # here, not where the GPU is fed; and from here on any stream may read them
        return sent
    except torch.OutOfMemoryError:
        return question


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
        ahead, together = (AHEAD, 0) if beside else (1, TOGETHER)
        shard = _Shard(teacher, question, spec, dataset, encode, ahead, together, deque(batches))
        while shard.todo or shard.waiting:
            if shard.todo and len(shard.waiting) < shard.ahead:
                shard.ask(shard.todo.popleft())
            else:
                shard.collect()
            rows_done(len(question.shown) - sum(map(len, shard.todo)))
    return _joined(shard, spec)


@dataclass
class _Shard:
    """The batches of a shard: those to be asked about, heard, and being encoded, and what came of the others."""

    teacher: Teacher
    question: Question
    spec: TeacherSpec
    dataset: DatasetSpec
    encode: Encode
    ahead: int
    together: int
    todo: deque[Tensor]
    heard: list[tuple[Tensor, Batch]] = field(default_factory=list)
    waiting: deque[tuple[list[Tensor], Future[ShardAnswers]]] = field(default_factory=deque)
    asked: list[Tensor] = field(default_factory=list)
    parts: list[ShardAnswers] = field(default_factory=list)

    def ask(self, rows_B: Tensor) -> None:
        """Ask about a batch; if it does not fit, about its halves."""
        if (batch := self._hear(rows_B)) is not None:
            if self.heard and not batch.joins(self.heard[0][1]):
                self._encode()
            self.heard.append((rows_B, batch))
            if not self.todo or sum(batch.size for _, batch in self.heard) >= self.together:
                self._encode()
            return
        if self.waiting:  # perhaps their logits are what takes the room
            self.todo.appendleft(rows_B)
            while self.waiting:
                self.collect()
        else:
            self._halve(rows_B)

    def _hear(self, rows_B: Tensor) -> Batch | None:
        """Return what the teacher makes of a batch; None: it does not fit."""
        import torch

        first = not self.parts and not self.waiting and not self.heard  # what ends in a softmax does so in every batch
        try:
            asked = self.question.of(rows_B)
            answered = task_of(self.dataset).answered_sites(asked.labels)
            if not answered.any():
                answered.view(-1)[0] = True  # of nothing, nobody could tell the shapes; it is left out in the end
            heard = self.teacher.hear(asked.shown, answered, self.dataset)
        except (TooLarge, torch.OutOfMemoryError):
            return None
        return Batch(self.teacher, heard, answered, asked.labels, asked.keys, self.spec, self.dataset, first)

    def _encode(self) -> None:
        """Begin to encode what was heard."""
        rows, batches = zip(*self.heard, strict=True)
        self.heard = []
        self.waiting.append((list(rows), self.encode(Batch.joined(batches).answers)))

    def collect(self) -> None:
        """Take up the answers that have waited longest; if there was no room to encode them, ask again for fewer."""
        rows, encoded = self.waiting.popleft()
        try:
            self.parts.append(encoded.result())
            self.asked += rows
            return
        except TooLarge:
            del encoded  # it holds the error, and that all that was made
        if len(rows) == 1:
            self._halve(rows[0])
        else:
            self.together = 0
            self.todo.extendleft(reversed(rows))

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
