"""Which of a chat is the assistant's: the same by marks and by prefixes, as transformers masks it, or refused."""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.datasets import Unreadable
from storage.datasets.chat import answers as module
from storage.datasets.chat.answers import find_answers
from storage.datasets.chat.reading import Chat
from storage.datasets.chat.source import SHARED, _Maker
from storage.datasets.chat.template import ChatTemplate, Renderer
from storage.language.tokenizer import decoder, parse_tokenizer
from tests.chats.test_template import transformers_tokenizer
from tests.chats.toys import (
    CHATML,
    MARKED,
    QWEN3,
    SPECIALS,
    TEMPLATES,
    TEXTS,
    TOOLS,
    TWO_TURNS,
    WITH_CALL,
    WITH_TOOLS,
    tokenizer_json,
)

DATA = tokenizer_json()
SPECIAL_NAMES = parse_tokenizer(DATA, "toy").specials


def renderer(template: str) -> Renderer:
    specials = (("bos_token", "<s>"), ("eos_token", "</s>"))
    return Renderer(ChatTemplate("chat.jinja", template, None, specials), datetime.date(2026, 2, 3))


def chat(messages: Any, tools: Any = None, asked: list[bool] | None = None) -> Chat:
    return Chat(messages, asked or [message["role"] == "assistant" for message in messages], tools)


def found(template: str, messages: Any, tools: Any = None, asked: list[bool] | None = None) -> list[str]:
    """Return the answers in a chat."""
    answers = find_answers(chat(messages, tools, asked), renderer(template), SPECIAL_NAMES)
    return [answers.text[start:stop] for start, stop in answers.spans]


def told(template: str, messages: Any, tools: Any = None) -> tuple[str, ...]:
    return find_answers(chat(messages, tools), renderer(template), SPECIAL_NAMES).remarks


FIRST, LAST = TEXTS[1], TEXTS[3]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("chatml", [f"{FIRST}<|im_end|>", f"{LAST}<|im_end|>"]),
        ("marked", [f"{FIRST}<|im_end|>", f"{LAST}<|im_end|>"]),
        ("llama3", [f"{FIRST.strip()}<|eot_id|>", f"{LAST}<|eot_id|>"]),
        ("zephyr", [f"{FIRST}</s>", f"{LAST}</s>"]),
        ("mistral", [f" {FIRST}</s>", f" {LAST}</s>"]),
        # what it writes before the last answer is nothing that it asks with
        ("qwen3", [f"{FIRST}<|im_end|>", f"<think>\n\n</think>\n\n{LAST}<|im_end|>"]),
        ("tools", [f"{FIRST}<|im_end|>", f"{LAST}<|im_end|>"]),
    ],
)
def test_an_answer_goes_from_where_it_is_asked_for_to_the_token_that_ends_it(name: str, expected: list[str]) -> None:
    assert found(TEMPLATES[name], TWO_TURNS) == expected


words = st.text(alphabet="ab \n猫🦆<|im_end>", min_size=1, max_size=12).filter(str.strip)
turns = st.lists(st.tuples(words, words), min_size=1, max_size=4)


