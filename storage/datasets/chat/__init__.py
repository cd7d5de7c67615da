"""Chats for a language model: each a row, at its own length, of which the assistant's tokens are to be predicted.

source.py     the kind `chat` of a job
reading.py    chats out of the columns of a table, in one form
template.py   a chat template, rendered in a sandbox
answers.py    which characters of the text are the assistant's
cutting.py    one that is too long, cut at a turn

How files are read is as of `storage.datasets.text.reading`.
"""

from storage.datasets.chat.source import ChatSource

__all__ = ["ChatSource"]
