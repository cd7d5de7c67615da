from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from storage.cache import Cache
from storage.encodings import SparseEncoding
from storage.errors import CorruptObject
from student_train.feed.batches import Needs
from student_train.feed.feed import Feed
from student_train.feed.residency import FeedPool
from student_train.feed.selection import select_rows
from student_train.run_files.folder import RunFolder
from student_train.run_files.predictions import HeldTable, read_predictions
from student_train.run_files.predictions_file import PREDICTIONS_FILE
from student_train.running.measuring import predictions
from student_train.running.measuring.predictions import Respondent, ask_students, held_table
from student_train.running.train import train_students
from student_train.students import Blueprint, Student, build_student, load_student
from student_train.tasks import language_model
from tests.language.toys import counting_cache, counting_teacher, request, small_gpt
from tests.student_train.toys import KD, Recipe, request_of, student, write_cache

CPU = torch.device("cpu")


def feed_of(cache: Cache, rows: str, teacher: str | None, *, resident: bool = True, **options: Any) -> Feed:
    selection = select_rows(cache.samples(), rows, Needs(), agree_with=teacher, **options)
    pool = FeedPool(cache, CPU, place="device" if resident else "stream", window_shards=2)
    return pool.feed(selection, Needs(labels=bool((selection.labels_N >= 0).all())))


def predict(student: Student, feed: Feed, held: HeldTable, *, batch_size: int) -> HeldTable | None:
    found = predictions.predict([(student, held)], feed, batch_size=batch_size)
    return None if found is None else found[0]


def fresh(cache: Cache, dataset: str, architecture: str = "mlp", **options: Any) -> Student:
    spec = cache.dataset(dataset)
    normalised = {"mean": None, "std": None} if spec.vocabulary else {"mean": (0.5,), "std": (0.5,)}
    shape = {"num_classes": spec.num_classes, "input_shape": spec.input_shape}
    torch.manual_seed(0)
    return build_student(Blueprint(architecture=architecture, options=options, **shape, **normalised)).eval()


@pytest.fixture(scope="module")
def counting(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return counting_cache(tmp_path_factory.mktemp("counting"), counting_teacher(scale=3.0), rows=40)


def test_every_held_row_is_there_once_in_order(toy_cache: Cache) -> None:
    feed = feed_of(toy_cache, "toy/validation", "sage")
    table = held_table(toy_cache, feed.selection, "sage").table
    samples = toy_cache.samples().of("toy").filter(pl.col("split") == "validation")
    assert table["position"].to_list() == list(range(48))
    for column in ("row", "shard", "sample_id", "label"):
        assert table[column].to_list() == samples[column].to_list()


def test_the_teachers_columns_are_those_of_the_caches_table(toy_cache: Cache) -> None:
    feed = feed_of(toy_cache, "toy/validation", "sage")
    table = held_table(toy_cache, feed.selection, "sage").table
    samples = toy_cache.samples().of("toy", ["sage"]).filter(pl.col("split") == "validation")
    for column in ("top", "top_probability", "label_log_probability"):
        assert table[f"teacher_{column}"].to_list() == samples[f"sage_{column}"].cast(pl.Float32).to_list()


def test_a_students_columns_add_up_to_its_figures(toy_cache: Cache, tmp_path: Path) -> None:
    record = train_students(request_of(toy_cache, tmp_path, student(objective=[KD], epochs=1))).records[0]
    feed = feed_of(toy_cache, "toy/validation", "sage")
    found = predict(load_student(tmp_path / "a"), feed, held_table(toy_cache, feed.selection, "sage"), batch_size=20)
    assert found is not None
    table = found.table
    assert (table["top"] == table["label"]).mean() == record.accuracy
    assert (table["top"] == table["teacher_top"]).mean() == record.agreement
    assert -table["label_log_probability"].mean() == pytest.approx(record.cross_entropy, rel=1e-5)
    assert table["top_probability"].is_between(0.25, 1).all()


def test_streamed_and_resident_rows_are_answered_alike(toy_cache: Cache) -> None:
    fresh_one, found = fresh(toy_cache, "toy"), []
    for resident in (True, False):
        feed = feed_of(toy_cache, "toy/validation", None, resident=resident)
        found.append(predict(fresh_one, feed, held_table(toy_cache, feed.selection, None), batch_size=7))
    assert found[0].table.equals(found[1].table)


def test_what_is_written_is_read(toy_cache: Cache, tmp_path: Path) -> None:
    fresh_one, feed = fresh(toy_cache, "toy"), feed_of(toy_cache, "toy/validation", "sage")
    held = held_table(toy_cache, feed.selection, "sage")
    assert ask_students([Respondent(RunFolder(tmp_path, {}), fresh_one, held)], feed, batch_size=20)
    found, expected = read_predictions(tmp_path), predict(fresh_one, feed, held, batch_size=20)
    assert found is not None
    assert expected is not None
    assert found.about == expected.about
    assert found.table.equals(expected.table)


def test_rows_without_a_label_or_a_teacher_have_none(tmp_path: Path) -> None:
    cache = write_cache(tmp_path, Recipe(unlabelled=frozenset(range(0, 240, 2))))
    feed = feed_of(cache, "toy/validation", None)
    found = predict(fresh(cache, "toy"), feed, held_table(cache, feed.selection, None), batch_size=20)
    assert found is not None
    odd = found.table["row"] % 2 == 1
    assert found.table["label_log_probability"].is_not_null().to_list() == odd.to_list()
    assert found.table["teacher_top"].null_count() == 48


def test_a_stopped_pass_leaves_nothing(toy_cache: Cache, tmp_path: Path) -> None:
    fresh_one, feed = fresh(toy_cache, "toy"), feed_of(toy_cache, "toy/validation", "sage")
    held = held_table(toy_cache, feed.selection, "sage")
    assert not ask_students(
        [Respondent(RunFolder(tmp_path, {}), fresh_one, held)], feed, batch_size=20, stop=lambda: True
    )
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_was_never_asked_has_no_predictions(tmp_path: Path) -> None:
    assert read_predictions(tmp_path) is None


def test_a_flipped_bit_is_noticed(toy_cache: Cache, tmp_path: Path) -> None:
    fresh_one, feed = fresh(toy_cache, "toy"), feed_of(toy_cache, "toy/validation", "sage")
    held = held_table(toy_cache, feed.selection, "sage")
    ask_students([Respondent(RunFolder(tmp_path, {}), fresh_one, held)], feed, batch_size=20)
    data = bytearray((tmp_path / PREDICTIONS_FILE).read_bytes())
    data[100] ^= 1
    (tmp_path / PREDICTIONS_FILE).write_bytes(data)
    with pytest.raises(CorruptObject, match="holds no predictions"):
        read_predictions(tmp_path)


@pytest.mark.parametrize("data", [b"", b"PAR1", b"\xff" * 300])
def test_a_file_that_is_no_table_is_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / PREDICTIONS_FILE).write_bytes(data)
    with pytest.raises(CorruptObject) as refusal:
        read_predictions(tmp_path)
    assert refusal.value.do == f"delete {tmp_path} and train this student again"


