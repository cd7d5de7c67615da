"""A page of the documents: its blocks, and doing what they say."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import reduce
from pathlib import Path
from types import MappingProxyType

REPOSITORY = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(page: str) -> list[tuple[str, str]]:
    """Return each block of a page: its language and its text."""
    return BLOCK.findall((REPOSITORY / "docs" / page).read_text())


def run_page(
    page: str,
    folder: Path,
    by: Callable[[list[str], Path], str] | None = None,
    instead: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """Do what a page says, from its first block to its last; return what its commands printed.

    A block that begins with `# NAME` is that file; other Python is run, and so is every line of `sh`.

    Args:
        page: below `docs`.
        folder: where to do it.
        by: what runs a command and returns what it printed; by default a process of its own.
        instead: what its files say, and are to say here, such as an address.
    """
    printed, does = [], by or run
    for language, written in blocks(page):
        text = reduce(lambda text, pair: text.replace(*pair), instead.items(), written)
        name = re.match(r"# (\S+\.(?:toml|py))\n", text)
        if name is not None:
            (folder / name[1]).write_text(text)
        elif language == "python":
            printed.append(does([sys.executable, "-c", text], folder))
        elif language == "sh":
            for line in text.strip().splitlines():
                program, *arguments = line.partition("#")[0].split()
                printed.append(does([str(Path(sys.executable).parent / program), *arguments], folder))
    return "\n".join(printed)


def run(command: list[str], folder: Path) -> str:
    """Return what a command printed, which must end well."""
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=500)
    assert ended.returncode == 0, f"{command}\n{ended.stdout}{ended.stderr}"
    return ended.stdout
