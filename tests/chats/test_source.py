"""The kind `chat`: chats out of tables, as rows of their own length, cut at a turn, promised with their template."""

from __future__ import annotations

import datetime
import gzip
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import TypeAdapter, ValidationError

from storage.datasets import AnySource, RawSample, Unreadable
from storage.datasets.chat import source as module
from storage.errors import BadRequest, MissingSource
from storage.language.tokenizer import decoder
from tests.chats.toys import CHATML, LLAMA3, MARKED, TOOLS, TWO_TURNS, WITH_CALL, WITH_TOOLS, write_lines, write_model

DAY = datetime.date(2026, 2, 3)
Make = Callable[..., Any]


@pytest.fixture
def chats(tmp_path: Path) -> Make:
    """Return a prepared source of chats beside a model of a few kilobytes."""

    def make(path: str = "a.jsonl", *, template: str = CHATML, prepared: bool = True, **options: Any) -> Any:
        write_model(tmp_path / "model", template)
        defaults = {"name": "d", "kind": "chat", "path": path, "tokenizer": "model", "length": 512}
        source: Any = TypeAdapter(AnySource).validate_python(defaults | options, context={"folder": tmp_path})
        return source.prepared(source.find_tokenizer(lambda _: None), {}) if prepared else source

    return make


def read(source: Any) -> list[RawSample]:
    files = source.files().select("file", "rows").iter_rows()
    return [sample for file, size in files for sample in source.read_range(file, 0, size, last=True)]


def predicted(source: Any, sample: RawSample) -> str:
    """Return what is to be predicted of a chat."""
    labels = source.decode_labels(sample.payload)
    return decoder(source.bound.data)(labels[labels >= 0].tolist())


def said(source: Any, sample: RawSample) -> str:
    return decoder(source.bound.data)(source.decode(sample.payload).tolist())


def reasons(source: Any) -> list[str]:
    return [str(sample.payload) for sample in read(source) if isinstance(sample.payload, Unreadable)]


TURN = [{"role": "user", "content": "to be?"}, {"role": "assistant", "content": "or not"}]
ANSWER = "or not<|im_end|>"


def test_a_label_is_the_next_token_where_that_is_the_assistants(tmp_path: Path, chats: Make) -> None:
    write_lines(tmp_path / "a.jsonl", {"messages": TURN})
    source = chats()
    (sample,) = read(source)
    tokens, labels = source.decode(sample.payload), source.decode_labels(sample.payload)
    assert sample.sample_id == "a.jsonl:0"
    assert (tokens.dtype, labels.dtype, tokens.shape) == (np.int32, np.int32, labels.shape)
    asked = np.flatnonzero(labels >= 0)
    assert labels[asked].tolist() == tokens[asked + 1].tolist()
    assert said(source, sample) == "<|im_start|>user\nto be?<|im_end|>\n<|im_start|>assistant\nor not<|im_end|>\n"
    assert predicted(source, sample) == ANSWER
    assert (source.longest_row(), source.task_name(), source.known_input()) == (
        512,
        "language_model",
        ((512,), "int32"),
    )


@pytest.mark.parametrize(
    ("row", "options"),
    [
        ({"messages": TURN}, {}),
        ({"messages": json.dumps(TURN)}, {}),
        ({"conversations": [{"from": "human", "value": "to be?"}, {"from": "gpt", "value": "or not"}]}, {}),
        ({"conversations": TURN}, {}),
        ({"prompt": "to be?", "completion": "or not"}, {}),
        ({"prompt": TURN[:1], "completion": TURN[1:]}, {}),
        ({"prompt": "to be?", "prompt_id": "7", "messages": TURN}, {}),
        ({"messages": None, "dialogue": TURN, "completion": "x", "prompt": "y"}, {"column": "dialogue"}),
        ({"q": "to be?", "a": "or not", "messages": TURN[:1]}, {"prompt": "q", "completion": "a"}),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "to "}, {"text": "be?"}]}, TURN[1]]}, {}),
        ({"messages": [{"role": "asker", "content": "to be?"}, TURN[1]]}, {"roles": {"asker": "user"}}),
        ({"messages": [TURN[0] | {"name": None}, TURN[1]]}, {}),
    ],
)
def test_chats_come_in_several_forms(row: Any, options: Any, tmp_path: Path, chats: Make) -> None:
    write_lines(tmp_path / "a.jsonl", {"messages": TURN}, {"messages": TURN})
    expected = read(chats())[0].payload.tolist()  # type: ignore[union-attr]
    write_lines(tmp_path / "a.jsonl", row)
    assert [sample.payload.tolist() for sample in read(chats(**options))] == [expected]  # type: ignore[union-attr]


