"""A pilot says beforehand how long it will take, and what a teacher that says nothing is worth."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from jobs.files.cache_job import CacheJob
from jobs.files.reading import read_job
from jobs.show.pilot.tables import as_values, print_pilot
from storage.cache.standing import near_chance
from storage.encodings import SparseEncoding
from storage.encodings.naming import short_name
from storage.tasks import TASKS
from teacher_cache.building.survey import prepare_afresh
from teacher_cache.pilot.foretell import Foretold, reading_s
from teacher_cache.pilot.pilot import Pilot, PilotRequest, run_pilot
from teacher_cache.pilot.rows import read_spread
from tests.language.toys import IDS, counting_teacher, write_counting
from tests.teacher_cache.toys import Silent, write_job

MANY = 200  # ids
SPARSE = 'encoding = { kind = "sparse", k = 2 }'
SLOW = '''
import time

import torch
from torch import nn


class Slow(nn.Module):
    """Takes 10 ms a row."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(3.0))

    def forward(self, tokens):
        time.sleep(0.01 * len(tokens))
        return self.scale * nn.functional.one_hot((tokens + 1) % 10, 10).float()


def build():
    return Slow()
'''


FLAT = f"""
import torch
from torch import nn


def build():
    torch.manual_seed(0)
    table = nn.Embedding({MANY}, {MANY})
    nn.init.normal_(table.weight, std=0.4)
    return table
"""


class Timed(Silent):
    """Keeps what is told, and when."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[float, str]] = []

    def begin(self, name: str, total: int | None, done: int = 0, unit: str | None = None) -> None:
        super().begin(name, total, done, unit)
        self.told.append((time.monotonic(), name))

    def note(self, text: str) -> None:
        super().note(text)
        self.told.append((time.monotonic(), text))


def piloted(job: Path, rows: int, watcher: Silent | None = None) -> tuple[Pilot, PilotRequest]:
    read = read_job(job, CacheJob)
    request = PilotRequest(read.request(job, device="cpu"), read.fidelity, rows, workers=2, epochs=10)
    (pilot,) = run_pilot(request, watcher or Silent())
    return pilot, request


def test_how_long_it_takes_is_told_before_and_kept_within_a_factor_of_two(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    teacher = f'[[teacher]]\nname = "slow"\nfactory = "slow.py:build"\nbatch_size = 8\n{SPARSE}\n'
    job = write_job(tmp_path, write_counting(tmp_path, rows=500), teacher)
    for _ in range(3):  # what others do on the machine is not foretold
        watcher = Timed()
        pilot, _ = piloted(job, 6000, watcher)  # 500 rows of 12 positions: 5 s of the teacher
        if 0.5 < pilot.took_s / pilot.foretold_s < 2:
            break
    texts = [text for _, text in watcher.told]
    note = next(text for text in texts if text.startswith("note: slow: about "))
    assert "to ask it about 6,000 tokens" in note
    assert texts.index(note) < min(texts.index("slow: counting"), texts.index("slow: encodings"))
    began = next(at for at, text in watcher.told if text == note)
    assert pilot.took_s == pytest.approx(time.monotonic() - began, abs=0.5)
    assert 0.5 < pilot.took_s / pilot.foretold_s < 2


RUNS = """
import time

import numpy as np


class Rows:
    classes = ["a", "b"]
    last = None

    def __len__(self):
        return 2_000

    def __getitem__(self, i):
        if i - 1 != self.last:
            time.sleep(0.01)  # to get to a place takes long, to go on from there nothing
        self.last = i
        return {"input": np.full((1, 2, 2), i % 251, np.uint8), "label": i % 2}


def make():
    return Rows()
"""
PLAIN_TEACHER = """
from torch import nn


def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
"""


def test_reading_is_foretold_by_places_not_by_rows(tmp_path: Path) -> None:
    (tmp_path / "data.py").write_text(RUNS)
    (tmp_path / "plain.py").write_text(PLAIN_TEACHER)
    dataset = '[[dataset]]\nname = "d"\nkind = "factory"\nfactory = "data.py:make"\n'
    teacher = '[[teacher]]\nname = "plain"\nfactory = "plain.py:build"\n'
    job = write_job(tmp_path, dataset, teacher)
    read = read_job(job, CacheJob)
    (stage,) = (s for s in prepare_afresh(read.request(job, device="cpu")).stages if s.teacher is not None)
    began = time.monotonic()
    assert len(read_spread(stage, 1024).labels) == 1024  # in 64 places, 10 ms each
    took_s = time.monotonic() - began
    assert 0.5 < reading_s(stage, 1024) / took_s < 2


def test_it_is_told_in_words() -> None:
    told = Foretold(ask_s=90.0, encode_s=45.2, sites=(32_768, "token", 12))
    assert str(told) == "about 2.3 min: 90 s to ask it about 32,768 tokens, 45 s for 12 encodings"


def nearly_uniform(folder: Path) -> Path:
    """Write a job of a teacher that gives each of 200 ids about as much."""
    dataset = write_counting(folder, rows=40).replace(f"vocabulary = {IDS}", f"vocabulary = {MANY}")
    (folder / "flat.py").write_text(FLAT)
    return write_job(folder, dataset, f'[[teacher]]\nname = "flat"\nfactory = "flat.py:build"\n{SPARSE}\n')


def test_of_a_nearly_uniform_teacher_nothing_larger_than_the_job_s_own_is_recommended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pilot, request = piloted(nearly_uniform(tmp_path), 64)
    assert pilot.is_nearly_uniform
    own = next(trial for trial in pilot.trials if trial.encoding == pilot.own)
    assert own.encoding == SparseEncoding(k=2)
    within = [t for t in pilot.trials if t.fidelity.kl is not None and t.fidelity.kl <= pilot.max_kl]
    assert pilot.recommended is None or pilot.recommended.bytes_per_row <= own.bytes_per_row
    assert [trial for trial in within if trial.bytes_per_row > own.bytes_per_row]  # which it would have been
    values = as_values(pilot, request)
    assert (values["is_nearly_uniform"], values["task"]) == (True, "language_model")


def test_a_budget_that_none_but_larger_ones_keep_recommends_none_of_a_nearly_uniform_teacher(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = nearly_uniform(tmp_path)
    job.write_text(job.read_text() + "\n[fidelity]\nmax_kl = 1e-7\n")
    pilot, request = piloted(job, 64)
    assert pilot.recommended is None
    print_pilot(pilot, request)
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    text = " ".join(out.split())
    assert "nothing is recommended: teacher flat is nearly uniform, its entropy 5." in text
    assert "of at most 5.30 nats" in text
    assert "one tokenizer, at the template of texts and at the teacher's weights" in text
    assert "sparse k=2 fp16 serves at T = 1: kd, " in text


def test_of_a_teacher_that_knows_something_the_budget_alone_decides_and_what_is_cheaper_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = write_job(tmp_path, write_counting(tmp_path, rows=40), counting_teacher(scale=3.0, extra=SPARSE))
    pilot, request = piloted(job, 64)
    assert not pilot.is_nearly_uniform
    assert pilot.recommended is not None
    if (cheaper := pilot.cheaper) is not None:
        print_pilot(pilot, request)
        assert short_name(cheaper.encoding) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("task", "told", "untold"),
    [
        ("language_model", ("tokenizer", "template", "weights"), ("mean and std", "classes")),
        ("text_classification", ("tokenizer", "order of classes", "weights"), ("mean and std",)),
        ("image_classification", ("mean and std", "order of classes"), ("tokenizer",)),
    ],
)
def test_a_warning_of_chance_speaks_of_what_the_task_has(
    task: str, told: tuple[str, ...], untold: tuple[str, ...]
) -> None:
    warning = near_chance("perplexity 500", TASKS[task].look_at)
    assert [words for words in told if words not in warning] == []
    assert [words for words in untold if words in warning] == []
