"""How a file is changed. Each function takes a generator of chance and a whole file, and returns another."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from functools import lru_cache
from random import Random
from typing import Any

import pyarrow as pa

from storage.digests import fingerprint
from storage.format.sealed import UNSEALED, _sealed, seal, seal_json, unseal

Change = Callable[[Random, bytes], bytes]


class Payload:
    """What a pickle would run."""

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, ("touch executed",)


ODD_TEXTS = (
    "",
    "\0",
    "\ud800",
    "../../../etc/passwd",
    "/etc/passwd",
    "evil.py:run",
    "os:system",
    "{{ [].__class__.__base__.__subclasses__() }}",
    "x" * 5000,
    "1e999",
    "zstd",
    "int64",
)
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 0.5, 255, 2**31, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**400, 1e308),
    *(float("nan"), float("inf"), [], {}, [None], [[]], {"": {}}, [0] * 1000, ["a", 1], {"kind": "factory"}),
)
DEEP = (b"[" * 3000, b'{"a":' * 3000, b"[" * 100_000)
ODD_BYTES = (
    b"\0",
    b"\xff" * 8,
    b"\xff\xff\xff\x7f",
    b"\0" * 600,
    b'"',
    b"}",
    b",",
    b"\n",
    b"\r",
    *DEEP,
    pickle.dumps(Payload()),
)


def any_bytes(random: Random, data: bytes) -> bytes:
    """Flip bits, cut, repeat or insert: what a disk, a network or a text editor does."""
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 8))):
        at = random.randrange(len(changed) + 1)
        length = random.choice((1, 1, 2, 4, 8, 100, 5000))
        match random.randrange(7):
            case 0 | 1 if at < len(changed):
                changed[at] ^= 1 << random.randrange(8)
            case 2:
                changed[at : at + length] = random.choice(ODD_BYTES)
            case 3:
                changed[at:at] = random.choice(ODD_BYTES)
            case 4:
                del changed[at : at + length]
            case 5:
                changed[at:at] = changed[at : at + length]
            case _:
                del changed[at:]
    return bytes(changed)


def value(random: Random, old: Any) -> Any:
    """Return a value of JSON changed at one to three places: others, gone, twice, of another type, within another."""
    changed = json.loads(json.dumps(old))
    for _ in range(random.choice((1, 1, 2, 3))):
        changed = _changed(random, changed)
    return changed


def _changed(random: Random, old: Any) -> Any:  # noqa: PLR0911, PLR0912 - a table of what may happen
    if isinstance(old, dict) and old and random.random() < 0.85:
        key = random.choice(sorted(old))
        match random.randrange(8):
            case 0:
                return {name: each for name, each in old.items() if name != key}
            case 1:
                return {random.choice(ODD_TEXTS) if name == key else name: each for name, each in old.items()}
            case 2:
                return old | {key: old[random.choice(sorted(old))]}
            case 3:
                return old | {random.choice(ODD_TEXTS): random.choice(ODD_VALUES)}
            case _:
                return old | {key: _changed(random, old[key])}
    if isinstance(old, list) and old and random.random() < 0.8:
        at = random.randrange(len(old))
        match random.randrange(5):
            case 0:
                return old[:at] + old[at + 1 :]
            case 1:
                return [*old, old[at]]
            case 2:
                return old[::-1]
            case _:
                return [*old[:at], _changed(random, old[at]), *old[at + 1 :]]
    match random.randrange(8):
        case 0:
            return [old]
        case 1:
            return {"a": old}
        case 2 if type(old) in (int, float):
            return old + random.choice((-1, 1, 2**40)) if type(old) is int else -old
        case 3 if isinstance(old, str):
            return old + random.choice(ODD_TEXTS)
        case 4 | 5:
            return random.choice(ODD_TEXTS)
        case _:
            return random.choice(ODD_VALUES)


def promise(random: Random, data: bytes) -> bytes:
    """Change a promise of a cache, and give it the digest of what it says now."""
    old = json.loads(data)
    changed = value(random, {name: each for name, each in old.items() if name != "digest"})
    if not isinstance(changed, dict):
        return json.dumps(changed).encode()
    try:
        return json.dumps(changed | {"digest": fingerprint(changed)}).encode()
    except ValueError:  # what is no JSON has no fingerprint
        return json.dumps(changed | {"digest": old["digest"]}).encode()


def plain_json(random: Random, data: bytes) -> bytes:
    """Change a file of JSON that nobody seals."""
    return json.dumps(value(random, json.loads(data)), ensure_ascii=random.random() < 0.5).encode(
        errors="surrogatepass"
    )


def sealed_json(random: Random, data: bytes) -> bytes:
    """Change a sealed file of JSON, and seal it again."""
    changed = value(random, {name: each for name, each in json.loads(data).items() if name != "seal"})
    return seal_json(changed) if isinstance(changed, dict) else json.dumps(changed).encode()


def json_lines(random: Random, data: bytes) -> bytes:
    """Change one line of a file of JSON lines."""
    lines = data.splitlines()
    at = random.randrange(len(lines))
    lines[at] = plain_json(random, lines[at])
    return b"\n".join(lines)


@lru_cache(maxsize=32)
def _unsealed(data: bytes) -> tuple[dict[str, Any], pa.Table]:
    return tuple(unseal(data))  # type: ignore[return-value]


def sealed_table(random: Random, data: bytes) -> bytes:
    """Change what a sealed Parquet file says or its table, and seal it again."""
    about, table = _unsealed(data)
    if random.random() < 0.5:
        changed = value(random, about)
        about = changed if isinstance(changed, dict) else about | {"path": changed}
    else:
        table = _changed_table(random, table)
    return seal(table, about)


def _changed_table(random: Random, table: pa.Table) -> pa.Table:  # noqa: PLR0911 - likewise
    at = random.randrange(table.num_columns)
    name, column = table.column_names[at], table.column(at)
    match random.randrange(8):
        case 0:
            return table.drop_columns([name])
        case 1:
            return table.rename_columns([random.choice(ODD_TEXTS[:2]) if n == name else n for n in table.column_names])
        case 2:
            return table.slice(random.randrange(len(table) + 1))
        case 3:
            return pa.concat_tables([table] * random.choice((2, 3, 100)))
        case 4:
            return table.set_column(at, name, pa.nulls(len(table), column.type))
        case 5:
            return table.set_column(at, name, pa.array([random.choice(ODD_TEXTS[3:])] * len(table), pa.string()))
        case 6:
            odd = random.choice((-1, 0, 2**62, 2**63 - 1, -(2**63), 10**6))
            kept = column.to_pylist()
            kept[random.randrange(len(kept)) : random.choice((None, len(kept)))] = []
            filler = odd if pa.types.is_integer(column.type) else None
            kept += [filler] * (len(table) - len(kept))
            return table.set_column(at, name, pa.array(kept, column.type))
        case _:
            other = random.choice((pa.float64(), pa.int8(), pa.list_(pa.int64()), pa.bool_(), pa.binary()))
            return table.set_column(at, name, pa.nulls(len(table), other))


def bytes_sealed_again(random: Random, data: bytes) -> bytes:
    """Change any bytes of a sealed file, and give it the digest of what it is now: pyarrow meets them, then."""
    changed = any_bytes(random, data)
    try:
        return _sealed(re.sub(rb"(stillroom-xxh3-128:)[0-9a-f]{32}", rb"\g<1>" + UNSEALED, changed))
    except ValueError:  # its seal is gone
        return changed


def toml(random: Random, data: bytes) -> bytes:
    """Change lines of a job file: a value, a key, a section, gone, twice or elsewhere."""
    lines = data.decode().splitlines()
    for _ in range(random.choice((1, 1, 2, 3))):
        at = random.randrange(len(lines))
        key, equals, _said = lines[at].partition(" = ")
        match random.randrange(8):
            case 0:
                del lines[at]
            case 1:
                lines.insert(random.randrange(len(lines)), lines[at])
            case 2 if equals:
                lines[at] = f"{key}x = 1"
            case 3:
                lines.insert(
                    at, random.choice(("[cluster]", "[[student]]", "[student.sweep]", "a.b.c = 1", "[[teacher]]"))
                )
            case _ if equals:
                lines[at] = f"{key} = {random.choice(TOML_VALUES)}"
            case _:
                lines[at] = lines[at].replace("[", "", 1)
    return ("\n".join(lines) + "\n").encode()


TOML_VALUES = (
    *('""', '"../../x"', '"/etc/passwd"', '"evil.py:run"', '"os:system"', '"\\u0000"', "true", "0", "-1", "1e308"),
    *("nan", "inf", "-inf", str(2**63 - 1), str(10**30), "[]", "{}", "[[1]]", "{ a = 1 }", "1979-05-27", "0x1F", "''"),
    *('{ grid = { "x" = [1, 2] } }', "[1, 2, 3]", '["a"]', '"x' + "x" * 3000 + '"'),
)


def chance(seed: int | str) -> Random:
    """Return a generator of chance."""
    return Random(seed)
