"""Documents that a reader follows: jobs in them are valid, files, commands and lines of Python run as they stand."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.files.cache_job import CacheJob
from jobs.files.reading import read_job
from storage.cache import Cache
from tests.chats.toys import CHATML, write_model

REPOSITORY = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(page: str) -> list[tuple[str, str]]:
    """Return each block of a page: its language and its text."""
    return BLOCK.findall((REPOSITORY / "docs" / page).read_text())


def test_every_job_of_the_page_of_data_is_valid(tmp_path: Path) -> None:
    jobs = [text for language, text in blocks("data.md") if language == "toml"]
    assert len(jobs) >= 7
    for text in jobs:
        (tmp_path / "job.toml").write_text(text)
        read_job(tmp_path / "job.toml", CacheJob)


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
            printed.append(_run([sys.executable, "-c", text], folder))
        elif language == "sh":
            for line in text.strip().splitlines():
                program, *arguments = line.partition("#")[0].split()
                printed.append(_run([str(Path(sys.executable).parent / program), *arguments], folder))
    return "\n".join(printed)


def _run(command: list[str], folder: Path) -> str:
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=500)
    assert ended.returncode == 0, f"{command}\n{ended.stdout}{ended.stderr}"
    return ended.stdout


def test_a_dataset_of_ones_own_is_built_as_the_page_of_data_has_it(tmp_path: Path) -> None:
    (code,) = (text for language, text in blocks("data.md") if language == "python")
    (tmp_path / "data.py").write_text(code)
    (job,) = (text for language, text in blocks("data.md") if "data.py:build" in text and language == "toml")
    (tmp_path / "job.toml").write_text(job)
    _run([str(Path(sys.executable).parent / "cache"), "build", "job.toml"], tmp_path)
    assert len(Cache.open(str(tmp_path / "caches/waves")).samples().of("waves")) == 200


def test_chats_are_read_as_the_page_of_data_has_them(tmp_path: Path) -> None:
    (lines,) = (text for language, text in blocks("data.md") if language == "json")
    (job,) = (text for language, text in blocks("data.md") if 'kind = "chat"' in text and language == "toml")
    (tmp_path / "chats/more").mkdir(parents=True)
    (tmp_path / "chats/more/train.jsonl").write_text(lines)
    write_model(tmp_path / "models/teacher", CHATML)
    (tmp_path / "job.toml").write_text(job)
    _run([str(Path(sys.executable).parent / "cache"), "build", "job.toml"], tmp_path)
    samples = Cache.open(str(tmp_path / "caches/chats")).samples().of("chats")
    assert samples["sample_id"].to_list() == [f"more/train.jsonl:{at}" for at in (0, 169, 283)]


@pytest.mark.slow
def test_the_tutorial_runs_as_it_stands(tmp_path: Path) -> None:
    printed = run_page("tutorial.md", tmp_path)
    assert "photos/big: accuracy 9" in printed
    assert "97 samples of new, 97 measured" in printed
    assert re.search(r"^digit-3 \d+\.\d%\ndigit-7 \d+\.\d%$", printed, re.MULTILINE)
    assert printed.strip().splitlines()[-1] == "onnxruntime says digit-0"
    answers = (tmp_path / "answers.csv").read_text().splitlines()
    assert (len(answers), answers[0]) == (98, "sample_id,class,probability,error")
    assert (tmp_path / "runs/photos/report.html").exists()


@pytest.mark.slow
def test_the_page_of_language_models_runs_as_it_stands(tmp_path: Path) -> None:
    printed = run_page("language-models.md", tmp_path)
    assert "chats/big: perplexity" in printed
    assert (tmp_path / "runs/chats/report.html").exists()
    assert " plus " in printed.splitlines()[-1]


@pytest.mark.slow
def test_the_page_of_ones_own_model_runs_as_it_stands(tmp_path: Path) -> None:
    printed = run_page("from-your-model.md", tmp_path)
    assert all(f"digits/{teacher}: accuracy 9" in printed for teacher in ("onnx", "sklearn", "torch"))
    assert (tmp_path / "small/student.safetensors").exists()
