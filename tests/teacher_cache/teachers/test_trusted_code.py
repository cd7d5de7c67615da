"""Code that comes with a model's folder: refused, or run from that very folder where the job trusts it by name."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from storage.errors import BadRequest, BadTeacher, MissingSource, StaleCache, StillroomError
from teacher_cache.teachers.loading import load_teacher
from teacher_cache.teachers.options import TeacherOptions
from tests.teacher_cache.teachers.test_transformers import IDS, TEACHER, TEXT, edit, folder, options, saved
from tests.teacher_cache.toys import build, write_job

__all__ = ["folder", "saved"]  # fixtures

CPU = torch.device("cpu")
CONFIG = """from transformers import PretrainedConfig

class TinyConfig(PretrainedConfig):
    model_type = "tiny_of_this_test"
    def __init__(self, vocab_size=272, hidden_size=8, **rest):
        self.vocab_size, self.hidden_size = vocab_size, hidden_size
        super().__init__(**rest)
"""
MODEL = """import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput
from .configuration_tiny import TinyConfig

class TinyForCausalLM(PreTrainedModel):
    config_class = TinyConfig
    def __init__(self, config):
        super().__init__(config)
        self.model = nn.Embedding(config.vocab_size, config.hidden_size)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()
    def forward(self, input_ids, **_):
        return CausalLMOutput(logits=SCALE * self.lm_head(self.model(input_ids)))

