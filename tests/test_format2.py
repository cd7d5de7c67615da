"""A cache of format 2, and a run from it, as the last version that wrote such left them: read, built on, used."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import pytest

from storage.cache import Cache
from storage.cache.verify import verify
from storage.errors import BadRequest
from storage.format.sealed import unseal
from storage.format.shards import ShardKey
from tests.conftest import Program
from tests.teacher_cache.toys import build, contents, run_program, write_job
from tests.texts.toys import write_texts

MISSING = ShardKey("pictures", "dense", "view-001", 2)
NOTE = "is of format 2: its shards do not say which cache and which dataset they are of"


@pytest.fixture(scope="module")
def unzipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("format2")
    with zipfile.ZipFile(Path(__file__).parent / "data/format2.zip") as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture
def old(unzipped: Path, tmp_path: Path) -> Path:
    """Return a copy of one's own: `cache`, the jobs that built it, `students.toml` and the run that it made."""
    shutil.copytree(unzipped, tmp_path / "old")
    return tmp_path / "old"


@pytest.fixture(scope="module")
def built(unzipped: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy in which `cache build` has made what was missing."""
    folder = tmp_path_factory.mktemp("built") / "old"
    shutil.copytree(unzipped, folder)
    done = run_program("cache", "build", folder / "images.cache.toml", "--json")
    assert (done.returncode, json.loads(done.stdout)["built"]) == (0, 1), done.stderr
    return folder


def test_it_verifies(old: Path) -> None:
    found = verify(Cache.open(str(old / "cache")))
    assert (found.bad, found.garbage, found.shards > 10) == ((), (), True)


def test_its_own_job_builds_exactly_the_one_missing_shard(unzipped: Path, built: Path) -> None:
    before, after = contents(unzipped / "cache"), contents(built / "cache")
    assert after.keys() - before.keys() == {str(MISSING)}
    assert {key: after[key] for key in before} == before


def test_what_is_added_is_of_format_2_too(built: Path) -> None:
    cache = Cache.open(str(built / "cache"))
    proof = unseal(cache.objects.get(MISSING.commit_path)).about
    assert sorted(proof) == ["about", "attempt", "key", "objects", "rows"]
    assert proof["about"]["promise"] == json.loads(cache.objects.get("pictures/dense/teacher.json"))["digest"]
    assert list((built / "cache").rglob("*.zip")) == []
    assert verify(cache).bad == ()


def test_a_job_with_nothing_to_do_writes_nothing(built: Path, program: Program) -> None:
    before = {path: path.stat().st_mtime_ns for path in (built / "cache").rglob("*") if path.is_file()}
    done = program("cache", "build", built / "images.cache.toml", "--json")
    assert (done.code, json.loads(done.out)["built"]) == (0, 0), done.err
    assert {path: path.stat().st_mtime_ns for path in (built / "cache").rglob("*") if path.is_file()} == before


def test_text_whose_file_was_touched_is_compared_and_not_built_again(old: Path, program: Program) -> None:
    before = contents(old / "cache")
    done = program("cache", "build", old / "text.cache.toml", "--json")
    assert (done.code, json.loads(done.out)["built"]) == (0, 0), done.err
    assert contents(old / "cache") == before


def test_its_finished_run_is_skipped_and_a_new_student_trains_from_it(built: Path, program: Program) -> None:
    job = built / "students.toml"
    done = program("student", "train", job, "--json")
    assert done.code == 0, done.err
    assert "before, skipped" in done.err
    text = job.read_text()
    job.write_text(text + text[text.index("[[student]]") :].replace('name = "small"', 'name = "second"'))
    done = program("student", "train", job, "--json")
    assert done.code == 0, done.err
    assert json.loads((built / "runs/second/run.json").read_text())["status"] == "finished"


@pytest.mark.parametrize(
    "command",
    [
        ("cache", "build", "images.cache.toml"),
        ("cache", "verify", "cache"),
        ("cache", "status", "cache"),
        ("student", "train", "students.toml"),
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_what_it_cannot_prove_is_told_once(built: Path, program: Program, command: tuple[str, str, str]) -> None:
    done = program(*command[:2], built / command[2])
    assert " ".join(done.err.split()).count(NOTE) == 1, done.err


def test_a_recoding_of_it_is_of_format_3(built: Path, tmp_path: Path, program: Program) -> None:
    job = built / "images.cache.toml"
    small = job.with_name("small.toml")
    small.write_text(job.read_text().replace('cache = "cache"', f'cache = "{tmp_path / "small"}"'))
    done = program("cache", "recode", built / "cache", small, "--json")
    assert done.code == 0, done.err
    cache = Cache.open(str(tmp_path / "small"))
    assert (cache.spec.format, verify(cache).bad) == (3, ())
    commit = cache.commit(ShardKey("pictures", None, "plain", 0), with_table=True)
    assert commit.belonging == cache.promises.of("pictures")
    assert "digest" in commit.table.column_names  # payload and label cannot be told apart any more
    done = program("cache", "build", small, "--json")
    assert (done.code, json.loads(done.out)["built"]) == (0, 0), done.err


def test_what_format_2_has_no_place_for_is_refused_before_anything_is_written(old: Path) -> None:
    before = sorted((old / "cache").rglob("*"))
    job = write_job(old, write_texts(old))
    with pytest.raises(BadRequest) as caught:
        build(job)
    assert (caught.value.what, caught.value.found, caught.value.do) == (
        f"{old / 'cache'} is of format 2, which has no place for texts",
        "own_length, task text_classification",
        f"cache build {job} --as NAME    # a new cache beside it; this one stays as it is",
    )
    assert sorted((old / "cache").rglob("*")) == before
