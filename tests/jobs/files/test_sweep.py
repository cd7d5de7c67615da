from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.files.reading import read_job
from jobs.files.student_job import StudentJob
from jobs.files.sweep import expand
from storage.errors import BadJob
from student_train.options.sections import StudentOptions
from tests.conftest import Program

REPOSITORY = Path(__file__).parents[3]
DATA = 'cache = "c"\nruns = "r"\ntrain = "d/train"\nvalidation = "d/validation"\n'
STUDENT = (
    '[[student]]\nname = "s"\narchitecture = "mlp"\n'
    'objective = [{ loss = "labels" }, { loss = "kd", teacher = "t", temperature = 3.0 }]\n'
)
OTHER = STUDENT.replace('"s"', '"t"')
TWO_KD = STUDENT.replace('{ loss = "labels" }', '{ loss = "kd", teacher = "u" }')


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "job.toml"


def students(path: Path, text: str) -> list[StudentOptions]:
    path.write_text(DATA + text)
    return read_job(path, StudentJob).student


def names(path: Path, text: str) -> list[str]:
    return [student.name for student in students(path, text)]


def mistakes(path: Path, text: str) -> list[str]:
    with pytest.raises(BadJob) as caught:
        students(path, text)
    assert caught.value.found is not None
    return caught.value.found.split("\n")


def test_a_sweep_gives_every_combination_and_its_first_key_varies_slowest(path: Path) -> None:
    fleet = students(path, STUDENT + "[student.sweep]\nlearning_rate = [0.03, 0.01]\nseed = [0, 1]\n")
    assert [(s.name, s.learning_rate, s.seed) for s in fleet] == [
        ("s-learning_rate_0.03-seed_0", 0.03, 0),
        ("s-learning_rate_0.03-seed_1", 0.03, 1),
        ("s-learning_rate_0.01-seed_0", 0.01, 0),
        ("s-learning_rate_0.01-seed_1", 0.01, 1),
    ]


@pytest.mark.parametrize(
    "sweep",
    [
        "[student.sweep]\noptions.hidden = [[16], [8, 8], []]\n",
        '[student.sweep]\n"options.hidden" = [[16], [8, 8], []]\n',
        "[student.sweep.options]\nhidden = [[16], [8, 8], []]\n",
    ],
)
def test_dots_quotes_and_tables_lead_deeper_alike(path: Path, sweep: str) -> None:
    fleet = students(path, STUDENT + "options = { dropout = 0.1 }\n" + sweep)
    assert {s.name: s.options for s in fleet} == {
        "s-hidden_16": {"dropout": 0.1, "hidden": [16]},
        "s-hidden_8_8": {"dropout": 0.1, "hidden": [8, 8]},
        "s-hidden_none": {"dropout": 0.1, "hidden": []},
    }


def test_a_term_is_known_by_its_loss_and_by_its_position(path: Path) -> None:
    sweep = '[student.sweep]\nobjective.kd.temperature = [2, 4]\n"objective.0.weight" = [0.5]\n'
    fleet = students(path, STUDENT + sweep)
    assert [[term.model_dump(include={"weight", "temperature"}) for term in s.objective] for s in fleet] == [
        [{"weight": 0.5}, {"weight": 1.0, "temperature": temperature}] for temperature in (2.0, 4.0)
    ]


def test_keys_in_one_string_vary_together(path: Path) -> None:
    sweep = '"objective.labels.weight, objective.kd.weight" = [[0.9, 0.1], [0.5, 0.5]]\nseed = [7]\n'
    fleet = students(path, f"{STUDENT}[student.sweep]\n{sweep}")
    assert [(s.name, *(term.weight for term in s.objective)) for s in fleet] == [
        ("s-labels.weight_0.9-kd.weight_0.1-seed_7", 0.9, 0.1),
        ("s-labels.weight_0.5-kd.weight_0.5-seed_7", 0.5, 0.5),
    ]


def test_students_keep_the_order_of_the_file(path: Path) -> None:
    assert names(path, OTHER + STUDENT + "[student.sweep]\nseed = [1, 0]\n") == ["t", "s-seed_1", "s-seed_0"]


def test_students_of_a_sweep_share_nothing_that_varies(path: Path) -> None:
    text = f"[defaults]\noptions = {{ dropout = 0.1 }}\n{STUDENT}[student.sweep.options]\nhidden = [[1], [2]]\n"
    assert [s.options for s in students(path, text + OTHER)] == [
        {"dropout": 0.1, "hidden": [1]},
        {"dropout": 0.1, "hidden": [2]},
        {"dropout": 0.1},
    ]


