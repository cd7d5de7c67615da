"""`student report`: one HTML page about a folder of runs, that opens anywhere, offline.

    rows.py       students compared row by row, from their predictions
    measures.py   what predictions amount to: pure functions
    caches.py     what the cache says of itself, and how far it can be believed
    gallery.py    images and text of rows where students fail
    drawings.py   which pictures there are; figures.py draws them, on what canvas.py gives
    apart.py      figures on each dataset and beside each teacher
    contents.py   all of it together
    page.py       as HTML: page.html.j2, page.css, page.js

Nothing here prints. Pictures need matplotlib (extra: plots), which is asked for before anything is read; no other
folder of this room imports it, or jinja2.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from storage.errors import BadRequest, CorruptObject, missing_extra
from storage.format.filesystems import check_place
from storage.format.objects import LocalObjects

REPORT_FILE = "report.html"


@dataclass(frozen=True)
class Written:
    """A page that was written.

    Attributes:
        path: of the file.
        size_bytes: of it.
        students: runs that it tells of.
        notices: what it leaves out, and why.
        damaged: runs with files that cannot be read.
    """

    path: Path
    size_bytes: int
    students: int
    notices: tuple[str, ...]
    damaged: int

    @property
    def exit_code(self) -> int:
        """Return 0, or that of corruption if a file was damaged."""
        return CorruptObject.exit_code if self.damaged else 0


def write_report(runs: Path, out: Path | None = None, cache_url: str | None = None) -> Written:
    """Write the page about all runs below a folder.

    Args:
        runs: the folder.
        out: the file to write; None: REPORT_FILE in the folder.
        cache_url: where the runs' cache lies now; None: where it was. A page without it leaves out what is read there.

    Raises:
        MissingSource: there is no run.
        BadRequest: `out` is a folder, or cannot be made; or matplotlib is not installed.
        StillroomError: `cache_url` is given, and is not their cache.
        StorageFailure: the file cannot be written.
    """
    if out is not None and out.is_dir():
        raise BadRequest(f"{out} is a folder", expected="the file to write", do=f"--out {out / REPORT_FILE}")
    if find_spec("matplotlib") is None:
        raise missing_extra("student report, which draws,", "no matplotlib", "plots")
    # not above: it imports matplotlib
    from student_train.report.contents import gather
    from student_train.report.page import render

    path = runs / REPORT_FILE if out is None else out
    if runs.is_dir():  # else that is told first
        check_place(path)
    contents = gather(runs, cache_url)
    page = render(contents).encode()
    LocalObjects(path.parent).put(path.name, page)  # whole or not at all
    damaged = {run.name for run in contents.runs if run.faults}
    damaged |= set() if contents.comparison is None else contents.comparison.faults.keys()
    return Written(path, len(page), len(contents.runs), tuple(contents.notices), len(damaged))
