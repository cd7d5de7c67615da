"""Which characters of a rendered chat are the assistant's: by the template's marks, else by prefixes of the text.

Never by prefixes of tokens: what is tokenised apart has other tokens at the seam. Either way what is found is compared
with what the assistant said; a chat of which they differ by more than white space cannot be had.

An answer goes from where the template asks for it (`add_generation_prompt`) to the token that ends the turn, that one
included, as marks have it in the templates that TRL trains with. White space behind that token is left out: nobody
generates it, though some of TRL's marks have it (Qwen's and Gemma's). Marks are taken as they are.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from storage.datasets.base import Unreadable
from storage.datasets.chat.reading import TOOLS, Chat
from storage.datasets.chat.template import REASONING, Renderer

STANDS_FOR = "\ue000\ue001\ue000"  # an answer, where one is rendered only to see what is around it
ENDLESS = "chats with an answer that no token ends, so that a student does not learn to stop"
UNMARKED = "chats with a turn of the assistant's that the template does not mark"
BEGUN_LATER = "chats with an answer whose beginning, such as what was thought, the template leaves out"
WORDLESS = "chats with a call of a tool whose text the template leaves out"
NO_TOOLS = "chats with tools, of which the template says nothing"
UNTHOUGHT = "chats with what was thought, which the template leaves out"


class Answers(NamedTuple):
    """A chat as text.

    Attributes:
        text: all of it.
        spans: from which character to which an answer is, ascending.
        remarks: what is to be told of it.
    """

    text: str
    spans: list[tuple[int, int]]
    remarks: tuple[str, ...]


class _Turn(NamedTuple):
    """A message of the assistant's: which one, and what it is."""

    number: int
    message: dict[str, Any]

    @property
    def said(self) -> str:
        return _squeezed(self.message.get("content") or "")

    @property
    def called(self) -> list[str]:
        """The names of the tools that it calls."""
        calls = self.message.get("tool_calls") or []
        named = [call.get("function", call) if isinstance(call, dict) else {} for call in calls]
        return [str(call.get("name", "")) for call in named if isinstance(call, dict)]

    @property
    def told(self) -> str:
        return f"message {self.number + 1}"


def find_answers(chat: Chat, renderer: Renderer, specials: tuple[str, ...]) -> Answers:
    """Return a chat as text, and where in it the answers are.

    Args:
        chat: with an answer at least.
        renderer: of its template.
        specials: names of the tokenizer's added tokens.

    Raises:
        Unreadable: the template refuses it, marks nothing in it or something else, or writes an answer otherwise.
        BadRequest: the template cannot be parsed.
    """
    text, marks = renderer.render(chat.messages, chat.tools)
    turns = [_Turn(i, message) for i, message in enumerate(chat.messages) if message["role"] == "assistant"]
    written = _Written(chat, text, renderer)
    pattern = _any_of(specials)
    remarks: dict[str, None] = {}
    if chat.tools and not renderer.template.reads(TOOLS):
        remarks[NO_TOOLS] = None
    if any(name in turn.message for turn in turns for name in REASONING) and not renderer.template.mentions(REASONING):
        remarks[UNTHOUGHT] = None
    by_turn = (
        _marked(written, marks, turns, pattern)
        if renderer.is_marked(chat.tools)
        else {turn.number: [_between(written, turn, pattern)] for turn in turns if chat.asked[turn.number]}
    )
    spans = []
    for turn in turns:
        if not chat.asked[turn.number]:
            continue
        found = by_turn.get(turn.number, [])
        spans += found
        answer = "".join(text[start:stop] for start, stop in found)
        if not found:
            remarks[UNMARKED] = None
        elif not _is_said(turn, answer, pattern):
            raise Unreadable(f"has {turn.told}, which the template writes otherwise than it is said: {_short(answer)}")
        else:
            remarks |= dict.fromkeys(_left_out(turn, answer, pattern))
    return Answers(text, spans, tuple(remarks))


class _Written:
    """A chat as its template writes it, and parts of it from the first message on."""

    def __init__(self, chat: Chat, text: str, renderer: Renderer):
        self.messages, self.tools, self.text, self._renderer = chat.messages, chat.tools, text, renderer
        self.asked = chat.asked
        self._upto: dict[int, int | None] = {0: 0, len(self.messages): len(text)}

    def upto(self, count: int) -> int | None:
        """Return where the first messages end in the text; None if they are written otherwise when more follow."""
        if count not in self._upto:
            self._upto[count] = self._prefix(self.messages[:count], prompt=False)
        return self._upto[count]

    def asking(self, count: int) -> int | None:
        """Return where the template has asked for the answer that follows the first messages; None as of `upto`."""
        return self._prefix(self.messages[:count], prompt=True) if count else None

    def around(self, number: int) -> tuple[str, str]:
        """Return what is written before and behind the text of a message that is the last. Raises Unreadable."""
        stands_in = self.messages[number] | {"content": STANDS_FOR}
        written = self._renderer.render([*self.messages[:number], stands_in], self.tools).text
        before, found, after = written.partition(STANDS_FOR)
        if not found or STANDS_FOR in after:
            raise Unreadable(f"has message {number + 1}, whose text the template does not write, or not once")
        return before, after

    def _prefix(self, messages: list[dict[str, Any]], *, prompt: bool) -> int | None:
        try:
            written = self._renderer.render(messages, self.tools, prompt=prompt).text
        except Unreadable:  # a template may refuse a chat that ends there
            return None
        return len(written) if self.text.startswith(written) else None


