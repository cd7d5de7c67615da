from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage.cache import Cache
from storage.format.shards import ShardKey
from tests.conftest import Program
from tests.damage import flip
from tests.forging import seal_again
from tests.teacher_cache.toys import (
    build,
    contents,
    run_program,
    teacher_section,
    write_digits,
    write_job,
    write_teacher,
)

SLOW_TO_IMPORT = ("torch", "polars", "zarr", "dask", "distributed", "pyarrow", "sklearn")


def imported_by(*arguments: object) -> set[str]:
    """Return the modules that a program has imported when it ends."""
    name = arguments[0]
    code = (
        f"import sys; sys.argv = {[str(argument) for argument in arguments]!r}\n"
        f"from jobs.cli.{name} import main\n"
        "try: main()\n"
        "except SystemExit as ended: code = ended.code\n"
        "print('MODULES', code, *sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    words = done.stderr[done.stderr.index("MODULES") :].split()
    assert words[1] in ("0", "None"), done.stderr
    return set(words[2:])


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [("cache", "--help"), ("cache", "build", "--help"), ("student", "train", "--help")]
)
def test_help_imports_nothing_slow(arguments: tuple[str, ...]) -> None:
    assert imported_by(*arguments).isdisjoint(SLOW_TO_IMPORT)


@pytest.mark.slow
def test_a_build_with_nothing_missing_loads_no_teacher_and_starts_no_cluster(kitchen: Path, tmp_path: Path) -> None:
    shutil.copytree(kitchen, tmp_path / "kitchen")
    job = tmp_path / "kitchen/job.toml"
    job.write_text(job.read_text().replace('kind = "inline"', 'kind = "local"'))
    modules = imported_by("cache", "build", job)
    assert modules.isdisjoint({"torch", "dask", "distributed", "safetensors"})
    assert not any(name.startswith("stillroom_user_") for name in modules)


@pytest.mark.slow
def test_that_check_sees_a_teacher_where_one_is_loaded(kitchen: Path, tmp_path: Path) -> None:
    shutil.copytree(kitchen, tmp_path / "kitchen")
    (tmp_path / "kitchen/cache/digits/toy/plain/00001.parquet").unlink()
    modules = imported_by("cache", "build", tmp_path / "kitchen/job.toml")
    assert modules >= {"torch", "safetensors"}
    assert any(name.startswith("stillroom_user_") for name in modules)


@pytest.mark.slow
def test_the_installed_programs_run(kitchen: Path) -> None:
    done = run_program("cache", "build", kitchen / "job.toml", "--json")
    assert (done.returncode, json.loads(done.stdout)["present"]) == (0, 6)
    done = run_program("student", "train", kitchen / "absent.toml", "--json")
    assert (done.returncode, json.loads(done.stdout)["error"]) == (2, "BadJob")


@pytest.mark.slow
def test_a_pipe_that_is_closed_early_is_no_error(kitchen: Path) -> None:
    command = (
        f"{Path(sys.executable).with_name('cache')} info {kitchen / 'cache'} --json | true; exit ${{PIPESTATUS[0]}}"
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, timeout=60)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


# What people look at


def test_status_counts_rows_shards_and_bytes(kitchen: Path, program: Program) -> None:
    ended = program("cache", "status", kitchen / "cache", "--json")
    stages = json.loads(ended.out)["stages"]
    shown = [
        {key: stage[key] for key in ("teacher", "rows", "rows_done", "rows_missing", "shards_done")} for stage in stages
    ]
    assert shown == [
        {"teacher": "ingest", "rows": 40, "rows_done": 40, "rows_missing": 0, "shards_done": 3},
        {"teacher": "toy", "rows": 40, "rows_done": 40, "rows_missing": 0, "shards_done": 3},
    ]
    on_disk = sum(p.stat().st_size for p in (kitchen / "cache/digits/toy/plain").rglob("*.zarr.zip"))
    assert stages[1]["bytes"] == on_disk
    assert ended.code == 0


