"""Jobs of batch schedulers: their scripts, and what is said of those that do not become workers. No scheduler here."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, cast

import pytest

from jobs.cluster.batch.allocation import forget_logs
from jobs.cluster.batch.pending import TRIES, Standing, Watched
from jobs.cluster.batch.submitting import job_script
from jobs.cluster.opening import open_client
from jobs.files.cluster_options import ClusterOptions
from storage.errors import BadRequest, TryAgain

WHOLE: dict[str, Any] = {
    "workers": 2,
    "queue": "gpu",
    "account": "p7",
    "time": "1-06:30:10",
    "memory": "1.5 GiB",
    "setup": ["module load cuda"],
    "logs": Path("/logs"),
    "directives": ["-X own"],
}
ONE = ClusterOptions(kind="slurm", workers=1, time="1:00:00", memory="1 GiB")
HEADERS = {
    "slurm": [
        "#SBATCH -J stillroom",
        "#SBATCH -e /logs/stillroom-%J.err",
        "#SBATCH -o /logs/stillroom-%J.out",
        "#SBATCH -p gpu",
        "#SBATCH -A p7",
        "#SBATCH -n 1",
        "#SBATCH --cpus-per-task=8",
        "#SBATCH --mem=1536M",
        "#SBATCH -t 1-06:30:10",
        "#SBATCH --no-requeue",
        "#SBATCH --gres=gpu:1",
        "#SBATCH -X own",
    ],
    "pbs": [
        "#PBS -N stillroom",
        "#PBS -q gpu",
        "#PBS -A p7",
        "#PBS -l select=1:ncpus=8:mem=1536mb:ngpus=1",
        "#PBS -l walltime=30:30:10",
        "#PBS -e /logs/",
        "#PBS -o /logs/",
        "#PBS -r n",
        "#PBS -X own",
    ],
    "lsf": [
        "#BSUB -J stillroom",
        "#BSUB -e /logs/NAME-%J.err",
        "#BSUB -o /logs/NAME-%J.out",
        "#BSUB -q gpu",
        '#BSUB -P "p7"',
        "#BSUB -n 8",
        '#BSUB -R "span[hosts=1]"',
        "#BSUB -M 1610613",
        "#BSUB -W 30:31",
        "#BSUB -rn",
        '#BSUB -gpu "num=1"',
        "#BSUB -X own",
    ],
    "sge": [
        "#$ -N stillroom",
        "#$ -q gpu",
        "#$ -P p7",
        "#$ -l h_vmem=1536M",
        "#$ -l h_rt=30:30:10",
        "#$ -e /logs/",
        "#$ -o /logs/",
        "#$ -cwd",
        "#$ -j y",
        "#$ -r n",
        "#$ -X own",
    ],
}


@pytest.mark.parametrize("kind", HEADERS)
def test_a_job_asks_its_scheduler_for_what_the_job_file_says(kind: Any) -> None:
    device = {} if kind == "sge" else {"processors": 8, "gpus": 1}
    shebang, *lines = job_script(
        ClusterOptions(kind=kind, **WHOLE, **device), {"MALLOC_ARENA_MAX": "2"}, 4
    ).splitlines()
    assert shebang == "#!/usr/bin/env bash"
    assert [line for line in lines if line.startswith("#")] == HEADERS[kind]
    *_, command = lines
    exports = [line for line in lines if line.startswith("export")]
    assert exports[0] == "export STILLROOM_JOB_LIMIT_S=109810 STILLROOM_JOB_ENDS_S=$(($(date +%s) + 109810))"
    assert "export MALLOC_ARENA_MAX=2" in exports
    assert lines.index(exports[0]) < lines.index("module load cuda") < lines.index(command)
    start = f"exec {sys.executable} -m distributed.cli.dask_worker tls://THIS-COMMAND:PORT --name NAME --nthreads 4 "
    assert command.startswith(start)
    assert command.endswith("--memory-limit 0 --no-dashboard")  # the last one counts


HELD = [
    {"setup": ["export AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI"]},
    {"setup": ["module load cuda", "A=1 HF_TOKEN='hf_abc' HOME=/x"]},
    {"setup": ["export PROXY=http://me:word@proxy:3128"]},
    {"directives": ["--export=ALL,AZURE_STORAGE_ACCOUNT_KEY=Eby8vd"]},
]
OPEN = [
    "export HF_TOKEN=$(cat ~/.token)",
    "export AWS_PROFILE=night KEY_FILE=/etc/k",
    "export TOKENIZERS_PARALLELISM=no",
]


def test_a_secret_in_the_script_of_a_job_is_refused_and_where_one_lies_may_be_said() -> None:
    for held in HELD:
        with pytest.raises(ValueError, match="looks like a secret") as refused:
            ClusterOptions(kind="slurm", workers=1, time="1:00:00", memory="1 GiB", **cast("Any", held))
        said = str(refused.value.errors(include_input=False))  # type: ignore[attr-defined]
        assert [secret for secret in ("wJalr", "hf_abc", "word", "Eby8") if secret in said] == []
    ClusterOptions(kind="slurm", workers=1, time="1:00:00", memory="1 GiB", setup=OPEN)


def test_a_machine_that_cannot_submit_is_told_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(BadRequest) as refused, open_client(ONE):
        pass
    assert refused.value.what == "jobs cannot be submitted from here: there is no sbatch"


def test_what_runs_in_no_job_cannot_be_inside_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(BadRequest) as refused, open_client(ClusterOptions(kind="slurm", inside=True)):
        pass
    assert refused.value.what == "this command does not run in a job of SLURM"


def test_a_network_that_is_not_there_is_told_with_those_that_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: name)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    for options in (ONE, ClusterOptions(kind="slurm", inside=True)):
        other = options.model_copy(update={"interface": "ib99"})
        with pytest.raises(BadRequest) as refused, open_client(other):
            pass
        assert refused.value.what == "this machine has no network interface ib99"
        assert "lo" in (refused.value.found or "").split(", ")


class Job:
    def __init__(self, job_id: str):
        self.job_id = job_id


class Cluster:
    """Stands for Dask's cluster of jobs: which it has submitted, and where it listens."""

    scheduler_address = "tls://10.0.0.1:4000"

    def __init__(self, *ids: str):
        self.workers = {f"worker-{job}": Job(job) for job in ids}


