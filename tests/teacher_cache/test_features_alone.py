"""A teacher that is asked for features alone: nothing of its scores is heard, stored or told."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from storage.cache import Cache
from storage.cache.verify import verify
from storage.encodings import DenseEncoding, NoEncoding, SparseEncoding
from storage.errors import BadRequest, BadTeacher, MissingCapability, UnsupportedFormat
from storage.format import specs
from student_train.options.sections import DataOptions, StudentOptions
from student_train.preparing.prepare import prepare
from student_train.preparing.request import Request
from student_train.running.train import train_students
from teacher_cache.teachers.loading import cached_teacher
from tests.conftest import Program
from tests.teacher_cache.auditing.test_audit import audit
from tests.teacher_cache.pilot.test_pilot import pilot_of
from tests.teacher_cache.recoding.test_recode import job_of, recode
from tests.teacher_cache.toys import build, digits, write_digits, write_job, write_teacher

NONE = 'encoding = { kind = "none" }\n'
SEEN = NONE + 'features.seen = { layer = "body", dtype = "fp32" }\n'
EXTRACTOR = '''
"""A body of 16 numbers; what it returns, and what its head does, are of no matter."""
import os, torch
from torch import nn

class Head(nn.Module):
    def __init__(self, times):
        super().__init__()
        self.times = times
    def forward(self, x):
        self.times -= 1
        if self.times < 0:
            raise RuntimeError("nobody should ask for scores")
        return x

class Extractor(nn.Module):
    def __init__(self, returns, times, draws):
        super().__init__()
        torch.manual_seed(3)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 16))
        self.head, self.returns, self.draws = Head(times), returns, draws
    def forward(self, x):
        if self.draws:
            x = x + torch.rand_like(x)
        seen = self.body(x + float(os.environ.get("SWAY", "0")))
        said = self.head(seen)
        if self.returns == "tuple":
            return said, seen
        if self.returns == "object":
            return type("Output", (), {"last_hidden_state": said})()
        return None if self.returns == "nothing" else said

def build(returns="tensor", times=99, draws=False): return Extractor(returns, times, draws)
'''


def extractor(folder: Path, extra: str = SEEN, *, name: str = "seer", **arguments: object) -> str:
    (folder / "extractor.py").write_text(EXTRACTOR)
    given = ", ".join(f"{key} = {json.dumps(value)}" for key, value in arguments.items())
    return f'[[teacher]]\nname = "{name}"\nfactory = "extractor.py:build"\narguments = {{ {given} }}\n{extra}\n'


def by_hand(rows: int) -> torch.Tensor:
    space: dict[str, object] = {}
    exec(EXTRACTOR, space)
    inputs = torch.from_numpy(digits(rows)[0]).float() / 255
    return space["build"]().body(inputs).detach()  # type: ignore[operator, no-any-return]


@pytest.fixture(autouse=True)
def _anew() -> None:
    cached_teacher.cache_clear()


@pytest.mark.parametrize("returns", ["tensor", "tuple", "object", "nothing"])
def test_features_are_stored_whatever_the_model_returns(tmp_path: Path, returns: str) -> None:
    assert build(write_job(tmp_path, write_digits(tmp_path, 20), extractor(tmp_path, returns=returns))).exit_code == 0
    cache = Cache.open(str(tmp_path / "cache"))
    commit = cache.catalogue().read_commits("digits", "seer")[0]
    assert commit.array_names == ["feature/seen"]
    found = np.concatenate(
        [cache.read_targets("digits", "seer", i, names=["feature/seen"])["feature/seen"] for i in (0, 1)]
    )
    assert torch.allclose(torch.from_numpy(found), by_hand(20), atol=1e-6)
    assert commit.about["answered"] == {"labelled": 16}
    samples = cache.samples().of("digits", ["seer"])
    for name in ("top", "top_probability", "entropy", "label_log_probability"):
        assert samples[f"seer_{name}"].null_count() == 20
    assert not verify(cache).bad


def test_a_head_is_not_asked_where_the_body_alone_gives_the_same(tmp_path: Path) -> None:
    # whole it is called once, to see that
    assert build(write_job(tmp_path, write_digits(tmp_path, 20), extractor(tmp_path, times=1))).exit_code == 0


def test_a_commands_last_lines_tell_it(tmp_path: Path, program: Program) -> None:
    job = write_job(tmp_path, write_digits(tmp_path, 20), extractor(tmp_path))
    built = program("cache", "build", job)
    assert built.code == 0, built.err
    assert "seer has features alone: it serves losses on features, and none on soft targets" in built.out
    assert "chance" not in built.out
    assert "accuracy" not in built.out
    assert json.loads(program("cache", "build", job, "--json").out)["teachers"] == []
    cache = tmp_path / "cache"
    status = program("cache", "status", cache)
    assert status.code == 0
    assert "chance" not in status.out
    info = json.loads(program("cache", "info", cache, "--json").out)["datasets"]["digits"]["teachers"]["seer"]
    assert info["serves"] == ["no soft targets: features alone"]
    assert info["uses"] == ["features_alone"]
    assert program("cache", "info", cache).code == 0
    assert program("cache", "verify", cache).code == 0
    asked = program("cache", "query", cache, "SELECT count(*) AS n, count(seer_top) AS tops FROM digits", "--json")
    assert json.loads(asked.out) == [{"n": 20, "tops": 0}], asked.out


def test_an_audit_compares_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = write_job(tmp_path, write_digits(tmp_path, 60), extractor(tmp_path))
    build(job)
    (found,) = audit(job).audited
    assert (found.rows, found.off, list(found.tolerated)) == (40, (), ["feature/seen"])
    monkeypatch.setenv("SWAY", "0.5")  # and no file, no weight has changed; the body alone does not say the same now
    (found,) = audit(job).audited
    assert len(found.off) == 40
    assert {(off.aspect, off.unit) for off in found.off} == {("feature/seen", "")}


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        (NONE, "nothing would be stored"),
        (
            'encoding = { kind = "none", temperatures = [2.0] }\nfeatures.b = { layer = "body" }',
            "leave out temperatures",
        ),
    ],
)
def test_what_would_store_nothing_is_refused(tmp_path: Path, extra: str, told: str) -> None:
    with pytest.raises(BadRequest) as caught:
        build(write_job(tmp_path, write_digits(tmp_path, 20), extractor(tmp_path, extra)))
    assert told in str(caught.value)


def test_a_plan_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="features alone"):
        pilot_of(write_job(tmp_path, write_digits(tmp_path, 20), extractor(tmp_path)))


def test_features_that_are_drawn_are_refused(tmp_path: Path) -> None:
    section = extractor(tmp_path, NONE + 'features.seen = { layer = "body", dtype = "fp32" }', draws=True)
    with pytest.raises(BadTeacher, match="another answer each time") as caught:
        build(write_job(tmp_path, write_digits(tmp_path, 20), section))
    assert "features of " in str(caught.value.found)


def test_a_shard_with_bad_features_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = extractor(tmp_path, NONE + 'features.seen = { layer = "body", dtype = "fp16" }')
    monkeypatch.setenv("SWAY", "1e6")
    report = build(write_job(tmp_path, write_digits(tmp_path, 20), section))
    assert len(report.refused) == 2
    assert not Cache.open(str(tmp_path / "cache")).catalogue().committed("digits", "seer")


def test_rows_without_classes_have_features_too(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", inputs=digits(20)[0])
    section = '[[dataset]]\nname = "digits"\nkind = "arrays"\npath = "d.npz"\nrows_per_shard = 16\n'
    job = write_job(tmp_path, section, extractor(tmp_path))
    assert build(job).exit_code == 0
    cache = Cache.open(str(tmp_path / "cache"))
    assert cache.teacher("digits", "seer").num_classes == 0
    assert audit(job).num_off == 0
    assert recode(tmp_path / "cache", write_job(tmp_path, section, extractor(tmp_path), cache="small")).exit_code == 0


def test_a_reader_that_does_not_know_it_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(write_job(tmp_path, write_digits(tmp_path, 20), extractor(tmp_path)))
    monkeypatch.setattr(specs, "USES", tuple(name for name in specs.USES if name != "features_alone"))
    with pytest.raises(UnsupportedFormat, match="uses what this version cannot read"):
        Cache.open(str(tmp_path / "cache")).catalogue()


@pytest.mark.parametrize("rich", [DenseEncoding(), SparseEncoding(k=3)])
def test_soft_targets_may_be_let_go_and_never_come_back(tmp_path: Path, rich: DenseEncoding | SparseEncoding) -> None:
    write_teacher(tmp_path)
    features = 'features.h = { layer = "norm", dtype = "fp16" }\n'
    build(job_of(tmp_path, rich, cache="cache", extra=features))
    assert recode(tmp_path / "cache", job_of(tmp_path, NoEncoding(), extra=features)).exit_code == 0
    small = Cache.open(str(tmp_path / "small"))
    build(job_of(tmp_path, NoEncoding(), cache="anew", extra=features))
    anew = Cache.open(str(tmp_path / "anew"))
    one, other = (c.catalogue().read_commits("digits", "toy")[0] for c in (small, anew))
    assert [m.digest for m in one.members] == [m.digest for m in other.members]
    assert one.table.to_pydict() == other.table.to_pydict()
    assert one.about["answered"] == other.about["answered"] == {"labelled": 16}
    assert small.teacher("digits", "toy").fingerprint == anew.teacher("digits", "toy").fingerprint
    with pytest.raises(MissingCapability, match="holds too little"):
        recode(tmp_path / "small", job_of(tmp_path, DenseEncoding(), cache="back", extra=features))


def test_a_cache_of_format_2_gets_none(tmp_path: Path) -> None:
    with zipfile.ZipFile(Path(__file__).parent.parent / "data/format2.zip") as archive:
        archive.extractall(tmp_path)
    job = tmp_path / "images.cache.toml"
    section = extractor(tmp_path, SEEN + 'datasets = ["pictures"]')
    job.write_text(job.read_text() + "\n" + section)
    with pytest.raises(BadRequest, match="format 2, which has no teacher of features alone"):
        build(job)


def student(**options: object) -> StudentOptions:
    given = {"name": "s", "architecture": "mlp", "options": {"hidden": [16]}, "epochs": 1, "batch_size": 8}
    return StudentOptions.model_validate(given | options)


def test_students_learn_from_features_and_not_from_what_is_not_there(tmp_path: Path, program: Program) -> None:
    data = write_digits(tmp_path, 40).replace("rows_per_shard", "validation = 0.25\nrows_per_shard")
    assert build(write_job(tmp_path, data, extractor(tmp_path))).exit_code == 0
    cache = Cache.open(str(tmp_path / "cache"))
    rows = DataOptions.model_validate({"train": "digits/train", "validation": "digits/validation"})

    def request(*objective: dict[str, object]) -> Request:
        return Request(cache, tmp_path / "runs", rows, (student(objective=list(objective)),), "cpu")

    with pytest.raises(MissingCapability) as caught:
        prepare(request({"loss": "kd", "teacher": "seer"}))
    assert "features alone" in str(caught.value.found)
    assert 'kind = "dense"' in str(caught.value.do)
    hint = {"loss": "hint", "teacher": "seer", "feature": "seen", "student_layer": "network.hidden1"}
    asked = request({"loss": "labels"}, hint)
    (prepared,) = prepare(asked)
    assert prepared.agree_with is None
    assert "no agreement with seer, which has features alone" in prepared.decided
    summary = train_students(asked)
    assert summary.exit_code == 0, summary.errors
    (record,) = summary.records
    assert record.agreement is None
    written = program("student", "report", tmp_path / "runs")
    assert written.code == 0, written.err
    page = (tmp_path / "runs" / "report.html").read_text()
    assert "stored without soft targets: features alone, seen." in page
    assert "its answers" not in page
