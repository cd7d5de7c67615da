"""Publish a cache: its index, by which any web server gives it to be read in place, and what may be done with it.

The index is of one moment, and written over by the next one. What it names never changes; what is built later is seen
when it is published again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from itertools import islice
from typing import NamedTuple

from storage.cache import Cache
from storage.cache.watcher import Watcher
from storage.digests import digest
from storage.errors import BadRequest, StaleCache
from storage.format.objects import Objects, num_at_once
from storage.format.shards import Commit, ShardKey
from storage.format.specs import NOTICE_JSON, NoticeSpec
from storage.format.stores.index import INDEX, Index, Published
from storage.options import NAME

OTHERS = re.compile(
    rf"(cache|notice)\.json|{NAME}/(dataset|views|tokenizer)\.json|{NAME}/{NAME}/(teacher|weights)\.json"
    rf"|{NAME}/plan/\d{{5,}}\.parquet|ledger/\d{{8}}\.parquet"
)
MOST_NOTICE_BYTES = 2**16
LOOK_AHEAD = 1024


class Publication(NamedTuple):
    """What was published.

    Attributes:
        shards, objects: how many, the latter without Zarr groups.
        digest: of the index itself: whoever has it from another source knows what they read.
    """

    shards: int
    objects: int
    digest: str


def publish(cache: Cache, watcher: Watcher) -> Publication:
    """Write the index of a cache, over the one that is there.

    Raises:
        CorruptObject: a commit or a promise is damaged or missing: nothing is published.
        BadRequest: nothing can be written there.
        StorageFailure: the disk or store refused.
    """
    cache.objects.check_writable()
    catalogue = cache.catalogue()  # commits before plans, and promises last: what is published is whole
    catalogue.ledger().compact()  # so that whoever reads it need not read each commit
    keys = [ShardKey(*stage, shard) for stage, shards in catalogue.commits.items() for shard in shards]
    versions = {
        ShardKey(*stage, shard).commit_path: version
        for stage, shards in catalogue.commits.items()
        for shard, version in shards.table.iter_rows()
    }
    rest = dict(_others(cache.objects))
    watcher.begin(f"publish {cache.url}", len(keys) + len(rest))

    def look(item: tuple[str, str]) -> Published:
        path, version = item
        data = cache.objects.get(path)
        if path in versions:
            catalogue.promises.checked(Commit.from_parquet(data, path, with_table=False))
        return Published(path, len(data), version, digest(data))

    found: list[Published] = []
    left = iter([*versions.items(), *rest.items()])
    with ThreadPoolExecutor(num_at_once(cache.objects)) as pool:
        while some := list(islice(left, LOOK_AHEAD)):
            for published in pool.map(look, some):
                found.append(published)
                watcher.advance(1)
    published_s = datetime.now(UTC).isoformat(timespec="seconds")
    data = Index.of(found, {"cache": cache.id, "published": published_s}).to_parquet()
    cache.objects.put(INDEX, data)
    return Publication(len(keys), len(found), digest(data))


def check_notice(text: str) -> str:
    """Return what may be done with a cache, without blanks around it. Raises ValueError: a text is none."""
    text, size = text.strip(), len(text.strip().encode())
    if not 0 < size <= MOST_NOTICE_BYTES:
        raise ValueError(f"a notice of {size:,} bytes; it has 1 to {MOST_NOTICE_BYTES:,}")
    return text


def write_notice(cache: Cache, text: str, path: str) -> None:
    """Say in a cache what may be done with it.

    Args:
        cache: an open cache.
        text: in words for people.
        path: where the text is from, for messages.

    Raises:
        BadRequest: the text is empty, or far too long.
        StaleCache: the cache says something else already.
    """
    try:
        text = check_notice(text)
    except ValueError as error:
        expected = f"a text of at most {MOST_NOTICE_BYTES:,} bytes"
        raise BadRequest(f"{path} is no notice", found=str(error), expected=expected) from None
    if cache.notice == text:
        return
    if not cache.objects.create(NOTICE_JSON, NoticeSpec(text=text).to_json()) and cache.notice != text:
        raise StaleCache(
            f"{cache.url} has another notice already",
            found=cache.notice,
            expected=f"{text}  ({path})",
            do=f"if that is yours to change, delete {cache.url}/{NOTICE_JSON} and run the same command again",
        )


def _others(objects: Objects) -> Iterator[tuple[str, str]]:
    """Yield path and version of promises, plan segments and ledger files: all that a reader asks for but shards."""
    return ((info.path, info.version) for info in objects.walk() if OTHERS.fullmatch(info.path))