class Client:
    """Stands for a client whose workers have such names."""

    def __init__(self, *names: str):
        self.names = names

    def scheduler_info(self, n_workers: int) -> Any:
        return {"workers": {f"tls://{name}": {"name": name} for name in self.names}}


def watched(
    monkeypatch: pytest.MonkeyPatch, cluster: Cluster, standings: dict[str, Standing]
) -> tuple[Watched, list[str]]:
    monkeypatch.setattr("jobs.cluster.batch.pending.LOOK_EVERY_S", 0.0)
    notes: list[str] = []
    jobs = Watched(ONE, notes.append, lambda ids: {job: standings[job] for job in ids if job in standings})
    jobs.cluster = cluster
    return jobs, notes


def test_why_jobs_wait_is_told_once_and_how_long_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    pending = Standing("PENDING", "Resources")
    jobs, notes = watched(monkeypatch, Cluster("1", "2"), {"1": pending, "2": pending})
    client: Any = Client()
    jobs.look(client, 0, 10.0)
    jobs.look(client, 0, 20.0)
    assert notes == ["2 of 2 jobs are pending: Resources"]
    with pytest.raises(TryAgain) as ended:
        jobs.look(client, 0, 4 * 3600 + 1.0)
    assert (ended.value.what, ended.value.exit_code) == ("no worker for 4 h: all jobs wait in the queue", 75)
    assert ended.value.found == "2 jobs PENDING, reason Resources"


def test_a_scheduler_that_never_answers_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.cluster.batch.pending.LOOK_EVERY_S", 0.0)
    notes: list[str] = []

    def silent(ids: object) -> dict[str, Standing]:
        raise OSError("squeue: no such command")

    jobs, client = Watched(ONE, notes.append, silent), cast("Any", Client())
    jobs.cluster = Cluster("1")
    jobs.look(client, 0, 10.0)
    jobs.look(client, 0, 20.0)
    assert notes == ["the batch scheduler does not answer: squeue: no such command"]
    assert list(jobs.cluster.workers) == ["worker-1"]  # which may be a good one
    with pytest.raises(TryAgain, match="no worker for 4 h"):
        jobs.look(client, 0, 4 * 3600 + 1.0)


def test_a_job_that_ends_is_replaced_and_one_after_another_ends_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "slurm-3.out").write_text("python: not found\n")
    cluster, client = Cluster(), cast("Any", Client())
    standings = {job: Standing("FAILED", "NonZeroExitCode") for job in "123"}
    jobs, notes = watched(monkeypatch, cluster, standings)
    for job in "12":
        cluster.workers = {f"worker-{job}": Job(job)}
        jobs.look(client, 0, 0.0)
        assert cluster.workers == {}  # which Dask fills again
    cluster.workers = {"worker-3": Job("3")}
    with pytest.raises(BadRequest) as ended:
        jobs.look(client, 0, 0.0)
    assert ended.value.what == f"{TRIES} jobs in a row have ended before their workers came"
    assert ended.value.found == "job 3: FAILED; slurm-3.out ends with\npython: not found"
    assert notes[0] == "job 1 has ended before its worker came (FAILED); another one takes its place"


def test_a_job_that_runs_without_its_worker_is_told_with_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs, _ = watched(monkeypatch, Cluster("1"), {"1": Standing("RUNNING", "None")})
    client: Any = Client()
    jobs.look(client, 0, 0.0)
    monkeypatch.setattr("jobs.cluster.batch.pending.CONNECT_S", 0.0)
    with pytest.raises(BadRequest) as ended:
        jobs.look(client, 0, 1.0)
    assert ended.value.what == "job 1 runs, but its worker does not come"
    assert (ended.value.found or "").startswith("nobody at tls://10.0.0.1:4000 for 0 s")


def test_logs_of_many_nights_do_not_pile_up(tmp_path: Path) -> None:
    for night in range(40):
        (tmp_path / f"stillroom-{night}.log").touch()
        os.utime(tmp_path / f"stillroom-{night}.log", (night, night))
    others = ("stillroom-mine.log", "stillroom-7.log.old")
    for name in others:
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0))
    forget_logs(tmp_path, "stillroom-0.log")  # a job that was requeued goes on in its own
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {*others, "stillroom-0.log", *(f"stillroom-{night}.log" for night in range(11, 40))}
    forget_logs(tmp_path, "stillroom-0.log")
    assert len(left) == len([*tmp_path.iterdir()])