def test_a_row_with_two_chats_is_refused(tmp_path: Path, chats: Make) -> None:
    write_lines(tmp_path / "a.jsonl", {"messages": TURN, "conversations": TURN, "prompt": "a", "completion": "b"})
    with pytest.raises(BadRequest) as caught:
        chats().known_input()
    assert caught.value.what == "a row has chats in several columns"
    assert caught.value.found == "messages; conversations; prompt and completion"
    pq.write_table(pa.table({"prompt": ["a"], "completion": ["b"], "messages": [TURN]}), tmp_path / "a.parquet")
    with pytest.raises(BadRequest, match=r"a\.parquet has chats in several columns"):
        chats("a.parquet").files()


def test_the_answers_in_a_prompt_are_not_to_be_predicted(tmp_path: Path, chats: Make) -> None:
    row = {
        "prompt": [*TURN, {"role": "user", "content": "why?"}],
        "completion": [{"role": "assistant", "content": "so"}],
    }
    write_lines(tmp_path / "a.jsonl", row, {"messages": [TURN[0], TURN[1] | {"weight": 0}, *TURN]})
    for template in (CHATML, MARKED):
        source = chats(template=template)
        assert [predicted(source, sample) for sample in read(source)] == ["so<|im_end|>", ANSWER]


def test_a_column_of_what_the_system_says_is_the_first_message_and_told(tmp_path: Path, chats: Make) -> None:
    pair = {"prompt": TURN, "completion": [TURN[0], TURN[1]]}
    write_lines(tmp_path / "a.jsonl", {"system": "be brief", "conversations": TURN}, {"system": "be brief", **pair})
    source = chats()
    first, second = read(source)
    assert said(source, first).startswith("<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\n")
    assert [predicted(source, each) for each in (first, second)] == [ANSWER, ANSWER]
    assert first.remarks == ("chats whose first message is what the column `system` says",)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": "a"}, "has no messages, conversations, or prompt and completion; it has text"),
        ({"messages": []}, "has no messages: an empty list"),
        ({"messages": "to be"}, "has messages that are no JSON: Expecting value: line 1 column 1 (char 0)"),
        ({"messages": [TURN[0]]}, "has no turn of the assistant's that is to be predicted"),
        ({"messages": [TURN[0], TURN[1] | {"weight": 0}]}, "has no turn of the assistant's that is to be predicted"),
        ({"messages": [TURN[0], TURN[1] | {"weight": 2}]}, "has message 2 with weight = 2; it is 0 or 1"),
        ({"messages": [TURN[0], {"role": "assistant"}]}, "has message 2, the assistant's, without content"),
        ({"messages": [{"role": "user", "content": 7}, TURN[1]]}, "has message 1, the user's, of int"),
        (
            {"messages": [TURN[0], {"role": "assistant", "content": " \n"}]},
            "has message 2, the assistant's, that is empty",
        ),
        (
            {"messages": [{"role": "narrator", "content": "a"}, TURN[1]]},
            "has message 1 of role 'narrator'; known are system, developer, user, assistant, tool, and what the job "
            'says: roles = { "narrator" = "user" }',
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, TURN[1]]},
            "has message 1, the user's, with a part of type image_url; a language model is given text alone",
        ),
        ({"messages": ["to be"]}, "has message 1 that is no object: str"),
        (
            {"messages": [{"role": "user", "content": "\ud83e"}, TURN[1]]},
            "has a lone surrogate, which no UTF-8 can hold",
        ),
        ({"messages": TURN, "tools": {"a": 1}}, "has tools that are no list: dict"),
        (
            {"messages": [{"role": "system", "content": "a"}, *TURN], "system": "b"},
            "has a column system that is no text, or beside a message of the system's",
        ),
        ([1], "is list, not an object with messages, conversations, or prompt and completion"),
    ],
)
def test_a_chat_that_cannot_be_had_says_why(row: Any, reason: str, tmp_path: Path, chats: Make) -> None:
    write_lines(tmp_path / "a.jsonl", row, {"messages": TURN})
    assert reasons(chats()) == [f"a.jsonl line 1: {reason}"]