def test_status_of_a_half_built_cache_says_what_is_missing(kitchen: Path, tmp_path: Path, program: Program) -> None:
    shutil.copytree(kitchen / "cache", tmp_path / "cache")
    (tmp_path / "cache/digits/toy/plain/00001.parquet").unlink()
    ended = program("cache", "status", tmp_path / "cache", "--json")
    assert (ended.code, json.loads(ended.out)["stages"][1]["rows_missing"]) == (3, 16)


def copied(kitchen: Path, folder: Path) -> Path:
    """Return a copy of the job and of all that it names, with its cache."""
    for name in ("toy.py", "toy.safetensors", "digits.npz", "job.toml"):
        shutil.copy(kitchen / name, folder / name)
    shutil.copytree(kitchen / "cache", folder / "cache")
    return folder / "job.toml"


def test_status_of_a_job_names_a_teacher_of_which_there_is_nothing_yet(
    kitchen: Path, tmp_path: Path, program: Program
) -> None:
    job = copied(kitchen, tmp_path)
    assert program("cache", "status", job).code == 0
    shutil.rmtree(tmp_path / "cache/digits/toy")
    before = contents(tmp_path / "cache")
    ended = program("cache", "status", job, "--json")
    ingest, toy = json.loads(ended.out)["stages"]
    assert (ended.code, ingest["rows_missing"]) == (3, 0)
    assert (toy["teacher"], toy["view"], toy["rows_missing"], toy["shards_done"]) == ("toy", "plain", 40, 0)
    assert program("cache", "status", tmp_path / "cache").code == 0  # which does not know who was asked for
    assert contents(tmp_path / "cache") == before


def test_status_of_a_job_names_a_dataset_of_which_there_is_nothing_yet(
    kitchen: Path, tmp_path: Path, program: Program
) -> None:
    job = copied(kitchen, tmp_path)
    text = job.read_text()
    job.write_text(text.replace('name = "digits"', 'name = "others"'))
    ended = program("cache", "status", job, "--json")
    stages = json.loads(ended.out)["stages"]
    assert (ended.code, [(each["dataset"], each["teacher"], each["shards"]) for each in stages]) == (
        3,
        [("others", "ingest", None), ("others", "toy", None)],
    )
    assert "others" in program("cache", "status", job).out


def test_status_of_a_job_without_a_cache_is_that_all_is_missing(
    kitchen: Path, tmp_path: Path, program: Program
) -> None:
    job = copied(kitchen, tmp_path)
    shutil.rmtree(tmp_path / "cache")
    ended = program("cache", "status", job)
    assert (ended.code, "nothing of it is built" in ended.err) == (3, True)
    assert not (tmp_path / "cache").exists()


def test_status_is_a_table_that_fits_a_terminal(kitchen: Path, program: Program) -> None:
    ended = program("cache", "status", kitchen / "cache")
    assert "digits" in ended.out
    assert max(map(len, ended.out.replace(str(kitchen), "").splitlines())) <= 80


def test_info_tells_what_a_cache_promises(kitchen: Path, program: Program) -> None:
    found = json.loads(program("cache", "info", kitchen / "cache", "--json").out)
    digits = found["datasets"]["digits"]
    assert (found["format"], digits["rows"], digits["input_shape"]) == (3, 40, [1, 8, 8])
    toy = digits["teachers"]["toy"]
    assert toy["model"]["function"] == "build"
    assert (toy["encoding"]["kind"], toy["encoding"]["dtype"]) == ("dense", "fp32")
    assert toy["serves"] == ["every logit, at every temperature"]
    assert (toy["bytes_per_target"]["memory"], toy["bytes_per_target"]["memory_statistics"]) == (40 + 14, 14)
    assert toy["bytes_per_target"]["stored"] > toy["bytes_per_target"]["stored_statistics"] > 0
    assert re.fullmatch("[0-9a-f]{32}", toy["fingerprint"])
    said = toy["provenance"]
    assert (said["cache"], said["dataset"], said["promise"]) == (
        found["id"],
        digits["fingerprint"],
        toy["fingerprint"],
    )


