"""Chat templates: rendered as transformers renders them, in a sandbox, and read from a model's folder."""

from __future__ import annotations

import datetime
import json
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from storage.datasets import Unreadable
from storage.datasets.chat.template import FILE, ChatTemplate, Renderer, read_template
from storage.errors import BadRequest, MissingSource
from tests.chats.toys import (
    CHATML,
    LLAMA3,
    QWEN3,
    TEMPLATES,
    TOOLS,
    TWO_TURNS,
    WITH_CALL,
    WITH_TOOLS,
    tokenizer_json,
    write_model,
)

THOUGHT = [TWO_TURNS[0], {"role": "assistant", "content": "A word.", "reasoning": "hm"}]
CHATS = [
    ("two turns", TWO_TURNS, None),
    ("a question", TWO_TURNS[:3], None),
    ("a system's", [{"role": "system", "content": " Be brief. "}, *TWO_TURNS], None),
    ("tools", WITH_CALL, TOOLS),
    ("a thought", THOUGHT, None),
    (
        "a thought in the text",
        [TWO_TURNS[0], {"role": "assistant", "content": "<think>\nhm\n</think>\n\nA word."}],
        None,
    ),
]


def renderer(template: str, **options: Any) -> Renderer:
    specials = (("bos_token", "<s>"), ("eos_token", "</s>"))
    return Renderer(ChatTemplate("chat.jinja", template, None, specials), datetime.date(2026, 2, 3), **options)


def transformers_tokenizer(template: str) -> Any:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    loaded = Tokenizer.from_str(tokenizer_json().decode())
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=loaded, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize(("messages", "tools"), [chat[1:] for chat in CHATS], ids=[chat[0] for chat in CHATS])
@pytest.mark.parametrize("prompt", [False, True])
def test_a_chat_is_rendered_as_transformers_renders_it(
    name: str, messages: Any, tools: Any, prompt: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.utils import chat_template_utils

    class Then(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Then:
            return cls(2026, 2, 3)

    monkeypatch.setattr(chat_template_utils, "datetime", Then)
    chat_template_utils._compile_jinja_template.cache_clear()
    tokenizer = transformers_tokenizer(TEMPLATES[name])
    arguments = {"tools": tools, "add_generation_prompt": prompt, "tokenize": False}
    try:
        expected = tokenizer.apply_chat_template(messages, **arguments)
    except Exception as error:
        with pytest.raises(Unreadable, match=type(error).__name__):
            renderer(TEMPLATES[name]).render(messages, tools, prompt=prompt)
    else:
        assert renderer(TEMPLATES[name]).render(messages, tools, prompt=prompt).text == expected


def test_the_date_that_a_template_prints_is_given() -> None:
    assert "Today Date: 03 Feb 2026" in renderer(LLAMA3).render(TWO_TURNS, None).text
    assert ChatTemplate("", LLAMA3).reads("strftime_now")
    assert not ChatTemplate("", CHATML).reads("strftime_now")


def test_a_template_is_told_what_a_job_says() -> None:
    text = "{% if enable_thinking is defined and not enable_thinking %}quiet{% endif %}"
    assert renderer(text, arguments='{"enable_thinking": false}').render(TWO_TURNS, None).text == "quiet"


@pytest.mark.parametrize(
    "text",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ strftime_now.__self__.__class__ }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__['jinja2'] }}",
        "{{ cycler.__init__.__globals__.os.system('touch here') }}",
        "{{ lipsum.__globals__['os'].popen('id').read() }}",
        "{{ namespace(__class__=1) }}",
        "{% set n = namespace() %}{% set n.__class__ = 1 %}",
        "{{ dict.__class__.__base__ }}{{ dict.mro() }}",
        "{{ '{0.__class__}'.format(messages) }}{{ ''|attr('__class__')|attr('__base__') }}{{ 1/0 }}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
        "{% import 'os' as os %}",
        "{{ open('/etc/passwd') }}",
    ],
)
def test_a_template_gets_at_nothing_but_its_chat(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    told = ""
    with suppress(Unreadable):
        told = renderer(text).render(TWO_TURNS, None).text
    assert not told  # as of what is not there
    assert list(tmp_path.iterdir()) == []


def test_what_a_template_raises_is_why_a_chat_cannot_be_had() -> None:
    with pytest.raises(Unreadable) as caught:
        renderer(TEMPLATES["mistral"]).render(TWO_TURNS[1:], None)
    assert str(caught.value) == (
        "is refused by the template: TemplateError: Conversation roles must alternate user/assistant/user/assistant/..."
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{% for i in range(10**12) %}x{% endfor %}", "it counts further than 1,000,000 steps"),
        ("{% for i in range(10**30) %}{% endfor %}", "it counts further than 1,000,000 steps"),
        ("{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}", "it counts further than"),
        ("{{ 'x' * 10**10 }}", "1 times 10,000,000,000 of a str"),
        ("{{ 10**10 * [1] }}", "1 times 10,000,000,000 of a list"),
        ("{{ 9 ** 9999 }}", "a power of 9,999"),
        ("{% set long = 'x' * 10**6 %}{% for i in range(999) %}{{ long }}{% endfor %}", "it writes more than"),
    ],
)
def test_a_template_without_an_end_is_why_a_chat_cannot_be_had(text: str, told: str) -> None:
    with pytest.raises(Unreadable, match="is refused by the template: OverflowError") as caught:
        renderer(text).render(TWO_TURNS, None)
    assert told in str(caught.value)
    assert renderer("{{ 2 ** 3 * 'a' }}{% for i in range(2, 9, 3) %}{{ i }}{% endfor %}").render([], None).text == (
        "aaaaaaaa258"
    )