def _between(written: _Written, turn: _Turn, pattern: re.Pattern[str] | None) -> tuple[int, int]:
    """Return where an answer is, by what the template writes of the messages before it and of those up to it.

    Raises:
        Unreadable: it writes them otherwise when more follow.
    """
    text, start, stop = written.text, written.asking(turn.number), written.upto(turn.number + 1)
    if start is None:  # what it asks with may not be written later: "<think>"
        before, _ = written.around(turn.number)
        if not text.startswith(before):
            raise Unreadable(f"has {turn.told}, before which the template writes something else when more follows")
        start = len(before)
    if stop is None or stop <= start:  # or it writes less of one that is not the last
        _, after = written.around(turn.number)
        stop = text.find(after, start) if after.strip() else -1
        if stop < 0:
            raise Unreadable(f"has {turn.told}, which the template writes otherwise when more follows")
        stop += len(after)
    # Nobody is asked for white space behind the end of a turn, unless that is all that ends it.
    answer = text[start:stop].rstrip()
    nothing_ends_it = bool(turn.said) and not _ends(answer, pattern) and _squeezed(answer).endswith(turn.said)
    return start, stop if nothing_ends_it else start + len(answer)


def _marked(
    written: _Written, marks: list[tuple[int, int]], turns: list[_Turn], pattern: re.Pattern[str] | None
) -> dict[int, list[tuple[int, int]]]:
    """Return the marks of each of the assistant's messages. Raises Unreadable: there are none, or some of another's."""
    by_turn: dict[int, list[tuple[int, int]]] = {}
    at = 0
    for start, stop in marks:
        if not (marked := written.text[start:stop]).strip():
            continue
        fitting = [i for i in range(at, len(turns)) if _is_part(turns[i], marked, pattern)]
        found = next((i for i in fitting if _lies_in(written, start, stop, turns[i].number)), None)
        if found is None:
            whose = "goes beyond" if fitting else "is not of"
            raise Unreadable(f"has a mark of the template's that {whose} what the assistant said: {_short(marked)}")
        by_turn.setdefault(turns[found].number, []).append((start, stop))
        at = found  # one message may have several
    if not any(written.asked[number] for number in by_turn):
        raise Unreadable("has nothing that the template marks as the assistant's")
    return by_turn


def _lies_in(written: _Written, start: int, stop: int, number: int) -> bool:
    """Return whether a place is in a message, as far as prefixes tell: behind those before it, before the next text."""
    if (begins := written.upto(number)) is not None and start < begins:
        return False
    if number + 1 == len(written.messages) or (ends := written.upto(number + 1)) is None or stop <= ends:
        return True
    said = (written.messages[number + 1].get("content") or "").strip()
    return not said or not 0 <= written.text.find(said, ends) < stop


def _is_part(turn: _Turn, marked: str, pattern: re.Pattern[str] | None) -> bool:
    """Return whether a text is of an answer, or of what was thought before it."""
    core = _squeezed(pattern.sub("", marked) if pattern else marked)
    return _is_said(turn, marked, pattern) or bool(core and (core in _thought_of(turn) or core in turn.said))


def _is_said(turn: _Turn, written: str, pattern: re.Pattern[str] | None) -> bool:
    """Return whether a text is an answer, or the end of one."""
    core = _squeezed(pattern.sub("", written) if pattern else written)
    return bool(
        (turn.said and turn.said in _squeezed(written))
        or (core and turn.said.endswith(core))
        or (turn.called and all(name in written for name in turn.called))
    )


def _left_out(turn: _Turn, written: str, pattern: re.Pattern[str] | None) -> list[str]:
    """Return what is to be told of an answer as it is written."""
    told = [] if _ends(written, pattern) else [ENDLESS]
    if turn.said and turn.said not in _squeezed(written):
        told.append(WORDLESS if turn.called and turn.called[0] in written else BEGUN_LATER)
    return told


def _thought_of(turn: _Turn) -> str:
    return _squeezed("".join(str(turn.message.get(name) or "") for name in REASONING))


def _short(text: str) -> str:
    return repr(text.strip()[:60])


def _squeezed(text: str) -> str:
    """Return a text without its white space, which templates trim and add to."""
    return "".join(text.split())


def _ends(written: str, pattern: re.Pattern[str] | None) -> bool:
    """Return whether the last of a text is a token of its own."""
    tail = written.rstrip()
    return pattern is not None and any(found.end() == len(tail) for found in pattern.finditer(tail))


def _any_of(names: tuple[str, ...]) -> re.Pattern[str] | None:
    names = tuple(name for name in names if name)
    return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True)))) if names else None