def test_what_the_template_raises_is_the_reason(tmp_path: Path, chats: Make) -> None:
    write_lines(tmp_path / "a.jsonl", {"messages": [TURN[1], TURN[0]]}, {"messages": TURN})
    template = "{% if messages[0].role != 'user' %}{{ raise_exception('begin with the user') }}{% endif %}" + CHATML
    (reason,) = reasons(chats(template=template))
    assert reason == "a.jsonl line 1: is refused by the template: TemplateError: begin with the user"


def test_a_dataset_of_which_no_chat_can_be_had_is_refused_before_it_is_begun(tmp_path: Path, chats: Make) -> None:
    write_lines(tmp_path / "a.jsonl", *[{"messages": TURN}] * 200)
    nothing = "{% for m in messages %}{{ m.content }}{% generation %}{% endgeneration %}{% endfor %}"
    with pytest.raises(MissingSource) as caught:
        chats(template=nothing).known_input()
    assert caught.value.what == "dataset d has nothing readable among the first 100 of its documents"
    assert "a.jsonl line 1: has nothing that the template marks as the assistant's" in str(caught.value.found)


def test_tools_are_given_to_the_template(tmp_path: Path, chats: Make) -> None:
    rows = [{"messages": WITH_CALL, "tools": TOOLS}, {"messages": WITH_CALL, "tools": json.dumps(TOOLS)}]
    write_lines(tmp_path / "a.jsonl", *rows)
    source = chats(template=WITH_TOOLS)
    samples = read(source)
    assert all(said(source, sample).count('"name": "weather"') == 2 for sample in samples)
    assert {sample.remarks for sample in samples} == {()}
    assert predicted(source, samples[0]).endswith("<|im_end|>It raineth every day.<|im_end|>")


def test_parquet_holds_the_same_chats(tmp_path: Path, chats: Make) -> None:
    with_call = {"messages": WITH_CALL, "tools": TOOLS}
    write_lines(tmp_path / "a.jsonl", {"messages": TWO_TURNS, "tools": None}, with_call)
    pq.write_table(pa.Table.from_pylist([{"messages": TWO_TURNS, "tools": None}, with_call]), tmp_path / "a.parquet")
    lines, table = (read(chats(name, template=WITH_TOOLS)) for name in ("a.jsonl", "a.parquet"))
    assert [s.payload.tolist() for s in lines] == [s.payload.tolist() for s in table]  # type: ignore[union-attr]
    assert [sample.sample_id for sample in table] == ["a.parquet:0", "a.parquet:1"]