def test_a_template_that_cannot_be_parsed_is_refused() -> None:
    with pytest.raises(BadRequest) as caught:
        renderer("{% for m in messages %}\n{{ m.content }").render(TWO_TURNS, None)
    assert caught.value.what == "the chat template chat.jinja cannot be parsed"
    assert "line 2" in str(caught.value.found)


def test_templates_lie_where_save_pretrained_puts_them(tmp_path: Path) -> None:
    tokenizer = transformers_tokenizer(CHATML)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tokenizer.save_pretrained(tmp_path / "one")
        tokenizer.chat_template = {"default": CHATML, "tool_use": WITH_TOOLS}
        tokenizer.save_pretrained(tmp_path / "several")
    assert (tmp_path / "several/additional_chat_templates/tool_use.jinja").exists()
    one, several = (read_template(tmp_path / name, None) for name in ("one", "several"))
    assert (one.text, one.with_tools, dict(one.specials)) == (CHATML, None, {"bos_token": "<s>", "eos_token": "</s>"})
    assert (several.of(None), several.of(TOOLS)) == (CHATML, WITH_TOOLS)
    rendered = Renderer(several, datetime.date.min).render(WITH_CALL, TOOLS).text
    assert rendered == tokenizer.apply_chat_template(WITH_CALL, tools=TOOLS, tokenize=False)


def test_a_template_may_be_in_the_config_as_older_folders_have_it(tmp_path: Path) -> None:
    one = write_model(tmp_path / "one", None, chat_template=CHATML)
    several = [{"name": "default", "template": QWEN3}, {"name": "tool_use", "template": WITH_TOOLS}]
    named = write_model(tmp_path / "named", None, chat_template=several)
    assert read_template(one / "tokenizer.json", None).text == CHATML
    assert read_template(named, None).of(TOOLS) == WITH_TOOLS
    (one / FILE).write_text(LLAMA3)  # which goes before what the config says
    assert read_template(one, None).text == LLAMA3


def test_a_template_that_a_job_gives_goes_before_the_folders(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "one", CHATML)
    (tmp_path / "mine.jinja").write_text(MINE := "{{ eos_token }}")
    given = read_template(folder, tmp_path / "mine.jinja")
    assert (given.text, dict(given.specials)["eos_token"]) == (MINE, "</s>")
    with pytest.raises(MissingSource, match=r"there is no .*other\.jinja"):
        read_template(folder, tmp_path / "other.jinja")


def test_a_folder_without_a_template_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "base", None)
    with pytest.raises(MissingSource) as caught:
        read_template(folder, None)
    assert caught.value.what == f"the tokenizer in {folder} has no chat template"
    assert "template =" in str(caught.value.do)
    write_model(folder, None, chat_template=[{"name": "rag", "template": "x"}])
    with pytest.raises(MissingSource) as caught:
        read_template(folder, None)
    assert caught.value.found == "templates named rag"


def test_a_digest_is_of_what_a_template_makes_of_messages(tmp_path: Path) -> None:
    def digest(template: str, **config: Any) -> str:
        return read_template(write_model(tmp_path, template, **config), None).digest

    assert digest(ZEPHYR := TEMPLATES["zephyr"]) != digest(CHATML)
    assert digest(ZEPHYR) != digest(ZEPHYR, eos_token="<|eot_id|>")
    assert digest(CHATML) == digest(CHATML, eos_token="<|eot_id|>", model_max_length=7)
    json.loads((tmp_path / "tokenizer_config.json").read_text())
