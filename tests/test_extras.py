"""What only some users install: a core install does without, and whoever needs one says which."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

from jobs.cli.caches.planning import _check_plot
from jobs.cluster.batch.submitting import job_script
from jobs.files.cluster_options import ClusterOptions
from storage.datasets.digits import DigitsSource
from storage.errors import BadRequest
from storage.language import tokenizer
from student_train.options.model import LoraOptions
from student_train.report import write_report
from student_train.students import Blueprint, build_student
from student_train.students.starting.adapter import adapt
from student_train.students.transformers import embedded
from teacher_cache.teachers.kinds import KINDS
from teacher_cache.teachers.options import TeacherOptions

PROJECT = tomllib.loads((Path(__file__).resolve().parents[1] / "pyproject.toml").read_text())["project"]
LLAMA = TeacherOptions(name="t", kind="transformers", path=Path("llama"))
ONNX = TeacherOptions(name="t", kind="onnx", path=Path("model.onnx"))
SKLEARN = TeacherOptions(name="t", kind="sklearn", path=Path(__file__))
SLURM = ClusterOptions(kind="slurm", workers=1, time=3600, memory="1 GiB")
PERCEPTRON = Blueprint(architecture="mlp", num_classes=2, input_shape=(3,), mean=(0.0,), std=(1.0,))
NEEDS = {
    "digits": ("sklearn", lambda: DigitsSource(kind="digits", name="d").files()),
    "plots": ("matplotlib", lambda: write_report(Path("runs"))),
    "plots of cache plan": ("matplotlib", lambda: _check_plot(Path("p.png"))),
    "transformers": ("transformers", lambda: KINDS["transformers"].digests(LLAMA)),
    "transformers to load": ("transformers", lambda: KINDS["transformers"].load(LLAMA)),
    "transformers as a student": ("transformers", lambda: embedded(Path("llama"), {})),
    "transformers for adapters": ("peft", lambda: adapt(build_student(PERCEPTRON), LoraOptions(kind="lora", rank=1))),
    "onnx": ("onnxruntime", lambda: KINDS["onnx"].digests(ONNX)),
    "sklearn": ("skops.io", lambda: KINDS["sklearn"].digests(SKLEARN)),
    "slurm": ("dask_jobqueue", lambda: job_script(SLURM, {}, 2)),
    "slurm behind certificates": ("cryptography", lambda: job_script(SLURM, {}, 2)),
    "text": ("tokenizers", lambda: tokenizer.train_tokenizer(["a"], 300, "<|endoftext|>")),
}


@pytest.mark.parametrize("what", NEEDS)
def test_whoever_needs_an_extra_says_which(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    package, need = NEEDS[what]
    monkeypatch.setitem(sys.modules, package, None)  # what Python itself does to forbid an import
    with pytest.raises(BadRequest, match="needs a package that is not installed") as refused:
        need()
    extra = what.partition(" ")[0]
    assert refused.value.do == f".venv/bin/pip install -c constraints.txt -e '.[{extra}]'"
    assert extra in PROJECT["optional-dependencies"]


def test_the_refusal_as_a_user_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(BadRequest) as refused:
        DigitsSource(kind="digits", name="d").files()
    assert str(refused.value).splitlines() == [
        'BadRequest: kind = "digits" needs a package that is not installed',
        "  found     no scikit-learn",
        "  do        .venv/bin/pip install -c constraints.txt -e '.[digits]'",
    ]


def test_a_core_install_has_no_extra() -> None:
    extras = {name for packages in PROJECT["optional-dependencies"].values() for name in packages}
    assert set(PROJECT["dependencies"]) & extras == set()


@pytest.mark.parametrize("program", ["cache", "student"])
def test_the_version_is_told_and_nothing_slow_is_imported(program: str) -> None:
    code = (
        f"import sys; sys.argv = ['{program}', '--version']\n"
        f"from jobs.cli.{program} import main\n"
        "try: main()\n"
        "except SystemExit as ended: print(ended.code or 0, *({'torch', 'pydantic', 'dask'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines() == [f"stillroom {version('stillroom')}", "0"]
