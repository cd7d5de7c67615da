"""What starts the programs at night: the same steps in the same order, and each status means what its file says."""

from __future__ import annotations

import json
import re
import shutil
import signal
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.files.cache_job import CacheJob
from jobs.files.reading import read_job
from jobs.files.student_job import StudentJob
from tests.jobs.schedule.place import AUDIT, NIGHT, SCHEDULE, STEPS, Place, cron_command, waiting

STATUSES = (0, 1, 2, 3, 65, 75, 130, 143)


def dag_statuses(night: Callable[[str], None], place: Place, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    """Return which statuses of build and of report end a task of the DAG in which way."""
    ways: dict[str, list[int]] = {}
    monkeypatch.setenv("PATH", place.environment["PATH"])
    for step, command in (("build", waiting(NIGHT)[0]), ("report", NIGHT[-1])):
        for status in STATUSES:
            place.answer(f"{command}={status}")
            try:
                night(step)
            except Exception as error:
                ways.setdefault(f"{step} {type(error).__name__}", []).append(status)
            else:
                ways.setdefault(f"{step} success", []).append(status)
    return ways


def test_a_night_is_the_jobs_of_the_demonstration_and_ends_with_the_first_status_that_is_bad(place: Place) -> None:
    assert place.run("jobs/schedule/night.sh")[0] == 0
    assert place.calls == NIGHT
    for status in (1, 2, 65, 75):
        place.answer(f"{NIGHT[2]}={status}")
        ended, printed = place.run("jobs/schedule/night.sh")
        assert (ended, place.calls) == (status, NIGHT[:3])
        assert printed.endswith(f"night.sh: {NIGHT[2]} ended with {status}\n")
    place.answer(f"{NIGHT[0]}=3")
    assert place.run("jobs/schedule/night.sh")[0] == 3
    assert place.calls == NIGHT
    place.answer()
    assert place.run("jobs/schedule/night.sh", LOG_FORMAT="json", METRICS="/m")[0] == 0
    names = ("ingest", "teacher", "cache", "students")
    options = [f" --log-format json --metrics-file /m/stillroom-{name}.prom" for name in names]
    assert place.calls == [call + option for call, option in zip(NIGHT, [*options, "", ""], strict=True)]
    place.answer()
    assert place.run("jobs/schedule/night.sh", "train")[0] == 0
    assert place.calls == STEPS["train"]
    assert place.run("jobs/schedule/night.sh", "trian")[0] == 2
    place.answer()
    assert place.run("jobs/schedule/night.sh", OTHERS="wait")[0] == 0
    assert place.calls == waiting(NIGHT)
    place.answer(f"{AUDIT[1]}=65")
    assert place.run("jobs/schedule/night.sh", "audit")[0] == 65
    assert place.calls == AUDIT[:2]  # what answers otherwise is looked at before anything is deleted
    place.answer()
    assert place.run("jobs/schedule/night.sh", "audit")[0] == 0
    assert place.calls == AUDIT
    jobs = {"cache": CacheJob, "student": StudentJob}
    for call in NIGHT:
        if call.endswith(".toml"):
            read_job(SCHEDULE.parents[1] / call.split()[-1], jobs[call.split()[0]])


@pytest.mark.parametrize("shell", ["dash", "bash"])
def test_a_signal_reaches_the_command_and_its_end_is_waited_for(place: Place, shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell}")
    code = "import signal, sys, time\n"
    code += "def end(*_): time.sleep(0.3); open('ended', 'w').close(); sys.exit(143)\n"
    code += "signal.signal(signal.SIGTERM, end); print('waits', flush=True); signal.pause()"
    place.program("cache", f'#!/bin/sh\nexec {sys.executable} -c "{code}"\n')
    with place.start(shell, "jobs/schedule/night.sh", "build") as process:
        assert process.stdout is not None
        while "waits" not in process.stdout.readline():
            pass
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 143
    assert (place.folder / "ended").exists()


def test_the_cron_line_runs_a_night_and_mails_what_nobody_else_would_see(place: Place) -> None:
    command = cron_command()
    assert place.run("sh", "-c", command) == (0, "")
    assert place.calls == NIGHT
    (log,) = (place.folder / "runs").glob("night-*.log")
    assert log.read_text() == "".join(f"night.sh: {call}\n" for call in NIGHT)
    for status in STATUSES[1:]:
        place.answer(f"{NIGHT[0]}={status}")
        told = f"stillroom ended with {status}: {log}\n"
        assert place.run("sh", "-c", command)[1] == ("" if status in (75, 130, 143) else told)


def test_make_runs_the_steps_in_their_order_and_tries_again_on_75(place: Place) -> None:
    make = ("make", "-f", "jobs/schedule/Makefile", "WAIT=0")
    night = waiting(NIGHT)
    assert place.run(*make)[0] == 0
    assert place.calls == night
    place.answer(f"{night[0]}=75", f"{night[0]}=75")
    assert place.run(*make, "train")[0] == 0
    assert place.calls == [night[0], night[0], *waiting(STEPS["build"]), *waiting(STEPS["train"])]
    for status, tries in ((75, 3), (65, 1)):
        place.answer(*[f"{night[0]}={status}"] * 3)
        ended, printed = place.run(*make)
        assert (ended, f"Error {status}" in printed, place.calls) == (2, True, [night[0]] * tries)


def test_the_units_of_systemd_are_what_systemd_takes(place: Place) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd")
    units = [place.folder / "jobs/schedule" / f"stillroom.{kind}" for kind in ("service", "timer")]
    for unit in units:
        unit.write_text(unit.read_text().replace("/opt/stillroom", str(place.folder)))
    verified = place.run("systemd-analyze", "verify", *map(str, units))
    assert verified == (0, "")
    assert "\nEnvironment=OTHERS=wait\n" in units[0].read_text()
    told = re.search(r"^ExecStopPost=/bin/sh -c '(.*)'$", units[0].read_text(), re.MULTILINE)
    assert told is not None
    place.program("logger", '#!/bin/sh\necho "$@"\n')
    for status, line in ((65, "-p user.crit -t stillroom corruption found: cache verify lists it\n"), (3, "")):
        assert place.run("sh", "-c", told[1].replace("$$", "$"), EXIT_STATUS=str(status)) == (0, line)
    units[0].write_text(units[0].read_text().replace("RestartSec", "RestartSeconds"))
    assert "RestartSeconds" in place.run("systemd-analyze", "verify", str(units[0]))[1]  # it does look


def test_three_jobs_of_slurm_wait_for_each_other_and_go_on_after_a_signal(place: Place) -> None:
    place.program("sbatch", '#!/bin/sh\necho "$@" >> submitted\nwc -l < submitted\n')
    assert place.run("sh", "jobs/schedule/night.sbatch", "--partition=night")[0] == 0
    submitted = (place.folder / "submitted").read_text().splitlines()
    assert [re.search(r"--dependency=(\S+)", line)[1] for line in submitted] == [
        "singleton", "afterok:1,singleton", "afterany:2,singleton",
    ]  # fmt: skip
    assert [line.split()[-1] for line in submitted] == list(STEPS)
    assert [line for line in submitted if "--partition=night jobs/schedule/night.sbatch" not in line] == []

    place.program("squeue", "#!/bin/sh\ncat state\n")
    place.program("scontrol", '#!/bin/sh\necho "$@" >> requeued\n')
    place.program("sleep", "#!/bin/sh\n")
    (place.folder / "state").write_text("RUNNING\n")
    requeued = place.folder / "requeued"

    def ended(step: str, status: int, **variables: str) -> tuple[int, bool]:
        requeued.unlink(missing_ok=True)
        place.answer(f"{waiting(STEPS[step])[-1]}={status}")
        return place.run("sh", "jobs/schedule/night.sbatch", step, SLURM_JOB_ID="7", **variables)[0], requeued.exists()

    assert [ended("build", status) for status in STATUSES] == [
        (0, False), (1, False), (2, False), (0, False), (65, False), (75, True), (130, True), (143, True),
    ]  # fmt: skip
    assert requeued.read_text() == "requeue 7\n"
    assert ended("report", 3) == (3, False)
    assert ended("build", 75, SLURM_RESTART_COUNT="10") == (75, False)
    (place.folder / "state").write_text("COMPLETING\n")  # somebody has cancelled it
    assert ended("build", 143) == (143, False)


def test_the_cron_job_is_one_to_kubernetes_own_client() -> None:
    from kubernetes.client import ApiClient

    client = ApiClient()

    def as_read(values: Any) -> Any:
        read = client.deserialize(json.dumps(values), "V1CronJob", "application/json")
        return client.sanitize_for_serialization(read)

    job = yaml.safe_load((SCHEDULE / "cronjob.yaml").read_text())
    assert as_read(job) == job  # a key that it does not know would be gone
    pods = job["spec"]["jobTemplate"]["spec"]
    (night,) = pods["template"]["spec"]["containers"]
    assert night["env"] == [{"name": "OTHERS", "value": "wait"}]
    failed, disrupted = pods["podFailurePolicy"]["rules"]
    assert failed["onExitCodes"] == {"containerName": night["name"], "operator": "In", "values": [1, 2, 3, 65]}
    assert set(STATUSES) - {0, *failed["onExitCodes"]["values"]} == {75, 130, 143}
    assert disrupted["action"] == "Ignore"
    assert pods["template"]["spec"]["restartPolicy"] == "Never"  # else there is no such policy
    pods["parallel"] = 2
    assert as_read(job) != job  # it does look


def test_the_dag_fails_tries_again_and_goes_on_by_the_status(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        import airflow.sdk  # noqa: F401
    except ImportError:  # its decorators and its exception are stood in for; what they do is not tested then
        sdk, errors = types.ModuleType("airflow.sdk"), types.ModuleType("airflow.sdk.exceptions")
        tasks: list[Callable[[str], None]] = []
        sdk.task = lambda **_: lambda function: tasks.append(function) or function  # type: ignore[attr-defined]
        sdk.dag = lambda **_: lambda function: lambda: None  # type: ignore[attr-defined]
        errors.AirflowFailException = type("AirflowFailException", (Exception,), {})  # type: ignore[attr-defined]
        for name, module in (("airflow", types.ModuleType("airflow")), ("airflow.sdk", sdk), (errors.__name__, errors)):
            monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setenv("STILLROOM", str(place.folder))
    monkeypatch.chdir(place.folder)
    dag: dict[str, Any] = {"__name__": "stillroom_dag", "__file__": str(SCHEDULE / "stillroom_dag.py")}
    exec(compile((SCHEDULE / "stillroom_dag.py").read_text(), dag["__file__"], "exec"), dag)
    night = getattr(dag["night"], "function", dag["night"])
    assert dag_statuses(night, place, monkeypatch) == {
        "build success": [0, 3],
        "build AirflowFailException": [1, 2, 65],
        "build RuntimeError": [75, 130, 143],
        "report success": [0],
        "report AirflowFailException": [1, 2, 3, 65],
        "report RuntimeError": [75, 130, 143],
    }


def test_airflow_imports_the_dag(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path))
    dagbag = pytest.importorskip("airflow.dag_processing.dagbag")
    found = dagbag.DagBag(dag_folder=str(SCHEDULE / "stillroom_dag.py"))
    assert found.import_errors == {}
    assert {task.task_id: task.downstream_task_ids for task in found.dags["stillroom"].tasks} == {
        "build": {"train"},
        "train": {"report"},
        "report": set(),
    }


@pytest.mark.parametrize(
    "name", sorted(path.name for path in SCHEDULE.iterdir() if path.suffix != ".py" or "dag" in path.name)
)
def test_each_schedule_says_what_every_status_means_there(name: str) -> None:
    text = (SCHEDULE / name).read_text()
    comment = re.match(r'(?:#.*\n)+|"""[^"]*"""', text)
    assert comment is not None
    if name != "stillroom.timer":  # which names the service
        assert set(map(str, STATUSES)) <= set(re.findall(r"\b\d+\b", comment[0]))