def test_info_is_readable(kitchen: Path, program: Program) -> None:
    out = program("cache", "info", kitchen / "cache").out
    assert [word for word in ("digits", "toy", "fingerprint", "dense") if word not in out] == []


def test_verify_finds_a_flipped_bit_and_repair_lets_build_make_it_good(
    kitchen: Path, tmp_path: Path, program: Program
) -> None:
    shutil.copytree(kitchen, tmp_path / "kitchen")
    cache, job = tmp_path / "kitchen/cache", tmp_path / "kitchen/job.toml"
    assert program("cache", "verify", cache).code == 0
    flip(Cache.open(str(cache)), ShardKey("digits", "toy", "plain", 1), "logits/c/0/0", 20)
    ended = program("cache", "verify", cache, "--json")
    assert (ended.code, [bad["shard"] for bad in json.loads(ended.out)["bad"]]) == (65, ["digits/toy/plain/00001"])
    assert program("cache", "verify", cache, "--repair").code == 3
    assert json.loads(program("cache", "build", job, "--json").out)["built"] == 1
    assert program("cache", "verify", cache).code == 0


def test_query_answers_sql_over_samples_and_teachers(kitchen: Path, program: Program) -> None:
    sql = "SELECT label, count(*) AS n, avg(toy_entropy) AS entropy FROM samples GROUP BY label ORDER BY label"
    rows = json.loads(program("cache", "query", kitchen / "cache", sql, "--json").out)
    assert ([row["label"] for row in rows], sum(row["n"] for row in rows)) == (list(range(10)), 40)
    assert "entropy" in program("cache", "query", kitchen / "cache", sql).out


def test_a_dry_run_writes_nothing_and_prints_the_memory_bound(kitchen: Path, tmp_path: Path, program: Program) -> None:
    for name in ("toy.py", "toy.safetensors", "digits.npz", "job.toml"):
        shutil.copy(kitchen / name, tmp_path / name)
    found = json.loads(program("cache", "build", tmp_path / "job.toml", "--dry-run", "--json").out)
    assert [stage["shards_missing"] for stage in found["stages"]] == [3, 3]
    assert found["worker_memory_bytes"] > 2**20
    assert not (tmp_path / "cache").exists()
    of_no_shard = ("--partition", "7/9")
    assert "memory of a worker" in program("cache", "build", tmp_path / "job.toml", "--dry-run", *of_no_shard).out


def test_a_dry_run_refuses_a_shard_that_the_build_would_refuse(kitchen: Path, tmp_path: Path, program: Program) -> None:
    shutil.copytree(kitchen, tmp_path / "kitchen")
    cache, job = Cache.open(str(tmp_path / "kitchen/cache")), tmp_path / "kitchen/job.toml"
    shutil.rmtree(tmp_path / "kitchen/cache/ledger")
    assert program("cache", "build", job, "--dry-run").code == 0
    seal_again(cache, ShardKey("digits", "toy", "plain", 1), lambda proof, table: proof.update(cache="0" * 32))
    for command in (["cache", "build", job, "--dry-run"], ["cache", "build", job]):
        ended = program(*command)
        assert (ended.code, "digits/toy/plain/00001 is a shard of another cache" in ended.err) == (65, True)


def test_as_builds_a_cache_of_that_name_beside(kitchen: Path, tmp_path: Path, program: Program) -> None:
    for name in ("toy.py", "toy.safetensors", "digits.npz", "job.toml"):
        shutil.copy(kitchen / name, tmp_path / name)
    assert program("cache", "build", tmp_path / "job.toml", "--as", "other").code == 0
    assert (tmp_path / "other/cache.json").exists()
    assert not (tmp_path / "cache").exists()


def test_partitions_from_the_command_line_complete_a_cache(kitchen: Path, tmp_path: Path, program: Program) -> None:
    for name in ("toy.py", "toy.safetensors", "digits.npz", "job.toml"):
        shutil.copy(kitchen / name, tmp_path / name)
    for i in range(3):
        assert program("cache", "build", tmp_path / "job.toml", "--partition", f"{i}/3").code == 0
    assert program("cache", "status", tmp_path / "cache").code == 0


