"""Caches of chats: what a build stores, promises and tells, and what it refuses."""

from __future__ import annotations

import datetime
import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from storage.cache import Cache
from storage.cache.verify import verify
from storage.datasets.chat import source as module
from storage.errors import BadRequest, MissingSource, StaleCache
from storage.format.committing import read_ragged
from storage.format.shards import ShardKey
from storage.language.tokenizer import decoder
from storage.views import PLAIN
from student_train.feed.batches import Needs
from student_train.feed.residency import Residency, projected_bytes
from student_train.feed.selection import select_rows
from student_train.feed.windows import READERS
from student_train.options.sections import DataOptions
from student_train.preparing.request import Request
from student_train.preparing.weighing.feed_memory import READ_COPIES, FedRows, feed_bytes
from student_train.run_files.predictions import read_predictions
from student_train.running.train import train_students
from student_train.students import load_student
from tests.chats.toys import CHATML, LLAMA3, MARKED, write_lines, write_llama, write_model
from tests.language.toys import small_gpt
from tests.teacher_cache.toys import Silent, build, contents, write_job

SECTION = """[[dataset]]
name = "chats"
kind = "chat"
path = "chats"
tokenizer = "model"
length = 96
long_chats = "cut_front"
rows_per_shard = 4
validation = 0.25
"""


def chat(number: int, turns: int = 1) -> dict[str, Any]:
    said = [{"role": "system", "content": "be brief"}]
    for i in range(turns):
        said += [{"role": "user", "content": f"to be {number}.{i}?"}, {"role": "assistant", "content": f"or not {i}"}]
    return {"messages": said}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_model(tmp_path / "model", CHATML)
    (tmp_path / "chats/more").mkdir(parents=True)
    write_lines(tmp_path / "chats/a.jsonl", *(chat(number) for number in range(9)))
    write_lines(tmp_path / "chats/more/b.jsonl", *(chat(number, turns=9) for number in range(3)))
    return tmp_path


def built(folder: Path, *sections: str, exit_code: int = 0, **options: Any) -> Cache:
    report = build(write_job(folder, *(sections or (SECTION,))), **options)
    assert report.exit_code == exit_code, report
    return Cache.open(str(folder / "cache"))


def rows(cache: Cache) -> list[tuple[str, str]]:
    """Return each row: its text, and what is to be predicted of it."""
    decode = decoder((Path(cache.url) / "chats/tokenizer.json").read_bytes())
    found = []
    for shard in sorted(cache.committed("chats")):
        arrays = read_ragged(cache.objects, cache.commit(ShardKey("chats", None, PLAIN, shard)), ["inputs", "labels"])
        both = zip(arrays["inputs"], arrays["labels"], strict=True)
        found += [(decode(ids.tolist()), decode(said[said >= 0].tolist())) for ids, said in both]
    return found


def test_chats_are_stored_at_their_own_length(folder: Path) -> None:
    watcher = Silent()
    cache = built(folder, watcher=watcher)
    spec = cache.dataset("chats")
    assert (spec.input_shape, spec.own_length, spec.byte_ranges) == ((96,), True, True)
    found = rows(cache)
    assert len(found) == 12
    assert found[0][1] == "or not 0<|im_end|>"
    assert found[0][0].startswith("<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nto be 0.0?<|im_end|>\n")
    assert all(text.count("or not 8<|im_end|>") == 1 for text, _ in found[9:])
    assert "warning: chats: 3 chats longer than `length`, cut at a turn from the front" in "\n".join(watcher.notes)
    assert not verify(cache).bad
    before = contents(folder / "cache")
    built(folder)
    assert contents(folder / "cache") == before


def test_chats_that_are_added_are_new_rows(folder: Path) -> None:
    cache = built(folder)
    found = rows(cache)
    with (folder / "chats/a.jsonl").open("a") as file:
        file.write(json.dumps(chat(77)) + "\n")
    built(folder)
    assert rows(cache)[: len(found)] == found
    assert "77" in rows(cache)[-1][0]


