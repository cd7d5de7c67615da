"""A bucket that is not there: every command that takes an address says so in words, and ends with 2."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.conftest import Program
from tests.student_train.toys import Recipe, write_cache
from tests.student_train.using.toys import train_pictures

NONE = "s3://no-such-bucket-of-ours"
CACHE, RUN, DATA = f"{NONE}/cache", f"{NONE}/runs/a", f"{NONE}/photos"
BUILD = """
cache = {cache!r}

[[dataset]]
name = "x"
kind = "image_folder"
path = {data!r}
size = 8
"""
TRAIN = f"""
cache = {CACHE!r}
runs = "runs"
train = "x"
validation = "x"

[[student]]
name = "a"
architecture = "mlp"
objective = [{{ loss = "labels" }}]
"""
COMMANDS = [
    f"cache build to.toml | cache build to.toml --dry-run | cache build from.toml | cache status {CACHE}",
    f"cache status to.toml | cache info {CACHE} | cache query {CACHE} SELECT | cache verify {CACHE}",
    f"cache verify {CACHE} --repair | cache gc {CACHE} | cache gc {CACHE} --dry-run | cache publish {CACHE}",
    f"cache copy {CACHE} copied | cache copy here {NONE}/copied | cache compact {CACHE} less",
    f"cache compact here {NONE}/less | cache diff {CACHE} here | cache diff here {CACHE}",
    f"cache recode {CACHE} to.toml",
    f"student train train.toml | student train train.toml --dry-run | student compare {NONE}/runs",
    f"student report {NONE}/runs --out page.html | student eval {RUN} x | student predict {RUN} a.npy",
    f"student export {RUN} -o out",
]
OF_A_STUDENT = (
    f"student eval RUN {DATA} | student eval RUN x --cache {CACHE} | student predict RUN {DATA}"
    f" | student export RUN --format onnx -o out --cache {CACHE} | student report RUNS --cache {CACHE} --out page.html"
)


def check(program: Program, lines: str) -> None:
    for line in lines.split(" | "):
        ended = program(*line.split())
        assert (ended.code, "Traceback" in ended.err) == (2, False), (line, ended.err)
        assert "there is no such bucket\n  found     404 Not Found, NoSuchBucket" in ended.err, (line, ended.err)
        assert f" {NONE}" in ended.err, line
        assert "\n  do        check the address, or make the bucket" in ended.err, (line, ended.err)
        for never in ("<?xml", "<Error>", "retry"):
            assert never not in ended.err, (line, ended.err)


@pytest.fixture
def place(tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STILLROOM_SOURCES", str(tmp_path / "copies"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos" / "red").mkdir(parents=True)
    (tmp_path / "to.toml").write_text(BUILD.format(cache=CACHE, data="photos"))
    (tmp_path / "from.toml").write_text(BUILD.format(cache="cache", data=DATA))
    (tmp_path / "train.toml").write_text(TRAIN)
    np.save("a.npy", np.zeros((2, 3, 8, 8), np.uint8))
    return tmp_path


@pytest.mark.parametrize("lines", COMMANDS)
def test_a_bucket_that_is_not_there_is_a_bad_request_in_words(place: Path, program: Program, lines: str) -> None:
    write_cache(place / "here", Recipe(rows=4, shape=(3, 8, 8)))
    check(program, lines)


@pytest.mark.slow
def test_it_is_so_too_for_what_a_settled_student_is_asked_about(place: Path, program: Program) -> None:
    run = train_pictures(place / "student")
    check(program, OF_A_STUDENT.replace("RUNS", str(run.parent)).replace("RUN", str(run)))