def test_a_sweep_of_the_defaults_is_that_of_every_student_without_one(path: Path) -> None:
    entries = [STUDENT.replace('"s"', f'"{name}"') for name in "abc"]
    text = f"[defaults.sweep]\nseed = [1, 2]\n{entries[0]}{entries[1]}sweep.epochs = [3]\n{entries[2]}sweep = {{}}\n"
    assert names(path, text) == ["a-seed_1", "a-seed_2", "b-epochs_3", "c"]


def test_a_swept_value_replaces_what_the_student_and_the_defaults_say(path: Path) -> None:
    text = f"[defaults]\nseed = 5\n{STUDENT}epochs = 5\n[student.sweep]\nseed = [1]\nepochs = [2]\n"
    assert [(s.seed, s.epochs) for s in students(path, text)] == [(1, 2)]


def test_a_sweep_may_give_what_a_student_must_have(path: Path) -> None:
    text = STUDENT.replace('architecture = "mlp"\n', "") + '[student.sweep]\narchitecture = ["cnn", "mlp"]\n'
    assert [(s.name, s.architecture) for s in students(path, text)] == [
        ("s-architecture_cnn", "cnn"),
        ("s-architecture_mlp", "mlp"),
    ]


@pytest.mark.parametrize(
    ("sweep", "name"),
    [
        ("weight_decay = [1e-5]", "s-weight_decay_1e-05"),
        ("learning_rate = [1.0]", "s-learning_rate_1"),
        ("compile = [true]", "s-compile_true"),
        ('optimizer = ["sgd"]', "s-optimizer_sgd"),
        ('objective.kd.teacher = ["resnet-9.b"]', "s-teacher_resnet-9.b"),
        ('"options.hidden.0" = [3]\noptions.dropout = [0.5]', "s-hidden.0_3-dropout_0.5"),
        ("mean = [[0.25, 0.5, 0.75]]", "s-mean_0.25_0.5_0.75"),
        ("objective.kd.weight = [0.5]\nweight_decay = [0.1]", "s-weight_0.5-weight_decay_0.1"),
        ("objective.kd.weight = [0.5]\nobjective.labels.weight = [1]", "s-kd.weight_0.5-labels.weight_1"),
        ("learning_rate = [0.1]\nobjective.kd.temperature = [2]\nweight_decay = [0]", "s-lr_0.1-t_2-wd_0"),
        ("learning_rate=[0.1]\noptions.width=[2]\nobjective.kd.weight=[3]\nseed=[0]\nepochs=[1]", None),
        ('architecture = ["lib.nets:tiny"]', "s-architecture_lib.nets_tiny_2fe0ec3bb4"),
    ],
)
def test_a_name_is_made_from_what_varies(path: Path, sweep: str, name: str | None) -> None:
    text = STUDENT + "options = { hidden = [9] }\n[student.sweep]\n" + sweep
    assert names(path, text) == [name or "s-lera_0.1-wi_2-we_3-se_0-ep_1"]


def test_a_name_that_is_too_long_ends_in_its_digest(path: Path) -> None:
    text = STUDENT.replace('"s"', f'"{"s" * 60}"') + "[student.sweep]\nseed = [1, 2, 3]\n"
    found = names(path, text)
    assert {len(name) for name in found} == {64}
    assert {name[:54] for name in found} == {"s" * 53 + "-"}
    assert len(set(found)) == 3


def test_keys_that_no_cut_tells_apart_are_called_in_full(path: Path) -> None:
    sweep = "[student.sweep.options]\na_b1234567890 = [1]\nab1234567890 = [2]\na1234567890 = [3]\n"
    assert names(path, STUDENT + sweep) == ["s-a_b1234567890_1-ab1234567890_2-a1234567890_3"]


def test_texts_that_imitate_a_key_are_refused_when_two_names_become_one(path: Path) -> None:
    sweep = '[student.sweep.options]\nx = ["a", "a-y_b"]\ny = ["b-y_c", "c"]\n'
    assert mistakes(path, STUDENT + sweep) == ["two [[student]] are named s-x_a-y_b-y_c"]