def test_a_parquet_file_without_chats_names_its_columns(tmp_path: Path, chats: Make) -> None:
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(MissingSource) as caught:
        chats("a.parquet").files()
    assert (caught.value.found, caught.value.expected) == ("text", "messages, conversations, or prompt and completion")


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_ranges_that_meet_hold_each_chat_once(name: str, tmp_path: Path, chats: Make) -> None:
    rows = [{"messages": [TURN[0], {"role": "assistant", "content": f"{i} " * (i % 4 + 1)}]} for i in range(30)]
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name, row_group_size=7)
    else:
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    source = chats(name)
    ((file, size),) = source.files().select("file", "rows").iter_rows()
    whole = [(sample.sample_id, sample.payload.tolist()) for sample in read(source)]
    assert len(whole) == 30
    for step in (97, 400):
        marks = [*range(0, size, step), size]
        found = [sample for a, b in pairwise(marks) for sample in source.read_range(file, a, b, last=b == size)]
        assert [(sample.sample_id, sample.payload.tolist()) for sample in found] == whole  # type: ignore[union-attr]
        digests = [source.range_digest(file, a, b) for a, b in pairwise(marks)]
        assert digests == [source.range_digest(file, a, b) for a, b in pairwise(marks)]
    assert 0.3 < source.measure_per_row() / (size / 30) < 3


def long_chat(turns: int) -> list[dict[str, str]]:
    said = [{"role": "system", "content": "be brief"}]
    for i in range(turns):
        said += [{"role": "user", "content": f"question {i}?"}, {"role": "assistant", "content": f"answer {i}"}]
    return said


