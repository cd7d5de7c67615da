"""One object for a whole Zarr group: a zip whose members are stored as they are, the same bytes every time.

Zarr's ZipStore, numpy and every zip tool open it. Our own readers trust its directory in nothing: where a member lies
and what it is, a commit says (FORMAT.md, "Commits").
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from io import BytesIO
from zipfile import ZIP_STORED, ZipFile, ZipInfo

from storage.format.objects import Span

NEAR_BYTES = 64 * 1024  # between two members, read through: cheaper than one request more, on a disk as on a store


def pack_zip(members: Mapping[str, bytes]) -> tuple[bytes, dict[str, int]]:
    """Return a zip of `members`, in their order, and where the bytes of each begin in it."""
    sink = BytesIO()
    begins = {}
    with ZipFile(sink, "w", ZIP_STORED) as archive:
        for path, data in members.items():
            info = ZipInfo(path)  # without the time of day, which would make other bytes of the same work
            info.create_system, info.external_attr = 3, 0o644 << 16  # Unix, wherever it is written
            archive.writestr(info, data)
            begins[path] = sink.tell() - len(data)  # stored as they are, they end where the sink does
    return sink.getvalue(), begins


def join_spans(spans: Iterable[Span]) -> list[Span]:
    """Return the fewest spans that hold all of these, neighbours joined over small gaps, ascending.

    >>> join_spans([Span(70_100, 80_000), Span(0, 50), Span(100, 140)])
    [Span(start=0, stop=140), Span(start=70100, stop=80000)]
    """
    joined: list[Span] = []
    for span in sorted(spans):
        if joined and span.start - joined[-1].stop <= NEAR_BYTES:
            joined[-1] = Span(joined[-1].start, max(joined[-1].stop, span.stop))
        else:
            joined.append(span)
    return joined
