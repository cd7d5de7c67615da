"""Rows of a language model at their own length: what is stored, what is fed, and that padding changes no figure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from storage.cache import Cache
from storage.cache.verify import verify
from storage.errors import CorruptObject, LabelOutOfRange
from storage.format.committing import read_stored
from storage.format.shards import ShardKey
from storage.inputs import inputs_of
from storage.inputs.ragged import Ragged
from student_train.feed.batches import Needs
from student_train.feed.residency import PLACE_BYTES, FeedPool, Place, projected_bytes
from student_train.feed.selection import Selection, select_rows
from student_train.run_files.predictions import read_predictions
from student_train.running.train import train_students
from tests.language.toys import LINES, lines_cache, request, small_gpt, write_lines
from tests.teacher_cache.toys import build, write_job

CPU = torch.device("cpu")
ON_LABELS = {"objective": [{"loss": "labels"}]}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return lines_cache(tmp_path_factory.mktemp("lines"))


@pytest.fixture
def selection(cache: Cache) -> Selection:
    return select_rows(cache.samples(), "counting/train", Needs(labels=True))


def line(i: int) -> tuple[list[int], list[int]]:
    """Return ids and labels of a line."""
    length = 2 + 7 * i % 11
    ids = [(i + at) % 10 for at in range(length + 1)]
    return ids[:-1], [-1 if at < length // 3 else ids[at + 1] for at in range(length)]


def stored(cache: Cache, name: str) -> list[list[int]]:
    keys = [ShardKey("counting", None, "plain", shard) for shard in sorted(cache.committed("counting"))]
    arrays = [read_stored(cache.objects, cache.commit(key), [name])[name] for key in keys]
    assert all(isinstance(array_S, Ragged) for array_S in arrays)
    return [row.tolist() for array_S in arrays for row in array_S]


def test_ids_and_labels_are_stored_at_their_own_length_without_padding(cache: Cache) -> None:
    spec = cache.dataset("counting")
    assert (spec.input_shape, spec.input_dtype, spec.uses, spec.task) == ((12,), "int32", ("own_length",), None)
    assert inputs_of(spec).name == "sequences"
    assert (stored(cache, "inputs"), stored(cache, "labels")) == tuple(
        map(list, zip(*map(line, range(40)), strict=True))
    )


def test_the_sample_table_says_how_long_each_row_is_and_that_nothing_was_cut(cache: Cache) -> None:
    samples = cache.samples().of("counting")
    assert samples["length"].to_list() == [len(line(i)[0]) for i in range(40)]
    assert samples["cut"].to_list() == [0] * 40


def test_such_a_cache_verifies_and_a_second_build_has_nothing_to_do(tmp_path: Path) -> None:
    assert not verify(lines_cache(tmp_path)).bad
    report = build(tmp_path / "job.toml")
    assert (report.built, report.present) == (0, 6)


def epoch(cache: Cache, selection: Selection, place: Place) -> list[tuple[list[list[int]], list[list[int]]]]:
    feed = FeedPool(cache, CPU, place=place, window_shards=2).feed(selection, Needs(labels=True))
    return [
        (batch.inputs.tolist(), batch.labels_B.tolist())  # type: ignore[union-attr]
        for batch in feed.shuffled(4, seed=3, epoch=1)
    ]


def test_the_same_batches_come_wherever_rows_are_kept_and_every_row_is_in_one(
    cache: Cache, selection: Selection
) -> None:
    batches = epoch(cache, selection, "device")
    assert batches == epoch(cache, selection, "stream")
    found = []
    for inputs, labels in batches:
        lengths = [sum(i >= 0 for i in row) for row in inputs]
        assert {len(row) for row in (*inputs, *labels)} == {max(lengths)}  # of its own longest row
        for row, of_row, length in zip(inputs, labels, lengths, strict=True):
            assert set(of_row[length:]) <= {-1}
            found.append((row[:length], of_row[:length]))
    numbers = cache.samples().of("counting").filter(split="train")["row"]
    assert sorted(found) == sorted(line(i) for i in numbers)


def test_rows_are_projected_at_their_own_length(selection: Selection) -> None:
    assert selection.lengths_N is not None
    tokens = int(selection.lengths_N.sum())
    assert projected_bytes([(selection, Needs(labels=True))]) == 2 * (4 * tokens + PLACE_BYTES * selection.num_rows)


def trained(cache: Cache, runs: Path, **options: Any) -> Any:
    [record] = train_students(request(cache, runs, small_gpt(**ON_LABELS, **options))).records
    return record


def test_padding_changes_no_figure(tmp_path: Path) -> None:
    records, tables = [], []
    for padded in (False, True):
        folder = tmp_path / str(padded)
        cache = lines_cache(folder, padded=padded)
        records.append(trained(cache, folder / "runs", epochs=4))
        predictions = read_predictions(folder / "runs/gpt")
        assert predictions is not None
        tables.append(predictions.table)
    assert records[0].cross_entropy == pytest.approx(records[1].cross_entropy, rel=1e-5)
    assert records[0].accuracy == records[1].accuracy
    own, both = (table.drop_nulls("label") for table in tables)
    assert own.select("sample_id", "at", "token", "label", "top").equals(
        both.select("sample_id", "at", "token", "label", "top")
    )
    assert len(tables[0]) == sum(len(line(i)[0]) for i in tables[0]["row"].unique())


def test_a_student_of_lines_learns_the_language(cache: Cache, tmp_path: Path) -> None:
    record = trained(cache, tmp_path, epochs=40, learning_rate=0.03)
    assert record.accuracy == 1.0


class Other:
    """What a shard would hold if its rows were parted in another way."""

    def __init__(self, arrays: Mapping[str, Ragged], name: str):
        self.arrays = {each: rows for each, rows in arrays.items() if each != name}
        rows = [list(row) for row in arrays[name]]
        rows[0], rows[1] = rows[0] + rows[1][:1], rows[1][1:]
        self.arrays[name] = Ragged.of(rows, np.int32)


def test_labels_that_are_parted_otherwise_than_the_inputs_are_refused(cache: Cache) -> None:
    commit = cache.commit(ShardKey("counting", None, "plain", 0), with_table=True)
    promise = commit.promised
    assert promise is not None
    arrays = read_stored(cache.objects, commit, ["inputs", "labels"])
    with pytest.raises(CorruptObject, match="labels with rows of other lengths than its commit says"):
        promise.check_values(commit, Other(arrays, "labels").arrays)  # type: ignore[arg-type]
    without_table = cache.commit(ShardKey("counting", None, "plain", 0))
    with pytest.raises(CorruptObject, match="inputs with rows of other lengths than their labels"):
        promise.check_values(without_table, Other(arrays, "labels").arrays)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ('"labels": labels[1:]', "ids in input, and"),
        ('"labels": labels[None]', "labels is int64 (1, "),
        ('"input": ids / 2', "input is float64"),
        ('"input": ids[:0]', "0 ids in input"),
    ],
)
def test_an_item_that_is_no_row_of_a_language_model_is_set_aside(fault: str, reason: str, tmp_path: Path) -> None:
    job = write_job(tmp_path, write_lines(tmp_path) + "max_quarantined = 1.0\n")
    whole = LINES.replace("def __getitem__(self, i):", "def whole(self, i):").replace(
        '        return {"input": ids, "labels": labels, "id": f"line {i}"}\n',
        '        return {"input": ids, "labels": labels, "id": f"line {i}"}\n\n'
        "    def __getitem__(self, i):\n        item = self.whole(i)\n"
        '        ids, labels = item["input"], item["labels"]\n'
        f"        return {{**item, {fault}}} if i == 3 else item\n",
    )
    (tmp_path / "lines.py").write_text(whole)
    report = build(job)
    assert report.exit_code == 3
    assert reason in report.quarantined["counting"]["error"][0]
    assert not verify(Cache.open(str(tmp_path / "cache"))).bad


def test_an_id_outside_the_vocabulary_is_refused_by_name(tmp_path: Path) -> None:
    job = write_job(tmp_path, write_lines(tmp_path))
    (tmp_path / "lines.py").write_text(LINES.replace("vocabulary = 10", "vocabulary = 9"))
    with pytest.raises(LabelOutOfRange, match=r"sample line .* has `(input|labels)` outside the vocabulary"):
        build(job)


def test_items_longer_than_they_are_said_to_be_are_set_aside(tmp_path: Path) -> None:
    job = write_job(tmp_path, write_lines(tmp_path) + "max_quarantined = 1.0\n")
    (tmp_path / "lines.py").write_text(LINES.replace("self.longest = longest", "self.longest = longest - 1"))
    assert build(job).exit_code == 3
    samples = Cache.open(str(tmp_path / "cache")).samples().of("counting")
    assert samples["length"].max() == 11
    assert len(samples) == sum(len(line(i)[0]) < 12 for i in range(40))
