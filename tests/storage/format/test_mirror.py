"""Sources in an object store: every kind is read as from a disk, and what changes there is seen."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from storage.cache import Cache
from storage.datasets import AnySource
from storage.errors import BadRequest, MissingSource, StaleCache, StorageFailure
from storage.format.objects import RemoteObjects
from storage.format.stores import mirror
from storage.format.stores.mirror import StorePath, fetched, store_path
from teacher_cache.work import ingest
from tests.published.test_tar_texts import captioned
from tests.published.test_webdataset import CLASSES, pairs, write_tar
from tests.published.toys import picture
from tests.tables.toys import customers, write_csv
from tests.teacher_cache.toys import Silent, build, write_job


@pytest.fixture(autouse=True)
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STILLROOM_SOURCES", str(tmp_path / "copies"))
    return tmp_path / "copies"


@pytest.fixture
def upload(bucket: str) -> Callable[[Path], str]:
    """Put a folder, or a file, into the bucket below its own name; return its address."""

    def put(path: Path) -> str:
        store = RemoteObjects(bucket)
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                store.put(file.relative_to(path.parent).as_posix(), file.read_bytes())
        return f"{bucket}/{path.name}"

    return put


def write_data(folder: Path) -> dict[str, str]:
    """Write data of several kinds; return what a `[[dataset]]` of each says besides its path."""
    for number, name in enumerate(["red", "green"] * 4):
        (folder / "photos" / name).mkdir(parents=True, exist_ok=True)
        (folder / f"photos/{name}/{number}.png").write_bytes(picture(name, number))
    write_tar(folder / "tars/a-0.tar", pairs(CLASSES * 2))
    write_tar(folder / "tars/a-1.tar", pairs(CLASSES * 2, first=6))
    write_tar(folder / "texts/0.tar", captioned(12))
    write_csv(folder / "rows.csv", customers(40))
    lines = [f'{{"text": "some words and number {i}", "label": "{"ab"[i % 2]}"}}\n' for i in range(20)]
    (folder / "lines.jsonl").write_text("".join(lines))
    tokenizer = "length = 16\ntrain_tokenizer = { vocabulary = 300 }"
    return {
        "photos": 'kind = "image_folder"',
        "tars/a-{0..1}.tar": 'kind = "webdataset"\nclasses = ["red", "green", "blue"]',
        "texts": f'kind = "webdataset"\ncolumn = "txt"\nlabel = "cls"\n{tokenizer}',
        "rows.csv": 'kind = "table"\nlabel = "churn"',
        "lines.jsonl": f'kind = "text"\ncolumn = "text"\nlabel = "label"\n{tokenizer}',
    }


def sections(told: dict[str, str], at: str) -> list[str]:
    return [
        f'[[dataset]]\nname = "d{i}"\npath = "{at}/{path}"\n{rest}\n' for i, (path, rest) in enumerate(told.items())
    ]


@pytest.mark.slow
def test_every_kind_is_the_same_from_a_bucket_and_from_a_disk(
    tmp_path: Path, upload: Callable[[Path], str], bucket: str
) -> None:
    (tmp_path / "data").mkdir()
    told = write_data(tmp_path / "data")
    for path in ("photos", "tars", "texts", "rows.csv", "lines.jsonl"):
        upload(tmp_path / "data" / path)
    watcher = Silent()
    assert build(write_job(tmp_path, *sections(told, str(tmp_path / "data")), cache="here")).exit_code == 0
    remote = write_job(tmp_path, *sections(told, bucket), cache="there")
    assert build(remote, watcher=watcher).exit_code == 0
    here, there = (Cache.open(str(tmp_path / name)) for name in ("here", "there"))
    for number in range(len(told)):
        dataset = f"d{number}"
        assert here.dataset(dataset) == there.dataset(dataset)
        assert (
            here.samples()
            .of(dataset)
            .drop("attempt", strict=False)
            .equals(there.samples().of(dataset).drop("attempt", strict=False))
        )
    assert build(remote).built == 0


def test_what_is_copied_is_told_and_not_copied_again(
    tmp_path: Path, upload: Callable[[Path], str], copies: Path
) -> None:
    write_csv(tmp_path / "rows.csv", customers(40))
    url = upload(tmp_path / "rows.csv")
    source = TypeAdapter(AnySource).validate_python({"name": "rows", "kind": "table", "path": url, "label": "churn"})
    assert isinstance(source.path, StorePath)
    assert source.fetched() == [
        f"copied to this machine: 1 file, {(tmp_path / 'rows.csv').stat().st_size:,} bytes, in {copies}"
    ]
    assert source.fetched() == []
    assert source.path.read_bytes() == (tmp_path / "rows.csv").read_bytes()
    again = TypeAdapter(AnySource).validate_json(source.model_dump_json())
    assert (again.path, again.path.url) == (source.path, source.path.url)  # as a worker gets it
    with source.path.open("ab") as file:  # a copy that is not what it was
        file.write(b"x")
    assert fetched(source.path) == (1, (tmp_path / "rows.csv").stat().st_size)


def test_what_changes_in_the_bucket_is_seen_as_on_a_disk(
    tmp_path: Path, upload: Callable[[Path], str], bucket: str
) -> None:
    rows = customers(40)
    (tmp_path / "t").mkdir()
    for number in range(2):
        write_csv(tmp_path / f"t/{number}.csv", rows[20 * number : 20 * (number + 1)])
    job = write_job(
        tmp_path, f'[[dataset]]\nname = "t"\nkind = "table"\npath = "{upload(tmp_path / "t")}"\nlabel = "churn"\n'
    )
    assert build(job).exit_code == 0
    write_csv(tmp_path / "t/2.csv", customers(10, seed=3))
    upload(tmp_path / "t")
    assert build(job).built == 1
    assert len(Cache.open(str(tmp_path / "cache")).samples().of("t")) == 50
    rows[0] = rows[0] | {"income": "1.00"}
    write_csv(tmp_path / "t/0.csv", rows[:20])
    upload(tmp_path / "t")
    with pytest.raises(StaleCache, match=r"1 samples with other content: 0\.csv:0"):
        build(job)
    RemoteObjects(bucket).delete("t/1.csv")
    with pytest.raises(StaleCache, match="has lost samples"):
        build(job)


def test_a_worker_on_another_machine_copies_what_it_reads(
    tmp_path: Path, upload: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_csv(tmp_path / "rows.csv", customers(40))
    job = write_job(
        tmp_path,
        f'[[dataset]]\nname = "r"\nkind = "table"\npath = "{upload(tmp_path / "rows.csv")}"\nlabel = "churn"\n',
    )

    asked = []
    look = ingest._is_at_hand

    def gone(source: object, extent: object) -> bool:
        if not asked:  # as if the copy of the build were another machine's
            source.path.unlink()  # type: ignore[attr-defined]
        asked.append(look(source, extent))  # type: ignore[arg-type]
        return asked[-1]

    monkeypatch.setattr(ingest, "_is_at_hand", gone)
    assert build(job).exit_code == 0
    assert asked == [False]


def test_addresses_that_no_source_can_have_are_refused(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in ("https://host/rows.csv", "s3://key:word@bucket/rows.csv", "s3://", 5):
        with pytest.raises(ValidationError) as refused:
            TypeAdapter(AnySource).validate_python({"name": "d", "kind": "table", "path": path})
        assert "key:word" not in str(refused.value.errors(include_input=False))
    nothing = TypeAdapter(AnySource).validate_python({"name": "d", "kind": "table", "path": f"{bucket}/none.csv"})
    with pytest.raises(MissingSource, match="there is nothing at"):
        nothing.fetched()


def test_a_name_that_leads_out_of_the_folder_of_copies_is_refused(tmp_path: Path, bucket: str, s3_server: str) -> None:
    key = f"{bucket.removeprefix('s3://')}/t/%2e%2e/%2e%2e/%2e%2e/out.csv"
    request = f"PUT /{key} HTTP/1.1\r\nHost: s\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx"
    host, port = s3_server.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as line:  # clients would not write such a name
        line.sendall(request.encode())
        assert b" 200 " in line.recv(100)
    RemoteObjects(bucket).put("t/in.csv", b"a\n1\n")
    with pytest.raises(StorageFailure, match="cannot list") as refused:
        fetched(store_path(f"{bucket}/t"))
    assert ".." in str(refused.value.found)
    assert not list(tmp_path.rglob("*.csv"))


def test_a_disk_without_room_is_refused_before_a_byte_is_copied(
    tmp_path: Path, upload: Callable[[Path], str], copies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rows.csv").write_bytes(b"x" * 1000)
    source = TypeAdapter(AnySource).validate_python(
        {"name": "d", "kind": "table", "path": upload(tmp_path / "rows.csv")}
    )
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 999})())
    with pytest.raises(BadRequest, match="the disk has no room for a copy") as refused:
        source.fetched()
    assert "STILLROOM_SOURCES" in str(refused.value.do)
    assert not list(copies.rglob("*.csv"))


def table_at(url: str) -> StorePath:
    return TypeAdapter(AnySource).validate_python({"name": "d", "kind": "table", "path": url}).path  # type: ignore[no-any-return]


def test_two_patterns_of_one_prefix_have_copies_of_their_own(
    tmp_path: Path, upload: Callable[[Path], str], bucket: str
) -> None:
    for name in ("a-0", "a-1", "b-0", "b-1"):
        write_tar(tmp_path / f"tars/{name}.tar", pairs(CLASSES))
    upload(tmp_path / "tars")
    one, other = (
        TypeAdapter(AnySource).validate_python(
            {"name": name, "kind": "webdataset", "path": f"{bucket}/tars/{name}-{{0..1}}.tar", "classes": CLASSES}
        )
        for name in "ab"
    )
    assert one.fetched()
    assert other.fetched()
    assert one.files()["file"].to_list() == ["a-0.tar", "a-1.tar"]  # the second takes nothing away from the first
    assert one.fetched() == []


def test_an_object_that_changes_while_it_is_copied_is_never_taken_for_what_was_listed(
    tmp_path: Path, upload: Callable[[Path], str], bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rows.csv").write_bytes(b"a,b\n1,2\n")
    path = table_at(upload(tmp_path / "rows.csv"))
    drop = mirror._drop

    def changes(*given: object) -> None:
        drop(*given)  # type: ignore[arg-type]
        RemoteObjects(bucket).put("rows.csv", b"a,b\n3,4\n")  # of the same size, between the list and the copy

    monkeypatch.setattr(mirror, "_drop", changes)
    for part_bytes in (mirror.PART_BYTES, 3):
        (tmp_path / "rows.csv").write_bytes(b"a,b\n1,2\n")
        upload(tmp_path / "rows.csv")
        monkeypatch.setattr(mirror, "PART_BYTES", part_bytes)
        with pytest.raises(MissingSource, match=r"rows\.csv changed while it was copied"):
            fetched(path)
        assert not path.exists()  # another worker would think that it is the one that was listed
    monkeypatch.setattr(mirror, "_drop", drop)
    fetched(path)
    assert path.read_bytes() == b"a,b\n3,4\n"


def test_copies_in_a_folder_for_temporary_files_are_of_their_user_alone(
    tmp_path: Path, upload: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STILLROOM_SOURCES")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    (tmp_path / "rows.csv").write_bytes(b"a,b\n1,2\n")
    url = upload(tmp_path / "rows.csv")
    fetched(table_at(url))
    (folder,) = (tmp_path / "tmp").iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700  # what lies in a bucket is not everybody's
    folder.chmod(0o755)
    with pytest.raises(BadRequest, match="is not this user's alone"):
        fetched(table_at(url))
    folder.chmod(0o700)
    monkeypatch.setattr("os.getuid", lambda: 4321)
    folder.rename(folder.with_name("stillroom-sources-4321"))  # which somebody else has made
    with pytest.raises(BadRequest, match="is not this user's alone"):
        fetched(table_at(url))


def test_a_folder_of_copies_that_cannot_be_written_is_told(
    tmp_path: Path, upload: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rows.csv").write_bytes(b"a,b\n1,2\n")
    url = upload(tmp_path / "rows.csv")
    monkeypatch.setenv("STILLROOM_SOURCES", str(tmp_path / "rows.csv"))
    with pytest.raises(BadRequest, match="cannot be copied to this machine") as refused:
        fetched(table_at(url))
    assert "STILLROOM_SOURCES" in str(refused.value.do)


@pytest.mark.parametrize("url", ["s3://b-{0..1}/tars/a.tar", "s3://{a,b}/x.tar"])
def test_a_pattern_of_buckets_is_refused(url: str) -> None:
    with pytest.raises(ValidationError, match="one bucket"):
        TypeAdapter(AnySource).validate_python({"name": "d", "kind": "webdataset", "path": url})
