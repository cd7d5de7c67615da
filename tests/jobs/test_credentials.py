"""What opens a store stays in the environment: nothing that commands print, log or write has it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from storage.format.objects import open_objects
from tests.conftest import Program
from tests.faulty_store import FaultyStore
from tests.teacher_cache.toys import teacher_section, write_digits, write_job, write_teacher

pytestmark = pytest.mark.slow

SECRETS = {
    "AWS_ACCESS_KEY_ID": "AKIAGEHEIMGEHEIM1234",
    "AWS_SECRET_ACCESS_KEY": "geheim+Schluessel/0123456789",
    "AWS_SESSION_TOKEN": "geheim-Sitzung-0123456789",
}
LOGGED = ("--log-format", "json")
STUDENTS = """
cache = {cache!r}
runs = "runs"
train = "digits/train"
validation = "digits/validation"
keep = "scratch"
keep_bytes = 1_000_000

[[student]]
name = "s"
architecture = "mlp"
objective = [{{ loss = "kd", teacher = "toy" }}]
epochs = 1
batch_size = 8
"""
BATCH = 'kind = "slurm"\nworkers = 2\ntime = "0:10:00"\nmemory = "1 GiB"'
PODS = 'kind = "kubernetes"\nworkers = 2\nmemory = "1 GiB"\npods = { image = "i", folder = "/f", secrets = ["s"] }'


def test_no_output_log_error_run_or_cache_tells_what_opens_the_store(
    tmp_path: Path, bucket: str, faulty: FaultyStore, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("storage.format.stores.asking.PATIENCE_S", 0.5)
    (tmp_path / "scratch").mkdir()
    write_teacher(tmp_path)
    sections = (write_digits(tmp_path, 40) + "validation = 0.2\n", teacher_section())
    texts: dict[str, str] = {}

    def say(code: int, *command: object) -> None:
        ended = program(*command)
        assert ended.code == code, ended.err
        texts[" ".join(map(str, command))] = ended.out + ended.err

    job = write_job(tmp_path, *sections, cache=bucket)
    for fault, code in {"403 InvalidAccessKeyId": 2, "503": 75, "drop": 75}.items():
        faulty.will(fault, times=10**6)
        say(code, "cache", "build", job, *LOGGED)
        say(code, "cache", "status", bucket)
    faulty.times = 0
    say(0, "cache", "build", job, *LOGGED, "--metrics-file", "figures.prom")
    (tmp_path / "students.toml").write_text(STUDENTS.format(cache=bucket))
    say(0, "student", "train", "students.toml", *LOGGED, "--metrics-file", "train.prom")
    say(0, "student", "report", "runs")
    for command in ("status", "info", "verify"):
        say(0, "cache", command, bucket)
    say(0, "cache", "gc", bucket, "--dry-run")
    say(0, "cache", "copy", bucket, "copy")
    write_job(tmp_path, *sections, cache=bucket, cluster=BATCH)
    say(0, "cache", "build", job, "--dry-run")
    write_job(tmp_path, *sections, cache=bucket, cluster=PODS)
    say(0, "cache", "manifest", job)

    there = open_objects(bucket)
    found = {info.path: there.get(info.path) for info in there.walk()}
    found |= {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    found |= {name: text.encode() for name, text in texts.items()}
    assert len(found) > 40
    for name, data in found.items():
        for secret in SECRETS.values():
            assert secret.encode() not in data, name
    assert os.environ["AWS_SESSION_TOKEN"] == SECRETS["AWS_SESSION_TOKEN"]  # it was the one that was used
