"""Of tokens a teacher's body runs once, and its head, encoding and checks only where a label is, a block at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from storage.encodings import AnyEncoding, DenseEncoding, FeatureEncoding, SparseEncoding
from storage.errors import BadTeacher, RowsMissing
from storage.format.shards import ShardKey
from storage.format.specs import DatasetSpec, TeacherSpec
from storage.tasks import task_of
from storage.views import PLAIN
from teacher_cache.teachers import model as models
from teacher_cache.teachers.model import Teacher
from teacher_cache.teachers.options import TeacherOptions
from teacher_cache.teachers.parts import Rewriting
from teacher_cache.work.answering import answer_rows
from teacher_cache.work.batch import Question, ShardAnswers
from teacher_cache.work.checks import refuse_shard
from teacher_cache.work.pieces import AskWork

ROWS, LENGTH, IDS, WIDTH = 9, 12, 40, 8
DATASET = DatasetSpec(name="d", source={}, classes=[], input_shape=(LENGTH,), input_dtype="int32", vocabulary=IDS)


class TwoParts(nn.Module):
    """Sums of what comes before, and a head; a factor behind it where that is asked for."""

    def __init__(self, factor: float = 1.0, bad: tuple[int, int] | None = None):
        super().__init__()
        torch.manual_seed(0)
        self.body = Body(bad)
        self.head = nn.Linear(WIDTH, IDS)
        self.factor = factor

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.body(tokens)) * self.factor


class Body(nn.Module):
    def __init__(self, bad: tuple[int, int] | None):
        super().__init__()
        self.embed, self.mix, self.bad = nn.Embedding(IDS, WIDTH), nn.Linear(WIDTH, WIDTH), bad

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.mix(self.embed(tokens)).cumsum(1)
        if self.bad is not None:
            hidden[tokens[:, 0] == self.bad[0], self.bad[1]] = torch.nan
        return hidden


class Named(nn.Module):
    """A model that says itself which its head is, as those of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        parts = TwoParts()
        self.model, self.out, self.other = parts.body, parts.head, nn.Identity()

    def get_output_embeddings(self) -> nn.Module:
        return self.out

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.model(tokens))


def question(labelled: float = 0.3) -> Question:
    draw = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, IDS, (ROWS, LENGTH), generator=draw, dtype=torch.int32)
    tokens[:, 0] = torch.arange(ROWS)  # so that a model knows which row it is
    labels = torch.randint(0, IDS, (ROWS, LENGTH), generator=draw)
    labels[torch.rand(ROWS, LENGTH, generator=draw) >= labelled] = -1
    labels[4] = -1  # a row without any
    return Question(tokens, labels, torch.arange(ROWS * LENGTH).view(ROWS, LENGTH))


def ask(
    model: nn.Module,
    asked: Question,
    encoding: AnyEncoding | None = None,
    features: dict[str, FeatureEncoding] | None = None,
    *,
    batch_size: int = 4,
    beside: bool = False,
) -> ShardAnswers:
    told = {"name": "t", "factory": "m.py:f", "batch_size": batch_size, "features": features or {}}
    teacher = Teacher(TeacherOptions.model_validate(told), model, torch.device("cpu"))
    spec = TeacherSpec(
        name="t", model={}, num_classes=IDS, encoding=encoding or DenseEncoding(), features=features or {}
    )
    return answer_rows(teacher, asked, spec, DATASET, beside=beside)