@pytest.mark.parametrize(
    ("sweep", "mistake"),
    [
        ("lerning_rate = [0.1, 0.2]", "student[0].sweep.lerning_rate: unknown key; did you mean `learning_rate`?"),
        (
            "objective.kd.temprature = [1, 2]",
            "student[0].sweep.objective.kd.temprature: unknown key; did you mean `temperature`?",
        ),
        ("optoins.hidden = [[1]]", "student[0].sweep.optoins.hidden: unknown key; did you mean `options`?"),
        ("seed = 3", "student[0].sweep.seed: write a list of values (found 3)"),
        ("seed = []", "student[0].sweep.seed: an empty list; give it values, or leave it out"),
        ("learning_rate = [1, 2, 1.0]", "student[0].sweep.learning_rate: 1.0 repeats 1"),
        ('seed = [0, "one"]', "student[0].sweep.seed[1]: expected a whole number (found 'one')"),
        (
            "objective.kd.temperature = [4, -1]",
            "student[0].sweep.objective.kd.temperature[1]: expected more than 0 (found -1)",
        ),
        ("mean = [[0.5], []]", "student[0].sweep.mean[1]: expected at least 1 of them"),
        ('name = ["a", "b"]', "student[0].sweep.name: names are made from what varies; leave it out"),
        (
            "objective.kdd.weight = [1]",
            "student[0].sweep.objective.kdd.weight: student[0].objective has no loss `kdd`; did you mean `kd`?",
        ),
        (
            "objective.2.weight = [1]",
            "student[0].sweep.objective.2.weight: student[0].objective has no item 2; it has 2",
        ),
        ("seed.x = [1]", "student[0].sweep.seed.x: `seed` is 4 in student[0], and has no keys"),
        ("epochs.x = [1]", "student[0].sweep.epochs.x: expected a whole number"),
        (
            '"objective.kd.weight" = [1]\n"objective.1.weight" = [1]',
            "student[0].sweep.objective.1.weight: `objective.kd.weight` varies it already",
        ),
        ("options = [{}]\n'options.hidden' = [[]]", "student[0].sweep.options.hidden: `options` varies it already"),
        (
            '"seed, epochs" = [[1, 2], [3]]',
            'student[0].sweep."seed, epochs": write lists of 2 values, one for each of its keys (found [3])',
        ),
        (
            '"seed, epochs" = [[1, 2], [3, 0]]',
            'student[0].sweep."seed, epochs"[1][1]: expected at least 1 (found 0)',
        ),
        (
            '"seed, epohcs" = [[1, 2], [3, 4]]',
            'student[0].sweep."seed, epohcs": unknown key; did you mean `epochs`?',
        ),
    ],
)
def test_a_mistake_in_a_sweep_is_told_once_at_its_place(path: Path, sweep: str, mistake: str) -> None:
    found = mistakes(path, f"{STUDENT}seed = 4\n[student.sweep]\n{sweep}\nbatch_size = [8, 16]\n")
    assert len(found) == 1
    assert found[0].startswith(mistake)


def test_all_mistakes_of_sweeps_and_students_are_told_at_once(path: Path) -> None:
    text = (
        f"{STUDENT}epochs = 0\nsweep.seed = []\nsweep.lerning_rate = [1, 2]\nsweep.batch_size = [1, 0, 2]\n"
        f"{STUDENT}[student.sweep]\nnam = [1]\nwarmup_epochs = [1, 30, 40]\nseed = [1, 2]\n"
    )
    assert mistakes(path, text) == [
        "student[0].sweep.seed: an empty list; give it values, or leave it out",
        "student[0].epochs: expected at least 1 (found 0)",
        "student[0].sweep.lerning_rate: unknown key; did you mean `learning_rate`?",
        "student[0].sweep.batch_size[1]: expected at least 1 (found 0)",
        "student[1].sweep.nam: unknown key; did you mean `name`?",
    ]


def test_a_student_that_does_not_agree_is_told_once_for_each_way(path: Path) -> None:
    assert mistakes(path, STUDENT + "[student.sweep]\nwarmup_epochs = [1, 30]\nseed = [1, 2, 3]\n") == [
        "student[0]: warmup_epochs (30) is longer than epochs (20)"
    ]


