"""What users see of texts: the two programs and the report."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage.cache import Cache
from student_train.report import write_report
from student_train.running.train import train_students
from tests.teacher_cache.toys import run_program
from tests.texts.toys import looking_teacher, request, small_encoder, text_cache


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shown")
    cache: Cache = text_cache(folder, looking_teacher(), count=90)
    train_students(request(cache, folder / "runs", small_encoder(epochs=1), small_encoder("other", seed=1, epochs=1)))
    return folder / "runs"


def test_students_are_compared_by_accuracy_and_macro_f1(runs: Path) -> None:
    done = run_program("student", "compare", runs)
    assert done.returncode == 0, done.stderr
    assert "macro-F1" in done.stdout
    assert max(map(len, done.stdout.replace(str(runs), "").splitlines())) <= 80


def test_the_report_shows_texts_that_the_student_gets_wrong_and_macro_f1(runs: Path, tmp_path: Path) -> None:
    write_report(runs, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "macro-F1" in page
    assert '<ul class="texts">' in page
    assert any(f"{word} " in page for word in ("fish", "fowl", "plant"))
    assert "are not shown" not in page