SCALE = 2.0
"""
AUTO_MAP = {"AutoConfig": "configuration_tiny.TinyConfig", "AutoModelForCausalLM": "modeling_tiny.TinyForCausalLM"}
TRUST = [*AUTO_MAP.values()]


@pytest.fixture
def tiny(folder: Path) -> Path:
    """The folder of a model that transformers does not have, with its own code and the tokenizer of another."""
    for path in [*folder.glob("*.safetensors*")]:
        path.unlink()
    (folder / "configuration_tiny.py").write_text(CONFIG)
    (folder / "modeling_tiny.py").write_text(MODEL)
    (folder / "config.json").write_text("{}")
    edit(folder / "config.json", model_type="tiny_of_this_test", vocab_size=272, hidden_size=8, auto_map=AUTO_MAP)
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(272, 8, generator=generator) for name in ("model.weight", "lm_head.weight")}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def logits_of(path: Path) -> torch.Tensor:
    model: Any = load_teacher(options(path, trust_code=TRUST), CPU).model
    logits: torch.Tensor = model(torch.arange(5)[None]).logits
    return logits


def files(root: Path) -> set[Path]:
    return set(root.rglob("*"))


def test_trusted_code_runs_and_a_cache_is_built_of_it(tiny: Path) -> None:
    section = TEACHER + f"trust_code = {TRUST}\n"
    report = build(write_job(tiny.parent, TEXT, section))
    assert report.exit_code == 0, report


def test_one_name_need_not_be_a_list(tiny: Path) -> None:
    assert options(tiny, trust_code=TRUST[1]).trust_code == [TRUST[1]]


def test_what_runs_is_the_folders_own_and_nothing_is_written(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.utils import hub

    before = files(tmp_path), files(Path(hub.HF_MODULES_CACHE))
    logits = logits_of(tiny)
    (tiny / "modeling_tiny.py").write_text(MODEL.replace("SCALE = 2.0", "SCALE = 3.0"))
    torch.testing.assert_close(logits_of(tiny), logits * 1.5)  # no copy of the older code
    assert (files(tmp_path), files(Path(hub.HF_MODULES_CACHE))) == before


def test_a_changed_file_of_code_is_another_teacher(tiny: Path) -> None:
    job = write_job(tiny.parent, TEXT, TEACHER + f"trust_code = {TRUST}\n")
    build(job)
    (tiny / "modeling_tiny.py").write_text(MODEL.replace("SCALE = 2.0", "SCALE = 3.0"))
    with pytest.raises(StaleCache) as caught:
        build(job)
    assert "modeling_tiny.py" in str(caught.value)


def test_a_promise_of_a_model_without_code_is_as_it_was(folder: Path) -> None:
    assert options(folder).promise(IDS).model.keys() == {"autocast", "dtype", "attention", "config", "weights"}


def ran() -> set[str]:
    return {name for name in sys.modules if name.startswith("trusted_code_")}


def of_a_repository(path: Path) -> None:
    edit(path / "config.json", auto_map=AUTO_MAP | {"AutoModel": "somebody/tiny--modeling_tiny.TinyModel"})


def of_one_more(path: Path) -> None:
    edit(path / "config.json", auto_map=AUTO_MAP | {"AutoTokenizer": ["tokens_tiny.Slow", None]})


def without_a_map(path: Path) -> None:
    edit(path / "config.json", auto_map={})


def without_its_file(path: Path) -> None:
    (path / "modeling_tiny.py").unlink()


def nested(path: Path) -> None:
    edit(path / "config.json", text_config={"auto_map": AUTO_MAP})


@pytest.mark.parametrize(
    ("spoil", "trust", "error", "what", "said"),
    [
        (None, None, BadTeacher, "wants code from elsewhere", f'trust_code = ["{TRUST[0]}", "{TRUST[1]}"]'),
        (None, TRUST[1:], BadTeacher, "that the job does not trust", TRUST[0]),
        (None, [*TRUST, "modeling_tiny.Other"], BadTeacher, "has no such code as", "modeling_tiny.Other"),
        (of_a_repository, TRUST, BadTeacher, "that the job does not trust", "put the repository's files"),
        (of_one_more, TRUST, BadTeacher, "that the job does not trust", "tokens_tiny.Slow"),
        (without_a_map, TRUST, BadTeacher, "has no such code as", "no auto_map"),
        (without_its_file, TRUST, MissingSource, "there is no .*modeling_tiny.py", TRUST[1]),
        (nested, TRUST, BadTeacher, "wants code from elsewhere", "auto_map"),
    ],
)
def test_what_is_not_trusted_is_refused_before_any_of_it_runs(
    tiny: Path, spoil: Any, trust: Any, error: type[StillroomError], what: str, said: str
) -> None:
    if spoil is not None:
        spoil(tiny)
    (tiny / "configuration_tiny.py").write_text(CONFIG + f"\n# {what} {said} {spoil}")  # code that never ran before
    before = ran()
    for ask in (lambda: load_teacher(options(tiny, trust_code=trust), CPU), lambda: digests(tiny, trust)):
        with pytest.raises(error, match=what) as caught:
            ask()
        assert said in str(caught.value)
    assert ran() == before


def digests(path: Path, trust: Any) -> None:
    options(path, trust_code=trust).promise(IDS)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("from .beside import helper", "No module named 'beside'"),
        ("import transformers", "has no attribute 'TinyForCausalLM'"),
        ("TinyForCausalLM = 3", "is no class"),
    ],
)
def test_code_that_fails_is_told(tiny: Path, code: str, said: str) -> None:
    (tiny / "modeling_tiny.py").write_text(code)
    with pytest.raises(BadTeacher) as caught:
        load_teacher(options(tiny, trust_code=TRUST), CPU)
    assert said in str(caught.value)


@pytest.mark.parametrize("name", ["somebody/tiny--modeling_tiny.TinyModel", "TinyModel", "../m.TinyModel", "a.b.C"])
def test_a_name_of_another_place_is_refused(tiny: Path, name: str) -> None:
    with pytest.raises(ValueError, match="trust_code"):
        options(tiny, trust_code=[name])


def test_code_is_trusted_of_a_transformers_alone() -> None:
    with pytest.raises(ValueError, match="`trust_code` belongs to a `transformers`"):
        TeacherOptions(name="t", factory="m:f", trust_code=TRUST)


def test_a_student_cannot_trust_code(tiny: Path) -> None:
    from storage.language.model_folder import read_config

    with pytest.raises(BadRequest, match="wants code from elsewhere") as caught:
        read_config(tiny, BadRequest)
    assert "trust_code" not in str(caught.value)
