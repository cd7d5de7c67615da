"""Students as folders that transformers loads: the same logits, what goes with them, what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from storage.cache import Cache
from storage.errors import BadRequest, CorruptObject, MissingSource, NotInCache
from student_train.options.sections import StudentOptions
from student_train.run_files.records import read_record, write_record
from student_train.running.train import train_students
from student_train.students import load_student
from student_train.using.exporting.hub.transformers import export_transformers
from tests.language.models import config_folder, hf_student
from tests.language.test_hf_student import tokens
from tests.language.toys import IDS, counting_cache, request, small_gpt
from tests.teacher_cache.toys import build, write_job

VERSE = "Full fathom five thy father lies; of his bones are coral made.\n" * 12
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of the counting language: of transformers, and of the built-in gpt."""
    folder = tmp_path_factory.mktemp("counting")
    cache = counting_cache(folder, length=12)
    plain = {"depth": 2, "width": 8, "heads": 2}
    students = [
        hf_student(config_folder(folder / "small")),
        small_gpt("gpt", options=plain),
        small_gpt("untied", options=plain | {"tied": False, "dropout": 0.1}),
        small_gpt("stops", options=plain | {"end_of_text": 9}, epochs=30, learning_rate=0.05),
    ]
    assert not train_students(request(cache, folder / "runs", *students)).errors
    return folder / "runs"


@pytest.mark.parametrize("name", ["hf", "gpt", "untied"])
def test_transformers_loads_what_was_exported(runs: Path, tmp_path: Path, name: str) -> None:
    found = export_transformers(runs / name, tmp_path / "out")
    student = load_student(runs / name)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.inference_mode():
        expected, said = student(tokens()), loaded(input_ids=tokens()).logits[..., :IDS]
    assert torch.allclose(said, expected, rtol=0, atol=1e-5)
    assert found.difference is not None
    assert found.difference < 1e-5
    assert found.told[0].startswith("logits of 5 held rows of counting/validation: at most ")
    assert loaded.generate(tokens()[:, :4], max_new_tokens=2, do_sample=False, pad_token_id=0).shape == (3, 6)


def test_what_gpt2_cannot_say_is_refused_and_nothing_is_left(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="does not say what the student says") as refused:
        export_transformers(runs / "stops", tmp_path / "out")
    assert "stops at `end_of_text`" in str(refused.value.do)
    assert [*tmp_path.iterdir()] == []


def rewritten(run: Path, folder: Path, **fields: str) -> Path:
    """Return a copy of a run whose record says something else."""
    shutil.copytree(run, folder)
    record = read_record(folder)
    assert record is not None
    write_record(folder, record.model_copy(update=fields))
    return folder


def test_where_its_cache_is_gone_drawn_rows_are_compared(runs: Path, tmp_path: Path) -> None:
    run = rewritten(runs / "hf", tmp_path / "hf", cache=str(tmp_path / "nowhere"))
    found = export_transformers(run, tmp_path / "out")
    assert found.told[0].startswith("logits of 100 drawn rows, for the held ones cannot be had (")
    with pytest.raises(NotInCache):
        export_transformers(run, tmp_path / "more", cache=str(tmp_path / "nowhere"))
    assert not (tmp_path / "more").exists()