def test_the_day_of_the_first_build_is_printed_on_later_days(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(folder / "model", LLAMA3)
    section = SECTION.replace("length = 96", "length = 256")
    day = datetime.date(2026, 2, 3)
    monkeypatch.setattr(module, "today", lambda: day)
    cache = built(folder, section)
    monkeypatch.setattr(module, "today", lambda: day + datetime.timedelta(30))
    write_lines(folder / "chats/c.jsonl", chat(5))
    built(folder, section)
    found = rows(cache)
    assert len(found) == 13
    assert all("Today Date: 03 Feb 2026" in text for text, _ in found)
    with pytest.raises(StaleCache) as caught:
        built(folder, section + "date = 2026-03-05\n")
    assert caught.value.found == "source.date = '2026-02-03'"


def test_another_template_or_tokenizer_is_refused_by_name(folder: Path) -> None:
    built(folder)
    write_model(folder / "model", MARKED)
    with pytest.raises(StaleCache, match=r"differs in source\.template"):
        built(folder)
    write_model(folder / "model", CHATML)
    tokenizer = json.loads((folder / "model/tokenizer.json").read_text())
    added = {token["content"]: token for token in tokenizer["added_tokens"]}
    added["<think>"]["content"], added["</think>"]["content"] = "</think>", "<think>"
    (folder / "model/tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(StaleCache) as caught:
        built(folder)
    assert caught.value.what == f"dataset chats has another tokenizer than the cache {folder}/cache"
    assert str(caught.value.found).splitlines()[1].startswith("first difference at id ")
    assert "'</think>' instead of '<think>'" in str(caught.value.found)


def test_a_chat_that_cannot_be_had_is_set_aside_and_named(folder: Path) -> None:
    (folder / "chats/bad.jsonl").write_text('{"messages": [{"role": "user", "content": "hm"}]}\n')
    report = build(write_job(folder, SECTION + "max_quarantined = 0.5\n"))
    assert report.exit_code == 3
    (row,) = report.quarantined["chats"].to_dicts()
    assert row["sample_id"] == "bad.jsonl:0"
    assert row["error"] == "bad.jsonl line 1: has no turn of the assistant's that is to be predicted"


def test_a_dataset_of_which_no_chat_can_be_had_leaves_no_cache(folder: Path) -> None:
    write_model(folder / "model", "{% generation %}{% endgeneration %}" + CHATML)
    with pytest.raises(MissingSource) as caught:
        built(folder)
    assert "has nothing that the template marks as the assistant's" in str(caught.value.found)
    assert not (folder / "cache/chats").exists()


def test_a_student_is_taught_what_the_teacher_says_of_the_assistants_tokens(folder: Path) -> None:
    shutil.rmtree(folder / "model")
    model, tokenizer = write_llama(folder / "model", MARKED)
    teacher = '[[teacher]]\nname = "big"\nkind = "transformers"\npath = "model"\nencoding = {kind = "sparse", k = 8}\n'
    cache = built(folder, SECTION.replace("length = 96", "length = 512"), teacher)
    commits = cache.catalogue().read_commits("chats", "big")
    columns = ["label_log_probability", "labelled"]
    table = pl.concat(pl.DataFrame(pl.from_arrow(commit.table)).select(columns) for commit in commits)
    lines = [line for name in ("a", "more/b") for line in (folder / f"chats/{name}.jsonl").read_text().splitlines()]
    chats = [json.loads(line) for line in lines]
    expected = [said_by(model, tokenizer, each["messages"]) for each in chats]
    assert table["labelled"].to_list() == [len(log_p) for log_p in expected]
    assert table["label_log_probability"].to_list() == pytest.approx(
        [float(log_p.mean()) for log_p in expected], abs=1e-4
    )

    data = DataOptions.model_validate({"train": "chats", "validation": "chats"})
    objective = [{"loss": "kd", "teacher": "big"}]
    student = small_gpt(objective=objective, options={"depth": 1, "width": 8, "heads": 2}, epochs=1)
    train_students(Request(cache, folder / "runs", data, (student,), "cpu"))
    found = read_predictions(folder / "runs/gpt")
    assert found is not None
    held = found.table.filter(pl.col("label").is_not_null())
    of_teacher = held["teacher_label_log_probability"].to_list()
    assert of_teacher == pytest.approx(torch.cat(expected).tolist(), abs=0.02, rel=2e-3)  # kept as float16

    text = tokenizer.apply_chat_template(chats[0]["messages"], tokenize=False)
    trained = load_student(folder / "runs/gpt")
    prepared = trained.prepare([text])
    assert prepared[0].tolist() == tokenizer.apply_chat_template(chats[0]["messages"])["input_ids"]
    with pytest.raises(BadRequest) as caught:
        trained.prepare([chats[0]["messages"]])
    assert caught.value.found == "list"


def said_by(model: Any, tokenizer: Any, messages: Any) -> torch.Tensor:
    """Return what a model says of each of the assistant's tokens, as transformers masks them: log-probabilities."""
    made = tokenizer.apply_chat_template(messages, return_assistant_tokens_mask=True)
    ids, mask = torch.tensor([made["input_ids"]]), torch.tensor(made["assistant_masks"], dtype=torch.bool)
    with torch.no_grad():
        log_p = model(ids).logits[0, :-1].float().log_softmax(-1)
    return log_p.gather(1, ids[0, 1:, None])[:, 0][mask[1:]]


def test_a_few_chats_that_are_too_long_are_set_aside_and_the_rest_is_built(folder: Path) -> None:
    section = SECTION.replace('"cut_front"', '"refuse"')
    with pytest.raises(BadRequest, match="chats of chats are longer than a row may be"):
        built(folder, section)
    assert not (folder / "cache").exists()  # so that nothing is promised yet of how long chats are cut
    cache = built(folder, section + "max_quarantined = 0.3\n", exit_code=3)
    assert len(rows(cache)) == 12
    reasons = cache.samples().quarantined("chats")["error"]
    assert [reason.split(":")[0] for reason in reasons] == [f"b.jsonl line {line}" for line in (1, 2, 3)]


def test_a_shard_in_a_range_of_bytes_is_not_projected_to_have_a_row_a_byte(folder: Path) -> None:
    """Seen: 15 students of a thousand chats were refused, for 211 GiB of "shards being read"."""
    cache, needs = built(folder), Needs(labels=True)
    selection = select_rows(cache.samples(), "chats/train", needs)
    rows = FedRows(selection, needs, window_shards=2, batch_size=4)
    held = feed_bytes([rows], Residency("stream", 0, ""), torch.device("cpu")).host
    every = projected_bytes([(select_rows(cache.samples(), "chats", needs), needs)])
    assert 0 < held["shards being read"] <= READERS * READ_COPIES * every
