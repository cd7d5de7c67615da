"""A chat template: read as a model's folder has it, and rendered as transformers renders it.

A template is a program from outside, so it runs in Jinja's sandbox, sees plain JSON, and reads no clock: the date that
it prints is given. What it raises is why its chat cannot be had.

Source: `_compile_jinja_template` of transformers 5.24, whose filters, globals and mark these are.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import jinja2.ext
import jinja2.nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from storage.datasets.base import LocalFile, Unreadable
from storage.digests import fingerprint
from storage.errors import BadRequest, MissingSource

FILE, CONFIG, SPECIALS, OTHERS = (
    "chat_template.jinja",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "additional_chat_templates",
)
FOR_TOOLS = "tool_use"  # the name of one that is for chats with tools, beside "default"
SPECIAL_NAMES = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
MOST_CHARACTERS = 2**26  # of what a template makes, as of a line of a table
MOST_STEPS = 10**6  # of all its ranges; Jinja's own bound is 100,000 for each
MOST_POWER = 1000
MARK = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
REASONING = ("reasoning_content", "thinking", "reasoning")  # the names under which a message has what was thought


@dataclass(frozen=True)
class ChatTemplate:
    """What makes a text of messages.

    Attributes:
        path: of the file that it was read from, for messages.
        text: in Jinja.
        with_tools: the one for chats that have tools, if that is another.
        specials: (name, token) of those that it may name, such as `bos_token`.
    """

    path: str
    text: str
    with_tools: str | None = None
    specials: tuple[tuple[str, str], ...] = ()

    def of(self, tools: Any) -> str:
        """Return the text for chats with or without tools."""
        return self.with_tools if tools and self.with_tools is not None else self.text

    def reads(self, name: str) -> bool:
        """Return whether it looks up a variable or function. Raises BadRequest: it cannot be parsed."""
        return any(name in _looked_up(text, self.path) for text in self._texts)

    def mentions(self, names: Sequence[str]) -> bool:
        """Return whether any of some names is in it."""
        return any(name in text for text in self._texts for name in names)

    @property
    def digest(self) -> str:
        """Return the fingerprint of all that it makes of messages; a special token that it does not name is no part."""
        return fingerprint([self._texts, [pair for pair in self.specials if self.reads(pair[0])]])

    @property
    def _texts(self) -> list[str]:
        return [self.text, *([] if self.with_tools is None else [self.with_tools])]


class Rendered(NamedTuple):
    """A chat as text, and from which character to which the template marks it as the assistant's."""

    text: str
    marks: list[tuple[int, int]]


@dataclass(frozen=True)
class Renderer:
    """A template, the date that it prints, and what else a job tells it, as JSON."""

    template: ChatTemplate
    date: datetime.date
    arguments: str = "{}"

    def is_marked(self, tools: Any) -> bool:
        """Return whether the template marks what is the assistant's."""
        return MARK.search(self.template.of(tools)) is not None

    def render(self, messages: Sequence[Mapping[str, Any]], tools: Any, *, prompt: bool = False) -> Rendered:
        """Return messages as the template writes them.

        Args:
            messages: of plain JSON.
            tools: their schemas, or None.
            prompt: also what comes before an answer of the assistant's.

        Raises:
            Unreadable: the template raises.
            BadRequest: it cannot be parsed.
        """
        compiled = _compile(self.template.of(tools), self.template.path, self.date)
        blocks: list[str] = []
        marks: list[tuple[int, int]] = []
        size, steps = 0, _STEPS.set([MOST_STEPS])
        written = _WRITTEN.set((blocks, marks))
        try:
            for block in compiled.generate(
                messages=[_alias(message) for message in messages],
                tools=tools,
                documents=None,
                add_generation_prompt=prompt,
                **{**dict(self.template.specials), **json.loads(self.arguments)},
            ):
                blocks.append(block)
                if (size := size + len(block)) > MOST_CHARACTERS:
                    raise OverflowError(f"it writes more than {MOST_CHARACTERS:,} characters")
        except Exception as error:  # of any class: whatever a program does with what it did not expect
            raise Unreadable(f"is refused by the template: {type(error).__name__}: {error}"[:300]) from None
        finally:
            _WRITTEN.reset(written)
            _STEPS.reset(steps)
        return Rendered("".join(blocks), marks)


def read_template(tokenizer: Path, given: Path | None) -> ChatTemplate:
    """Return the chat template of a folder of a tokenizer, or one that is given, with the special tokens of the folder.

    Args:
        tokenizer: a folder, or the `tokenizer.json` in it.
        given: a file in Jinja, in place of the folder's.

    Raises:
        MissingSource: there is none, or a file of the folder cannot be read.
    """
    folder = tokenizer if tokenizer.is_dir() else tokenizer.parent
    looked_at = [folder / FILE, folder / CONFIG, folder / SPECIALS, *sorted((folder / OTHERS).glob("*.jinja"))]
    files = [path for path in [*looked_at, *([] if given is None else [given])] if path.exists()]
    return _read(folder, given, tuple((path, LocalFile.of(path)) for path in files))


