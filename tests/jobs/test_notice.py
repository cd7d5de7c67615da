"""What may be done with a cache, as its job says it: written before the first row, and never lost on the way."""

from __future__ import annotations

from pathlib import Path

from storage.cache import Cache
from tests.conftest import Program
from tests.teacher_cache.toys import teacher_section, write_digits, write_job, write_teacher

TEXT = "Licensed to you alone."


def job_of(folder: Path, cache: str, notice: str | None, *sections: str) -> Path:
    path = write_job(folder, *sections)
    said = "" if notice is None else f"notice = {notice!r}\n"
    path.write_text(said + path.read_text().replace('cache = "cache"', f'cache = "{cache}"'))
    return path


def test_a_notice_of_the_job_is_in_the_cache_and_in_what_is_made_of_it(tmp_path: Path, program: Program) -> None:
    write_teacher(tmp_path)
    sections = (write_digits(tmp_path, 8), teacher_section())
    for text, told in (("", "expected"), ("x" * 70_000, "70,000 bytes")):
        refused = program("cache", "build", job_of(tmp_path, "cache", text, *sections))
        assert (refused.code, told in refused.err) == (2, True), refused.err
    assert program("cache", "build", job_of(tmp_path, "cache", None, *sections)).code == 0
    assert Cache.open(str(tmp_path / "cache")).notice is None
    # nothing of the rows is missing, and the notice is
    job = job_of(tmp_path, "cache", f" {TEXT} ", *sections)
    assert [program("cache", "build", job).code for _ in range(2)] == [0, 0]
    assert Cache.open(str(tmp_path / "cache")).notice == TEXT
    other = program("cache", "build", job_of(tmp_path, "cache", "Anybody may have it.", *sections))
    assert (other.code, "has another notice already" in other.err) == (2, True)
    smaller = job_of(tmp_path, "smaller", None, *sections)
    assert program("cache", "recode", tmp_path / "cache", smaller).code == 0
    assert Cache.open(str(tmp_path / "smaller")).notice == TEXT
    assert program("cache", "compact", tmp_path / "cache", tmp_path / "large").code == 0
    assert Cache.open(str(tmp_path / "large")).notice == TEXT
