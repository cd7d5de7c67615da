"""The batches of a shard: asked about while the last is encoded, and in halves where they do not fit into memory."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from storage.cache import Cache
from storage.encodings import AnyEncoding, DenseEncoding, FeatureEncoding
from storage.errors import BadTeacher
from storage.format.shards import ShardKey
from storage.format.specs import DatasetSpec, TeacherSpec
from storage.views import PLAIN
from teacher_cache.teachers.model import Teacher
from teacher_cache.teachers.options import TeacherOptions
from teacher_cache.work import answering
from teacher_cache.work.answering import answer_rows
from teacher_cache.work.batch import Question, ShardAnswers
from tests.teacher_cache.toys import Silent, build, contents, teacher_section, write_digits, write_job, write_teacher

ROWS = 23


@pytest.fixture
def dataset() -> DatasetSpec:
    classes = [str(i) for i in range(10)]
    return DatasetSpec(name="d", source={"kind": "digits"}, classes=classes, input_shape=(1, 8, 8), input_dtype="uint8")


@pytest.fixture
def question() -> Question:
    torch.manual_seed(0)
    shown = torch.randint(0, 255, (ROWS, 1, 8, 8), dtype=torch.uint8)
    return Question(shown, torch.arange(ROWS) % 10, torch.arange(ROWS))


@pytest.mark.parametrize(("dtype", "copied"), [(torch.uint8, False), (torch.float32, True)], ids=["pixels", "floats"])
def test_of_neighbouring_pixels_a_batch_is_no_copy(dtype: torch.dtype, copied: bool) -> None:
    """A model is given floats of pixels; of floats it is given these, and may write to them."""
    shown = torch.arange(24).view(6, 4).to(dtype)
    question = Question(shown, torch.arange(6), torch.arange(6))
    batch = question.of(torch.tensor([2, 3, 4]))
    assert torch.equal(batch.shown, shown[2:5])
    assert (batch.shown.data_ptr() == shown[2:].data_ptr()) != copied
    assert torch.equal(question.of(torch.tensor([4, 0])).shown, shown[[4, 0]])  # by length, others lie between


class Asking:
    """Asks a toy about the question."""

    def __init__(self, folder: Path, question: Question, dataset: DatasetSpec):
        self.folder, self.question, self.dataset = folder, question, dataset

    def __call__(
        self,
        *,
        beside: bool,
        batch_size: int = 4,
        encoding: AnyEncoding | None = None,
        features: dict[str, FeatureEncoding] | None = None,
        **faulty: Any,
    ) -> tuple[Teacher, ShardAnswers]:
        told = {"name": "toy", "factory": "toy.py:build", "batch_size": batch_size, "features": features or {}}
        spec = TeacherSpec(
            name="toy", model={}, num_classes=10, encoding=encoding or DenseEncoding(), features=features or {}
        )
        model = write_teacher(self.folder, **faulty)
        teacher = Teacher(TeacherOptions.model_validate(told), model, torch.device("cpu"))
        return teacher, answer_rows(teacher, self.question, spec, self.dataset, beside=beside)


@pytest.fixture
def asking(tmp_path: Path, question: Question, dataset: DatasetSpec) -> Asking:
    return Asking(tmp_path, question, dataset)


def assert_same(one: ShardAnswers, other: ShardAnswers) -> None:
    for field, ours, theirs in zip(one._fields, one, other, strict=True):
        assert list(ours) == list(theirs)
        for name in ours:
            assert torch.equal(ours[name], theirs[name]), (field, name)


def test_a_thread_that_encodes_beside_the_teacher_gives_the_same_bytes(asking: Asking) -> None:
    features = {"conv": FeatureEncoding(layer="conv"), "act": FeatureEncoding(layer="act", pool="mean")}
    found = [asking(beside=beside, features=features)[1] for beside in (False, True)]
    assert len(found[0].answered["labelled"]) == ROWS
    assert_same(*found)


def test_the_teacher_is_at_the_next_batch_while_the_last_is_encoded(
    asking: Asking, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, forward, encode = threading.Semaphore(0), Teacher.hear, DenseEncoding.encode_and_tell
    patience: list[bool] = []

    def asked(self: Teacher, *arguments: Any) -> Any:
        begun.release()
        return forward(self, *arguments)

    def encoded(*arguments: Any, **named: Any) -> Any:
        if not patience:  # of the first batch
            # it and the next are asked about before this ends
            patience.extend(begun.acquire(timeout=30) for _ in range(2))
        return encode(*arguments, **named)

    monkeypatch.setattr(Teacher, "hear", asked)
    monkeypatch.setattr(DenseEncoding, "encode_and_tell", encoded)
    asking(beside=True)
    assert patience == [True, True]


@pytest.mark.parametrize("beside", [False, True])
def test_a_batch_that_does_not_fit_is_asked_about_in_halves(asking: Asking, beside: bool) -> None:
    teacher, found = asking(beside=beside, batch_size=20, fault="memory", limit=5)
    assert teacher.batch_size == 5
    assert_same(found, asking(beside=beside, batch_size=5)[1])


@pytest.mark.parametrize("beside", [False, True])
def test_a_batch_whose_encoding_does_not_fit_is_asked_about_in_halves(
    asking: Asking, beside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, small = DenseEncoding.encode_and_tell, asking(beside=beside, batch_size=6)[1]

    def tight(encoding: DenseEncoding, logits: torch.Tensor, **named: Any) -> Any:
        if len(logits) > 6:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return encode(encoding, logits, **named)

    monkeypatch.setattr(DenseEncoding, "encode_and_tell", tight)
    teacher, found = asking(beside=beside, batch_size=12)
    assert teacher.batch_size == 6
    assert found.encoded.keys() == small.encoded.keys()
    for name, values in found.encoded.items():  # the last batch is of another size than there
        torch.testing.assert_close(values, small.encoded[name])


def test_a_single_row_that_does_not_fit_is_a_bad_teacher(asking: Asking) -> None:
    with pytest.raises(BadTeacher, match="a single row is too much for teacher toy on cpu"):
        asking(beside=False, fault="memory", limit=0)


def test_a_build_tells_what_did_not_fit_and_its_commits_say_what_did(tmp_path: Path) -> None:
    write_teacher(tmp_path)
    rows, watcher = write_digits(tmp_path, 48), Silent()
    sections = [rows, teacher_section(fault="memory", limit=8, extra="batch_size = 16")]
    assert build(write_job(tmp_path, *sections), watcher=watcher).exit_code == 0
    assert [note for note in watcher.notes if "at a time" in note] == [
        "note: teacher toy: 16 rows at a time do not fit into memory; asked about 8 at a time "
        "(batch_size = 8 in [[teacher]] saves the tries)"
    ]
    cache = Cache.open(str(tmp_path / "cache"))
    assert {cache.commit(ShardKey("digits", "toy", PLAIN, n)).about["batch_size"] for n in range(3)} == {8}
    sections[1] = teacher_section(fault="memory", limit=8, extra="batch_size = 8")
    build(write_job(tmp_path, *sections, cache="small"))
    assert contents(tmp_path / "cache") == contents(tmp_path / "small")


def test_few_numbers_are_encoded_together(asking: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six batches of up to 4 × 10 logits: in one call, eight rows in each, or one by one, to the same answers."""
    calls: list[int] = []
    encode = DenseEncoding.encode_and_tell

    def counted(self: DenseEncoding, logits_PV: torch.Tensor, **told: Any) -> Any:
        calls.append(len(logits_PV))
        return encode(self, logits_PV, **told)

    monkeypatch.setattr(DenseEncoding, "encode_and_tell", counted)
    features = {"act": FeatureEncoding(layer="act", pool="mean")}
    cases: list[tuple[int, dict[str, FeatureEncoding], list[int]]] = [
        (2**16, features, [ROWS]),
        (0, features, [4] * 5 + [3]),
        (80, {}, [8, 8, 7]),
        (2**16, {}, [ROWS]),
    ]
    found = []
    for together, tapped, sizes in cases:
        monkeypatch.setattr(answering, "TOGETHER", together)
        found.append(asking(beside=False, features=tapped)[1])
        assert calls == sizes
        calls.clear()
    assert_same(*found[:2])
    assert_same(*found[2:])