# Bad input: a clear error, its exit code, one JSON value where asked for, and never a traceback


def bad_job(text: str) -> Callable[[Path], list[object]]:
    def make(folder: Path) -> list[object]:
        (folder / "bad.toml").write_text(text)
        return ["cache", "build", folder / "bad.toml"]

    return make


def toy_job(*, act: Callable[[Path], Any] = str, extra: str = "", **arguments: Any) -> Callable[[Path], list[object]]:
    def make(folder: Path) -> list[object]:
        write_teacher(folder)
        job = write_job(folder, write_digits(folder, 20, marked=(3,)), teacher_section(extra=extra, **arguments))
        act(folder)
        return ["cache", "build", job]

    return make


def save_arrays(folder: Path, *, rows: int, label: int) -> None:
    np.savez(folder / "digits.npz", inputs=np.zeros((rows, 1, 8, 8), np.uint8), labels=np.full(rows, label))


def later_format(folder: Path) -> None:
    build(folder / "job.toml")
    path = folder / "cache/cache.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))


STUDENTS = (
    'cache = "nowhere"\nruns = "runs"\ntrain = "digits"\nvalidation = "digits"\n[[student]]\nname = "s"\n'
    'architecture = "mlp"\nobjective = [{ loss = "labels" }]\nepochs = 1\nbatch_size = 8\n'
)


def students_of_nothing(folder: Path) -> list[object]:
    (folder / "s.toml").write_text(STUDENTS)
    return ["student", "train", folder / "s.toml"]


def built_toy(folder: Path) -> Path:
    toy_job(act=lambda f: build(f / "job.toml"))(folder)
    return folder / "cache"


DATASET = '[[dataset]]\nname = "digits"\nkind = "digits"\n'

