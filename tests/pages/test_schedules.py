"""What the page of schedules says is done, with programs that only write down how they were called."""

from __future__ import annotations

from pathlib import Path

from tests.jobs.schedule.place import AUDIT, NIGHT, STEPS, Place
from tests.pages.reading import blocks


def test_the_page_of_schedules_starts_what_it_says(tmp_path: Path) -> None:
    place = Place(tmp_path)
    lines = [line for language, text in blocks("schedules.md") if language == "sh" for line in text.splitlines()]
    assert [place.run("sh", "-c", line)[0] for line in lines] == [0] * 5
    assert place.calls == [*NIGHT, *STEPS["build"], *STEPS["train"], *STEPS["report"], *AUDIT]
