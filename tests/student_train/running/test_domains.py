"""Students of several datasets at once, each dataset with its own teacher."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from storage.cache import Cache
from storage.encodings import SparseEncoding
from storage.errors import BadRequest, IncompleteCache, MissingCapability, NotInCache, StillroomError
from storage.format.specs import ViewsSpec, write_spec
from student_train.comparing.answers import read_answers
from student_train.comparing.compared import _scores
from student_train.comparing.figures import GAINS
from student_train.comparing.runs import gather_runs
from student_train.options.sections import DataOptions, FleetOptions
from student_train.preparing.dry_run import dry_run
from student_train.preparing.request import Request
from student_train.report.measures import accuracy_of, cross_entropy_of
from student_train.run_files.predictions import read_predictions
from student_train.running.train import train_students
from tests.student_train.running.test_loop import weights
from tests.student_train.toys import HINT, KD, LABELS, Recipe, request_of, student, write_cache

LAW = Recipe(dataset="law", rows=110, teacher_name="lawyer", seed=1)
CODE = Recipe(dataset="code", rows=130, teacher_name="coder", seed=2, sureness=1.0)
OWN = {"law": "lawyer", "code": "coder"}
TAUGHT = [LABELS, KD | {"teacher": OWN}, HINT | {"teacher": OWN}]


def write_both(folder: Path, law: Recipe = LAW, code: Recipe = CODE) -> Cache:
    write_cache(folder, law)
    return write_cache(folder, code)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return write_both(tmp_path_factory.mktemp("domains") / "cache")


def asked(cache: Cache, runs: Path, *objectives: list[dict[str, Any]], **data: Any) -> Request:
    rows = {"train": ["law/train", "code/train"], "validation": ["law/validation", "code/validation"]}
    students = [student(f"s{number}", objective=each) for number, each in enumerate(objectives)]
    return request_of(cache, runs, *students, **rows | data)


def refusal(cache: Cache, tmp_path: Path, objective: list[dict[str, Any]], **data: Any) -> StillroomError:
    with pytest.raises(StillroomError) as refused:
        dry_run(asked(cache, tmp_path / "runs", objective, **data))
    return refused.value


def test_a_student_is_trained_on_several_datasets_each_with_its_teacher(cache: Cache, tmp_path: Path) -> None:
    request = asked(cache, tmp_path, TAUGHT)
    (record,) = train_students(request).records
    assert record.status == "finished"
    assert record.identity["data"]["train"] == ["law/train", "code/train"]
    assert sorted(record.identity["datasets"]) == ["code", "law"]
    assert sorted(record.identity["teachers"]) == ["code/coder", "law/lawyer"]
    assert record.identity["train_rows"].startswith("192, ")
    assert train_students(request).records == (record,)  # again: nothing to do


def test_one_name_for_all_is_the_same_as_that_name_for_each(tmp_path: Path) -> None:
    cache = write_both(tmp_path / "cache", replace(LAW, teacher_name="sage"), replace(CODE, teacher_name="sage"))
    each = [KD | {"teacher": {"code": "sage", "law": "sage"}}]
    assert train_students(asked(cache, tmp_path / "runs", [KD], each)).exit_code == 0
    assert weights(tmp_path / "runs", "s0") == weights(tmp_path / "runs", "s1")


def test_of_one_dataset_a_teacher_may_be_named_by_it(toy_cache: Cache, tmp_path: Path) -> None:
    students = [student("a", objective=[KD]), student("b", objective=[KD | {"teacher": {"toy": "sage"}}])]
    assert train_students(request_of(toy_cache, tmp_path, *students)).exit_code == 0
    assert weights(tmp_path, "a") == weights(tmp_path, "b")


def test_a_teacher_is_asked_by_nobody_of_rows_that_are_not_its_own(cache: Cache, tmp_path: Path) -> None:
    error = refusal(cache, tmp_path, [KD | {"teacher": "lawyer"}])
    assert isinstance(error, NotInCache)
    assert "code" in error.what


@pytest.mark.parametrize(
    ("teacher", "what"),
    [
        ({"law": "lawyer"}, "a term names no teacher of code"),
        (OWN | {"lore": "lawyer"}, "a term names a teacher of lore, on which nobody is trained"),
    ],
)
def test_a_term_names_a_teacher_for_each_dataset_and_no_other(
    cache: Cache, tmp_path: Path, teacher: dict[str, str], what: str
) -> None:
    error = refusal(cache, tmp_path, [KD | {"teacher": teacher}])
    assert (type(error), error.what) == (BadRequest, what)


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (
            replace(CODE, encoding=SparseEncoding(kind="sparse", k=2, temperatures=[1.0, 2.0])),
            "encoding of lawyer and coder",
        ),
        (replace(CODE, logits_dtype="fp32"), "encoding of lawyer and coder"),
        (replace(CODE, features={"pooled": "none"}), "feature pooled of lawyer and coder"),
    ],
)
def test_teachers_that_are_named_together_lie_alike_in_the_cache(tmp_path: Path, code: Recipe, told: str) -> None:
    error = refusal(write_both(tmp_path / "cache", code=code), tmp_path, TAUGHT)
    assert isinstance(error, MissingCapability)
    assert error.what == f"rows of law and code cannot be learned from together: they differ in the {told}"
    assert str(error.found).startswith("code: ")
    assert str(error.expected).startswith("as of law: ")


@pytest.mark.parametrize(
    "code",
    [
        replace(CODE, class_names=("class 1", "class 0", "class 2", "class 3")),  # the same names in another order
        replace(CODE, shape=(1, 6, 7)),
        replace(CODE, classes=3),
    ],
)
def test_datasets_that_differ_in_what_a_row_is_are_refused(tmp_path: Path, code: Recipe) -> None:
    error = refusal(write_both(tmp_path / "cache", code=code), tmp_path, [LABELS])
    assert (type(error), error.what) == (BadRequest, "code cannot be trained on together with law")


def test_a_dataset_is_named_once(cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='a dataset is named once, "<dataset>" for both of its halves'):
        DataOptions.model_validate({"train": ["law/train", "law/validation"], "validation": "code"})


def test_a_list_of_one_is_that_one(toy_cache: Cache, tmp_path: Path) -> None:
    request = request_of(toy_cache, tmp_path, train=["toy/train"], validation=["toy/validation"])
    assert request.data == request_of(toy_cache, tmp_path).data


def test_views_of_several_datasets_are_refused(tmp_path: Path) -> None:
    cache = write_both(tmp_path / "cache")
    spec = ViewsSpec(name="law", seed=0, transforms=({"kind": "flip"},))
    write_spec(cache.objects, "law/views.json", spec, "test")
    assert refusal(cache, tmp_path, TAUGHT).found == "views of law"
    assert refusal(cache, tmp_path, TAUGHT, views=2).found == "views = 2 in the job"
    assert len(dry_run(asked(cache, tmp_path / "runs", TAUGHT, views=0)).students) == 1


def test_shards_that_are_missing_of_one_dataset_are_named(tmp_path: Path) -> None:
    cache = write_both(tmp_path / "cache", code=replace(CODE, no_teacher=frozenset({1})))
    error = refusal(cache, tmp_path, TAUGHT)
    assert (type(error), error.found) == (IncompleteCache, "teacher coder: no shard 1")


def test_predictions_of_several_datasets_say_whose_each_row_is(cache: Cache, tmp_path: Path) -> None:
    train_students(asked(cache, tmp_path, TAUGHT))
    predictions = read_predictions(tmp_path / "s0")
    assert predictions is not None
    assert predictions.datasets == ["law", "code"]
    table = predictions.table
    assert table["dataset"].to_list() == ["law"] * 22 + ["code"] * 26
    samples = cache.samples().of("code", ["coder"]).filter(split="validation")
    of_code = table.filter(dataset="code")
    assert of_code["row"].to_list() == samples["row"].to_list()
    assert of_code["teacher_top"].to_list() == samples["coder_top"].to_list()


def test_runs_are_told_with_all_of_their_rows(cache: Cache, tmp_path: Path) -> None:
    train_students(asked(cache, tmp_path, [LABELS]))
    (run,) = gather_runs(tmp_path)
    assert run.rows_of("validation") == ("law/validation", "code/validation")
    assert not run.measures_trained_rows


def test_each_dataset_has_the_figures_of_its_own_rows(cache: Cache, tmp_path: Path) -> None:
    (record,) = train_students(asked(cache, tmp_path, TAUGHT)).records
    predictions = read_predictions(tmp_path / "s0")
    assert predictions is not None
    assert list(record.by_dataset) == ["law", "code"]
    for (dataset,), table in predictions.table.group_by("dataset"):
        own = record.by_dataset[str(dataset)]
        assert own.rows == len(table)
        assert own.accuracy == pytest.approx(accuracy_of(table))
        assert own.cross_entropy == pytest.approx(cross_entropy_of(table), rel=1e-5)
        assert own.agreement == pytest.approx((table["top"] == table["teacher_top"]).mean())


def test_a_stack_has_the_figures_of_each_dataset_as_one_alone_has(cache: Cache, tmp_path: Path) -> None:
    request = asked(cache, tmp_path, TAUGHT, [LABELS])
    found = [
        {record.student: record.by_dataset for record in train_students(each).records}
        for each in (
            replace(request, runs=tmp_path / stacking, fleet=FleetOptions(stacking=stacking))
            for stacking in ("always", "never")
        )
    ]
    for name, alone in found[1].items():
        for dataset, own in alone.items():
            assert found[0][name][dataset].cross_entropy == pytest.approx(own.cross_entropy, rel=1e-4)


def test_rows_of_one_number_in_two_datasets_are_two_rows(cache: Cache, tmp_path: Path) -> None:
    train_students(asked(cache, tmp_path, TAUGHT))
    answers = read_answers(tmp_path / "s0")
    assert answers is not None
    assert answers.table["row"].n_unique() < len(answers.table) == 48
    scores_R = _scores(answers.table, GAINS["accuracy"], "")
    assert scores_R is not None
    assert (len(scores_R), set(scores_R.tolist()) <= {0.0, 1.0}) == (48, True)
