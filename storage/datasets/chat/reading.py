"""Chats out of the columns of a table, in one form: messages of role and content.

There are three forms: `messages`; `conversations`, each message with `from` and `value`; `prompt` and `completion`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pyarrow as pa

from storage.datasets.base import Unreadable
from storage.datasets.text.reading.rows import written
from storage.datasets.text.reading.where import EVERYWHERE, Where
from storage.errors import BadRequest, MissingSource

Role = Literal["system", "developer", "user", "assistant", "tool"]
ROLES = ("system", "developer", "user", "assistant", "tool")
SAID_BY = {"human": "user", "gpt": "assistant", "function_response": "tool", "observation": "tool"}  # in `from`
TOOLS, SYSTEM = "tools", "system"  # columns beside those of messages
BY_COLUMN = "chats whose first message is what the column `system` says"
LISTS, PAIR = ("messages", "conversations"), ("prompt", "completion")
TRAINED = "weight"  # of an assistant's message: 0 if it is not to be predicted


class Chat(NamedTuple):
    """A chat.

    Attributes:
        messages: each with its role, and what else a template may look at; what is null is left out.
        asked: of each message, whether it is the assistant's and to be predicted.
        tools: schemas of what the assistant may call; None if there are none.
        remarks: what is to be told of it.
    """

    messages: list[dict[str, Any]]
    asked: list[bool]
    tools: list[Any] | None = None
    remarks: tuple[str, ...] = ()

    @property
    def texts(self) -> tuple[str]:
        """All that it says, as JSON."""
        return (json.dumps([self.messages, self.asked, self.tools], ensure_ascii=False),)

    def take(self, numbers: Iterable[int]) -> Chat:
        """Return some of its messages, with its tools."""
        chosen = list(numbers)
        return self._replace(messages=[self.messages[i] for i in chosen], asked=[self.asked[i] for i in chosen])


class ChatColumns(NamedTuple):
    """In which columns of a table chats are, and whose messages they are.

    Attributes:
        column: of messages; None: `messages`, `conversations`, or `prompt` and `completion`, whichever there is.
        prompt, completion: columns of these, if they are called otherwise.
        roles: (what is written for a role, the role), beside those that are known.
        nulls: whether null within a message is something; in Parquet it is what another row has and this one has not.
        where: which rows.
    """

    column: str | None = None
    prompt: str | None = None
    completion: str | None = None
    roles: tuple[tuple[str, str], ...] = ()
    nulls: bool = True
    where: Where = EVERYWHERE

    @property
    def expected(self) -> str:
        if self.column is not None:
            return self.column
        if self.prompt is not None and self.completion is not None:
            return f"{self.prompt} and {self.completion}"
        return f"{', '.join(LISTS)}, or {' and '.join(PAIR)}"

    def names(self, path: Path, schema: pa.Schema) -> list[str]:
        found = self._form(schema.names, str(path))
        if not found:
            raise MissingSource(
                f"{path} has no column of chats",
                found=", ".join(schema.names),
                expected=self.expected,
                do="name it in the job: column = …; or prompt = …, completion = …",
            )
        beside = [name for name in (TOOLS, SYSTEM) if name in schema.names]
        return list(dict.fromkeys([*found, *beside, *self.where.check_columns(path, schema)]))

    def row(self, value: dict[str, Any]) -> Chat:
        self.where.check(value, written)
        found = self._form([name for name, said in value.items() if said is not None], "a row")
        if not found:
            raise Unreadable(f"has no {self.expected}; it has {', '.join(value) or 'nothing'}")
        said_by = ("user", "assistant") if len(found) == 2 else (None,)
        sides = [self._messages(value[name], role) for name, role in zip(found, said_by, strict=True)]
        before = len(sides[0]) if len(sides) == 2 else 0
        remarks: tuple[str, ...] = ()
        if SYSTEM not in found and (system := self._plain(value.get(SYSTEM))):
            if not isinstance(system, str) or sides[0][0]["role"] == "system":
                raise Unreadable(f"has a column {SYSTEM} that is no text, or beside a message of the system's")
            sides[0].insert(0, {"role": "system", "content": system})
            before, remarks = before + (len(sides) == 2), (BY_COLUMN,)
        messages = [message for side in sides for message in side]
        asked = [message["role"] == "assistant" for message in messages]
        for i, message in enumerate(messages):
            weight = message.pop(TRAINED, 1)
            if weight not in (0, 1):
                raise Unreadable(f"has message {i + 1} with {TRAINED} = {weight!r}; it is 0 or 1")
            asked[i] &= i >= before and weight == 1
        if not any(asked):
            raise Unreadable("has no turn of the assistant's that is to be predicted")
        tools = _parsed(value.get(TOOLS), TOOLS)
        if tools is not None and not isinstance(tools, list):
            raise Unreadable(f"has {TOOLS} that are no list: {type(tools).__name__}")
        return Chat(messages, asked, self._plain(tools) or None, remarks)

    def _form(self, names: Sequence[str], where: str) -> list[str]:
        """Return the columns that a chat is in, one or two; none if they are not there.

        Raises:
            BadRequest: there is more than one chat.
        """
        if self.column is not None:
            return [self.column] if self.column in names else []
        if self.prompt is not None and self.completion is not None:
            pair = [self.prompt, self.completion]
            return pair if set(pair) <= set(names) else []
        forms = [[name] for name in LISTS if name in names] + ([list(PAIR)] if set(PAIR) <= set(names) else [])
        if len(forms) > 1:
            told = [" and ".join(form) for form in forms]
            raise BadRequest(
                f"{where} has chats in several columns",
                found="; ".join(told),
                expected="one of them",
                do=f'column = "{forms[0][0]}"    # in [[dataset]]',
            )
        return forms[0] if forms else []

    def _messages(self, stored: Any, said_by: str | None) -> list[dict[str, Any]]:
        """Return the messages in a column; a text is one of somebody's, or if of nobody's, JSON. Raises Unreadable."""
        if said_by is not None and isinstance(stored, str | bytes):
            stored = [{"role": said_by, "content": stored}]
        messages = _parsed(stored, "messages")
        if not isinstance(messages, list) or not messages:
            raise Unreadable(f"has no messages: {'an empty list' if messages == [] else type(messages).__name__}")
        return [self._message(message, i) for i, message in enumerate(messages, start=1)]

    def _message(self, stored: Any, number: int) -> dict[str, Any]:
        where = f"has message {number}"
        if not isinstance(stored, dict):
            raise Unreadable(f"{where} that is no object: {type(stored).__name__}")
        message = {name: value for name, value in self._plain(stored).items() if value is not None}
        said = message.get("role", message.get("from", ""))
        if not isinstance(said, str):
            raise Unreadable(f"{where} whose role is no text: {type(said).__name__}")
        if "role" not in message and "from" in message:
            said_by = message.pop("from")
            message = {"role": SAID_BY.get(said_by, said_by), "content": message.pop("value", None), **message}
            said_by = dict(self.roles).get(said_by, message["role"])
        else:
            said_by = dict(self.roles).get(message.get("role", ""), message.get("role"))
        if said_by not in ROLES:
            raise Unreadable(
                f"{where} of role {said_by!r}; known are {', '.join(ROLES)}, and what the job says: "
                f'roles = {{ "{said_by}" = "user" }}'
            )
        message["role"] = said_by
        self._check_content(message, f"{where}, the {said_by}'s,")
        return message

    def _check_content(self, message: dict[str, Any], where: str) -> None:
        """Make one text of a message's content. Raises Unreadable: it is none, or an answer of nothing."""
        content, calls = message.get("content"), message.get("tool_calls")
        if isinstance(content, list):
            content = "".join(_part(part, where) for part in content)
        if content is None and calls:
            message.pop("content", None)
            return
        if not isinstance(content, str):
            raise Unreadable(f"{where} without content" if content is None else f"{where} of {type(content).__name__}")
        if message["role"] == "assistant" and not content.strip() and not calls:
            raise Unreadable(f"{where} that is empty")
        message["content"] = content

    def _plain(self, value: Any) -> Any:
        """Return a value as plain JSON. Raises Unreadable: it is none."""
        if isinstance(value, Mapping):
            kept = {str(name): self._plain(each) for name, each in value.items()}
            return kept if self.nulls else {name: each for name, each in kept.items() if each is not None}
        if isinstance(value, list):
            return [self._plain(each) for each in value]
        if isinstance(value, bytes):
            value = _decoded(value)
        if isinstance(value, str):
            try:
                value.encode()
            except UnicodeEncodeError:  # half of a pair, which JSON can write
                raise Unreadable("has a lone surrogate, which no UTF-8 can hold") from None
            return value
        if value is None or isinstance(value, bool | int | float):
            return value
        raise Unreadable(f"holds {type(value).__name__}, which is no JSON")


def _part(part: Any, where: str) -> str:
    """Return the text of a part of a message's content."""
    kind = part.get("type", "text") if isinstance(part, dict) else type(part).__name__
    text = part.get("text") if isinstance(part, dict) else part
    if kind not in ("text", "str") or not isinstance(text, str):
        raise Unreadable(f"{where} with a part of type {kind}; a language model is given text alone")
    return text


def _parsed(value: Any, what: str) -> Any:
    """Return what a text holds as JSON, as tables store what has no type of its own; anything else is as it is."""
    if not isinstance(value, str | bytes):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"has {what} that are no JSON: {error}") from None


def _decoded(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise Unreadable(f"is not UTF-8: byte 0x{data[error.start]:02x} at position {error.start}") from None
