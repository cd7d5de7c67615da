"""A page of the documents: its blocks, and doing what they say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(page: str) -> list[tuple[str, str]]:
    """Return each block of a page: its language and its text."""
    return BLOCK.findall((REPOSITORY / "docs" / page).read_text())


def run_page(page: str, folder: Path) -> str:
    """Do what a page says, from its first block to its last; return what its commands printed.

    A block that begins with `# NAME` is that file; other Python is run, and so is every line of `sh`.
    """
    printed = []
    for language, text in blocks(page):
        name = re.match(r"# (\S+\.(?:toml|py))\n", text)
        if name is not None:
            (folder / name[1]).write_text(text)
        elif language == "python":
            printed.append(run([sys.executable, "-c", text], folder))
        elif language == "sh":
            for line in text.strip().splitlines():
                program, *arguments = line.partition("#")[0].split()
                printed.append(run([str(Path(sys.executable).parent / program), *arguments], folder))
    return "\n".join(printed)


def run(command: list[str], folder: Path) -> str:
    """Return what a command printed, which must end well."""
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=500)
    assert ended.returncode == 0, f"{command}\n{ended.stdout}{ended.stderr}"
    return ended.stdout
