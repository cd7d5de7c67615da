"""All readers, each with a whole file of its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any

from pydantic import TypeAdapter

from storage.datasets import AnySource
from tests.fuzz import changes
from tests.fuzz.changes import Change
from tests.fuzz.models import models
from tests.fuzz.reader import Reader, safetensors_header, whole_file


def all_readers(folder: Path) -> list[Reader]:
    """Return the readers, with their files in a folder."""
    found: list[Reader] = []
    for make in (_cache, _run, _jobs, _datasets, _published, _tokenizer, models):
        own = folder / make.__name__.lstrip("_")
        own.mkdir()
        (own / "evil.py").write_text("open('executed', 'w')\n\ndef run(*_, **__):\n    open('executed', 'w')\n")
        found += make(own)
    for reader in found:
        _ = reader.expected  # imports what it needs, and before anything is watched
    return found


def _cache(folder: Path) -> Iterator[Reader]:
    from storage.cache import Cache
    from storage.cache.lease import LEASE, Holder, _look
    from storage.cache.verify import verify
    from storage.format.rows import read_plan
    from storage.format.shards import ShardKey
    from storage.format.specs import NoticeSpec, ViewsSpec, write_spec
    from storage.format.stores.index import INDEX, Index, Published
    from tests.storage.cache.test_hostile import replace_members
    from tests.student_train.toys import Recipe, write_cache

    cache = write_cache(folder / "cache", Recipe(rows=8, rows_per_shard=8, unreadable=frozenset({3})))
    url, objects, root = cache.url, cache.objects, folder / "cache"
    views = ViewsSpec.model_validate({"name": "toy", "seed": 0, "transforms": [{"kind": "flip"}]})
    for path, spec in (("notice.json", NoticeSpec(text="for you")), ("toy/views.json", views)):
        write_spec(objects, path, spec, "test")
    promises: dict[str, Callable[[], object]] = {
        "cache.json": lambda: Cache.open(url).spec,
        "notice.json": lambda: Cache.open(url).notice,
        "toy/dataset.json": lambda: Cache.open(url).dataset("toy"),
        "toy/views.json": lambda: Cache.open(url).views("toy"),
        "toy/sage/teacher.json": lambda: Cache.open(url).teacher("toy", "sage"),
    }
    whole = partial(whole_file, folder)
    verified = lambda: [str(bad.key) for bad in verify(Cache.open(url)).bad]  # noqa: E731
    for path, read in promises.items():
        yield whole(root / path, read, seals=(changes.any_bytes,), forges=(changes.promise,))
        yield whole(root / path, verified, f"{path}, verified", forges=(changes.promise,), weight=0.3)
    ingest, targets = (ShardKey("toy", teacher, "plain", 0) for teacher in (None, "sage"))

    def committed(key: ShardKey) -> object:
        commit = Cache.open(url).commit(key, with_table=True)
        return commit.about, commit.members, commit.table.to_pydict()

    def arrays() -> object:
        opened = Cache.open(url)
        found = opened.read_targets("toy", "sage", 0, names=("logits", "feature/pooled"))
        return {name: array.tobytes() for name, array in found.items()}

    tables: Any = {"seals": (changes.any_bytes,), "forges": (changes.sealed_table, changes.bytes_sealed_again)}
    for key in (ingest, targets):
        yield whole(root / key.commit_path, partial(committed, key), f"commit {key}", **tables)
        yield whole(root / key.commit_path, verified, f"commit {key}, verified", forges=tables["forges"], weight=0.3)
    group = root / cache.commit(targets).group
    yield whole(group, arrays, "group", seals=(changes.any_bytes,))
    whole_commit, whole_group = (root / targets.commit_path).read_bytes(), group.read_bytes()
    begin, size = next((m.begin, m.size_bytes) for m in cache.commit(targets).members if m.path == "logits/zarr.json")

    def write_metadata(data: bytes) -> None:
        (root / targets.commit_path).write_bytes(whole_commit)
        group.write_bytes(whole_group)
        if data != whole_group[begin : begin + size]:
            replace_members(cache, targets, lambda members: members.update({"logits/zarr.json": data}))

    forges = (changes.any_bytes, changes.plain_json)
    yield Reader(
        "zarr.json", folder, whole_group[begin : begin + size], write_metadata, arrays, forges=forges, weight=0.5
    )
    plan = "toy/plan/00000.parquet"
    yield whole(root / plan, lambda: _rows_of(read_plan(objects, "toy")), "plan", **tables)
    # of another cache: here commits are written again, and a summary counts only while its commit is as old
    other = write_cache(folder / "other", Recipe(rows=8, rows_per_shard=8))
    other.catalogue().ledger().compact()
    (ledger,) = (folder / "other/ledger").iterdir()

    def summaries() -> object:
        stages = Cache.open(other.url).catalogue().ledger().stages
        return {stage: table.to_dict(as_series=False) for stage, table in stages.items()}

    yield whole(ledger, summaries, "ledger", **tables, weight=0.5)
    published = folder / INDEX
    there = [Published(info.path, info.size_bytes, info.version, "0" * 32) for info in objects.walk()]
    published.write_bytes(Index.of(there, {"cache": cache.id}).to_parquet())

    def index() -> object:
        read = Index.from_parquet(published.read_bytes(), "https://example.org/cache")
        return list(read), read.list(""), read.find("cache.json"), list(read.walk("toy"))

    yield whole(published, index, INDEX, **tables)
    lease = root / LEASE / "0-of-1-00000003.json"
    lease.parent.mkdir()
    lease.write_text(Holder.here(20.0).model_copy(update={"host": "gone", "pid": 77}).model_dump_json())
    seen = lambda: [(of.holder, of.told, of.patience_s) for of in _look(objects, (0, 1), {}).values()]  # noqa: E731
    yield whole(lease, seen, "lease", forges=(changes.any_bytes, changes.plain_json))


def _rows_of(plan: Any) -> object:
    return plan.extents.to_dict(as_series=False), list(plan.shards()), plan.slice(2, 5)


def _run(folder: Path) -> Iterator[Reader]:
    import torch

    from storage.cache import Cache
    from student_train.run_files.checkpoint import read_checkpoint, settle_checkpoint, write_checkpoint
    from student_train.run_files.history import read_metrics
    from student_train.run_files.position import Position
    from student_train.run_files.predictions import read_predictions
    from student_train.run_files.records import read_record
    from student_train.running.train import train_students
    from student_train.students import load_student
    from tests.student_train.toys import Recipe, request_of, student, write_cache

    cache: Cache = write_cache(folder / "cache", Recipe(rows=20, rows_per_shard=20))
    request = request_of(cache, folder / "runs", student(epochs=1))
    train_students(request)
    run = folder / "runs/a"
    whole = partial(whole_file, folder)
    json_: Any = {"seals": (changes.any_bytes,), "forges": (changes.sealed_json,)}
    tables: Any = {"seals": (changes.any_bytes,), "forges": (changes.sealed_table, changes.bytes_sealed_again)}

    def weights_of(loaded: Any) -> object:
        return {name: tensor.numpy().tobytes() for name, tensor in loaded.items()}

    def loaded() -> object:
        return weights_of(load_student(run).state_dict())

    yield whole(run / "run.json", lambda: read_record(run), **json_)
    yield whole(run / "student.json", loaded, **json_, weight=0.5)
    yield whole(run / "student.safetensors", loaded, seals=(changes.any_bytes,), weight=0.5)
    yield whole(run / "metrics.parquet", lambda: _columns(read_metrics(run)), **tables)
    if (run / "predictions.parquet").exists():
        yield whole(run / "predictions.parquet", lambda: _columns(read_predictions(run).table), **tables)  # type: ignore[union-attr]
    yield _forged_weights("student.safetensors, forged", run, "student.json", run / "student.safetensors", loaded)
    other = folder / "runs/b"
    other.mkdir()
    tensors = {"w": torch.arange(6.0).reshape(2, 3), "generator": torch.arange(16, dtype=torch.uint8)}
    write_checkpoint(other, Position(epoch=1, step=2, stack=("b",)), tensors, {"of": 1})

    def resumed() -> object:
        settle_checkpoint(other)
        found = read_checkpoint(other, {"of": 1})
        return found and (found[0], weights_of(found[1]))

    (file,) = other.glob("*.safetensors")
    yield whole(other / "checkpoint.json", resumed, **json_)
    yield whole(file, resumed, "weights of a checkpoint", seals=(changes.any_bytes,))
    yield _forged_weights("weights of a checkpoint, forged", other, "checkpoint.json", file, resumed)


def _forged_weights(name: str, run: Path, says: str, file: Path, read: Callable[[], object]) -> Reader:
    """Return the reader of weights whose digest is right whatever they are."""
    from storage.digests import digest
    from storage.format.sealed import read_json, seal_json

    said = (run / says).read_bytes()
    whole = file.read_bytes()

    def write(data: bytes) -> None:
        file.write_bytes(data)
        (run / says).write_bytes(said)
        if data != whole:
            (run / says).write_bytes(seal_json(read_json(run / says) | {"weights_digest": digest(data)}))

    return Reader(name, run.parents[1], whole, write, read, forges=(changes.any_bytes, safetensors_header), weight=0.5)


def _columns(table: Any) -> object:
    return repr(table.to_dict(as_series=False))  # NaN is not equal to itself


def _jobs(folder: Path) -> Iterator[Reader]:
    from jobs.files.cache_job import CacheJob
    from jobs.files.chain_job import ChainJob
    from jobs.files.reading import read_job
    from jobs.files.student_job import StudentJob
    from tests.house import REPOSITORY

    for name in (
        "digits.cache",
        "chat.cache",
        "digits.views.cache",
        "table.cache",
        "digits.fleet.students",
        "chain.digits",
    ):
        path = folder / f"{name}.toml"
        path.write_bytes((REPOSITORY / f"jobs/{name}.toml").read_bytes())
        kind: Any = CacheJob if "cache" in name else StudentJob if "students" in name else ChainJob
        read = lambda path=path, kind=kind: read_job(path, kind).model_dump_json()  # noqa: E731
        yield whole_file(folder, path, read, forges=(changes.any_bytes, changes.toml, changes.toml), weight=0.5)


@cache
def _adapter() -> TypeAdapter[Any]:
    return TypeAdapter(AnySource)


def _samples(folder: Path, **options: Any) -> list[str]:
    """Return every sample of a source as a text."""
    source: Any = _adapter().validate_python({"name": "d"} | options, context={"folder": folder})
    found = source.find_tokenizer(lambda _: None) if hasattr(source, "find_tokenizer") else None
    source = source.prepared(found, {})
    files = source.files().select("file", "rows").iter_rows()
    if source.by_ranges:
        return [repr(sample) for file, size in files for sample in source.read_range(file, 0, size, last=True)]
    return [
        f"{sample.sample_id} {sample.label} {sample.payload}"
        for file, rows in files
        for sample in source.read(file, 0, rows)
    ]


def _datasets(folder: Path) -> Iterator[Reader]:
    import numpy as np

    from tests.chats.toys import CHATML, TWO_TURNS, write_lines, write_model
    from tests.texts.toys import CLASSES, texts, word_tokenizer

    (folder / "tokenizer.json").write_bytes(word_tokenizer())
    write_lines(
        folder / "texts.jsonl", *({"label": label, "text": text, "n": i} for i, (label, text) in enumerate(texts(6)))
    )
    write_lines(folder / "chats.jsonl", *[{"messages": TWO_TURNS}] * 3)
    model = write_model(folder / "model", CHATML)
    (folder / "table.csv").write_text("a,b,label\n1,x,yes\n2.5,y,no\n,x,yes\n4,,no\n")
    np.save(folder / "tokens.npy", np.arange(64, dtype=np.uint16) % 10)
    np.savez(folder / "arrays.npz", inputs=np.zeros((4, 1, 2, 2), np.uint8), labels=np.arange(4))
    lines = (changes.any_bytes, changes.json_lines)
    texts_: Any = {"kind": "text", "column": "text", "tokenizer": "tokenizer.json"}
    labelled = texts_ | {"path": "texts.jsonl", "label": "label", "length": 12, "classes": CLASSES}
    chats: Any = {"kind": "chat", "path": "chats.jsonl", "tokenizer": "model", "length": 64}
    sources: list[tuple[Path, dict[str, Any], tuple[Change, ...]]] = [
        (folder / "texts.jsonl", labelled, lines),
        (folder / "texts.jsonl", texts_ | {"path": "texts.jsonl", "block": 4}, lines),
        (folder / "chats.jsonl", chats, lines),
        (model / "tokenizer_config.json", chats, (changes.any_bytes, changes.plain_json)),
        (model / "chat_template.jinja", chats, (changes.any_bytes,)),
        (folder / "table.csv", TABLE | {"path": "table.csv"}, (changes.any_bytes,)),
        (
            folder / "tokens.npy",
            {"kind": "tokens", "path": "tokens.npy", "vocabulary": 10, "block": 8},
            (changes.any_bytes,),
        ),
        (
            folder / "arrays.npz",
            {"kind": "arrays", "path": "arrays.npz", "classes": list("abcd")},
            (changes.any_bytes,),
        ),
    ]
    for path, options, forges in sources:
        name = f"{options['kind']}: {path.name}{' in blocks' if 'block' in options else ''}"
        yield whole_file(folder, path, partial(_samples, folder, **options), name, forges=forges, weight=0.4)


TABLE: dict[str, Any] = {
    "kind": "table",
    "numeric": ["a"],
    "categorical": ["b"],
    "label": "label",
    "classes": ["no", "yes"],
}


def _published(folder: Path) -> Iterator[Reader]:
    import pyarrow.parquet as pq

    from tests.published.test_webdataset import CLASSES, pairs, write_tar
    from tests.published.toys import picture, pictures, save_splits, save_to_disk

    table = pictures(["red", "green"], CLASSES)
    save_splits(folder / "saved", {"train": lambda path: save_to_disk(path, table, {"label": CLASSES})})
    members = [
        *pairs(["red", "blue"]),
        ("0007.png", picture("red", 1)),
        ("0007.json", b'{"label": 1, "of": {"a": [1]}}'),
    ]
    write_tar(folder / "tars/a.tar", members)
    (folder / "parquet").mkdir()
    pq.write_table(table, folder / "parquet/train-00000-of-00001.parquet")
    for name in ("red", "blue"):
        (folder / "photos" / name).mkdir(parents=True)
        (folder / "photos" / name / "a.png").write_bytes(picture(name, 0))
    saved: Any = {"kind": "hf_folder", "path": "saved", "image": "image", "label": "label", "size": 8}
    any_, json_ = (changes.any_bytes,), (changes.any_bytes, changes.plain_json)
    sources: list[tuple[str, dict[str, Any], tuple[Change, ...]]] = [
        ("saved/dataset_dict.json", saved, json_),
        ("saved/train/state.json", saved, json_),
        (f"saved/train/{next((folder / 'saved/train').glob('*.arrow')).name}", saved, any_),
        ("parquet/train-00000-of-00001.parquet", saved | {"path": "parquet"}, any_),
        ("tars/a.tar", {"kind": "webdataset", "path": "tars", "classes": CLASSES, "size": 8}, (*any_, _tar_header)),
        ("photos/red/a.png", {"kind": "image_folder", "path": "photos", "size": 8}, any_),
    ]
    for path, options, forges in sources:
        read = partial(_samples, folder, **options)
        yield whole_file(folder, folder / path, read, f"{options['kind']}: {path}", forges=forges, weight=0.4)


def _tar_header(random: Random, data: bytes) -> bytes:
    """Change a header of a tar, and give it the sum of what it is now."""
    changed = bytearray(data)
    at = 512 * random.randrange(len(data) // 512)
    field, length = random.choice(((0, 100), (124, 12), (156, 1), (157, 100), (257, 8), (345, 155)))
    odd = random.choice(
        (b"../../evil", b"/etc/passwd", b"77777777777", b"-1", b"\x80" + b"\xff" * 11, b"LKxgS12\0", b"\0" * 12)
    )
    changed[at + field : at + field + length] = odd[:length].ljust(length, b"\0")
    changed[at + 148 : at + 156] = b" " * 8
    changed[at + 148 : at + 156] = b"%06o\0 " % sum(changed[at : at + 512])
    return bytes(changed[: len(data)])


def _tokenizer(folder: Path) -> Iterator[Reader]:
    from storage.language.tokenizer import around, encoder, parse_tokenizer, token_names
    from tests.texts.toys import word_tokenizer

    path = folder / "tokenizer.json"
    path.write_bytes(json.dumps(json.loads(word_tokenizer())).encode())

    def read() -> object:
        data = path.read_bytes()
        found = parse_tokenizer(data, "tokenizer.json")
        said = [ids.tolist() for ids in encoder(data)(["the fish", "\0 a", ""])]
        return found.vocabulary, said, len(token_names(data)), [part.tolist() for part in (around(data).before,)]

    yield whole_file(folder, path, read, forges=(changes.any_bytes, changes.plain_json), weight=0.4)
