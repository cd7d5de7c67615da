"""A chat that is too long, cut at a turn: whole messages are left out, from the front or from the back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeVar

from storage.datasets.chat.reading import Chat

Cut = Literal["cut_front", "cut_back"]
LEADING = ("system", "developer")
T = TypeVar("T")


def shorter(chat: Chat, cut: Cut) -> list[Chat]:
    """Return what may be left of a chat, the longest first, each with an answer that is to be predicted.

    From the front, turns of the user's begin what is left, behind what the system said; from the back, an answer ends
    it.

    >>> said = ["system", "user", "assistant", "user", "assistant"]
    >>> chat = Chat([{"role": role} for role in said], [role == "assistant" for role in said])
    >>> [[message["role"] for message in left.messages] for left in shorter(chat, "cut_front")]
    [['system', 'user', 'assistant']]
    >>> [[message["role"] for message in left.messages] for left in shorter(chat, "cut_back")]
    [['system', 'user', 'assistant']]
    """
    roles = [message["role"] for message in chat.messages]
    head = next((i for i, role in enumerate(roles) if role not in LEADING), len(roles))
    if cut == "cut_front":
        begins = [i for i in range(head + 1, len(roles)) if roles[i] == "user"]
        left = [chat.take([*range(head), *range(begin, len(roles))]) for begin in begins]
    else:
        left = [chat.take(range(stop)) for stop in range(len(roles) - 1, head, -1) if roles[stop - 1] == "assistant"]
    return [each for each in left if any(each.asked)]


def first_that_fits(choices: list[Chat], make: Callable[[Chat], T], length: Callable[[T], int], most: int) -> T | None:
    """Return what is made of the longest of some chats that is not too long; None if the shortest is.

    Args:
        choices: the longest first. Of a few of them something is made: the length is taken to grow with the messages.
        make: of a chat.
        length: of what is made.
        most: of a length.
    """
    low, high, found = 0, len(choices), None
    while low < high:
        middle = (low + high) // 2
        made = make(choices[middle])
        if length(made) <= most:
            high, found = middle, made
        else:
            low = middle + 1
    return found
