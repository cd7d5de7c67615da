"""Two caches are compared by what they hold, wherever it lies in them: promises, samples by id, answers by KL."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from storage.cache import Cache
from storage.cache.copies.answers import kl
from storage.cache.copies.copy import copy_cache
from storage.cache.copies.diff import RowsDiff, diff
from storage.digests import digest
from storage.encodings import DenseEncoding, SparseEncoding
from storage.format.rows import Segment, create_segment
from storage.format.shards import ShardKey
from storage.format.specs import DatasetSpec, TeacherSpec, write_spec
from storage.views import view_fingerprint
from tests.conftest import Program
from tests.damage import flip
from tests.teacher_cache.toys import Silent

TARGETS = ShardKey("digits", "cnn", "plain", 1)


@pytest.fixture
def other(cache: Cache, tmp_path: Path) -> Cache:
    copy_cache(cache, str(tmp_path / "other"), Silent())
    return Cache.open(str(tmp_path / "other"))


def test_a_copy_is_the_same(cache: Cache, other: Cache, program: Program) -> None:
    found = diff(cache, other, Silent())
    assert (found.same, found.rows["digits"], found.answers[0].identical) == (
        True,
        RowsDiff(9, examples={name: [] for name in ("only_a", "only_b", "label", "split", "payload")}),
        9,
    )
    ended = program("cache", "diff", cache.url, other.url)
    assert (ended.code, ended.out.splitlines()[-1]) == (0, "the same")


def test_rows_that_lie_elsewhere_are_matched_by_id(
    cache: Cache,
    tmp_path: Path,
    dataset_spec: DatasetSpec,
    teacher_spec: TeacherSpec,
    segment: Callable[..., Segment],
) -> None:
    """The same ten samples the other way round, in shards of three; of row 0 the teacher says something else."""
    turned = Cache.create(str(tmp_path / "turned"))
    write_spec(turned.objects, "digits/dataset.json", dataset_spec, "test")
    create_segment(turned.objects, "digits", 0, segment(("a", 0, 10), rows_per_shard=3))
    write_spec(turned.objects, "digits/cnn/teacher.json", teacher_spec, "test")
    ingests = [cache.commit(ShardKey("digits", None, "plain", shard), with_table=True) for shard in range(3)]
    tables = [cache.commit(TARGETS._replace(shard=shard), with_table=True).table for shard in range(3)]
    order = np.arange(10)[::-1]
    said, answers = pa.concat_tables([each.table for each in ingests]), pa.concat_tables(tables)
    inputs = np.concatenate([cache.read_inputs("digits", n) for n in range(3)])
    logits = np.concatenate([cache.read_targets("digits", "cnn", n)["logits"] for n in range(3)])
    logits[0] = [5.0, 0.0, 0.0]
    for shard, start, stop in turned.catalogue().shards("digits"):
        rows, at = pa.array(range(start, stop), pa.int64()), order[start:stop]
        inputs_S, table = inputs[at], said.take(at)
        bad = table["error"].null_count != len(table)
        about = {"quarantined": int(bad), "inputs_digest": digest(inputs_S.tobytes())}
        turned.write_shard(
            ShardKey("digits", None, "plain", shard),
            rows=(start, stop),
            arrays={"inputs": inputs_S},
            table=table.set_column(0, "row", rows),
            about=about,
        )
        about = {"inputs_digest": about["inputs_digest"], "view_fingerprint": view_fingerprint(inputs_S)}
        arrays = {"logits": logits[at], "feature/last": np.ones((len(at), 5), np.float16)}
        turned.write_shard(
            TARGETS._replace(shard=shard),
            rows=(start, stop),
            arrays=arrays,
            table=answers.take(at).set_column(0, "row", rows),
            about=about,
        )
    found = diff(cache, turned, Silent())
    gap, feature = found.answers
    assert (found.same, found.fields, found.rows["digits"].differ) == (False, [], False)
    assert (gap.rows, gap.identical, [(each.sample_id, each.row_a, each.row_b) for each in gap.worst]) == (
        9,
        8,
        [("digits:0", 0, 9)],
    )
    assert (feature.feature, feature.rows, feature.identical, feature.differs) == ("last", 9, 9, False)
    before = torch.tensor(cache.read_targets("digits", "cnn", 0)["logits"][:1]).double().log_softmax(1)
    after = torch.tensor([[5.0, 0.0, 0.0]]).double().log_softmax(1)
    assert gap.largest == pytest.approx(float((before.exp() * (before - after)).sum()), abs=1e-6)
    assert gap.mean == pytest.approx(gap.largest / 9)


def test_what_differs_is_named(cache: Cache, other: Cache, program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = other.dataset("digits").model_copy(update={"classes": ["zero", "two", "one"]})
    other.objects.put("digits/dataset.json", spec.to_json())
    for info in list(other.objects.walk("digits/ingest")):
        if info.path.endswith("00002.parquet"):
            other.objects.delete(info.path)
    for path in ("digits/ingest", "digits/cnn/plain"):  # written anew, under the other promise
        for shard in range(3):
            key = ShardKey("digits", None if path.endswith("ingest") else "cnn", "plain", shard)
            if shard == 2:
                other.objects.delete(key.commit_path)
                continue
            commit = cache.commit(key, with_table=True)
            arrays = (
                {"inputs": cache.read_inputs("digits", shard)}
                if key.teacher is None
                else cache.read_targets("digits", "cnn", shard, names=["logits", "feature/last"])
            )
            other.objects.delete(key.commit_path)
            Cache.open(other.url).write_shard(
                key, rows=(commit.start, commit.stop), arrays=arrays, table=commit.table, about=commit.about
            )
    write_spec(other.objects, "more/dataset.json", spec.model_copy(update={"name": "more"}), "test")
    monkeypatch.setattr("storage.cache.copies.diff.AT_ONCE", 4)  # some at a time
    ended = program("cache", "diff", cache.url, other.url, "--json")
    said = json.loads(ended.out)
    assert (ended.code, said["same"]) == (3, False)
    assert said["fields"] == [
        {"path": "digits/dataset.json", "field": "classes", "a": ["zero", "one", "two"], "b": ["zero", "two", "one"]},
        {"path": "more/dataset.json", "field": "", "a": "absent", "b": "present"},
    ]
    rows = said["rows"]["digits"]
    # by name, not by number: rows of class 1 and 2, of rows 0 to 7 without the unreadable one
    assert (rows["both"], rows["only_a"], rows["only_b"], rows["label"]) == (7, 2, 0, 5)
    assert sorted(rows["examples"]["only_a"]) == ["digits:8", "digits:9"]
    assert said["notes"] == ["digits/cnn/plain: its answers are of other classes, and were not compared"]


def test_kl_is_over_what_both_store() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.5, -1.0], [0.0, 3.0, -2.0, 1.0]])
    other = logits + torch.tensor([[0.3, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    dense, sparse = DenseEncoding(dtype="fp32", statistics=False), SparseEncoding(k=2, statistics=False)
    labels, keys = torch.zeros(2, dtype=torch.int64), torch.arange(2)

    def stored(encoding: DenseEncoding | SparseEncoding, values: torch.Tensor):  # type: ignore[no-untyped-def]
        return encoding.decode(encoding.encode(values, num_classes=4, labels_B=labels, keys_B=keys), 4)

    p, q = (values.double().log_softmax(1) for values in (logits, other))
    whole = (p.exp() * (p - q)).sum(1)
    assert torch.allclose(kl(stored(dense, logits), stored(dense, other)), whole, atol=1e-6)
    top = [
        torch.cat(
            [
                each.gather(1, p.topk(2).indices),
                (1 - each.gather(1, p.topk(2).indices).exp().sum(1, keepdim=True)).log(),
            ],
            1,
        )
        for each in (p, q)
    ]
    parted = (top[0].exp() * (top[0] - top[1])).sum(1)
    for pair in ((dense, sparse), (sparse, dense)):
        assert torch.allclose(kl(stored(pair[0], logits), stored(pair[1], other)), parted, atol=2e-3)
    assert torch.allclose(kl(stored(sparse, logits), stored(sparse, logits)), torch.zeros(2).double(), atol=1e-9)


def test_other_places_are_told(cache: Cache, tmp_path: Path, program: Program) -> None:
    assert program("cache", "diff", cache.url, tmp_path / "nothing").code == 2
    shutil.copytree(cache.url, tmp_path / "damaged")
    flip(Cache.open(str(tmp_path / "damaged")), TARGETS, "logits/c/0/0")
    assert program("cache", "diff", cache.url, tmp_path / "damaged").code == 65


def test_features_are_compared_too(cache: Cache, other: Cache, program: Program) -> None:
    """Of row 0 a feature of ones has one number of 3 in place of 1: 2 over the length √5."""
    key = TARGETS._replace(shard=0)
    commit, arrays = cache.commit(key, with_table=True), cache.read_targets("digits", "cnn", 0)
    feature = cache.read_targets("digits", "cnn", 0, names=["feature/last"])["feature/last"].copy()
    feature[0, 2] += 2
    other.objects.delete(key.commit_path)
    other.write_shard(
        key,
        rows=(commit.start, commit.stop),
        arrays={"logits": arrays["logits"], "feature/last": feature},
        table=commit.table,
        about=dict(commit.about),
    )
    soft, found = diff(cache, other, Silent()).answers
    own = float(np.linalg.norm(feature[0].astype(np.float64) - [0, 0, 2, 0, 0]))
    assert (soft.differs, found.differs, found.unit) == (False, True, "‖A - B‖/‖A‖")
    assert found.largest == pytest.approx(2 / own)
    assert [each.row_a for each in found.worst if each.off] == [0]
    ended = program("cache", "diff", cache.url, other.url)
    assert "digits/cnn/plain last: 9 rows, 8 of the same bytes; ‖A - B‖/‖A‖ mean" in " ".join(ended.out.split())
    assert max(map(len, ended.out.splitlines())) <= 80