BAD: dict[str, tuple[Callable[[Path], list[object]], int, str]] = {
    "a job with a typo": (bad_job('cahce = "c"\n' + DATASET), 2, "did you mean `cache`"),
    "a job that is a folder": (lambda folder: ["cache", "build", folder], 2, "cannot read the job file"),
    "a job that is binary": (lambda folder: ["cache", "build", sys.executable], 2, "BadJob"),
    "a job that is empty": (bad_job(""), 2, "missing"),
    "a job that is a device": (lambda folder: ["cache", "build", "/dev/null"], 2, "no regular file"),
    "a job that is not there": (lambda folder: ["cache", "build", folder / "absent.toml"], 2, "No such file"),
    "a dataset that is not there": (
        bad_job('cache = "c"\n[[dataset]]\nname = "d"\nkind = "image_folder"\npath = "nowhere"\n'),
        2,
        "MissingSource",
    ),
    "weights that are not there": (
        toy_job(act=lambda f: (f / "toy.safetensors").unlink()),
        2,
        "MissingSource: there is no",
    ),
    "weights that do not fit": (toy_job(classes=7), 2, "BadWeights"),
    "a pickle where safetensors should be": (
        toy_job(act=lambda f: (f / "toy.safetensors").write_bytes(b"\x80\x02}q\x00.")),
        2,
        "BadWeights",
    ),
    "a factory that is not there": (toy_job(act=lambda f: (f / "toy.py").unlink()), 2, "toy.py"),
    "a factory with a syntax error": (toy_job(act=lambda f: (f / "toy.py").write_text("def (")), 2, "cannot parse"),
    "a factory that fails to import": (
        toy_job(act=lambda f: (f / "toy.py").write_text("1 / 0")),
        2,
        "ZeroDivisionError",
    ),
    "arguments that the factory does not take": (toy_job(depth=3), 2, "unexpected keyword argument 'depth'"),
    "a layer that is not there": (toy_job(extra='features.f = { layer = "cnv" }'), 2, "near: conv"),
    "NaN logits": (toy_job(fault="nan"), 3, "1 of 16 rows: 3"),
    "a later format": (toy_job(act=later_format), 2, "UnsupportedFormat"),
    "a label outside the classes": (
        toy_job(act=lambda f: save_arrays(f, rows=20, label=10)),
        2,
        "LabelOutOfRange",
    ),
    "an empty dataset": (
        toy_job(act=lambda f: save_arrays(f, rows=0, label=0)),
        2,
        "is empty",
    ),
    "a cache that is a file": (
        toy_job(act=lambda f: (f / "cache").write_text("")),
        2,
        "name a folder: a file lies there",
    ),
    "a cache that is another folder": (
        toy_job(act=lambda f: [(f / "cache").mkdir(), (f / "cache/thesis.tex").write_text("")]),
        2,
        "holds something that is not a cache",
    ),
    "no workers": (lambda folder: ["cache", "build", folder, "--workers", "0"], 2, "--workers"),
    "negative workers": (lambda folder: ["cache", "build", folder, "--workers", "-2"], 2, "--workers"),
    "a partition past the end": (lambda folder: [*toy_job()(folder), "--partition", "3/2"], 2, "is not a partition"),
    "a partition that is no fraction": (
        lambda folder: [*toy_job()(folder), "--partition", "a/b"],
        2,
        "is not a partition",
    ),
    "a partition of nothing": (lambda folder: [*toy_job()(folder), "--partition", "0/0"], 2, "is not a partition"),
    "a name that is a path": (lambda folder: [*toy_job()(folder), "--as", "../x"], 2, "is not a name"),
    "an empty name": (lambda folder: [*toy_job()(folder), "--as", ""], 2, "is not a name"),
    "a device that does not exist": (lambda folder: [*toy_job()(folder), "--device", "tpu"], 2, "--device"),
    "no command": (lambda folder: ["cache"], 2, ""),
    "an unknown command": (lambda folder: ["cache", "biuld"], 2, "biuld"),
    "an unknown option": (lambda folder: [*toy_job()(folder), "--dryrun"], 2, "--dryrun"),
    "status of nothing": (lambda folder: ["cache", "status", folder / "absent"], 2, "is not a cache"),
    "status of a file": (lambda folder: ["cache", "status", "/dev/null"], 2, "is not a cache"),
    "status of an empty folder": (lambda folder: ["cache", "status", folder], 2, "is not a cache"),
    "status of an empty name": (lambda folder: ["cache", "status", ""], 2, "is not a cache"),
    "status of a store that does not exist": (lambda folder: ["cache", "status", "ftp://nowhere/c"], 2, "cannot open"),
    "info of nothing": (lambda folder: ["cache", "info", folder / "absent"], 2, "is not a cache"),
    "verify of nothing": (lambda folder: ["cache", "verify", folder / "absent", "--repair"], 2, "is not a cache"),
    "query of nothing": (lambda folder: ["cache", "query", folder / "absent", "SELECT 1"], 2, "is not a cache"),
    "students without a cache": (
        students_of_nothing,
        2,
        "is not a cache",
    ),
    "a cache job for students": (
        lambda folder: ["student", "train", toy_job()(folder)[-1]],
        2,
        "do        cache build",
    ),
    "a comparison of nothing": (lambda folder: ["student", "compare", folder / "absent"], 2, ""),
    "a comparison of a cache": (lambda folder: ["student", "compare", built_toy(folder)], 2, ""),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told_without_a_traceback(tmp_path: Path, program: Program, case: str) -> None:
    make, code, text = BAD[case]
    ended = program(*make(tmp_path))
    assert (ended.code, "Traceback" in ended.err) == (code, False), ended.err
    assert text in ended.err


@pytest.mark.parametrize(
    "sql",
    [
        "",
        ";",
        "SELECT",
        "SELECT nothing FROM samples",
        "SELECT * FROM nowhere",
        "'",
        "hello",
        "\x00",
    ],
)
def test_sql_that_makes_no_sense_is_told_with_the_tables_there_are(kitchen: Path, program: Program, sql: str) -> None:
    ended = program("cache", "query", kitchen / "cache", sql, "--json")
    assert ended.code == 2
    assert json.loads(ended.out)["what"] == "cannot answer the query"
    assert "samples" in json.loads(ended.out)["expected"]


@pytest.mark.parametrize("case", ["a job with a typo", "weights that do not fit", "a cache that is another folder"])
def test_an_error_is_one_json_value_where_json_is_asked_for(tmp_path: Path, program: Program, case: str) -> None:
    ended = program(*BAD[case][0](tmp_path), "--json")
    error = json.loads(ended.out)
    assert set(error) == {"error", "what", "found", "expected", "do", "exit_code"}
    assert error["exit_code"] == ended.code == 2


def test_a_build_with_refused_rows_is_one_json_value_too(tmp_path: Path, program: Program) -> None:
    ended = program(*toy_job(fault="nan")(tmp_path), "--json")
    report = json.loads(ended.out)
    assert (report["exit_code"], ended.code, len(report["refused"])) == (3, 3, 1)


def test_what_nothing_was_stored_of_is_not_praised(tmp_path: Path, program: Program) -> None:
    write_teacher(tmp_path)
    job = write_job(tmp_path, write_digits(tmp_path, 12, marked=(3,)), teacher_section(fault="nan"))
    told = " ".join(program("cache", "build", job).out.split())
    assert "serves" not in told
    assert "1 shard built" in told
    assert "1 shard refused; the reason is above. The same command tries it again." in told


def test_status_of_a_run_folder_is_refused(tmp_path: Path, program: Program) -> None:
    (tmp_path / "runs/s").mkdir(parents=True)
    (tmp_path / "runs/s/student.json").write_text("{}")
    ended = program("cache", "status", tmp_path / "runs")
    assert (ended.code, "a folder without cache.json" in ended.err) == (2, True)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": "one"}', b"null", b"\xff"])
def test_a_damaged_promise_is_corruption(kitchen: Path, tmp_path: Path, program: Program, content: bytes) -> None:
    shutil.copytree(kitchen / "cache", tmp_path / "cache")
    (tmp_path / "cache/cache.json").write_bytes(content)
    for command in ("status", "info", "verify"):
        assert program("cache", command, tmp_path / "cache").code == 65


@pytest.mark.skipif(
    os.geteuid() == 0, reason="root may write anywhere; tests/teacher_cache/test_faults.py mounts a disk"
)
def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path, program: Program) -> None:
    arguments = toy_job()(tmp_path)
    tmp_path.chmod(0o555)
    ended = program(*arguments)
    tmp_path.chmod(0o755)
    assert (ended.code, "make the folder writable" in ended.err) == (2, True)


