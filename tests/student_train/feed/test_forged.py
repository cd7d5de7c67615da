"""The one check of a shard: whatever is forged of it and sealed again, verify names, and training refuses."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.cache import Cache
from storage.cache.verify import repair, verify
from storage.encodings import Capability, SparseEncoding
from storage.errors import CorruptObject, StaleCache, TryAgain, UnsupportedFormat
from storage.format.sealed import unseal
from storage.format.shards import ShardKey
from storage.inputs.ragged import Ragged, digest_rows
from storage.views import PLAIN
from student_train.feed.batches import Needs, SoftNeed
from student_train.feed.residency import FeedPool
from student_train.feed.selection import select_rows
from tests.forging import Arrays, seal_again, write_again
from tests.language.toys import counting_cache
from tests.student_train.feed.test_feed import CPU, MAP, POOLED
from tests.student_train.toys import Recipe, write_cache
from tests.texts.toys import text_cache


class Case(NamedTuple):
    """A cache: its dataset and teacher, and the needs of a student."""

    dataset: str
    teacher: str
    needs: Needs


def soft(teacher: str, *needs: Capability) -> Needs:
    return Needs(labels=True, soft=frozenset(SoftNeed(teacher, need) for need in needs or [Capability("logits")]))


EVERYTHING = soft("sage", Capability("bucket", 1.0), Capability("stratified"), Capability("entropy"))


CASES = {
    "images": Case("toy", "sage", soft("sage") | Needs(features=frozenset({POOLED, MAP}))),
    "sparse": Case("toy", "sage", EVERYTHING),
    "tokens": Case("counting", "right", soft("right")),
    "texts": Case("texts", "looking", soft("looking")),
}


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {name: tmp_path_factory.mktemp(name) for name in CASES}
    sparse = Recipe(encoding=SparseEncoding(k=2, n=2), features={})
    built = {
        "images": write_cache(folders["images"] / "cache", Recipe(unreadable=frozenset({60}))),
        "sparse": write_cache(folders["sparse"] / "cache", sparse),
        "tokens": counting_cache(folders["tokens"]),
        "texts": text_cache(folders["texts"]),
    }
    return {name: Path(cache.url) for name, cache in built.items()}


def copy_of(caches: dict[str, Path], name: str, folder: Path) -> Cache:
    shutil.rmtree(folder / "cache", ignore_errors=True)
    shutil.copytree(caches[name], folder / "cache")
    shutil.rmtree(folder / "cache/ledger", ignore_errors=True)
    return Cache.open(str(folder / "cache"))


def train(cache: Cache, case: Case) -> None:
    """Feed every row of a dataset to a student that is to agree with the teacher, as training does."""
    selection = select_rows(cache.samples(), case.dataset, case.needs, agree_with=case.teacher)
    feed = FeedPool(cache, CPU, place="stream", window_shards=1).feed(selection, case.needs)
    for _ in feed.shuffled(64, seed=0, epoch=0):
        pass


def assert_refused(cache: Cache, case: Case, key: ShardKey) -> None:
    """Check that verify names a shard and no other, that training refuses it, and that repair leaves a whole cache."""
    found = verify(Cache.open(cache.url))
    assert {shard.key for shard in found.bad} == {key}
    with pytest.raises((CorruptObject, StaleCache, UnsupportedFormat)):
        train(Cache.open(cache.url), case)
    repair(cache, found)
    assert verify(Cache.open(cache.url)).bad == ()


def key_of(case: Case, *, ingest: bool) -> ShardKey:
    return ShardKey(case.dataset, None if ingest else case.teacher, PLAIN, 1)


@pytest.mark.parametrize("name", CASES)
def test_a_cache_that_nobody_touched_is_whole_and_trains(caches: dict[str, Path], tmp_path: Path, name: str) -> None:
    cache = copy_of(caches, name, tmp_path)
    assert verify(cache).bad == ()
    train(cache, CASES[name])


def without_chunk(proof: dict[str, Any], array: str) -> None:
    proof["members"] = [member for member in proof["members"] if not member[0].startswith(f"{array}/")]


# What is forged of a commit's JSON: of the ingest (True) or the targets, of which caches, and how.
COMMITS: dict[str, tuple[bool, str, Callable[[dict[str, Any]], Any]]] = {
    "rows, moved": (True, "images", lambda p: p.update(rows=[row + 1 for row in p["rows"]])),
    "rows, of targets": (False, "images", lambda p: p.update(rows=[row - 1 for row in p["rows"]])),
    "key": (False, "images", lambda p: p["key"].__setitem__(3, 2)),
    "cache": (True, "images", lambda p: p.update(cache="0" * 32)),
    "dataset": (True, "texts", lambda p: p.update(dataset="0" * 32)),
    "promise": (False, "tokens", lambda p: p.update(promise="0" * 32)),
    "attempt": (False, "images", lambda p: p.update(attempt="00000000")),
    "no members": (True, "images", lambda p: p.update(members=[])),
    "no members of targets": (False, "sparse", lambda p: p.update(members=[])),
    "a dropped array": (False, "sparse", lambda p: without_chunk(p, "draws")),
    "a dropped feature": (False, "images", lambda p: without_chunk(p, "feature/map")),
    "dropped labels": (True, "tokens", lambda p: without_chunk(p, "labels")),
    "dropped offsets": (True, "texts", lambda p: without_chunk(p, "offsets/inputs")),
    "a member twice": (True, "images", lambda p: p["members"].append(p["members"][0])),
    "a member that is another": (True, "images", lambda p: p["members"][0].__setitem__(1, 0)),
    "a huge member": (True, "images", lambda p: (p.update(object=[2**50, ""]), p["members"][0].__setitem__(2, 2**49))),
    "uses": (True, "texts", lambda p: p.update(uses=[])),
    "uses, unknown": (True, "texts", lambda p: p.update(uses=["own_length", "telepathy"])),
    "uses, of another": (True, "images", lambda p: p.update(uses=["own_length"])),
    "inputs_digest": (True, "images", lambda p: p["about"].update(inputs_digest="0" * 32)),
    "no inputs_digest": (True, "images", lambda p: p["about"].pop("inputs_digest")),
    "inputs_digest of targets": (False, "images", lambda p: p["about"].update(inputs_digest="0" * 32)),
    "view_fingerprint": (False, "images", lambda p: p["about"].update(view_fingerprint="0" * 32)),
    "no view_fingerprint": (False, "texts", lambda p: p["about"].pop("view_fingerprint")),
    "weights": (False, "tokens", lambda p: p["about"].update(weights="0" * 32)),
    "quarantined": (True, "images", lambda p: p["about"].update(quarantined=0)),
    "quarantined below none": (False, "images", lambda p: p["about"].update(quarantined=-1)),
    "labels": (True, "texts", lambda p: p["about"].update(labels=[0] * len(p["about"]["labels"]))),
    "labels of other classes": (True, "texts", lambda p: p["about"].update(labels=[16])),
    "answered more than asked": (False, "texts", lambda p: p["about"]["answered"].update(labelled=10**6)),
    "answered better than possible": (False, "tokens", lambda p: p["about"]["answered"].update(correct=10**6)),
    "answered in no number": (False, "texts", lambda p: p["about"]["answered"].update(nats=None)),
    "answered in a number beyond all": (False, "texts", lambda p: p["about"]["answered"].update(nats=10**400)),
    "never in no number": (False, "texts", lambda p: p["about"]["answered"].update(never="x")),
    "never at more than asked": (False, "texts", lambda p: p["about"]["answered"].update(never=2**70)),
    "never below none": (False, "texts", lambda p: p["about"]["answered"].update(never=-5)),
    "seconds": (True, "images", lambda p: p["about"].update(seconds=-1.0)),
    "seconds in text": (True, "images", lambda p: p["about"].update(seconds="7")),
    "finished at no time": (True, "images", lambda p: p["about"].update(finished=[1])),
}  # fmt: skip


@pytest.mark.parametrize("forged", COMMITS)
def test_a_forged_commit_is_named_and_refused(caches: dict[str, Path], tmp_path: Path, forged: str) -> None:
    ingest, name, change = COMMITS[forged]
    cache, case = copy_of(caches, name, tmp_path), CASES[name]
    key = key_of(case, ingest=ingest)
    seal_again(cache, key, lambda proof, table: change(proof) and None)
    assert_refused(cache, case, key)


def test_what_no_array_is_read_by_is_named_by_verify_alone(caches: dict[str, Path], tmp_path: Path) -> None:
    """The digest of the whole object: training reads its members, each by a digest of its own."""
    cache, case = copy_of(caches, "images", tmp_path), CASES["images"]
    key = key_of(case, ingest=False)
    seal_again(cache, key, lambda proof, table: proof["object"].__setitem__(1, "0" * 32))
    assert [shard.key for shard in verify(cache).bad] == [key]
    train(cache, case)


def column(name: str, values: Callable[[list[Any]], list[Any]]) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        place, column = table.column_names.index(name), table[name]
        return table.set_column(place, name, pa.array(values(column.to_pylist()), column.type))

    return change


TABLES: dict[str, tuple[bool, str, Callable[[pa.Table], pa.Table]]] = {
    "a label out of range": (True, "images", column("label", lambda v: [4, *v[1:]])),
    "a label below none": (True, "texts", column("label", lambda v: [-1, *v[1:]])),
    "another split": (True, "images", column("split", lambda v: ["test", *v[1:]])),
    "no split": (True, "images", column("split", lambda v: [None, *v[1:]])),
    "no id": (True, "images", column("sample_id", lambda v: [None, *v[1:]])),
    "an id twice": (True, "images", column("sample_id", lambda v: [v[1], *v[1:]])),
    "a row more in quarantine": (True, "texts", column("error", lambda v: ["broken", *v[1:]])),
    "a length": (True, "texts", column("length", lambda v: [v[0] + 1, v[1] - 1, *v[2:]])),
    "rows in another order": (True, "images", column("row", lambda v: [v[1], v[0], *v[2:]])),
    "no labels": (True, "images", lambda table: table.drop_columns(["label"])),
    "labels in text": (True, "images", lambda t: t.set_column(2, "label", pa.array(["1"] * len(t)))),
    "fewer rows": (True, "images", lambda table: table.slice(1)),
    "a top class out of range": (False, "images", column("top", lambda v: [4, *v[1:]])),
    "no top": (False, "images", lambda table: table.drop_columns(["top"])),
}


def test_what_no_column_is_read_by_is_named_by_verify_alone(caches: dict[str, Path], tmp_path: Path) -> None:
    """Training reads the columns that it needs, and no entropy."""
    cache, case = copy_of(caches, "texts", tmp_path), CASES["texts"]
    key, forge = key_of(case, ingest=False), column("entropy", lambda v: [float("nan"), *v[1:]])
    seal_again(cache, key, lambda proof, table: forge(table))
    assert [shard.key for shard in verify(cache).bad] == [key]
    train(cache, case)


@pytest.mark.parametrize("forged", TABLES)
def test_a_forged_table_is_named_and_refused(caches: dict[str, Path], tmp_path: Path, forged: str) -> None:
    ingest, name, change = TABLES[forged]
    cache, case = copy_of(caches, name, tmp_path), CASES[name]
    key = key_of(case, ingest=ingest)
    seal_again(cache, key, lambda proof, table: change(table))
    found = verify(Cache.open(cache.url))
    assert {shard.key for shard in found.bad} == {key}
    with pytest.raises(CorruptObject):
        train(cache, case)


def cut(name: str) -> Callable[[Arrays], None]:
    """Take the last column of an array."""
    return lambda arrays: arrays.update({name: arrays[name][..., :-1]})  # type: ignore[index]


def retyped(name: str, dtype: str) -> Callable[[Arrays], None]:
    return lambda arrays: arrays.update({name: arrays[name].astype(dtype)})  # type: ignore[union-attr]


def value(name: str, number: float) -> Callable[[Arrays], None]:
    def change(arrays: Arrays) -> None:
        array = arrays[name]
        flat = array.flat_T if isinstance(array, Ragged) else array
        flat.reshape(-1)[-1] = number  # of the last row: not among the first, whose fingerprint is kept

    return change


def moved_offset(arrays: Arrays) -> None:
    rows = arrays["inputs"]
    assert isinstance(rows, Ragged)
    rows.offsets[5] -= 1


def fewer_positions(arrays: Arrays) -> None:
    rows = arrays["logits"]
    assert isinstance(rows, Ragged)
    arrays["logits"] = Ragged(rows.flat_T[:-1], np.minimum(rows.offsets, len(rows.flat_T) - 1))


ARRAYS: dict[str, tuple[bool, str, Callable[[Arrays], None]]] = {
    "inputs of another shape": (True, "images", cut("inputs")),
    "inputs of another type": (True, "images", retyped("inputs", "float32")),
    "other inputs": (True, "images", value("inputs", 7)),
    "inputs without rows": (True, "images", lambda a: a.update(inputs=a["inputs"].reshape(50, -1))),  # type: ignore[union-attr]
    "an id out of range": (True, "tokens", value("inputs", 10)),
    "an id below 0": (True, "texts", value("inputs", -1)),
    "a label out of range": (True, "tokens", value("labels", 10)),
    "a label below none": (True, "tokens", value("labels", -2)),
    "labels of another type": (True, "tokens", retyped("labels", "int64")),
    "one moved offset": (True, "texts", moved_offset),
    "all of one length": (True, "texts", lambda a: a.update(inputs=np.zeros((16, 4), np.int32))),
    "logits of fewer classes": (False, "images", cut("logits")),
    "logits of another type": (False, "images", retyped("logits", "float32")),
    "NaN among logits": (False, "tokens", value("logits", float("nan"))),
    "logits of fewer positions": (False, "tokens", fewer_positions),
    "an array too many": (False, "images", lambda a: a.update(more=np.zeros((50, 2), np.float32))),
    "an array that is another": (False, "sparse", lambda a: a.update(id=a.pop("ids"))),
    "fewer kept classes": (False, "sparse", cut("ids")),
    "a kept class out of range": (False, "sparse", value("ids", 4)),
    "a drawn class out of range": (False, "sparse", value("draws", 200)),
    "counts that do not add up": (False, "sparse", value("counts", 3)),
    "fewer temperatures": (False, "sparse", cut("lse")),
    "NaN in a feature": (False, "images", value("feature/map", float("inf"))),
    "a feature of another shape": (False, "images", cut("feature/map")),
    "a feature of another type": (False, "images", retyped("feature/map", "float32")),
}  # fmt: skip


@pytest.mark.parametrize("about", [False, True], ids=["as it was", "its digest too"])
@pytest.mark.parametrize("forged", ARRAYS)
def test_forged_arrays_are_named_and_refused(caches: dict[str, Path], tmp_path: Path, forged: str, about: bool) -> None:
    """Also where the forger has told the commit the digest of the new inputs; then the targets are of others."""
    ingest, name, change = ARRAYS[forged]
    cache, case = copy_of(caches, name, tmp_path), CASES[name]
    key = key_of(case, ingest=ingest)
    said: dict[str, Any] = {}

    def forge(arrays: Arrays) -> None:
        change(arrays)
        if about and ingest:
            said["inputs_digest"] = digest_rows(arrays["inputs"])

    write_again(cache, key, forge, said)
    if about and forged == "other inputs":
        key = key_of(case, ingest=False)  # the ingest is whole now, and what was said of other inputs is not of these
    assert_refused(cache, case, key)


@pytest.mark.parametrize("ingest", [True, False])
@pytest.mark.parametrize("act", ["dropped", "built again"])
def test_a_shard_that_is_built_again_while_it_is_trained_on_is_no_damage(
    caches: dict[str, Path], tmp_path: Path, act: str, ingest: bool
) -> None:
    cache, case = copy_of(caches, "images", tmp_path), CASES["images"]
    selection, key = select_rows(cache.samples(), case.dataset, case.needs), key_of(case, ingest=ingest)
    if act == "dropped":
        cache.objects.delete(key.commit_path)
    else:
        write_again(cache, key, ARRAYS["other inputs" if ingest else "NaN in a feature"][2], {})
    with pytest.raises(TryAgain) as caught:
        for _ in FeedPool(cache, CPU, place="stream", window_shards=1).feed(selection, case.needs).in_order(64):
            pass
    assert caught.value.what == f"{cache.url}: {key} has changed since its rows were selected"


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(CASES)), st.booleans(), st.data())
def test_no_shard_is_whole_for_verify_and_refused_in_training(
    caches: dict[str, Path], tmp_path: Path, name: str, ingest: bool, data: st.DataObject
) -> None:
    """Any leaf of a commit's JSON, exchanged for any other value: both accept it, or verify names it."""
    cache, case = copy_of(caches, name, tmp_path), CASES[name]
    key = key_of(case, ingest=ingest)
    about, _ = unseal(cache.objects.get(key.commit_path))
    place = data.draw(st.sampled_from(leaves(about)))
    other = data.draw(st.one_of(st.none(), st.booleans(), st.integers(-2, 2**70), st.text(max_size=3), st.floats()))

    def change(proof: dict[str, Any], table: pa.Table) -> None:
        *parents, last = place
        for part in parents:
            proof = proof[part]
        proof[last] = other

    seal_again(cache, key, change)
    if any(shard.key == key for shard in verify(Cache.open(cache.url)).bad):
        return
    train(Cache.open(cache.url), case)


def leaves(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return where the leaves of a JSON value are."""
    if not isinstance(value, dict | list) or not value:
        return [place]
    parts = value.items() if isinstance(value, dict) else enumerate(value)
    return [leaf for key, below in parts for leaf in leaves(below, (*place, key))]
