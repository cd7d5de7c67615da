"""What a command leaves behind for the morning: lines of JSON, and figures that Prometheus' own parser takes."""

from __future__ import annotations

import dataclasses
import inspect
import io
import json
import re
import shutil
import sys
import time
import typing
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from jobs.show import figures
from jobs.show.figures import Figures
from jobs.show.night import Night
from jobs.show.train_events import event_name
from storage.errors import StorageFailure
from student_train.running import events
from tests.conftest import Ended, Program
from tests.house import REPOSITORY
from tests.teacher_cache.toys import TEACHER

PAGE = (REPOSITORY / "docs/nights.md").read_text()
ALWAYS = {"time", "event", "level", "command"}
LOGGED = ("--log-format", "json")


def documented() -> dict[str, set[str]]:
    """Return the fields of each event, as the page has them."""
    rows = re.findall(r"^\| `(\w+)` \| [^|]* \| ([^|]*) \|$", PAGE, flags=re.MULTILINE)
    return {name: set(re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)", "", fields))) for name, fields in rows}


def lines(ended: Ended) -> list[dict[str, Any]]:
    """Return the events of a command; each line is one, and is as documented."""
    found = [json.loads(line) for line in ended.err.splitlines()]
    for event in found:
        assert {*event} - ALWAYS <= documented()[event["event"]], event
        assert {*event} >= ALWAYS | documented()[event["event"]] - {"trace"}, event
    assert [each["event"] for each in found][:: len(found) - 1] == ["started", "ended"]
    assert found[-1]["exit_code"] == ended.code
    return found


def names(found: list[dict[str, Any]]) -> list[str]:
    return [event["event"] for event in found]


def values(path: Path) -> dict[str, float]:
    """Return the figures of a file, as Prometheus' own parser reads them, by name and own label."""
    found = {}
    for family in text_string_to_metric_families(path.read_text()):
        assert family.documentation
        assert family.type == "gauge"
        for sample in family.samples:
            own = [value for name, value in sample.labels.items() if name not in ("command", "subject")]
            found[" ".join([sample.name.removeprefix("stillroom_"), *own])] = sample.value
    return found


@pytest.fixture
def job(kitchen: Path, tmp_path: Path) -> Path:
    """Return the job without its cache."""
    for name in ("toy.py", "toy.safetensors", "digits.npz", "job.toml", "students.toml"):
        shutil.copy2(kitchen / name, tmp_path / name)
    return tmp_path / "job.toml"


def test_the_page_has_every_event_of_training_and_every_figure() -> None:
    told = documented()
    kinds = typing.get_args(events.Event)
    assert all(inspect.isclass(kind) for kind in kinds)
    for kind in kinds:
        assert told[event_name(kind)] == {field.name for field in dataclasses.fields(kind)}, kind
    listed = re.findall(r"`stillroom_(\w+)`", PAGE.split("## Figures")[1])
    assert sorted(listed) == sorted(figures.HELP)


def test_a_build_and_a_training_are_lines_of_json_and_figures(job: Path, program: Program, tmp_path: Path) -> None:
    prom = tmp_path / "build.prom"
    built = program("cache", "build", job, *LOGGED, "--metrics-file", prom)
    found = lines(built)
    assert built.code == 0
    assert "built (16.1 kB), 0 were there" in built.out
    assert [name for name in names(found) if name != "note"] == [
        "started", "stage_started", "stage_ended", "stage_started", "stage_ended", "built", "ended",
    ]  # fmt: skip
    (report,) = [event for event in found if event["event"] == "built"]
    assert (report["built"], report["rows"], report["failed"], report["command"]) == (6, 80, 0, "cache build")
    first = values(prom)
    assert (first["exit_code"], first["build_rows"], first["build_shards built"]) == (0, 80, 6)
    assert first["build_bytes"] == report["bytes"]
    assert first["build_rows_per_second"] == pytest.approx(80 / first["duration_seconds"], rel=0.2)
    assert first["last_success_timestamp_seconds"] == first["last_run_timestamp_seconds"]
    assert sorted(path.name for path in tmp_path.glob("*.prom*")) == ["build.prom"]

    prom = tmp_path / "train.prom"
    trained = program("student", "train", tmp_path / "students.toml", *LOGGED, "--json", "--metrics-file", prom)
    found = lines(trained)
    assert {"feed_chosen", "student_started", "epoch_done", "student_finished", "trained"} <= set(names(found))
    assert names(found).count("progress") <= 1
    (record,) = [event["record"] for event in found if event["event"] == "student_finished"]
    assert record["student"] == json.loads(trained.out)["students"][0]["student"] == "s"
    assert "identity" not in record
    told = values(prom)
    assert (told["train_students finished"], told["train_students failed"]) == (1, 0)
    assert told["train_figure s accuracy"] == record["accuracy"]


def test_while_a_command_runs_its_figures_are_renewed_and_those_of_a_killed_one_are_replaced(
    job: Path, program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prom, seen = tmp_path / "x.prom", list[dict[str, float]]()
    monkeypatch.setattr("jobs.show.night.RENEW_S", 0.01)
    commit = "teacher_cache.building.stages.Stages.end"

    def slow(*arguments: Any) -> Any:
        deadline_s = time.monotonic() + 30
        while not prom.exists() or (told := values(prom)).get("stage_done digits/toy rows") != 40:
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
        seen.append(told)
        raise StorageFailure("no room")

    monkeypatch.setattr(commit, slow)
    assert program("cache", "build", job, "--metrics-file", prom).code == 1
    (first,) = seen
    assert (first["running"], first["stage_total digits/toy rows"]) == (1, 40)
    assert not {"exit_code", "last_success_timestamp_seconds"} & set(first)
    running = Figures("cache build", str(job))
    running.renew(prom, ("digits/toy", 1, 40, "rows"))  # as a kill leaves it
    assert values(prom)["running"] == 1
    monkeypatch.undo()
    assert program("cache", "build", job, "--metrics-file", prom).code == 0
    ended = values(prom)
    assert (ended["exit_code"], ended["running"], [name for name in ended if "stage" in name]) == (0, 0, [])
    running.check(prom)
    running.renew(prom, ("digits/toy", 1, 40, "rows"))
    running.renew(prom, ("digits/toy", 2, 40, "rows"))
    now = values(prom)
    told = {"running": 1.0, "stage_done digits/toy rows": 2.0, "stage_total digits/toy rows": 40.0}
    assert {name: now[name] for name in now if name != "renewed_timestamp_seconds"} == ended | told


def test_a_failure_is_an_event_and_keeps_the_last_success(job: Path, program: Program, tmp_path: Path) -> None:
    prom, arguments = (
        tmp_path / "build.prom",
        ("cache", "build", job, *LOGGED, "--metrics-file", tmp_path / "build.prom"),
    )
    (tmp_path / "toy.py").write_text(TEACHER.replace('fault="", seconds', 'fault="raise", seconds'))
    job.write_text(job.read_text().replace('path = "digits.npz"', 'path = "nowhere.npz"'))
    refused = program(*arguments, "--json")
    (error,) = [event for event in lines(refused) if event["event"] == "error"]
    assert (refused.code, error["error"], error["level"], error["exit_code"]) == (2, "MissingSource", "error", 2)
    assert error["what"] == json.loads(refused.out)["what"]
    told = values(prom)
    assert told["exit_code"] == 2
    assert "last_success_timestamp_seconds" not in told  # absent until there is one
    prom.write_text(prom.read_text() + f"{figures.PREFIX}last_success_timestamp_seconds{{}} 1234.5\n")
    assert program(*arguments).code == 2
    assert values(prom)["last_success_timestamp_seconds"] == 1234.5


def test_a_shard_that_fails_is_an_event_with_its_name(job: Path, program: Program, tmp_path: Path) -> None:
    import numpy as np

    arrays = dict(np.load(tmp_path / "digits.npz"))
    arrays["inputs"][20, 0, 0, 0] = 255  # of shard 1
    np.savez(tmp_path / "digits.npz", **arrays)
    job.write_text(job.read_text().replace("arguments = {  }", 'arguments = { fault = "raise" }'))
    ended = program("cache", "build", job, *LOGGED)
    failed = [event for event in lines(ended) if event["event"] == "shard_failed"]
    assert ended.code == 2
    assert [(each["dataset"], each["teacher"], each["view"], each["shard"]) for each in failed] == [
        ("digits", "toy", "plain", 1)
    ]
    assert "a fault in the teacher's own code" in failed[0]["what"] + str(failed[0]["found"])


def test_what_nobody_foresaw_is_an_event_and_no_secret_is_written(
    job: Path, program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", 'wJalrXUtn"FEMI')

    def loud(*arguments: object, **options: object) -> None:
        sys.stderr.write('a library says wJalrXUtn"FEMI\nand more')
        raise RuntimeError('no access with wJalrXUtn"FEMI')

    monkeypatch.setattr("teacher_cache.building.survey.prepare_build", loud)
    ended = program("cache", "build", job, *LOGGED, "--metrics-file", tmp_path / "x.prom")
    found = lines(ended)
    assert (ended.code, "wJalrXUtn" in ended.err) == (1, False)
    assert [event["text"] for event in found if event["event"] == "output"] == ["a library says …", "and more"]
    (error,) = [event for event in found if event["event"] == "error"]
    assert (error["error"], error["what"]) == ("RuntimeError", "no access with …")
    assert "Traceback" in error["trace"]
    assert values(tmp_path / "x.prom")["exit_code"] == 1


@pytest.mark.parametrize("as_json", [(), ("--json",)], ids=["text", "json"])
@pytest.mark.parametrize("foreseen", [True, False])
def test_no_secret_is_written_in_plain_text_either(
    job: Path, program: Program, monkeypatch: pytest.MonkeyPatch, as_json: tuple[str, ...], foreseen: bool
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", 'wJalrXUtn"FEMI')

    def loud(*arguments: object, **options: object) -> None:
        sys.stderr.write('a library says wJalrXUtn"FEMI\nand more\n')
        raise StorageFailure("no access", found='key wJalrXUtn"FEMI') if foreseen else RuntimeError('wJalrXUtn"FEMI')

    monkeypatch.setattr("teacher_cache.building.survey.prepare_build", loud)
    if foreseen:
        ended = program("cache", "build", job, *as_json)
        written = ended.err + ended.out
    else:
        with pytest.raises(RuntimeError) as failed:
            program("cache", "build", job, *as_json)
        monkeypatch.setattr(sys, "stderr", last := io.StringIO())
        sys.excepthook(RuntimeError, failed.value, failed.value.__traceback__)  # as Python does at the end
        written = last.getvalue()
        monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    assert ("wJalrXUtn" in written, "…" in written) == (False, True)


SECRETS = {
    "AZURE_STORAGE_ACCOUNT_KEY": "Eby8vdM02xNOcqFlqU==",
    "GOOGLE_SERVICE_ACCOUNT_KEY": '{\n  "private": "MIIEvgIBADANBg"\n}',
    "MLFLOW_TRACKING_URI": "http://me:geheim-und-lang@tracker:5000/x",
    "GPG_PASSPHRASE": "offene-tuer",
}
OPEN = {"AWS_WEB_IDENTITY_TOKEN_FILE": "/var/run/token", "TOKENIZERS_PARALLELISM": "false-or-true", "LANG": "C.UTF-8-8"}


def test_what_opens_a_store_or_a_server_is_secret_by_name_or_by_form(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (SECRETS | OPEN).items():
        monkeypatch.setenv(name, value)
    night = Night("cache build", "job", "json")
    monkeypatch.setattr(sys, "stderr", written := io.StringIO())
    with night.begun():
        night.event("note", text=" ".join(SECRETS.values()), nested={"all": [*SECRETS.values()]})
        for value in SECRETS.values():
            sys.stderr.write(f"a library says {value}\n")
        night.event("note", text=" ".join(OPEN.values()))
    found = written.getvalue()
    for part in ("Eby8vdM02", "MIIEvgIBADANBg", "geheim-und", "offene"):
        assert part not in found
    assert " ".join(OPEN.values()) in found


BAD_FILES = {
    "no folder": ("nowhere/x.prom", None, "no folder"),
    "another suffix": ("x.txt", None, "ends with .prom"),
    "a file of somebody": ("x.prom", "node_load1 0.3\n", "is not of this command"),
    "a file of another job": ("x.prom", 'stillroom_exit_code{command="cache build",subject="/b.toml"} 0\n', "b.toml"),
    "no text": ("x.prom", "\udcff", "invalid start byte"),
}


@pytest.mark.parametrize(("name", "text", "told"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_file_that_cannot_have_the_figures_is_refused_before_anything_is_done(
    job: Path, program: Program, tmp_path: Path, name: str, text: str | None, told: str
) -> None:
    path = tmp_path / name
    if text is not None:
        path.write_text(text, errors="surrogateescape")
    ended = program("cache", "build", job, "--metrics-file", path)
    assert (ended.code, told in ended.err, (tmp_path / "cache").exists()) == (2, True, False), ended.err
    assert text is None or path.read_text(errors="surrogateescape") == text


def test_a_cache_that_is_named_with_its_key_is_refused_and_the_key_is_not_written(program: Program) -> None:
    ended = program("cache", "verify", "s3://key:geheim@bucket/x?X-Amz-Signature=abc", *LOGGED)
    assert (ended.code, "geheim" in ended.err, "abc" in ended.err) == (2, False, False), ended.err
    assert lines(ended)[0]["subject"] == "s3://…@bucket/x?…"


def test_a_dry_run_writes_no_figures_and_names_steer_no_parser(tmp_path: Path, job: Path, program: Program) -> None:
    assert program("cache", "build", job, "--dry-run", "--metrics-file", tmp_path / "dry.prom").code == 0
    assert not (tmp_path / "dry.prom").exists()
    parts = [
        program("cache", "build", job, "--partition", f"{i}/2", "--metrics-file", tmp_path / f"{i}.prom")
        for i in (0, 1)
    ]
    assert [part.code for part in parts] == [0, 0]
    assert "job.toml part 1/2" in (tmp_path / "1.prom").read_text()  # two files of one folder have no line in common
    hostile = figures.Figures("cache build", 'a"b\\n\n} 1\nevil 2')
    hostile.set("exit_code", float("nan"))
    hostile.set("build_quarantined_rows", 3, dataset='x",y="')
    families = list(text_string_to_metric_families(hostile.text()))
    assert [family.name for family in families] == ["stillroom_exit_code", "stillroom_build_quarantined_rows"]
    assert families[1].samples[0].labels["dataset"] == 'x",y="'
    assert families[0].samples[0].labels["subject"] == 'a"b\\n\n} 1\nevil 2'
