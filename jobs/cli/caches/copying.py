"""`cache copy | publish | diff`: the same cache elsewhere, for strangers, compared. Parses, calls the room, prints."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.cli.arguments import CacheArgument, JsonOption, absolute

if TYPE_CHECKING:
    from storage.cache.copies.diff import CacheDiff

TargetArgument = Annotated[str, typer.Argument(metavar="TO", help="A folder, or s3://bucket/prefix: empty, or a copy.")]
NoticeOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="A text that says what may be done with it; train shows it.")
]
SHOWN = 10  # shards of which something is told
SHOWN_LETTERS = 60  # of a field's value; --json has all
FIELD = ("path", "field", "a", "b")
EXAMPLES = {
    "only_a": "in A alone",
    "only_b": "in B alone",
    "label": "with another label",
    "split": "in another split",
    "payload": "with another content",
}


def copy(
    cache: CacheArgument,
    to: TargetArgument,
    dataset: Annotated[list[str] | None, typer.Option(help="Only this dataset; may be given again.")] = None,
    teacher: Annotated[list[str] | None, typer.Option(help="Only this teacher; may be given again.")] = None,
    notice: NoticeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy a cache, digests checked on the way; run again, it copies what is not there yet."""
    from jobs.show import terminal

    def action() -> int:
        from storage.cache import Cache
        from storage.cache.copies.copy import copy_cache
        from storage.cache.copies.publishing import write_notice
        from storage.errors import CorruptObject, RowsMissing, si

        source, text = Cache.open(absolute(cache).rstrip("/")), _read_notice(notice)
        with terminal.watching("shards") as watch:
            url = absolute(to).rstrip("/")
            found = copy_cache(source, url, watch, datasets=dataset or None, teachers=teacher or None)
        if text is not None:
            write_notice(Cache.open(url), text, str(notice))
        if as_json:
            failed = [{"shard": str(key), "reason": reason} for key, reason in found.failed]
            counts = {"shards": found.shards, "bytes": found.bytes, "there": found.there}
            terminal.print_json(
                {"cache": source.url, "to": url, **counts, "others": [*map(str, found.others)], "failed": failed}
            )
        else:
            for key, reason in found.failed[:SHOWN]:
                terminal.out.print(f"bad  {key}\n{reason}", markup=False)
            there = f"; {found.there} were there already" if found.there else ""
            terminal.out.print(f"{found.shards} shards copied, {si(found.bytes, 'B')}{there}", markup=False)
            if found.others:
                named = ", ".join(map(str, found.others[:SHOWN])) + ", …" * (len(found.others) > SHOWN)
                terminal.out.print(
                    f"{len(found.others)} shards were made anew since, here or there, and were left: {named}\n"
                    f"cache diff {cache} {to} compares what they hold",
                    markup=False,
                )
        if found.failed:
            return CorruptObject.exit_code
        return RowsMissing.exit_code if found.others else 0

    terminal.run(action, as_json=as_json)


def publish(cache: CacheArgument, notice: NoticeOption = None, as_json: JsonOption = False) -> None:
    """Write the index by which a cache is read in place from a web server; again whenever it has grown."""
    from jobs.show import terminal

    def action() -> int:
        from storage.cache import Cache
        from storage.cache.copies import publishing

        opened, text = Cache.open(cache), _read_notice(notice)
        if text is not None:
            publishing.write_notice(opened, text, str(notice))
        with terminal.watching("objects") as watch:
            found = publishing.publish(opened, watch)
        if as_json:
            terminal.print_json({"cache": opened.url, "notice": opened.notice, **found._asdict()})
        else:
            says = "no notice says" if opened.notice is None else "its notice says"
            terminal.out.print(
                f"{found.shards} shards published; index {found.digest}\n"
                f"whoever can read these files may train from them; {says} what may be done with them",
                markup=False,
            )
        return 0

    terminal.run(action, as_json=as_json)


def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="A cache.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another.")],
    as_json: JsonOption = False,
) -> None:
    """Say how two caches differ: promises by field, samples by id, targets by KL. Exit code 3 if they do."""
    from jobs.show import terminal

    def action() -> int:
        from dataclasses import asdict

        from jobs.show.tables import print_wrapped
        from storage.cache import Cache
        from storage.cache.copies import diff as room
        from storage.errors import RowsMissing

        one, other = Cache.open(a), Cache.open(b)
        with terminal.watching("rows") as watch:
            found = room.diff(one, other, watch)
        if as_json:
            said = asdict(found) | {"fields": [dict(zip(FIELD, each, strict=True)) for each in found.fields]}
            said["answers"] = [
                asdict(gap) | {"worst": [worst._asdict() for worst in gap.worst]} for gap in found.answers
            ]
            terminal.print_json({"a": one.url, "b": other.url, "same": found.same, **said})
        else:
            for line in _told(found):
                print_wrapped(line)
        return 0 if found.same else RowsMissing.exit_code

    terminal.run(action, as_json=as_json, answers=True)


def _told(found: CacheDiff) -> Iterator[str]:
    """Yield the lines that tell how two caches differ."""
    from storage.errors import printable

    for path, name, one, other in found.fields:
        yield printable(f"{path}{' ' * bool(name)}{name}: A {_short(one)}, B {_short(other)}", one_line=True)
    for dataset, rows in found.rows.items():
        yield (
            f"{dataset}: {rows.both} samples in both, {rows.only_a} in A alone, {rows.only_b} in B alone; of both, "
            f"{rows.label} with another label, {rows.split} in another split, {rows.payload} with another content"
        )
        for name, ids in rows.examples.items():
            if ids:
                yield printable(f"  {EXAMPLES[name]}: {', '.join(ids)}", one_line=True)
    for gap in found.answers:
        alone = f"; {gap.only_a} more in A alone, {gap.only_b} in B alone" if gap.only_a or gap.only_b else ""
        far = "" if gap.identical == gap.rows else f"; {gap.unit} mean {gap.mean:.3g}, largest {gap.largest:.3g}"
        of = "/".join(map(str, gap.stage)) + ("" if gap.feature is None else f" {gap.feature}")
        yield f"{of}: {gap.rows} rows, {gap.identical} of the same bytes{far}{alone}"
        for worst in gap.worst if gap.differs else ():
            yield printable(f"  {worst.off:.3g}  {worst.sample_id} (row {worst.row_a}, {worst.row_b})", one_line=True)
    yield from (f"note: {note}" for note in found.notes)
    yield "the same" if found.same else "they differ"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN_LETTERS else f"{text[:SHOWN_LETTERS]}…"


def _read_notice(path: Path | None) -> str | None:
    """Return the text of a file. Raises MissingSource, BadRequest."""
    from storage.cache.copies.publishing import MOST_NOTICE_BYTES
    from storage.errors import BadRequest, MissingSource
    from storage.format.filesystems import read_file

    if path is None:
        return None
    try:
        return read_file(path, MOST_NOTICE_BYTES).decode()
    except OSError as error:
        raise MissingSource(f"cannot read {path}", found=error.strerror) from None
    except ValueError as error:  # too large, a device, no UTF-8
        raise BadRequest(f"{path} is no notice", found=str(error), expected="a short text in UTF-8") from None
