"""Causal language models in folders that transformers wrote: what they say, what is refused."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from storage.cache import Cache
from storage.errors import BadRequest, BadTeacher, BadWeights, MissingSource, StaleCache, StillroomError
from storage.format.specs import DatasetSpec
from storage.language.tokenizer import train_tokenizer
from teacher_cache.teachers.kinds.transformers import check_files
from teacher_cache.teachers.loading import load_teacher
from teacher_cache.teachers.options import TeacherOptions
from tests.teacher_cache.toys import build, write_job

CPU = torch.device("cpu")
VERSE = "Full fathom five thy father lies; of his bones are coral made.\n" * 12
IDS, PADDED = 270, 272
SPEC = DatasetSpec(name="verse", source={}, classes=[], input_shape=(16,), input_dtype="uint16", vocabulary=IDS)

TEXT = """[[dataset]]
name = "verse"
kind = "text"
path = "verse.txt"
block = 16
long_documents = "split"
tokenizer = "llama"
"""
TEACHER = '[[teacher]]\nname = "llama"\nkind = "transformers"\npath = "llama"\nbatch_size = 4\n'


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of a few kilobytes with a tied head and a padded vocabulary, in shards, and its tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder = tmp_path_factory.mktemp("saved") / "llama"
    folder.mkdir()
    (folder / "learned.json").write_bytes(train_tokenizer([VERSE], IDS, "<|endoftext|>"))
    PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "learned.json"), eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    ).save_pretrained(folder)
    (folder / "learned.json").unlink()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=PADDED,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.5,  # so that what it says depends on what it reads
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="12KB")
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of that folder for one test, beside some text."""
    shutil.copytree(saved, tmp_path / "llama")
    (tmp_path / "verse.txt").write_text(VERSE)
    return tmp_path / "llama"


def options(folder: Path, **fields: Any) -> TeacherOptions:
    return TeacherOptions(**{"name": "llama", "kind": "transformers", "path": str(folder)} | fields)


