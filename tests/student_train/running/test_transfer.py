"""Students that are taught on rows without labels, beside rows that have some."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from storage.cache import Cache
from storage.errors import BadRequest
from student_train.options.sections import FleetOptions
from student_train.preparing.dry_run import dry_run
from student_train.running.train import train_students
from student_train.using.answering import load_answerer
from student_train.using.evaluating.evaluate import evaluate_rows, find_rows
from tests.student_train.running.test_domains import CODE, KD, LABELS, LAW, OWN, asked, write_both
from tests.student_train.running.test_loop import weights
from tests.student_train.toys import write_cache

SOME = LABELS | {"where_labelled": True}
TAUGHT = KD | {"teacher": OWN}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    code = replace(CODE, unlabelled=frozenset(range(CODE.rows)))
    return write_both(tmp_path_factory.mktemp("transfer") / "cache", code=code)


def test_rows_of_a_transfer_set_are_learned_from_by_their_teacher_alone(cache: Cache, tmp_path: Path) -> None:
    objectives = [SOME, TAUGHT], [TAUGHT], [SOME | {"weight": 1e-6}, TAUGHT]
    request = asked(cache, tmp_path, *objectives)
    assert dry_run(request).warnings[0] == "note: labels are of 88 of 88 rows of law, 0 of 104 rows of code"
    records = train_students(replace(request, fleet=FleetOptions(stacking="never"))).records
    assert [record.status for record in records] == ["finished"] * 3
    assert len({weights(tmp_path, f"s{number}") for number in range(3)}) == 3
    assert records[0].by_dataset["code"].accuracy is None
    assert records[0].by_dataset["code"].agreement is not None
    student = load_answerer(tmp_path / "s0", device="cpu")
    seen = evaluate_rows(student, find_rows(student, "code/validation", cache=None, teacher="coder", labels=None))
    assert (seen.rows, seen.counts, seen.figures.accuracy) == (26, None, None)
    assert seen.figures.agreement == pytest.approx(records[0].by_dataset["code"].agreement)
    stacked = replace(request, runs=tmp_path / "stacked", fleet=FleetOptions(stacking="always"))
    found = train_students(stacked).records
    assert [r.cross_entropy for r in found] == pytest.approx([r.cross_entropy for r in records], rel=1e-4)


def test_where_all_rows_are_labelled_it_is_the_same(tmp_path: Path) -> None:
    cache = write_both(tmp_path / "cache")
    assert train_students(asked(cache, tmp_path / "runs", [SOME, TAUGHT], [LABELS, TAUGHT])).exit_code == 0
    assert weights(tmp_path / "runs", "s0") == weights(tmp_path / "runs", "s1")


def test_rows_without_labels_are_refused_unless_the_term_says_so(cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="104 of 104 rows of code/train have none") as refused:
        dry_run(asked(cache, tmp_path, [LABELS, TAUGHT]))
    assert "where_labelled = true" in str(refused.value.do)


def test_labels_of_no_row_are_refused(cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="there are none"):
        dry_run(asked(cache, tmp_path, [SOME], train=["code/train"], validation="law/validation"))


def test_a_transfer_set_of_other_classes_is_refused_by_name(tmp_path: Path) -> None:
    write_cache(tmp_path / "cache", LAW)
    names = ("class 0", "class 1", "class 2", "cat")
    cache = write_cache(tmp_path / "cache", replace(CODE, unlabelled=frozenset(range(CODE.rows)), class_names=names))
    with pytest.raises(BadRequest, match="code cannot be trained on together with law"):
        dry_run(asked(cache, tmp_path, [SOME, TAUGHT]))