@lru_cache(maxsize=8)
def _read(folder: Path, given: Path | None, files: tuple[tuple[Path, LocalFile], ...]) -> ChatTemplate:
    config = _json(folder / CONFIG)
    tokens = _json(folder / SPECIALS) | {name: token for name, token in config.items() if token is not None}
    specials = tuple((name, _token(tokens[name])) for name in SPECIAL_NAMES if tokens.get(name) is not None)
    if given is not None:
        return ChatTemplate(str(given), _text(given), None, specials)
    named, path = _named(config.get("chat_template")), folder / CONFIG
    if (folder / FILE).exists():
        named, path = {**named, "default": _text(folder / FILE)}, folder / FILE
    named |= {other.stem: _text(other) for other in sorted((folder / OTHERS).glob("*.jinja"))}
    if "default" not in named:
        raise MissingSource(
            f"the tokenizer in {folder} has no chat template",
            found=f"templates named {', '.join(sorted(named))}" if named else f"neither {FILE} nor one in {CONFIG}",
            do='name one: template = "chat.jinja"; a model that was not trained on chats has none of its own',
        )
    return ChatTemplate(str(path), named["default"], named.get(FOR_TOOLS), specials)


def _named(stored: Any) -> dict[str, str]:
    """Return the templates in a tokenizer's config by name; one alone is the default."""
    if isinstance(stored, str):
        return {"default": stored}
    both = [(one.get("name"), one.get("template")) for one in stored or () if isinstance(one, dict)]
    return {name: text for name, text in both if isinstance(name, str) and isinstance(text, str)}


def _token(stored: Any) -> str:
    return str(stored.get("content", "")) if isinstance(stored, dict) else str(stored)


def _json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        return dict(json.loads(_text(path)))
    except (ValueError, TypeError, RecursionError) as error:
        raise MissingSource(f"{path} is no object of JSON", found=str(error)) from None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise MissingSource(
            f"there is no {path}", found=error.strerror, do="paths in a job file are relative to its own folder"
        ) from None
    except UnicodeDecodeError as error:
        raise MissingSource(f"{path} is not UTF-8", found=str(error)) from None


def _alias(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message whose reasoning has the names that templates know it by."""
    thought = next((message[name] for name in REASONING if message.get(name) is not None), None)
    return dict(message) if thought is None else {"thinking": thought, **message, "reasoning_content": thought}


# What is being rendered: its text so far, block by block, and the marks in it.
_WRITTEN: ContextVar[tuple[list[str], list[tuple[int, int]]]] = ContextVar("_WRITTEN")


# Of the ranges of what is being rendered: how many more numbers they may have, all together.
_STEPS: ContextVar[list[int]] = ContextVar("_STEPS")


def _range(*arguments: int) -> range:
    """Return a range. Raises OverflowError: with the others of this text it is too long, as of loops within loops."""
    numbers, left = range(*arguments), _STEPS.get()
    try:
        left[0] -= len(numbers)
    except OverflowError:  # more than a processor counts
        left[0] = -1
    if left[0] < 0:
        raise OverflowError(f"it counts further than {MOST_STEPS:,} steps")
    return numbers


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, in which nothing is multiplied to what no memory holds."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and abs(right) > MOST_POWER:
            raise OverflowError(f"a power of {right:,}")
        for several, times in ((left, right), (right, left)):
            if isinstance(several, str | list | tuple) and len(several) * times > MOST_CHARACTERS:
                raise OverflowError(f"{len(several):,} times {times:,} of a {type(several).__name__}")
        return super().call_binop(context, operator, left, right)


class _Marks(jinja2.ext.Extension):
    """The tag `{% generation %}`: notes where what is between it and its end is in the text."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Any) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Any) -> str:
        text: str = caller()
        blocks, marks = _WRITTEN.get()
        begins = sum(map(len, blocks))
        marks.append((begins, begins + len(text)))
        return text


class _Dict:
    """Makes dicts, and gives nothing of the class away."""

    def __call__(self, *arguments: Any, **named: Any) -> dict[Any, Any]:
        return dict(*arguments, **named)

    def fromkeys(self, *arguments: Any) -> dict[Any, Any]:
        return dict.fromkeys(*arguments)


class _Namespace(jinja2.utils.Namespace):
    """A namespace without names that begin with an underscore."""

    def __init__(*arguments: Any, **named: Any) -> None:  # so that one may be called `self`
        self, *rest = arguments
        jinja2.utils.Namespace.__init__(self)
        for name, value in dict(*rest, **named).items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if str(name).startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a name that begins with an underscore: {name!r}")
        super().__setitem__(name, value)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Return JSON without the escapes that Jinja's own filter makes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@lru_cache(maxsize=8)
def _compile(text: str, path: str, date: datetime.date) -> jinja2.Template:
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Marks, jinja2.ext.loopcontrols])
    environment.filters["tojson"] = _to_json
    today = datetime.datetime.combine(date, datetime.time())  # without a zone: a template formats it, and no more
    environment.globals |= {
        "range": _range,
        "raise_exception": _raise,
        "strftime_now": today.strftime,
        "dict": _Dict(),
        "namespace": _Namespace,
    }
    try:
        return environment.from_string(text)
    except (jinja2.TemplateSyntaxError, RecursionError, SyntaxError) as error:  # the last of what Jinja makes of it
        raise BadRequest(
            f"the chat template {path} cannot be parsed",
            found=f"line {error.lineno}: {error.message}"
            if isinstance(error, jinja2.TemplateSyntaxError)
            else f"{type(error).__name__}: {error}",
            expected="a template in Jinja, as transformers takes it",
        ) from None


@lru_cache(maxsize=8)
def _looked_up(text: str, path: str) -> frozenset[str]:
    compiled = _compile(text, path, datetime.date.min)
    # Jinja's own function for this leaves out what the environment has.
    return frozenset(node.name for node in compiled.environment.parse(text).find_all(jinja2.nodes.Name))