def test_of_tokens_every_position_is_a_row(counting: Cache) -> None:
    feed = feed_of(counting, "counting/validation", None)
    table = held_table(counting, feed.selection, "right").table
    assert len(table) == 12 * feed.num_rows
    assert table["at"].to_list() == list(range(12)) * feed.num_rows
    known = table.drop_nulls("label")
    assert known["label"].to_list() == (known["token"] + 1).to_list()
    assert table["label"].is_null().to_list() == (table["token"] == 9).to_list()  # after the end of a document


def test_of_tokens_the_teacher_is_decoded_at_every_position(counting: Cache) -> None:
    feed = feed_of(counting, "counting/validation", None)
    table = held_table(counting, feed.selection, "right").table.drop_nulls("label")
    assert table["teacher_top"].to_list() == table["label"].to_list()
    log_p = torch.log_softmax(torch.tensor([3.0] + [0.0] * 9), 0)[0].item()
    assert table["teacher_label_log_probability"].to_numpy() == pytest.approx(log_p, rel=1e-5)


def test_of_tokens_a_students_columns_add_up_to_its_figures(counting: Cache, tmp_path: Path) -> None:
    record = train_students(request(counting, tmp_path, small_gpt(epochs=1))).records[0]
    feed = feed_of(counting, "counting/validation", None)
    held = held_table(counting, feed.selection, "right")
    found = predict(load_student(tmp_path / "gpt"), feed, held, batch_size=3)
    assert found is not None
    known = found.table.drop_nulls("label")
    assert (known["top"] == known["label"]).mean() == record.accuracy
    assert -known["label_log_probability"].mean() == pytest.approx(record.cross_entropy, rel=1e-5)
    assert found.table.filter(pl.col("label").is_null())["top"].null_count() == len(found.table) - len(known)


def test_of_tokens_no_more_than_the_first_blocks_are_kept(counting: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language_model, "MOST_POSITIONS", 40)  # three blocks of 12, of ten
    fresh_one = fresh(counting, "counting", "gpt", depth=1, width=8, heads=2)
    feed = feed_of(counting, "counting/validation", None)
    held = held_table(counting, feed.selection, "right")
    found = predict(fresh_one, feed, held, batch_size=2)
    assert found is not None
    assert found.table["position"].unique().sort().to_list() == [0, 1, 2]
    assert found.num_rows == feed.num_rows > 3


def test_of_tokens_a_teacher_of_draws_alone_has_no_top_class(tmp_path: Path) -> None:
    encoding = SparseEncoding(n=4)
    teacher = counting_teacher(extra='encoding = { kind = "sparse", n = 4 }')
    cache = counting_cache(tmp_path, teacher)
    assert cache.teacher("counting", "right").encoding == encoding
    feed = feed_of(cache, "counting/validation", None)
    table = held_table(cache, feed.selection, "right").table.drop_nulls("label")
    assert table["teacher_top"].null_count() == len(table)
    assert table["teacher_label_log_probability"].null_count() == 0  # of the statistics


def test_of_tokens_a_shard_that_the_teacher_lacks_is_left_empty(tmp_path: Path) -> None:
    cache = counting_cache(tmp_path, rows=40)
    first = feed_of(cache, "counting/validation", None).selection.shards_S[0]
    cache.objects.delete(f"counting/right/plain/{first:05d}.parquet")
    feed = feed_of(cache, "counting/validation", None)
    table = held_table(cache, feed.selection, "right").table.drop_nulls("label")
    assert table.filter(pl.col("teacher_top").is_null())["shard"].unique().to_list() == [first]
