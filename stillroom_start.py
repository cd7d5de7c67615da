"""Where both programs start, and what a Dask worker asks first: the four rooms are those beside this file.

`jobs` and `storage` are what people call folders of their own. Where such a folder comes first on `sys.path`, by
`PYTHONPATH=.` or since a worker was started in it by `python -m`, Python would import it in our place (docs/adr/0013).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

ROOMS = ("storage", "teacher_cache", "student_train", "jobs")
HERE = os.path.dirname(os.path.realpath(__file__))


class _Rooms:
    """Finds the rooms beside this file, wherever else there are such names. A finder of `sys.meta_path`."""

    @classmethod
    def find_spec(
        cls, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return PathFinder.find_spec(name, [HERE]) if name in ROOMS else None


def take_rooms() -> None:
    """Let `import jobs` and the like mean ours in this process.

    Raises:
        ImportError: another module of such a name is loaded already; `name` and `path` say which.
    """
    for room in ROOMS:
        if room in sys.modules:
            path = getattr(sys.modules[room], "__file__", None)
            if path is None or os.path.dirname(os.path.dirname(os.path.realpath(path))) != HERE:
                where = path or "a folder without __init__.py"
                raise ImportError(f"another `{room}` is loaded already, from {where}", name=room, path=path)
    if _Rooms not in sys.meta_path:
        sys.meta_path.insert(0, _Rooms)


def _speak_utf8() -> None:
    """Begin again in UTF-8 where names of files could only be ASCII, as under LC_ALL=C with PYTHONUTF8=0.

    Jobs are UTF-8, and name files; so are what workers are sent, which inherit it.
    """
    if sys.getfilesystemencoding() == "ascii" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - this very program


def cache() -> None:
    """Run `cache`."""
    _speak_utf8()
    take_rooms()
    from jobs.cli.cache import main

    main()


def student() -> None:
    """Run `student`."""
    _speak_utf8()
    take_rooms()
    from jobs.cli.student import main

    main()
