"""The house as a reader finds it: short modules, few doors, floors that one can count, maps that tell what is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.house import REPOSITORY, ROOMS, between_doors, doors, floors, modules, undocumented

FOLDERS = sorted({path.parent.relative_to(REPOSITORY) for room in ROOMS for path in modules(room).values()})


@pytest.mark.parametrize("room", ROOMS)
def test_no_module_is_longer_than_400_lines(room: str) -> None:
    lengths = {name: len(path.read_text().splitlines()) for name, path in modules(room).items()}
    assert {name: length for name, length in lengths.items() if length > 400} == {}


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_function_says_what_it_does(room: str) -> None:
    assert undocumented(room) == []


@pytest.mark.parametrize("folder", FOLDERS, ids=str)
def test_a_folder_has_about_a_dozen_doors(folder: Path) -> None:
    assert len(doors(REPOSITORY / folder)) <= (12 if str(folder) in ROOMS else 14)


@pytest.mark.parametrize("folder", FOLDERS, ids=str)
def test_doors_stand_on_at_most_eight_floors_and_in_no_circle(folder: Path) -> None:
    assert len(floors(between_doors(REPOSITORY / folder))) <= 8


@pytest.mark.parametrize("folder", [folder for folder in FOLDERS if len(folder.parts) > 1], ids=str)
def test_a_map_shows_every_door_and_nothing_that_is_not_there(folder: Path) -> None:
    there = {name.removesuffix(".py") for name in doors(REPOSITORY / folder)}
    below = {path.stem for path in (REPOSITORY / folder).rglob("*.py")}
    told = ast.get_docstring(ast.parse((REPOSITORY / folder / "__init__.py").read_text())) or ""
    shown = {
        name.removesuffix(".py").rstrip("/") for name in re.findall(r"(?<![\w/])(\w+(?:\.py|/))(?=[ ,;.\n])", told)
    }
    assert (there - shown, shown - there - below) == (set(), set())