@pytest.mark.parametrize("seeds", ["[0]", "[0, 1, 2]"])
def test_a_mistake_outside_the_sweep_is_told_once(path: Path, seeds: str) -> None:
    text = STUDENT.replace('"s"', '"no name"').replace('teacher = "t"', 'taecher = "t"')
    text = f"[defaults]\nmomentm = 1\n{text}[student.sweep]\nseed = {seeds}\n"
    assert mistakes(path, text) == [
        "student[0].name: 'no name' is no name; it is a folder too: letters, digits, dots, dashes and underscores, "
        "64 at most, a letter or a digit first; write 'no-name'",
        "student[0].objective[1].taecher: unknown key; did you mean `teacher`?",
        "defaults.momentm: unknown key; did you mean `momentum`?",
    ]


def test_a_term_without_a_loss_is_told_once_whatever_varies_in_it(path: Path) -> None:
    text = STUDENT.replace('loss = "kd", ', "") + '[student.sweep]\n"objective.1.weight" = [1, 2, 3]\n'
    (mistake,) = mistakes(path, text)
    assert mistake.startswith("student[0].objective[1]: `loss` is missing; there are labels, kd")


def test_a_mistake_in_the_sweep_of_the_defaults_is_told_there_and_once(path: Path) -> None:
    text = f"[defaults.sweep]\nsede = [1, 2]\nepochs = 3\nbatch_size = [0]\n{STUDENT}{OTHER}"
    assert mistakes(path, text) == [
        "defaults.sweep.epochs: write a list of values (found 3)",
        "defaults.sweep.batch_size[0]: expected at least 1 (found 0)",
        "defaults.sweep.sede: unknown key; did you mean `seed`?",
    ]


def test_a_student_that_the_sweep_of_the_defaults_does_not_fit_is_named(path: Path) -> None:
    labels = '[[student]]\nname = "l"\narchitecture = "mlp"\nobjective = [{ loss = "labels" }]\n'
    text = f"[defaults.sweep]\nobjective.kd.weight = [1]\nseed = [1, 2]\n{STUDENT}{labels}seed = 3\n"
    assert mistakes(path, text) == [
        "defaults.sweep.objective.kd.weight: student[1].objective has no loss `kd`; there are labels",
        "defaults.sweep.seed: student[1] has a value of its own; leave that out, or give it a [student.sweep]",
    ]


def test_a_loss_that_two_terms_have_is_refused_with_their_positions(path: Path) -> None:
    text = TWO_KD + "[student.sweep]\nobjective.kd.weight = [1, 2]\n"
    assert mistakes(path, text) == [
        "student[0].sweep.objective.kd.weight: student[0].objective has several losses `kd`; write the position, 0 or 1"
    ]
    assert names(path, text.replace("objective.kd", "objective.1")) == ["s-weight_1", "s-weight_2"]


def test_terms_of_an_objective_that_is_not_there_cannot_vary(path: Path) -> None:
    text = '[[student]]\nname = "s"\narchitecture = "mlp"\n[student.sweep]\nobjective.kd.weight = [1]\n'
    assert mistakes(path, text) == [
        "student[0].sweep.objective.kd.weight: student[0] has no objective whose terms could vary",
        "student[0].objective: missing",
    ]


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        (STUDENT + "sweep = 3\n", "student[0].sweep: write one table, [student.sweep] (found 3)"),
        (STUDENT + "[[student.sweep]]\nseed = [1]\n", "student[0].sweep: write one table, [student.sweep] (found [{"),
        ("[defaults]\nsweep = 3\n" + STUDENT, "defaults.sweep: write one table, [defaults.sweep] (found 3)"),
        (STUDENT + "[student.swep]\nseed = [1]\n", "student[0].swep: unknown key; did you mean `sweep`?"),
    ],
)
def test_a_sweep_is_one_table(path: Path, text: str, mistake: str) -> None:
    (found,) = mistakes(path, text)
    assert found.startswith(mistake)


def test_a_grid_that_is_too_large_is_refused_with_its_size(path: Path) -> None:
    numbers = list(range(1, 102))
    text = f"{STUDENT}[student.sweep]\nseed = {numbers}\nepochs = {numbers}\nbatch_size = {numbers}\nmomentm = [1]\n"
    assert mistakes(path, text) == [
        "student[0].sweep: 101 × 101 × 101 × 1 = 1,030,301 students, and 10,000 are the most",
        "student[0].sweep.momentm: unknown key; did you mean `momentum`?",
    ]