def heads(model: nn.Module, head: nn.Module) -> list[int]:
    """Return a list that grows by the number of sites of each call of a head."""
    calls: list[int] = []
    head.register_forward_hook(lambda _, inputs, __: calls.append(inputs[0].numel() // WIDTH))
    return calls


@pytest.mark.parametrize("make", [TwoParts, lambda: TwoParts(3.0), Named], ids=["parts", "scaled", "named"])
def test_what_is_stored_is_what_the_model_says_at_labelled_positions(make: Callable[[], Any]) -> None:
    asked, model = question(), make()
    found = ask(model, asked, features={"mix": FeatureEncoding(layer=next(n for n in names(model)), dtype="fp32")})
    with torch.inference_mode():
        whole = model(asked.shown.long())
    known = asked.labels >= 0
    assert found.encoded["logits"].shape == (int(known.sum()), IDS)
    torch.testing.assert_close(found.encoded["logits"], whole[known])
    assert found.encoded["feature/mix"].shape == (int(known.sum()), WIDTH)
    nats = nn.functional.cross_entropy(whole.transpose(1, 2), asked.labels, ignore_index=-1, reduction="none").sum(1)
    torch.testing.assert_close(found.answered["nats"], nats.double(), rtol=1e-5, atol=1e-5)
    assert found.answered["labelled"].tolist() == known.sum(1).tolist()
    assert found.columns["entropy"].isnan().tolist() == (known.sum(1) == 0).tolist()


def names(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_modules() if name.endswith("mix")]


@pytest.mark.parametrize(("make", "head"), [(TwoParts, "head"), (Named, "out")])
def test_a_head_is_asked_only_where_a_label_is_and_a_block_at_a_time(
    make: Callable[[], Any], head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(models.PART_BYTES, "cpu", 4 * IDS * 5)  # five sites
    monkeypatch.setattr(models, "PART_SITES", 1)
    asked, teacher = question(), make()
    calls = heads(teacher, getattr(teacher, head))
    told = TeacherOptions.model_validate({"name": "t", "factory": "m.py:f", "batch_size": 4})
    asking = Teacher(told, teacher, torch.device("cpu"))
    spec = TeacherSpec(name="t", model={}, num_classes=IDS, encoding=SparseEncoding(k=4), features={})
    first = answer_rows(asking, asked, spec, DATASET, beside=False)
    calls.clear()  # and once more, where nothing is tried any longer
    again = answer_rows(asking, asked, spec, DATASET, beside=False)
    known = asked.labels >= 0
    assert sum(calls) == int(known.sum())
    assert max(calls) == 5
    for name, values in first.encoded.items():
        assert torch.equal(values, again.encoded[name])


@pytest.mark.parametrize(
    "encoding",
    [DenseEncoding(dtype="fp32"), DenseEncoding(dtype="fp16"), SparseEncoding(k=4, n=3)],
    ids=["fp32", "fp16", "sparse"],
)
@pytest.mark.parametrize("beside", [False, True])
def test_a_block_that_is_written_over_the_one_before_leaves_its_bytes(
    encoding: AnyEncoding, beside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(models.PART_BYTES, "cpu", 4 * IDS * 5)  # five sites
    monkeypatch.setattr(models, "PART_SITES", 1)
    written: list[int] = []
    plain = Rewriting.__call__

    def noted(self: Rewriting, hidden_ND: Tensor) -> Tensor:
        written.append(len(hidden_ND))
        return plain(self, hidden_ND)

    monkeypatch.setattr(Rewriting, "__call__", noted)
    over = ask(TwoParts(), question(1.0), encoding, beside=beside)
    assert written.count(5) > ROWS
    heads(model := TwoParts(), model.head)  # of a head with a hook, each block has memory of its own
    written.clear()
    apart = ask(model, question(1.0), encoding, beside=beside)
    assert 5 not in written
    for name, values in over.encoded.items():
        assert torch.equal(values, apart.encoded[name])


@pytest.mark.parametrize("encoding", [DenseEncoding(dtype="int8"), SparseEncoding(k=4, n=3)], ids=["dense", "sparse"])
@pytest.mark.parametrize("beside", [False, True])
def test_rows_without_any_label_have_no_answer_and_the_shapes_of_others(encoding: AnyEncoding, beside: bool) -> None:
    asked = question()
    none = asked._replace(labels=torch.full_like(asked.labels, -1))
    found, some = (ask(TwoParts(), each, encoding, beside=beside) for each in (none, asked))
    assert {name: (0, *values.shape[1:]) for name, values in some.encoded.items()} == {
        name: tuple(values.shape) for name, values in found.encoded.items()
    }
    assert {name: values.dtype for name, values in some.encoded.items()} == {
        name: values.dtype for name, values in found.encoded.items()
    }
    assert found.answered["labelled"].tolist() == [0] * ROWS
    assert found.answered["never"].tolist() == [0] * ROWS


def test_answers_lie_in_order_of_rows_however_they_are_batched() -> None:
    asked = question()
    found = [ask(TwoParts(), asked, batch_size=size) for size in (1, 4, ROWS)]
    for other in found[1:]:
        torch.testing.assert_close(found[0].encoded["logits"], other.encoded["logits"])


def test_a_bad_position_is_told_by_row_and_position() -> None:
    asked = question(labelled=1.0)
    found = ask(TwoParts(bad=(2, 7)), asked)
    answered = task_of(DATASET).answered_sites(asked.labels).numpy()
    work = AskWork("", ShardKey("d", "t", PLAIN, 1), (100, 100 + ROWS), "", "", "", "cpu", 1)
    with pytest.raises(RowsMissing) as caught:
        refuse_shard(found.finite, found.in_range, work, answered)
    assert caught.value.found == f"1 of {ROWS - 1} rows: 102 at position 7"


def test_of_many_bad_positions_of_a_row_the_first_is_told_and_their_number() -> None:
    asked = question(labelled=1.0)
    found = ask(TwoParts(bad=(2, 7)), asked)
    answered = task_of(DATASET).answered_sites(asked.labels).numpy()
    finite_P = found.finite["logits"].clone()
    rows_P = torch.from_numpy(np.argwhere(answered)[:, 0])
    finite_P[rows_P == 3] = False
    work = AskWork("", ShardKey("d", "t", PLAIN, 1), (100, 100 + ROWS), "", "", "", "cpu", 1)
    with pytest.raises(RowsMissing) as caught:
        refuse_shard({"logits": finite_P}, {}, work, answered)
    more = int((rows_P == 3).sum()) - 1
    first = int(np.argwhere(answered[3])[0, 0])
    assert caught.value.found == f"2 of {ROWS - 1} rows: 102 at position 7, 103 at position {first} and {more} more"


def test_a_position_without_a_label_may_be_anything() -> None:
    asked = question(labelled=1.0)
    asked.labels[2, 7] = -1
    assert ask(TwoParts(bad=(2, 7)), asked).finite["logits"].all()


def test_a_feature_that_is_no_vector_of_each_token_is_refused() -> None:
    class Pooled(TwoParts):
        def __init__(self) -> None:
            super().__init__()
            self.pool = nn.Identity()

        def forward(self, tokens: Tensor) -> Tensor:
            self.pool(self.body.embed(tokens).mean(1))
            return super().forward(tokens)

    with pytest.raises(BadTeacher, match="not one tensor with a vector for each token"):
        ask(Pooled(), question(), features={"f": FeatureEncoding(layer="pool")})


def test_rows_of_like_length_run_together_without_padding_and_a_shards_bytes_repeat() -> None:
    dataset = DATASET.model_copy(update={"uses": ("own_length",)})
    lengths = [3, 12, 5, 1, 9, 7, 2, 12, 4]
    asked = question(labelled=0.8)
    behind = torch.arange(LENGTH) >= torch.tensor(lengths)[:, None]
    asked = asked._replace(shown=asked.shown.masked_fill(behind, -1), labels=asked.labels.masked_fill(behind, -1))
    widths: list[tuple[int, int]] = []

    def said(batch_size: int) -> Tensor:
        model = TwoParts()
        told = TeacherOptions.model_validate({"name": "t", "factory": "m.py:f", "batch_size": batch_size})
        teacher = Teacher(told, model, torch.device("cpu"))
        spec = TeacherSpec(name="t", model={}, num_classes=IDS, encoding=DenseEncoding(), features={})
        answer_rows(teacher, asked, spec, dataset, beside=False)  # tries what it is
        model.body.register_forward_hook(lambda _, inputs, __: widths.append(tuple(inputs[0].shape)))
        return answer_rows(teacher, asked, spec, dataset, beside=False).encoded["logits"]

    found = [said(3), said(3), said(2)]
    assert widths[:3] == [(3, 12), (3, 7), (3, 3)]  # the longest first, each batch as long as its longest
    assert torch.equal(found[0], found[1])
    torch.testing.assert_close(found[2], found[0], rtol=1e-5, atol=1e-5)
    with torch.inference_mode():
        whole = TwoParts()(asked.shown.clamp(min=0).long())
    torch.testing.assert_close(found[0], whole[asked.labels >= 0])
