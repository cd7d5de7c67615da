"""Where a text may be cut: ranges of bytes of a file that is never held whole, and texts of any length in pieces.

Where cuts may be is a matter of the file alone, not of who asks: whatever ranges of bytes meet, so do the texts that
are read for them, without gap or overlap, and a file that grew by whole lines keeps its cuts.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from storage.datasets.text.reading.opening import open_bytes
from storage.errors import MissingSource

BOM = "\ufeff"  # which some editors put before a text
READ_BYTES = 2**16
PIECE = 2**18  # bytes or characters that are tokenised at once; the library takes some 150 bytes of memory for each
# A line that is longer is cut at multiples of this. A prime, so that ranges of a power of two seldom begin there.
LINE_BYTES = 262_139
LONGEST_LINE = 64 * 2**20  # bytes, of a table: what is longer is not read


def next_cut(file: BinaryIO, at: int, size: int, *, in_lines: bool) -> int:
    """Return the first place at or after `at` where a file may be cut, in bytes: behind a line end, and at both ends.

    Args:
        file: of bytes, that can be sought in.
        at: in bytes.
        size: of the file, or more than that.
        in_lines: also at the first character at or after each multiple of LINE_BYTES.
    """
    if at <= 0 or at >= size:
        return max(0, min(at, size))
    if in_lines and (cut := _character(file, (at - 1) // LINE_BYTES * LINE_BYTES, size)) >= at:
        return cut  # `at` is within the first character after a multiple
    limit = min(size, -(-at // LINE_BYTES) * LINE_BYTES) if in_lines else size
    file.seek(at - 1)  # a line end just before `at` makes it a cut
    position = file.tell()
    while position < limit:
        data = file.read(min(READ_BYTES, limit - position))
        if not data:  # the end of a file whose size nobody has counted
            return position
        if (found := data.find(b"\n")) >= 0:
            return position + found + 1
        position += len(data)
    return _character(file, limit, size)


def _character(file: BinaryIO, at: int, size: int) -> int:
    """Return where the first character of UTF-8 at or after a place begins."""
    file.seek(at)
    following = file.read(3)
    continued = len(following) - len(following.lstrip(bytes(range(0x80, 0xC0))))
    return min(size, at + continued)


def text_between(path: Path, start: int, stop: int) -> Iterator[str]:
    """Yield the text between two cuts of a file, in pieces, less a byte-order mark.

    Raises:
        MissingSource: it is not UTF-8.
    """
    with open_bytes(path) as file:
        while start < stop:
            end = next_cut(file, min(start + PIECE, stop), stop, in_lines=True)
            file.seek(start)
            yield decoded(path, file.read(end - start), start)
            start = end


def decoded(path: Path, data: bytes, at: int) -> str:
    """Return the text in some bytes of a file, less a byte-order mark. Raises MissingSource: they are not UTF-8."""
    if at == 0 and data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        found, do = "the byte-order mark of UTF-16", f"convert it: iconv -f utf-16 -t utf-8 {path.name}"
    else:
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            found = f"byte 0x{data[error.start]:02x} at position {at + error.start}"
            do = f"convert it, if it is Latin-1 by: iconv -f latin1 -t utf-8 {path.name}"
        else:
            return text.removeprefix(BOM) if at == 0 else text
    raise MissingSource(f"{path} is not UTF-8", found=found, expected="text in UTF-8", do=do)


def lines_between(path: Path, start: int, stop: int) -> Iterator[tuple[int, bytes | None]]:
    """Yield (position, line) between two cuts of a file, blank ones left out; None for one beyond LONGEST_LINE.

    Raises:
        MissingSource: it begins as UTF-16 does.
    """
    with open_bytes(path) as file:
        file.seek(start)
        position = start
        while position < stop and (line := file.readline(LONGEST_LINE)):
            begun = position
            position += len(line)
            too_long = len(line) == LONGEST_LINE and not line.endswith(b"\n")
            rest = line
            while too_long and rest and not rest.endswith(b"\n"):
                rest = file.readline(READ_BYTES)
                position += len(rest)
            if begun == 0 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                decoded(path, line, 0)  # which says so
            line = line.removeprefix(codecs.BOM_UTF8) if begun == 0 else line
            if too_long or line.strip():
                yield begun, None if too_long else line


def pieces_of(text: str) -> Iterator[tuple[int, str]]:
    r"""Yield (place, piece) of a text: all of it in order, in characters, cut behind a line end where there is one.

    >>> list(pieces_of("short")), [place for place, _ in pieces_of("x" * 2**18 + "y\n" + "z" * 9)]
    ([(0, 'short')], [0, 262146])
    """
    start = 0
    while len(text) - start > PIECE:
        line_end = text.find("\n", start + PIECE - 1, start + 2 * PIECE)
        end = start + PIECE if line_end < 0 else line_end + 1
        yield start, text[start:end]
        start = end
    yield start, text[start:] if start else text
