"""The jobs of jobs/schedule/night.sbatch on a real SLURM, with programs that only write down how they were called."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.jobs.schedule.place import NIGHT, Place, waiting
from tests.slurm import private_slurm, slurm, why_not

pytestmark = [pytest.mark.slow, pytest.mark.skipif(why_not() is not None, reason=why_not() or "")]
WAITS = "#!/bin/sh\ntrap 'exit 143' TERM\necho begun >> begun\nwhile :; do sleep 0.2; done\n"


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline_s
        time.sleep(0.3)


def test_the_jobs_of_a_night_run_in_turn_and_one_that_is_told_to_end_begins_again_but_no_cancelled_one(
    tmp_path: Path,
) -> None:
    (tmp_path / "place").mkdir()
    place, begun = Place(tmp_path / "place"), tmp_path / "place/begun"
    with private_slurm(tmp_path / "slurm") as conf:

        def submit() -> list[str]:
            begun.unlink(missing_ok=True)
            ended, printed = place.run("sh", "jobs/schedule/night.sbatch", SLURM_CONF=str(conf))
            assert ended == 0, printed
            return re.findall(r": job (\d+), runs/stillroom-\w+-\d\.out", printed)

        def cancel(*jobs: str) -> None:
            slurm(conf, "scancel", *jobs)
            wait_until(lambda: slurm(conf, "squeue", "-h") == "")

        place.answer(f"{waiting(NIGHT)[0]}=3")  # rows are missing: the others go on
        jobs = submit()
        wait_until(lambda: slurm(conf, "squeue", "-h") == "")
        assert place.calls == waiting(NIGHT)
        assert all("JobState=COMPLETED" in slurm(conf, "scontrol", "show", "job", job) for job in jobs)

        place.program("cache", WAITS)
        jobs = submit()
        wait_until(begun.exists)
        slurm(conf, "scancel", "--batch", "--signal=TERM", jobs[0])  # as two minutes before the time limit
        wait_until(lambda: "Restarts=1" in slurm(conf, "scontrol", "show", "job", jobs[0]))
        cancel(*jobs)

        jobs = submit()
        wait_until(begun.exists)
        cancel(*jobs)
        cancelled = slurm(conf, "scontrol", "show", "job", jobs[0])
        assert ("JobState=CANCELLED" in cancelled, "Restarts=0" in cancelled) == (True, True)
