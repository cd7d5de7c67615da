"""An audit sees a teacher that changed behind its digests, names the rows, and finds an honest cache whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.files.cache_job import CacheJob
from jobs.files.reading import read_job
from storage.cache import Cache
from storage.errors import BadRequest, NotInCache, StaleCache
from storage.format.shards import ShardKey
from teacher_cache.auditing.audit import Audit, AuditRequest, run_audit
from teacher_cache.teachers.loading import cached_teacher
from tests.conftest import Program
from tests.language.toys import counting_teacher, write_counting
from tests.teacher_cache.conftest import FEATURES
from tests.teacher_cache.toys import Silent, build, teacher_section, write_digits, write_job, write_teacher
from tests.teacher_cache.work.test_shard_work import write_images
from tests.texts.toys import looking_teacher, write_texts

SWAYED = """
import os, torch
class Swayed(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.body = torch.nn.Linear(64, 16)
        self.head = torch.nn.Linear(16, 10)
        torch.nn.init.normal_(self.head.weight, std=4.0)
    def forward(self, x):
        logits = self.head(self.body(x.flatten(1)).relu())
        logits[:, 3] += float(os.environ.get("SWAY", "0"))
        return logits
def build(): return Swayed()
"""
SIGNAL = """
def signal(os):
    if "STOP" in os.environ:
        os.kill(os.getpid(), 15)
"""
ENCODINGS = {
    "fp32": '{ kind = "dense" }',
    "fp16": '{ kind = "dense", dtype = "fp16" }',
    "bf16": '{ kind = "dense", dtype = "bf16", statistics = false }',
    "int8": '{ kind = "dense", dtype = "int8" }',
    "sparse": '{ kind = "sparse", k = 3, temperatures = [1.0, 4.0] }',
    "sparse 8-bit": '{ kind = "sparse", k = 3, values = "8bit" }',
    "nucleus": '{ kind = "sparse", k = 5, p = 0.9 }',
    "draws": '{ kind = "sparse", n = 8 }',
    "draws alone": '{ kind = "sparse", n = 8, statistics = false }',
    "both": '{ kind = "sparse", k = 3, n = 6 }',
}


@pytest.fixture(autouse=True)
def _anew() -> Iterator[None]:
    """Load teachers as another command would."""
    cached_teacher.cache_clear()
    yield
    cached_teacher.cache_clear()


def audit(job: Path, *, rows: int = 40, seed: int = 0, **build: Any) -> Audit:
    request = replace(read_job(job, CacheJob).request(job, device="cpu"), **build)
    return run_audit(AuditRequest(request, rows, seed), Silent())


def swayed(folder: Path, extra: str = "") -> Path:
    (folder / "swayed.py").write_text(SWAYED)
    section = f'[[teacher]]\nname = "swayed"\nfactory = "swayed.py:build"\n{extra}\n'
    job = write_job(folder, write_digits(folder, 60), section)
    assert build(job).exit_code == 0
    return job


@pytest.mark.parametrize("encoding", ENCODINGS.values(), ids=ENCODINGS)
def test_an_honest_cache_is_whole_and_a_swayed_teacher_is_seen_in_every_encoding(
    tmp_path: Path, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = swayed(tmp_path, f'encoding = {encoding}\nfeatures.body = {{ layer = "body", dtype = "fp16" }}')
    (found,) = audit(job).audited
    assert (found.rows, found.shards, found.off) == (40, 4, ())
    monkeypatch.setenv("SWAY", "5")  # and no file, no weight has changed
    assert build(job).built == 0  # which no build can notice
    (found,) = audit(job).audited
    assert len(found.off) >= 20


def test_rows_that_are_off_are_named_with_what_is_stored_and_what_the_teacher_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = swayed(tmp_path)
    monkeypatch.setenv("SWAY", "0.01")
    (found,) = audit(job, rows=12).audited
    assert len(found.off) == 12
    assert {(off.dataset, off.teacher, off.view, off.aspect, off.at) for off in found.off} == {
        ("digits", "swayed", "plain", "logits", "3")
    }
    for off in found.off:
        assert off.sample_id == f"digits.npz:{off.row}"
        assert off.expected - off.found == pytest.approx(0.01, abs=1e-4)
        assert off.off == pytest.approx(0.01, abs=1e-4)
        assert off.tolerated < 0.005


def test_a_machine_that_answers_otherwise_is_named_and_a_library_that_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: Program
) -> None:
    """Of a night on two machines, one has an old driver and answers otherwise."""
    (tmp_path / "swayed.py").write_text(SWAYED)
    section = '[[teacher]]\nname = "swayed"\nfactory = "swayed.py:build"\n'
    job = write_job(tmp_path, write_digits(tmp_path, 60), section)
    for part, host, driver, sway in ((0, "node-a", "570.1", "0"), (1, "node-b", "550.2", "0.01")):
        with monkeypatch.context() as patch:
            patch.setenv("SWAY", sway)
            patch.setattr("teacher_cache.work.pieces.socket.gethostname", lambda host=host: host)
            patch.setattr("teacher_cache.work.ask.surroundings", lambda device, driver=driver: {"driver": driver})
            assert build(job, part=(part, 2)).exit_code == 0
        cached_teacher.cache_clear()
    monkeypatch.setattr("teacher_cache.auditing.audit.surroundings", lambda device: {"driver": "570.1", "torch": "9"})
    ended = program("cache", "verify", tmp_path / "cache", "--teacher", job, "--device", "cpu", "--rows", 40, "--json")
    said = json.loads(ended.out)
    (found,) = said["teachers"]
    assert (ended.code, said["surroundings"], found["machines"]) == (
        65,
        {"driver": "570.1", "torch": "9"},
        [{"host": "node-b", "rows": 20, "off": 20}, {"host": "node-a", "rows": 20, "off": 0}],
    )
    assert found["changed"] == [{"name": "driver", "then": ["550.2", "570.1"], "now": "570.1"}]
    told = program("cache", "verify", tmp_path / "cache", "--teacher", job, "--device", "cpu", "--rows", 40).out
    assert "  made on node-b: 20 of 20 rows off, node-a: 0 of 20 rows off\n" in told
    assert "  changed since: driver 550.2, 570.1 → 570.1\n" in told
    assert told.splitlines()[-1].endswith(": driver 570.1, torch 9")


def test_what_answers_is_in_every_commit(tmp_path: Path) -> None:
    job = swayed(tmp_path)
    commit = Cache.open(str(tmp_path / "cache")).commit(ShardKey("digits", "swayed", "plain", 0))
    said = commit.about["surroundings"]
    assert (said["torch"], {"python", "processor", "numpy"} <= said.keys()) == (torch.__version__, True)
    assert audit(job).audited[0].changed == ()


def test_rows_are_drawn_by_their_seed_and_spread_over_shards_and_views(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = write_job(
        tmp_path,
        write_digits(tmp_path, 60),
        teacher_section(),
        '[views]\ncount = 2\ntransforms = [{ kind = "pad_crop", padding = 1 }, { kind = "mixup", alpha = 1.0 }]',
    )
    write_teacher(tmp_path)
    assert build(job).exit_code == 0
    (found,) = audit(job, rows=24).audited
    assert (found.views, found.rows, found.shards, found.off) == (("view-000", "view-001"), 24, 4, ())
    sharpen(monkeypatch)
    rows = [[(off.view, off.row) for off in audit(job, rows=24, seed=seed).audited[0].off] for seed in (5, 5, 6)]
    assert rows[0] == rows[1] != rows[2]


def sharpen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Change what the toy says, behind every digest."""
    from teacher_cache.teachers import loading

    honest = loading.load_teacher

    def other(options: Any, device: torch.device) -> Any:
        teacher = honest(options, device)
        teacher.model.head.weight.mul_(1.5)
        return teacher

    monkeypatch.setattr(loading, "load_teacher", other)


def test_features_of_every_kind_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_teacher(tmp_path)
    job = write_job(tmp_path, write_digits(tmp_path, 40), teacher_section(extra=FEATURES))
    assert build(job).exit_code == 0
    (found,) = audit(job).audited
    assert found.off == ()
    assert {"feature/pooled", "feature/whole", "feature/half"} < found.tolerated.keys()


@pytest.mark.parametrize("encoding", ["", 'encoding = { kind = "sparse", k = 4, n = 4 }'], ids=["dense", "sparse"])
def test_tokens_are_audited_at_every_position(tmp_path: Path, encoding: str) -> None:
    job = write_job(tmp_path, write_counting(tmp_path), counting_teacher(extra=encoding, scale=3.0, padding=2))
    assert build(job).exit_code == 0
    (found,) = audit(job).audited
    assert (found.off, found.shards) == ((), 4)


def test_texts_of_their_own_length_are_audited(tmp_path: Path) -> None:
    job = write_job(tmp_path, write_texts(tmp_path), looking_teacher())
    assert build(job).exit_code == 0
    (found,) = audit(job).audited
    assert found.off == ()


def test_a_recoded_cache_is_compared_through_all_that_was_recoded(tmp_path: Path, program: Program) -> None:
    swayed(tmp_path, 'encoding = { kind = "dense", dtype = "fp16" }')
    text = (tmp_path / "job.toml").read_text()
    small = tmp_path / "small.toml"
    small.write_text(text.replace('"cache"', '"small"').replace('"fp16"', '"int8"'))
    assert program("cache", "recode", tmp_path / "cache", small).code == 0
    (found,) = audit(small).audited
    assert found.off == ()


def test_rows_that_could_not_be_read_are_not_asked_about(tmp_path: Path) -> None:
    source = write_images(tmp_path, broken=("003.png", "004.png"))
    write_teacher(tmp_path, classes=2)
    job = write_job(tmp_path, source, teacher_section(classes=2))
    assert len(build(job).quarantined["digits"]) == 2
    (found,) = audit(job).audited
    assert (found.rows, found.off) == (10, ())


def test_another_teacher_is_refused_by_field(tmp_path: Path) -> None:
    job = swayed(tmp_path)
    (tmp_path / "swayed.py").write_text(SWAYED + "\nextra = 1\n")
    with pytest.raises(StaleCache, match=r"teacher.json differs in model.code"):
        audit(job)


def test_another_dataset_or_a_teacher_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    job = swayed(tmp_path)
    text = job.read_text()
    job.write_text(text.replace("rows_per_shard", "validation = 0.5\nrows_per_shard"))
    with pytest.raises(StaleCache, match=r"dataset.json differs in source.validation"):
        audit(job)
    job.write_text(text.replace('"swayed"', '"other"'))
    with pytest.raises(NotInCache, match=r"has no teacher other for digits"):
        audit(job)
    job.write_text(text[: text.index("[[teacher]]")])
    with pytest.raises(BadRequest, match=r"has no teacher to ask"):
        audit(job)


def test_classes_in_another_order_are_refused(tmp_path: Path) -> None:
    job = swayed(tmp_path)
    names = Cache.open(str(tmp_path / "cache")).dataset("digits").classes
    assert len(names) > 1
    job.write_text(job.read_text().replace(json.dumps(names), json.dumps([*names[1:], names[0]])))
    with pytest.raises(StaleCache, match=r"dataset.json differs in classes"):
        audit(job)


def test_the_command_names_the_rows_and_exits_65(
    tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = swayed(tmp_path)
    cache = tmp_path / "cache"
    whole = program("cache", "verify", cache, "--teacher", job, "--rows", 16)
    assert whole.code == 0
    assert "digits/swayed: 16 rows of 2 shards: all as the teacher says" in whole.out
    monkeypatch.setenv("SWAY", "5")
    off = program("cache", "verify", cache, "--teacher", job, "--rows", 16, "--seed", 4)
    assert off.code == 65
    assert "logits, class 3: found " in off.out
    assert "digits/swayed: 16 rows of 2 shards: 16 off" in off.out
    assert "seed 4, on cpu" in off.out
    said = json.loads(program("cache", "verify", cache, "--teacher", job, "--rows", 16, "--json").out)
    (teacher,) = said["teachers"]
    assert (said["seed"], len(teacher["off"]), teacher["off"][0]["unit"]) == (0, 16, "nat")
    assert program("cache", "verify", cache, "--teacher", job, "--repair").code == 2


def test_a_signal_in_the_teachers_own_code_stops_an_audit(
    tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "swayed.py").write_text(SWAYED.replace("logits[:, 3]", "signal(os)\n        logits[:, 3]") + SIGNAL)
    section = '[[teacher]]\nname = "swayed"\nfactory = "swayed.py:build"\n'
    job = write_job(tmp_path, write_digits(tmp_path, 20), section)
    assert build(job).exit_code == 0
    monkeypatch.setenv("STOP", "1")
    assert program("cache", "verify", tmp_path / "cache", "--teacher", job).code == 143


def test_a_teacher_that_says_no_number_now_is_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = swayed(tmp_path)
    monkeypatch.setenv("SWAY", "nan")
    (found,) = audit(job, rows=8).audited
    assert len(found.off) == 8
