"""An Airflow 3 DAG of one night: build, then train, then report. It lies in, or is linked from, the folder of DAGs.

Statuses: 0 the task is a success. 1, 2, 65 (corruption: page on it by an `on_failure_callback`): it fails at once. 3 of
build or train: told in its log, and the next task runs; report fails by 3 as long as rows are missing. 75, 130, 143: it
is tried again after five minutes, five times. What lies in the cache and the runs is not done twice.
Logs: those of the task.
"""

from __future__ import annotations

import os
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

from airflow.sdk import dag, task
from airflow.sdk.exceptions import AirflowFailException

STILLROOM = Path(os.environ.get("STILLROOM", Path(__file__).resolve().parents[2]))  # the folder that has jobs/
AGAIN = (75, 130, 143)


@task(retries=5, retry_delay=timedelta(minutes=5))
def night(step: str) -> None:
    """Run one step of night.sh; what it prints goes to the task's log."""
    others = {"OTHERS": "wait"}  # a start elsewhere costs no try
    with subprocess.Popen([STILLROOM / "jobs/schedule/night.sh", step], env=os.environ | others) as process:
        try:
            status = process.wait()
        except BaseException:  # whatever Airflow ends a task by
            process.terminate()
            raise
    if status in AGAIN or status < 0:  # below 0: the shell itself was killed
        raise RuntimeError(f"{step} ended with {status}: to be tried again")
    if status != 0 and (status != 3 or step == "report"):
        raise AirflowFailException(f"{step} ended with {status}")


@dag(
    schedule="17 1 * * *",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    tags=["stillroom"],
)
def stillroom() -> None:
    """Build the cache, train students, report."""
    build, train, report = (night.override(task_id=step)(step) for step in ("build", "train", "report"))
    build >> train >> report


stillroom()