def test_two_students_of_one_name_across_sweeps_are_refused_by_name(path: Path) -> None:
    text = STUDENT + "[student.sweep]\nseed = [0, 1, 2, 3, 4, 5, 6]\n"
    other = STUDENT.replace('"s"', '"s-seed_1"')
    assert mistakes(path, text + other) == ["two [[student]] are named s-seed_1"]
    assert mistakes(path, text + text) == [
        "two [[student]] are named s-seed_0, s-seed_1, s-seed_2, s-seed_3, s-seed_4 and 2 more"
    ]


def test_a_value_that_is_added_to_a_sweep_trains_its_students_alone(
    kitchen: Path, program: Program, path: Path, tmp_path: Path
) -> None:
    text = (kitchen / "students.toml").read_text().replace('"cache"', f'"{kitchen}/cache"')
    records = {}
    for seeds in ("[0, 2]", "[0, 1, 2]"):
        path.write_text(f"{text}[student.sweep]\nseed = {seeds}\n")
        assert program("student", "train", path).code == 0
        records[seeds] = {run.parent.name: run.stat().st_mtime_ns for run in (tmp_path / "runs").glob("*/run.json")}
    first, second = records.values()
    assert second.keys() - first.keys() == {"s-seed_1"}
    assert second.items() > first.items()


def test_the_fleet_of_the_repository_has_sixteen_students_of_one_architecture() -> None:
    fleet = read_job(REPOSITORY / "jobs/digits.fleet.students.toml", StudentJob).student
    assert len(fleet) == 16
    assert {(s.architecture, tuple(s.options["hidden"]), s.batch_size) for s in fleet} == {("mlp", (16,), 64)}
    assert fleet[0].name == "mlp-lr_0.01-l.w_0.9-k.w_0.1-t_1-s_0"


AXES: dict[str, st.SearchStrategy[Any]] = {
    "learning_rate": st.floats(0, 1000, exclude_min=True),
    "weight_decay": st.floats(0, 10),
    "seed": st.integers(0, 2**63 - 1),
    "epochs": st.integers(1, 10**6),
    "optimizer": st.sampled_from(["sgd", "adamw"]),
    "objective.kd.temperature": st.floats(0, 1000, exclude_min=True),
    "objective.kd.weight": st.floats(0, 1e6, exclude_min=True),
    "objective.labels.weight": st.floats(0, 1e6, exclude_min=True),
    "options.hidden": st.lists(st.integers(1, 4096), max_size=3),
    "options.text": st.text(),
    "options.flag": st.booleans(),
}
ENTRY = {"name": "s", "architecture": "mlp", "objective": [{"loss": "labels"}, {"loss": "kd", "teacher": "t"}]}
JOB = {"cache": "c", "runs": "r", "train": "d/train", "validation": "d/validation"}


@st.composite
def grids(draw: st.DrawFn) -> dict[str, list[Any]]:
    keys = draw(st.lists(st.sampled_from(sorted(AXES)), min_size=1, max_size=5, unique=True))
    return {key: draw(st.lists(AXES[key], min_size=1, max_size=3, unique_by=repr)) for key in keys}


def expanded(grid: dict[str, list[Any]]) -> list[StudentOptions]:
    result = expand({**JOB, "student": [{**ENTRY, "sweep": grid}]})
    assert result.mistakes == ()
    return StudentJob.model_validate(result.values).student


def value_of(student: StudentOptions, key: str) -> Any:
    match key.split("."):
        case ["objective", loss, field]:
            return next(getattr(term, field) for term in student.objective if term.loss == loss)
        case ["options", option]:
            return student.options[option]
    return getattr(student, key)


@settings(deadline=None)
@given(grids())
def test_any_grid_gives_its_product_in_order_under_distinct_names(grid: dict[str, list[Any]]) -> None:
    fleet = expanded(grid)
    assert len({student.name for student in fleet}) == len(fleet) == math.prod(map(len, grid.values()))
    found = [tuple(value_of(student, key) for key in grid) for student in fleet]
    assert found == list(itertools.product(*grid.values()))


@settings(deadline=None)
@given(grids(), st.data())
def test_a_value_that_is_added_renames_no_student(grid: dict[str, list[Any]], data: st.DataObject) -> None:
    smaller = {key: data.draw(st.lists(st.sampled_from(grid[key]), min_size=1, unique_by=repr)) for key in grid}
    named = {tuple(repr(value_of(s, key)) for key in grid): s.name for s in expanded(grid)}
    for student in expanded(smaller):
        assert named[tuple(repr(value_of(student, key)) for key in grid)] == student.name