def test_the_same_export_again_does_nothing_and_another_is_refused(runs: Path, tmp_path: Path) -> None:
    export_transformers(runs / "hf", tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert export_transformers(runs / "hf", tmp_path / "out").done_before
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before
    with pytest.raises(BadRequest, match="is there already") as refused:
        export_transformers(runs / "gpt", tmp_path / "out")
    assert refused.value.found == "another export"
    (tmp_path / "out/config.json").write_text("{}")
    with pytest.raises(CorruptObject, match=r"config\.json is not what was exported"):
        export_transformers(runs / "hf", tmp_path / "out")


def test_a_damaged_mark_is_no_export(runs: Path, tmp_path: Path) -> None:
    export_transformers(runs / "hf", tmp_path / "out")
    mark = json.loads((tmp_path / "out/stillroom.json").read_text())
    (tmp_path / "out/stillroom.json").write_text(json.dumps(mark | {"files": None}))
    with pytest.raises(BadRequest, match="is there already"):
        export_transformers(runs / "hf", tmp_path / "out")


def test_a_folder_of_something_else_is_left_alone(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(BadRequest, match="is there already"):
        export_transformers(runs / "hf", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_student_that_has_no_equal_is_refused(tmp_path: Path, runs: Path) -> None:
    rewritten(runs / "hf", tmp_path / "hf", architecture="mlp")
    with pytest.raises(BadRequest, match="has no equal in transformers"):
        export_transformers(tmp_path / "hf", tmp_path / "out")


def test_where_there_is_no_student_it_is_said(tmp_path: Path) -> None:
    with pytest.raises(MissingSource, match="there is no trained student"):
        export_transformers(tmp_path, tmp_path / "out")


@pytest.fixture(scope="module")
def verse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of text, whose student's folder has a tokenizer with a chat template and a generation config."""
    from transformers import GenerationConfig, PreTrainedTokenizerFast

    from storage.language.tokenizer import train_tokenizer

    folder = tmp_path_factory.mktemp("verse")
    (folder / "verse.txt").write_text(VERSE)
    (folder / "learned.json").write_bytes(train_tokenizer([VERSE], 270, "<|endoftext|>"))
    small = config_folder(folder / "small", vocab_size=272)
    spoken = PreTrainedTokenizerFast(tokenizer_file=str(folder / "learned.json"), eos_token="<|endoftext|>")
    spoken.chat_template = TEMPLATE
    spoken.save_pretrained(small)
    GenerationConfig(max_new_tokens=7).save_pretrained(small)
    dataset = (
        '[[dataset]]\nname = "verse"\nkind = "text"\npath = "verse.txt"\nblock = 16\nlong_documents = "split"\n'
        'tokenizer = "small"\nvalidation = 0.3\n'
    )
    assert build(write_job(folder, dataset)).exit_code == 0
    student = StudentOptions.model_validate(
        {
            "name": "s",
            "architecture": "transformers",
            "path": str(small),
            "objective": [{"loss": "labels"}],
            "epochs": 1,
        }
    )
    asked = request(
        Cache.open(str(folder / "cache")), folder / "runs", student, train="verse/train", validation="verse/validation"
    )
    assert not train_students(asked).errors
    return folder


def test_tokenizer_template_and_generation_config_go_with_it(verse: Path, tmp_path: Path) -> None:
    found = export_transformers(verse / "runs/s", tmp_path / "out")
    spoken = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert spoken.decode(spoken("Full fathom")["input_ids"]) == "Full fathom"
    assert spoken.apply_chat_template([{"role": "user", "content": "five"}], tokenize=False) == "five"
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").generation_config.max_new_tokens == 7
    assert any("chat_template.jinja" in text and str(verse / "small") in text for text in found.told)


def test_what_is_missing_is_told(verse: Path, tmp_path: Path) -> None:
    shutil.move(verse / "small", verse / "away")
    try:
        found = export_transformers(verse / "runs/s", tmp_path / "out")
        named = export_transformers(verse / "runs/s", tmp_path / "named", tokenizer=verse / "away")
    finally:
        shutil.move(verse / "away", verse / "small")
    assert any(text.startswith("no tokenizer_config.json, chat_template.jinja: ") for text in found.told)
    assert (tmp_path / "out/generation_config.json").exists()
    assert "generation_config.json: the default that transformers makes of a config" in found.told
    spoken = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert spoken.eos_token == "<|endoftext|>"
    assert (tmp_path / "named/chat_template.jinja").read_text() == TEMPLATE
    assert not any(text.startswith("no ") for text in named.told)


def test_the_same_export_with_other_files_beside_is_another(verse: Path, tmp_path: Path) -> None:
    own = verse / "small"
    export_transformers(verse / "runs/s", tmp_path / "out")
    assert export_transformers(verse / "runs/s", tmp_path / "out", tokenizer=own).done_before
    shutil.copytree(own, tmp_path / "asked")
    (tmp_path / "asked/chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(BadRequest, match="is there already") as refused:
        export_transformers(verse / "runs/s", tmp_path / "out", tokenizer=tmp_path / "asked")
    assert refused.value.found == "the same export with another chat_template.jinja"


def test_another_tokenizer_is_refused(verse: Path, tmp_path: Path) -> None:
    from storage.language.tokenizer import train_tokenizer

    (tmp_path / "tokenizer.json").write_bytes(train_tokenizer(["other"], 260, "<end>"))
    export_transformers(verse / "runs/s", tmp_path / "before")
    with pytest.raises(BadRequest, match="another tokenizer than the student"):
        export_transformers(verse / "runs/s", tmp_path / "before", tokenizer=tmp_path)
    with pytest.raises(BadRequest, match="another tokenizer than the student"):
        export_transformers(verse / "runs/s", tmp_path / "out", tokenizer=tmp_path)


def test_the_card_says_what_it_learned_from_whom(runs: Path, tmp_path: Path) -> None:
    export_transformers(runs / "hf", tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    steps = json.loads((runs / "hf/run.json").read_text())["steps"]
    for said in (
        "license: unknown",
        "`right` (fingerprint ",
        "`kd` (weight = 1.0, teacher = right",
        "| cross_entropy |",
        f"After {steps} steps; weights of step {steps}.",
    ):
        assert said in card


def test_the_program_exports_and_says_what_it_compared(runs: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from jobs.cli.student import main; main()"]
    asked = [*command, "export", str(runs / "hf"), "-o", str(tmp_path / "out"), "--format", "transformers"]
    done = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=120)
    lines = done.stdout.splitlines()
    assert lines[0] == f"{tmp_path}/out: hf as a LlamaForCausalLM"
    assert lines[1].startswith("  logits of 5 held rows of counting/validation: at most 0 apart")
    assert done.stderr == ""
    again = subprocess.run([*asked, "--json"], capture_output=True, text=True, check=True, timeout=120)
    assert json.loads(again.stdout)["done_before"]