def test_numbers_that_json_lacks_are_null(kitchen: Path, program: Program) -> None:
    sql = "SELECT CAST('nan' AS DOUBLE) AS x, CAST('inf' AS DOUBLE) AS y FROM samples LIMIT 1"
    assert json.loads(program("cache", "query", kitchen / "cache", sql, "--json").out) == [{"x": None, "y": None}]


def test_markup_in_a_value_is_printed_as_it_is(kitchen: Path, program: Program) -> None:
    ended = program("cache", "query", kitchen / "cache", "SELECT '[/red][bold]x' AS y FROM samples LIMIT 1")
    assert (ended.code, "[/red][bold]x" in ended.out) == (0, True)


def test_a_command_line_that_makes_no_sense_is_answered_in_json_where_that_is_asked_for(kitchen: Path) -> None:
    command = [Path(sys.executable).with_name("cache"), "build", kitchen / "job.toml", "--json", "--workers", "0"]
    ended = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert (ended.returncode, json.loads(ended.stdout)["error"]) == (2, "UsageError")


def test_what_a_model_prints_stays_out_of_the_json(tmp_path: Path) -> None:
    write_teacher(tmp_path)
    toy = tmp_path / "toy.py"
    toy.write_text(toy.read_text() + '\n\nprint("a model says hello")\n')
    job = write_job(tmp_path, write_digits(tmp_path, 20), teacher_section())
    command = [Path(sys.executable).with_name("cache"), "build", job, "--json"]
    ended = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert json.loads(ended.stdout)["built"] == 4
    assert "a model says hello" in ended.stderr