def edit(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def whole(folder: Path) -> dict[str, torch.Tensor]:
    """Return all tensors of a sharded folder, whose files are gone from now on."""
    tensors = {}
    for path in [*folder.glob("*.safetensors")]:
        tensors |= load_file(path)
        path.unlink()
    (folder / "model.safetensors.index.json").unlink()
    return tensors


def test_a_cache_holds_what_transformers_itself_says(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    section = TEACHER + 'features = { last = { layer = "model.layers.1", pool = "none", dtype = "fp32" } }\n'
    report = build(write_job(folder.parent, TEXT, section))
    assert report.exit_code == 0, report
    cache = Cache.open(str(folder.parent / "cache"))
    tokens, labels = (torch.from_numpy(read("verse", 0)).long() for read in (cache.read_inputs, cache.read_labels))
    stored = cache.read_targets("verse", "llama", 0, names=("logits", "feature/last"))
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()
    with torch.inference_mode():
        said = [model(rows, use_cache=False, output_hidden_states=True) for rows in tokens.split(4)]
    logits = torch.cat([each.logits for each in said])
    assert cache.dataset("verse").vocabulary == IDS < logits.shape[-1]
    last, known = torch.from_numpy(stored["feature/last"]), labels >= 0
    torch.testing.assert_close(torch.from_numpy(stored["logits"]), logits[..., :IDS][known])
    hidden = torch.cat([each.hidden_states[-1] for each in said])
    torch.testing.assert_close(model.model.norm(last), hidden[known])


def test_one_file_and_shards_are_the_same_model(folder: Path) -> None:
    sharded = load_teacher(options(folder), CPU).weights
    assert len([*folder.glob("*.safetensors")]) > 1
    save_file(whole(folder), folder / "model.safetensors")
    assert load_teacher(options(folder), CPU).weights == sharded


@pytest.mark.parametrize("asked", [None, "fp32", "bf16", "fp16"])
def test_weights_are_as_stored_or_as_asked(folder: Path, asked: str | None) -> None:
    save_file({name: value.bfloat16() for name, value in whole(folder).items()}, folder / "model.safetensors")
    edit(folder / "config.json", dtype="bfloat16")
    found = {value.dtype for value in load_teacher(options(folder, dtype=asked), CPU).model.parameters()}
    assert found == {{None: torch.bfloat16, "bf16": torch.bfloat16, "fp32": torch.float32}.get(asked, torch.float16)}


@pytest.mark.parametrize("asked", ["eager", "sdpa", "flex_attention"])
def test_attention_is_computed_as_asked(folder: Path, asked: str) -> None:
    model: Any = load_teacher(options(folder, attention=asked), CPU).model
    assert model.config._attn_implementation == asked


def test_a_loaded_model_does_not_change_with_its_files(folder: Path) -> None:
    model = load_teacher(options(folder), CPU).model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for path in folder.glob("*.safetensors"):
        with open(path, "r+b") as file:  # in place, as a program that saves over it may
            file.seek(-64, 2)
            file.write(b"\1" * 64)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_loading_writes_nothing_to_the_terminal(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_teacher(options(folder), CPU)
    assert capfd.readouterr() == ("", "")


def test_weights_that_do_not_fit_are_told_tensor_by_tensor(folder: Path) -> None:
    tensors = whole(folder)
    gone, wrong = "model.layers.0.mlp.up_proj.weight", "model.norm.weight"
    tensors["value_head.weight"] = tensors.pop(gone)
    tensors[wrong] = torch.ones(7)
    save_file(tensors, folder / "model.safetensors")
    for check in (partial(load_teacher, options(folder), CPU), partial(check_files, options(folder), SPEC)):
        with pytest.raises(BadWeights) as caught:
            check()
        assert caught.value.found == (
            f"missing {gone}\nunknown value_head.weight\n{wrong}: (7,) in the file, (16,) in the model"
        )


def test_files_are_checked_without_their_values_and_before_a_row_is_read(folder: Path) -> None:
    tensors = whole(folder)
    save_file(tensors, folder / "model.safetensors")
    check_files(options(folder), SPEC)
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(BadWeights, match="do not fit the model"):
        build(write_job(folder.parent, TEXT, TEACHER))
    assert Cache.open(str(folder.parent / "cache")).catalogue().datasets == {}  # nothing is even promised
    (folder / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(BadWeights, match="is not a safetensors file"):
        check_files(options(folder), SPEC)


def test_a_vocabulary_smaller_than_the_datasets_is_refused_before_a_row_is_read(folder: Path) -> None:
    wide = SPEC.model_copy(update={"vocabulary": PADDED + 1})
    with pytest.raises(BadTeacher, match="is smaller than that of dataset verse") as refused:
        check_files(options(folder), wide)
    assert (refused.value.found, refused.value.expected) == (
        f"vocab_size = {PADDED}",
        f"{PADDED + 1} ids, or more: what is beyond them is padding",
    )


def test_what_is_no_model_is_refused_before_a_row_is_read(folder: Path) -> None:
    unknown(folder)
    with pytest.raises(BadTeacher, match="knows no model as in"):
        check_files(options(folder), SPEC)


def test_a_folder_that_is_not_there_is_told_as_that_and_not_as_one_without_a_tokenizer(folder: Path) -> None:
    job = write_job(folder.parent, TEXT, TEACHER.replace('path = "llama"', 'path = "org/llama"'))
    with pytest.raises(MissingSource, match="there is no model in") as refused:
        build(job)
    assert refused.value.found == "no folder"
    assert "nothing is fetched" in str(refused.value)


def test_a_head_is_missing_where_it_is_not_tied(folder: Path) -> None:
    edit(folder / "config.json", tie_word_embeddings=False)
    with pytest.raises(BadWeights) as caught:
        load_teacher(options(folder), CPU)
    assert caught.value.found == "missing lm_head.weight"


def pickled(folder: Path) -> None:
    torch.save(whole(folder), folder / "pytorch_model.bin")


def of_remote_code(folder: Path) -> None:
    edit(folder / "config.json", auto_map={"AutoModelForCausalLM": "modeling_mine.Mine"})


def of_remote_kernels(folder: Path) -> None:
    edit(folder / "config.json", text_config={"attn_implementation": "somebody/kernel"})


def quantised(folder: Path) -> None:
    edit(folder / "config.json", quantization_config={"quant_method": "awq"})


def unknown(folder: Path) -> None:
    edit(folder / "config.json", model_type="of_next_year")


def an_adapter(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")


def of_other_folders(folder: Path) -> None:
    edit(folder / "model.safetensors.index.json", weight_map={"lm_head.weight": "../../w.safetensors"})


def without_a_file(folder: Path) -> None:
    max(folder.glob("*.safetensors")).unlink()


def without_weights(folder: Path) -> None:
    whole(folder)


def damaged(folder: Path) -> None:
    (folder / "config.json").write_text("{")


@pytest.mark.parametrize(
    ("spoil", "error", "what", "found"),
    [
        (pickled, BadWeights, "are pickles, which could execute code", "pytorch_model.bin"),
        (of_remote_code, BadTeacher, "wants code from elsewhere", "auto_map = "),
        (of_remote_kernels, BadTeacher, "wants code from elsewhere", "attn_implementation = "),
        (quantised, BadTeacher, "is quantised", "awq"),
        (unknown, BadTeacher, "knows no model as in", "of_next_year"),
        (an_adapter, MissingSource, "there is no model in", "an adapter without its base"),
        (of_other_folders, BadWeights, "names no weights", ""),
        (without_a_file, MissingSource, "are not whole", "no model-0"),
        (without_weights, MissingSource, "there are no weights in", "config.json"),
        (damaged, BadTeacher, "is not JSON", ""),
        (shutil.rmtree, MissingSource, "there is no model in", "no folder"),
    ],
)
def test_a_folder_that_is_no_model_is_refused(
    folder: Path, spoil: Any, error: type[StillroomError], what: str, found: str
) -> None:
    spoil(folder)
    with pytest.raises(error, match=what) as caught:
        load_teacher(options(folder), CPU)
    assert found in str(caught.value.found or "")


def test_a_model_that_looks_ahead_is_refused(tmp_path: Path) -> None:
    from transformers import BertConfig, BertLMHeadModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=20, initializer_range=0.5, is_decoder=True, **sizes)
    BertLMHeadModel(config).save_pretrained(tmp_path)
    load_teacher(options(tmp_path), CPU)
    edit(tmp_path / "config.json", is_decoder=False)
    with pytest.raises(BadTeacher, match="looks ahead"):
        load_teacher(options(tmp_path), CPU)


def test_a_promise_names_the_file_that_changed(folder: Path) -> None:
    job = write_job(folder.parent, TEXT, TEACHER)
    build(job)
    path = max(folder.glob("*.safetensors"))
    save_file({name: value + 1 for name, value in load_file(path).items()}, path, {"format": "pt"})
    with pytest.raises(StaleCache) as caught:
        build(job)
    assert path.name in str(caught.value)


def test_a_promise_does_not_change_when_the_folder_moves(folder: Path) -> None:
    before = options(folder).promise(IDS).fingerprint
    assert options(folder.rename(folder.parent / "moved")).promise(IDS).fingerprint == before


@pytest.mark.parametrize("fields", [{"dtype": "bf16"}, {"attention": "eager"}], ids="+".join)
def test_a_promise_changes_with_how_the_model_computes(folder: Path, fields: dict[str, Any]) -> None:
    assert options(folder, **fields).promise(IDS).fingerprint != options(folder).promise(IDS).fingerprint


def test_another_tokenizer_is_refused_with_the_first_token_that_differs(folder: Path) -> None:
    (folder.parent / "other.json").write_bytes(train_tokenizer(["zz zz zzz zzzz"], IDS, "<|endoftext|>"))
    job = write_job(folder.parent, TEXT.replace('"llama"', '"other.json"'), TEACHER)
    with pytest.raises(BadRequest, match="teacher llama has another tokenizer than dataset verse") as caught:
        build(job)
    assert "first difference at id 257: " in str(caught.value.found)


def test_a_folder_without_a_tokenizer_is_refused_over_text(folder: Path) -> None:
    (folder / "tokenizer.json").rename(folder.parent / "tokenizer.json")
    with pytest.raises(BadRequest, match="does not say which tokenizer it has") as caught:
        build(write_job(folder.parent, TEXT.replace('"llama"', '"tokenizer.json"'), TEACHER))
    assert "tokenizer.json; AutoTokenizer" in str(caught.value.found)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"path": None}, "`kind` and `path` together"),
        ({"student": "run"}, "give either `factory` or `student`, or `kind`"),
        ({"weights": "w.safetensors"}, "`weights` belongs to a `factory`"),
        ({"kind": "of_next_year"}, "transformers"),
        ({"dtype": "int8"}, "'fp32', 'bf16' or 'fp16'"),
    ],
)
def test_options_that_contradict_each_other_are_refused(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        options(tmp_path, **fields)


def test_a_path_without_a_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="`kind` and `path` together"):
        TeacherOptions(name="t", factory="m:f", path="folder")  # type: ignore[arg-type]
