"""The page of one's own loop, each block run as it stands on a cache like the tutorial's; and that of public names."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from jobs.files.reading import read_job
from jobs.files.student_job import StudentJob
from student_train.feed.own_loop import open_rows, wants
from student_train.running.train import train_students
from student_train.stepping.parallel import ALONE as ONE_PROCESS
from student_train.students import load_student
from tests.language.toys import counting_teacher, lines_cache
from tests.pages.reading import REPOSITORY, blocks
from tests.student_train.toys import Recipe, write_cache

PAGE = blocks("own-loop.md")
ALONE = [text for language, text in PAGE if language == "python" and not re.match(r"# \S+\.py\n", text)]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of someone who follows the page, with a cache of 192 rows to train on and 48 held ones."""
    folder = tmp_path_factory.mktemp("reader")
    recipe = Recipe(dataset="photos", teacher_name="big", shape=(3, 8, 8), features={}, logits_dtype="fp32")
    write_cache(folder / "caches/photos", recipe)
    for _, text in PAGE:
        if name := re.match(r"# (\S+\.(?:toml|py))\n", text):
            (folder / name[1]).write_text(text)
    return folder


@pytest.fixture(autouse=True)
def _there(reader: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(reader)
    monkeypatch.syspath_prepend(str(reader))
    yield
    sys.modules.pop("net", None)


def run(text: str) -> dict[str, Any]:
    """Run a block, and return its names."""
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(text, "own-loop.md", "exec"), names)
    return names


def lines(text: str) -> int:
    """Return the lines of a block that are code."""
    return sum(bool(line.strip()) and not line.startswith("#") for line in text.splitlines())


def file(name: str) -> str:
    """Return the block of the page that is a file."""
    (text,) = (text for _, text in PAGE if text.startswith(f"# {name}\n"))
    return text


@pytest.mark.parametrize("block", range(len(ALONE)))
def test_a_block_of_the_page_runs_as_it_stands(block: int) -> None:
    run(ALONE[block])


@pytest.mark.slow
def test_a_loop_of_twenty_lines_ends_at_the_weights_of_student_train(reader: Path) -> None:
    names = run(file("loop.py"))
    job = read_job(reader / "mine.students.toml", StudentJob)
    assert train_students(job.request("cpu", ONE_PROCESS)).exit_code == 0
    (student,) = (load_student(path.parent, "net.py:build") for path in reader.glob("runs/mine/mine/student.json"))
    theirs = {name.removeprefix("network."): values for name, values in student.network.state_dict().items()}
    mine = load_file("mine.safetensors")
    torch.manual_seed(0)
    first = names["build"](4, (3, 8, 8)).state_dict()
    assert mine.keys() == theirs.keys()
    assert max(float((mine[name] - first[name]).abs().max()) for name in mine) > 1e-2  # it has learned
    assert max(float((mine[name] - theirs[name]).abs().max()) for name in mine) < 1e-6
    assert lines(file("loop.py")) <= 20


def test_of_tokens_each_labelled_position_is_a_row(tmp_path: Path) -> None:
    cache = lines_cache(tmp_path, counting_teacher("right", scale=3.0))
    rows = open_rows(cache, "counting/train", wants(labels=True, soft={"right": 1.0}))
    distance = run(file("tokens.py"))["distance"]

    def counting(ids: torch.Tensor, step: int) -> torch.Tensor:
        return 3.0 * torch.nn.functional.one_hot((ids.clamp(min=0) + step) % 10, 10).float()

    batch, *_ = rows.epoch(0, 8)
    of_processes = [next(rows.epoch(0, 8, process=(rank, 2))) for rank in (0, 1)]
    assert sum(len(part.sites()) for part in of_processes) == len(batch.sites()) < batch.inputs.numel()
    for each in (batch, *of_processes):
        assert float(distance(lambda ids: counting(ids, 1), each, "right")) < 1e-5
        assert float(distance(lambda ids: counting(ids, 2), each, "right")) > 1


@pytest.mark.slow
def test_a_trainer_of_transformers_learns_from_a_cache_and_goes_on_from_its_checkpoint() -> None:
    trainer = run(file("trainer.py"))["trainer"]
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    ended = {name: values.clone() for name, values in trainer.model.state_dict().items()}
    assert trainer.state.global_step == 6
    trainer.train(resume_from_checkpoint="out/checkpoint-4")
    assert losses == sorted(losses, reverse=True)
    assert all(torch.equal(values, ended[name]) for name, values in trainer.model.state_dict().items())
    assert lines(file("trainer.py")) <= 30


def test_a_reader_without_this_project_takes_fifteen_lines() -> None:
    assert lines(ALONE[-1]) <= 15
    assert set(re.findall(r"^(?:import|from) (\w+)", ALONE[-1], flags=re.MULTILINE)) == {
        "json",
        "pathlib",
        "numpy",
        "pyarrow",
        "zarr",
    }


def public() -> list[tuple[str, str]]:
    """Return each row of the page of public names: the name, and what is told of it."""
    return re.findall(r"^\| `([\w.]+\.\w+)` \| (.+) \|$", (REPOSITORY / "docs/api.md").read_text(), flags=re.MULTILINE)


def test_every_public_name_is_there_and_says_what_it_is() -> None:
    assert len(public()) >= 30
    for name, told in public():
        module, _, attribute = name.rpartition(".")
        named = getattr(importlib.import_module(module), attribute)
        if isinstance(named, type) or inspect.isfunction(named):
            assert inspect.getdoc(named), name
            assert named.__doc__, name
        members = re.findall(r"`(\w+)`", told) if isinstance(named, type) else []
        assert [m for m in members if not hasattr(named, m) and m not in fields(named)] == [], name


def fields(named: type) -> set[str]:
    """Return the attributes of a class's instances that it annotates, as pydantic and dataclasses do."""
    return {*getattr(named, "model_fields", ()), *inspect.get_annotations(named)}


def test_every_name_that_the_page_imports_is_public() -> None:
    listed = {name for name, _ in public()}
    rooms = "storage|student_train|teacher_cache|jobs"
    imported = {
        f"{module}.{name.strip()}"
        for _, text in PAGE
        for module, names in re.findall(rf"^from ((?:{rooms})[\w.]*) import (.+)$", text, flags=re.MULTILINE)
        for name in names.split(",")
    }
    assert len(imported) >= 8
    assert imported <= listed