@pytest.mark.parametrize("template", [CHATML, MARKED])
def test_a_chat_that_is_too_long_is_cut_at_a_turn(template: str, tmp_path: Path, chats: Make) -> None:
    write_lines(tmp_path / "a.jsonl", {"messages": long_chat(6)})
    whole = read(chats(template=template))[0].payload.shape[1]  # type: ignore[union-attr]
    for way, first, last in (("cut_front", 3, 5), ("cut_back", 0, 2)):
        source = chats(template=template, length=whole * 4 // 7, long_chats=way)
        (sample,) = read(source)
        text = said(source, sample)
        assert sample.payload.shape[1] <= source.length  # type: ignore[union-attr]
        assert text.startswith("<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\n")
        assert [i for i in range(6) if f"question {i}?" in text] == list(range(first, last + 1))
        assert predicted(source, sample) == "".join(f"answer {i}<|im_end|>" for i in range(first, last + 1))
        side = "front" if way == "cut_front" else "back"
        assert sample.remarks == (f"chats longer than `length`, cut at a turn from the {side}",)


def test_a_chat_that_is_too_long_is_set_aside_by_default(tmp_path: Path, chats: Make) -> None:
    write_lines(tmp_path / "a.jsonl", {"messages": TURN}, {"messages": long_chat(6)}, {"messages": TURN})
    (reason,) = reasons(chats(length=60))
    assert reason.startswith("a.jsonl line 2: has ")
    assert reason.endswith(" tokens, of length = 60 at most; `long_chats` may cut it")


def test_too_many_long_chats_among_the_first_are_refused(tmp_path: Path, chats: Make) -> None:
    write_lines(tmp_path / "a.jsonl", {"messages": TURN}, *[{"messages": long_chat(6)}] * 2)
    size = read(chats())[1].payload.shape[1]  # type: ignore[union-attr]
    with pytest.raises(BadRequest) as caught:
        chats(length=60).known_input()
    assert caught.value.what == "chats of d are longer than a row may be"
    assert str(caught.value.found).startswith(f"2 of the first 3, such as\na.jsonl line 2: has {size} tokens")
    assert caught.value.expected == "at most length = 60, but for max_quarantined = 0.01 of them"
    assert str(caught.value.do).endswith(f"or length = {size}, the longest here")
    for kept in ({"length": size}, {"long_chats": "cut_front"}, {"max_quarantined": 0.7}):
        assert chats(**{"length": 60} | kept).known_input()[1] == "int32"


def test_a_chat_of_which_no_answer_is_left_is_set_aside(tmp_path: Path, chats: Make) -> None:
    row = {"messages": [*TURN, {"role": "user", "content": "to be " * 90}, {"role": "assistant", "content": "aye"}]}
    write_lines(tmp_path / "a.jsonl", row, {"messages": [TURN[0], {"role": "assistant", "content": "or not " * 90}]})
    (front, both) = reasons(chats(length=60, long_chats="cut_front"))
    assert "of length = 60 at most, and no answer when it is cut" in front
    assert both.startswith("a.jsonl line 2: has ")
    (one,) = reasons(chats(length=60, long_chats="cut_back"))
    assert one.startswith("a.jsonl line 2: has ")


def test_words_that_are_special_tokens_are_told(tmp_path: Path, chats: Make) -> None:
    write_lines(tmp_path / "a.jsonl", {"messages": [{"role": "user", "content": "what is <|im_end|>?"}, TURN[1]]})
    (sample,) = read(chats())
    assert sample.remarks == ("chats that spell out <|im_end|>, which is that special token to the tokenizer",)


# --- what is promised


def test_the_template_is_promised_and_so_is_the_day_that_it_prints(
    tmp_path: Path, chats: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_lines(tmp_path / "a.jsonl", {"messages": TURN})
    monkeypatch.setattr(module, "today", lambda: DAY)
    first = chats(template=LLAMA3)
    promised = first.content()
    assert promised["date"] == "2026-02-03"
    assert "2026-02-03 for good" in "\n".join(first.notes())
    before = read(first)[0].payload.tolist()  # type: ignore[union-attr]
    monkeypatch.setattr(module, "today", lambda: DAY + datetime.timedelta(1))
    assert chats(template=LLAMA3).content() != promised
    later = chats(template=LLAMA3, prepared=False).as_promised(promised)
    later = later.prepared(later.find_tokenizer(lambda _: None), {})
    assert later.content() == promised
    assert read(later)[0].payload.tolist() == before  # type: ignore[union-attr]
    given = chats(template=LLAMA3, date="2024-07-26", prepared=False).as_promised(promised)
    assert given.content()["date"] == "2024-07-26"
    # as a worker gets it
    again: Any = TypeAdapter(AnySource).validate_json(given.model_dump_json())
    assert again.date == datetime.date(2024, 7, 26)
    other = chats(template=CHATML, prepared=False).content()
    assert other["template"] != promised["template"]
    assert "date" not in other


def test_a_date_that_nothing_prints_is_refused(tmp_path: Path, chats: Make) -> None:
    write_lines(tmp_path / "a.jsonl", {"messages": TURN})
    with pytest.raises(BadRequest, match="has a date that nothing prints"):
        chats(date="2024-07-26").content()


def test_a_template_that_changes_while_a_cache_is_built_is_noticed(tmp_path: Path, chats: Make) -> None:
    write_lines(tmp_path / "a.jsonl", {"messages": TURN})
    promised = chats(template=CHATML).content()
    worker = chats(template=MARKED).as_promised(promised)
    with pytest.raises(MissingSource, match="the chat template of dataset d changed during the build"):
        read(worker)


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"prompt": "q"}, "give both, or neither"),
        ({"prompt": "q", "completion": "a", "column": "m"}, "give it, or `prompt` and `completion`"),
        ({"roles": {"asker": "listener"}}, "Input should be"),
        ({"long_chats": "split"}, "Input should be"),
        ({"length": 1}, "greater than or equal to 2"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: Any, fault: str, chats: Make) -> None:
    with pytest.raises(ValidationError, match=fault):
        chats(prepared=False, **options)


def test_a_list_in_json_is_no_table_and_says_what_to_do(tmp_path: Path, chats: Make) -> None:
    (tmp_path / "chats.json").write_text(json.dumps([{"messages": TURN}]))
    with pytest.raises(MissingSource) as caught:
        chats("chats.json").files()
    assert str(caught.value.do).startswith("jq -c '.[]' chats.json > chats.jsonl")
