"""A copy is the same cache elsewhere, byte for byte; it goes on where it was stopped, and mixes with no other cache."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from storage.cache import Cache
from storage.cache.copies import copy as room
from storage.cache.copies.copy import copy_cache
from storage.cache.verify import verify
from storage.errors import BadRequest, CorruptObject, NotInCache, StaleCache, StorageFailure
from storage.format.objects import LocalObjects, open_objects
from storage.format.shards import ShardKey
from tests.conftest import Program
from tests.damage import flip
from tests.teacher_cache.toys import Silent

TARGETS = ShardKey("digits", "cnn", "plain", 1)


def contents(cache: Cache) -> dict[str, bytes]:
    """Return every object but the ledger, whose versions are of one place."""
    paths = [info.path for info in cache.objects.walk()]
    return {path: cache.objects.get(path) for path in paths if not path.startswith("ledger/")}


@pytest.fixture(params=["local", "bucket", pytest.param("container", marks=pytest.mark.slow)])
def elsewhere(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "copy") if request.param == "local" else str(request.getfixturevalue(request.param))


def test_a_copy_is_the_same_bytes_and_back_again(cache: Cache, elsewhere: str, tmp_path: Path) -> None:
    found = copy_cache(cache, elsewhere, Silent())
    copy = Cache.open(elsewhere)
    assert (found.shards, found.there, contents(copy)) == (6, 0, contents(cache))
    assert (verify(copy).bad, copy.id) == ((), cache.id)
    copy_cache(copy, str(tmp_path / "back"), Silent())
    assert contents(Cache.open(str(tmp_path / "back"))) == contents(cache)


def test_a_copy_that_was_stopped_goes_on(cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner, left = LocalObjects.put, [3]

    def stop(self: LocalObjects, path: str, data: bytes) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise StorageFailure("no space left")
        inner(self, path, data)

    url = str(tmp_path / "copy")
    with monkeypatch.context() as patch:
        patch.setattr(LocalObjects, "put", stop)
        patch.setattr(room, "AT_ONCE", 1)
        with pytest.raises(StorageFailure):
            copy_cache(cache, url, Silent())
    copy = Cache.open(url)
    committed = copy.committed("digits") | copy.committed("digits", "cnn")
    assert (len(committed), verify(copy).bad) == (3, ())
    found = copy_cache(cache, url, Silent())
    assert (found.shards, found.there, contents(copy)) == (3, 3, contents(cache))
    before = {info.path: info.version for info in copy.objects.walk()}
    again = copy_cache(cache, url, Silent())
    assert (again.shards, again.there) == (0, 6)
    assert {info.path: info.version for info in copy.objects.walk()} == before


def test_a_part_is_copied_by_name_and_the_rest_later(cache: Cache, tmp_path: Path) -> None:
    url = str(tmp_path / "copy")
    for names in ({"datasets": ["nope"]}, {"teachers": ["nope"]}):
        with pytest.raises(NotInCache):
            copy_cache(cache, url, Silent(), **names)
    assert not Path(url).exists()
    assert copy_cache(cache, url, Silent(), datasets=["digits"], teachers=[]).shards == 3
    assert copy_cache(cache, url, Silent(), teachers=["cnn"]).shards == 3
    assert contents(Cache.open(url)) == contents(cache)


def test_a_damaged_shard_is_told_and_the_others_are_copied(cache: Cache, tmp_path: Path, program: Program) -> None:
    flip(cache, TARGETS)
    ended = program("cache", "copy", cache.url, tmp_path / "copy")
    assert (ended.code, f"bad  {TARGETS}" in ended.out, ended.out.splitlines()[-1][:16]) == (
        65,
        True,
        "5 shards copied,",
    )
    copy = Cache.open(str(tmp_path / "copy"))
    assert (copy.committed("digits", "cnn"), verify(copy).bad) == ({0, 2}, ())


def test_another_cache_is_never_written_into(cache: Cache, tmp_path: Path) -> None:
    other = Cache.create(str(tmp_path / "other"))
    with pytest.raises(StaleCache) as caught:
        copy_cache(cache, other.url, Silent())
    assert (caught.value.found, [info.path for info in other.objects.walk()]) == (f"cache {other.id}", ["cache.json"])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_bytes(b"")
    for url in (cache.url, f"{cache.url}/inside", str(tmp_path / "mine")):
        with pytest.raises(BadRequest):
            copy_cache(cache, url, Silent())


def test_a_copy_that_was_built_on_otherwise_is_told(cache: Cache, tmp_path: Path, program: Program) -> None:
    url = str(tmp_path / "copy")
    shutil.copytree(cache.url, url)
    copy = Cache.open(url)
    commit, names = copy.commit(TARGETS, with_table=True), ["logits", "feature/last"]
    arrays = copy.read_targets("digits", "cnn", 1, names=names)
    copy.objects.delete(TARGETS.commit_path)
    copy.write_shard(
        TARGETS, rows=(4, 8), arrays=arrays, table=commit.table, about=commit.about | {"note": "made anew"}
    )
    before = contents(copy)
    ended = program("cache", "copy", cache.url, url)
    assert (ended.code, "1 shards were made anew" in ended.out, contents(copy)) == (3, True, before)
    copy.objects.put("digits/plan/00000.parquet", b"another")
    with pytest.raises((StaleCache, CorruptObject)):
        copy_cache(cache, url, Silent())


def test_a_copy_of_format_2_is_one_of_format_2(tmp_path: Path) -> None:
    shutil.unpack_archive(Path(__file__).parents[3] / "data/format2.zip", tmp_path / "old")
    (source,) = [Cache.open(str(path.parent)) for path in (tmp_path / "old").rglob("cache.json")]
    copy_cache(source, str(tmp_path / "copy"), Silent())
    copy = Cache.open(str(tmp_path / "copy"))
    assert (copy.spec.format, contents(copy), verify(copy).bad) == (2, contents(source), ())


def test_of_two_copies_at_once_each_leaves_the_other_whole(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, inner = str(tmp_path / "copy"), LocalObjects.create

    def late(self: LocalObjects, path: str, data: bytes) -> bool:
        if path == TARGETS.commit_path and self.url == url:
            inner(self, path, data)  # the other one's, of the same bytes
        return inner(self, path, data)

    monkeypatch.setattr(LocalObjects, "create", late)
    assert copy_cache(cache, url, Silent()).shards == 6
    assert verify(Cache.open(url)).bad == ()
    assert open_objects(url).get(cache.commit(TARGETS).group)
