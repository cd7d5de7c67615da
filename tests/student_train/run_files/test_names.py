"""A run is its student's, and whole: a folder of another name, and one whose weights are gone, are named."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from storage.cache import Cache
from storage.errors import Interrupted, StaleCache
from storage.format.sealed import read_json
from student_train.options.sections import FleetOptions
from student_train.preparing.dry_run import dry_run
from student_train.run_files.comparison import compare_runs
from student_train.running.events import Event, ResultLost, StudentSkipped
from student_train.running.train import train_students
from student_train.students.files import BLUEPRINT_FILE, WEIGHTS_FILE
from tests.damage import edit_json
from tests.student_train.running.test_fleet import HALVING, RATES, train
from tests.student_train.running.test_loop import stop_after, weights
from tests.student_train.toys import request_of, student


def test_a_renamed_run_is_nobodys_but_its_own(toy_cache: Cache, tmp_path: Path) -> None:
    train_students(request_of(toy_cache, tmp_path, student("a")))
    (tmp_path / "a").rename(tmp_path / "b")
    with pytest.raises(StaleCache) as refusal:
        train_students(request_of(toy_cache, tmp_path, student("b")))
    assert (refusal.value.found, refusal.value.expected) == ("student a", "student b")
    assert refusal.value.do == (f"mv {tmp_path}/b {tmp_path}/a; or, to train b from its first step: rm -r {tmp_path}/b")
    (row,) = compare_runs(tmp_path).to_dicts()
    assert (row["student"], row["status"], row["error"]) == ("b", "finished", "renamed, or a copy: the run of a")


def test_a_renamed_run_that_is_not_settled_is_refused_too(toy_cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train_students(request_of(toy_cache, tmp_path, student("a")), stop=stop_after(15))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    with pytest.raises(StaleCache, match="another student") as refusal:
        train_students(request_of(toy_cache, tmp_path, student("b")))
    # beside its original it is a copy, and not to be moved there
    assert refusal.value.do == f"to train b from its first step: rm -r {tmp_path}/b"


def test_a_checkpoint_of_before_says_no_name_and_is_gone_on_from(toy_cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train_students(request_of(toy_cache, tmp_path, student("a")), stop=stop_after(15))
    assert read_json(tmp_path / "a/checkpoint.json")["student"] == "a"
    edit_json(tmp_path / "a/checkpoint.json", student=None)
    assert train_students(request_of(toy_cache, tmp_path, student("a"))).records[0].status == "finished"


@pytest.mark.parametrize("files", [(WEIGHTS_FILE,), (BLUEPRINT_FILE,), (BLUEPRINT_FILE, WEIGHTS_FILE)])
def test_a_run_whose_weights_are_gone_is_trained_again_and_told(
    toy_cache: Cache, tmp_path: Path, files: tuple[str, ...]
) -> None:
    request = request_of(toy_cache, tmp_path, student("a"), student("whole", epochs=1))
    request = replace(request, fleet=FleetOptions(stacking="never"))  # alone, as it is the second time
    train_students(request)
    before = weights(tmp_path, "a")
    for name in files:
        (tmp_path / "a" / name).unlink()
    assert compare_runs(tmp_path).filter(student="a")["status"].to_list() == ["lost"]
    are = "are" if files[1:] else "is"
    why = f"trained before, but {' and '.join(files)} {are} gone; it is trained from its first step"
    foreseen = dry_run(request)
    assert ([each.action for each in foreseen.students], foreseen.warnings) == (["train", "skip"], (f"a: {why}",))
    told: list[Event] = []
    train_students(request, report=told.append)
    assert [event for event in told if isinstance(event, ResultLost)] == [ResultLost("a", why)]
    assert [event.record.student for event in told if isinstance(event, StudentSkipped)] == ["whole"]
    assert weights(tmp_path, "a") == before


def test_weights_of_another_run_are_not_taken_for_ones_own(toy_cache: Cache, tmp_path: Path) -> None:
    request = request_of(toy_cache, tmp_path, student("a"), student("b", seed=1))
    request = replace(request, fleet=FleetOptions(stacking="never"))
    train_students(request)
    before = weights(tmp_path, "a")
    for name in (BLUEPRINT_FILE, WEIGHTS_FILE):
        (tmp_path / "a" / name).write_bytes((tmp_path / "b" / name).read_bytes())
    (why,) = compare_runs(tmp_path).filter(status="lost").select("student", "error").iter_rows()
    assert why == ("a", "gone: its own student.json")
    told: list[Event] = []
    train_students(request, report=told.append)
    assert [event.student for event in told if isinstance(event, ResultLost)] == ["a"]
    assert weights(tmp_path, "a") == before


def test_a_student_that_was_set_aside_stays_so_and_its_weights_are_told_to_be_gone(
    toy_cache: Cache, tmp_path: Path
) -> None:
    students = [student(f"s{i}", learning_rate=rate, epochs=4) for i, rate in enumerate(RATES)]
    before = train(toy_cache, tmp_path, *students, fleet=HALVING)
    (stopped, *_) = [record.student for record in before.records if record.status == "stopped"]
    (finished, *_) = [record.student for record in before.records if record.status == "finished"]
    expected = weights(tmp_path, finished)
    for name in (stopped, finished):
        (tmp_path / name / WEIGHTS_FILE).unlink()
    after = train(toy_cache, tmp_path, *students, fleet=HALVING)
    assert [record.status for record in after.records] == [record.status for record in before.records]
    assert weights(tmp_path, finished) == expected
    lost = compare_runs(tmp_path).filter(status="lost")
    assert (lost["student"].to_list(), lost["error"].to_list()) == ([stopped], [f"gone: {WEIGHTS_FILE}"])