@settings(max_examples=60)
@given(said=turns, system=st.none() | words)
def test_marks_and_prefixes_find_the_same_and_what_transformers_masks(
    said: list[tuple[str, str]], system: str | None
) -> None:
    messages = [
        {"role": role, "content": text} for pair in said for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    messages = [*([{"role": "system", "content": system}] if system else []), *messages]
    tokenizer = transformers_tokenizer(MARKED)
    expected = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    for template in (MARKED, CHATML):
        made = _Maker(renderer(template), DATA, SPECIAL_NAMES).make(chat(messages))
        ids, labels = made.pair_2L
        assert ids.tolist() == expected["input_ids"]
        mask = np.array(expected["assistant_masks"], bool)
        assert labels.tolist() == [*np.where(mask[1:], ids[1:], -1).tolist(), -1]
        # what is to be predicted is what was said, and the ends of turns
        predicted = decoder(DATA)(labels[labels >= 0].tolist())
        assert predicted == "".join(f"{text}<|im_end|>" for _, text in said)


def test_calls_of_tools_are_answers() -> None:
    call = '\n{"name": "weather", "arguments": {"city": "Olmütz"}}<|im_end|>'
    assert found(WITH_TOOLS, WITH_CALL, TOOLS) == [call, "It raineth every day.<|im_end|>"]
    assert found(TEMPLATES["llama3"], WITH_CALL, TOOLS)[0].startswith('{"name": "weather", "parameters"')


def test_a_template_that_writes_no_call_is_refused() -> None:
    template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    with pytest.raises(Unreadable, match=r"has message 2, which the template writes otherwise than it is said"):
        found(template, WITH_CALL, TOOLS)
    assert told(CHATML, TWO_TURNS, TOOLS) == (module.NO_TOOLS,)


def test_a_thought_that_the_template_leaves_out_is_told() -> None:
    thinking = [
        TWO_TURNS[0],
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nA word."},
        TWO_TURNS[2],
        {"role": "assistant", "content": "<think>\nah\n</think>\n\nAnother."},
    ]
    assert found(QWEN3, thinking) == ["A word.<|im_end|>", "<think>\nah\n</think>\n\nAnother.<|im_end|>"]
    assert told(QWEN3, thinking) == (module.BEGUN_LATER,)
    separate = [TWO_TURNS[0], {"role": "assistant", "content": "A word.", "reasoning_content": "hm"}]
    assert found(QWEN3, separate) == ["<think>\nhm\n</think>\n\nA word.<|im_end|>"]
    assert told(QWEN3, separate) == ()
    assert told(CHATML, separate) == (module.UNTHOUGHT,)


def test_a_template_that_asks_with_what_it_does_not_write_later_is_understood() -> None:
    template = CHATML.replace("{{ '<|im_start|>assistant\\n' }}", "{{ '<|im_start|>assistant\\n<think>\\n' }}")
    assert found(template, TWO_TURNS) == [f"{FIRST}<|im_end|>", f"{LAST}<|im_end|>"]


def test_a_chat_may_begin_with_the_assistant() -> None:
    assert found(CHATML, TWO_TURNS[1:]) == [f"{FIRST}<|im_end|>", f"{LAST}<|im_end|>"]


def test_a_template_that_writes_the_chat_before_a_turn_otherwise_is_refused() -> None:
    template = "{{ messages | length }} " + CHATML
    with pytest.raises(Unreadable) as caught:
        found(template, TWO_TURNS)
    assert str(caught.value) == "has message 2, before which the template writes something else when more follows"


def test_a_template_that_writes_something_else_than_was_said_is_refused() -> None:
    for template in (CHATML, MARKED):
        loud = template.replace("message['content']", "message['content'].upper()").replace(
            "message.content + '<|im_end|>' }}{% endgen", "message.content.upper() + '<|im_end|>' }}{% endgen"
        )
        with pytest.raises(Unreadable, match=r"HATH PRESENT|TIS NOT"):
            found(loud, TWO_TURNS)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (
            "{% for m in messages %}{% generation %}{% endgeneration %}{{ m.content }}{% endfor %}",
            "has nothing that the",
        ),
        (
            "{% for m in messages %}{% if m.role == 'user' %}{% generation %}{{ m.content }}{% endgeneration %}"
            "{% else %}{{ m.content }}{% endif %}{% endfor %}",
            r"has a mark of the template's that is not of what the assistant said: 'What is love\?'",
        ),
        (
            "{% generation %}{% for m in messages %}{{ m.content }}\n{% endfor %}{% endgeneration %}",
            "has a mark of the template's that goes beyond what the assistant said",
        ),
    ],
)
def test_marks_on_what_is_not_the_assistants_are_refused(template: str, reason: str) -> None:
    with pytest.raises(Unreadable, match=reason):
        found(template, TWO_TURNS)


def test_marks_on_the_last_answer_alone_are_told() -> None:
    last = MARKED.replace("message.role == 'assistant'", "message.role == 'assistant' and loop.last")
    assert found(last, TWO_TURNS) == [f"{LAST}<|im_end|>"]
    assert told(last, TWO_TURNS) == (module.UNMARKED,)


def test_the_same_answer_twice_is_two_answers() -> None:
    messages = [{"role": ("user", "assistant")[i % 2], "content": "aye"} for i in range(4)]
    for template in (MARKED, CHATML):
        assert found(template, messages, asked=[False, False, False, True]) == ["aye<|im_end|>"]
        answers = find_answers(chat(messages), renderer(template), SPECIAL_NAMES)
        assert len(answers.spans) == 2


def test_an_answer_that_no_token_ends_is_told() -> None:
    plain = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    assert told(plain, TWO_TURNS) == (module.ENDLESS,)
    assert found(plain, TWO_TURNS)[1] == "assistant: hath present laughter.\n"  # as it asks for nothing
    asks = plain + "{% if add_generation_prompt %}assistant:{% endif %}"
    assert found(asks, TWO_TURNS)[1] == " hath present laughter.\n"
    unended = MARKED.replace("message.content + '<|im_end|>' }}{% endgeneration", "message.content }}{% endgeneration")
    assert told(unended, TWO_TURNS) == (module.ENDLESS,)


def test_a_token_that_has_a_part_of_an_answer_is_its_own_and_told() -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    messages = [{"role": "user", "content": "to b"}, {"role": "assistant", "content": "e or"}]
    made = _Maker(renderer(template), DATA, SPECIAL_NAMES).make(chat(messages))
    assert SHARED in made.remarks
    assert decoder(DATA)(made.pair_2L[1][made.pair_2L[1] >= 0].tolist()).endswith("e or")


def test_special_tokens_of_the_toys_are_known() -> None:
    assert set(SPECIALS) <= set(SPECIAL_NAMES)
