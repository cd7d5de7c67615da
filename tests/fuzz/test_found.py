"""What the fuzzers found, each by itself: files whose digests are right, and that no program of ours has written."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from storage.cache import Cache
from storage.cache.verify import verify
from storage.datasets.arrays import load_numpy
from storage.datasets.arrow import open_arrow
from storage.datasets.chat.template import ChatTemplate
from storage.datasets.published.saved import find_split
from storage.digests import digest
from storage.errors import BadRequest, BadTeacher, BadWeights, CorruptObject, LabelOutOfRange, MissingSource
from storage.format.sealed import _sealed, read_json, seal, seal_json, unseal
from storage.format.stores.index import Index
from storage.language.model_folder import check_known, read_config, weights_files
from student_train.run_files.checkpoint import read_checkpoint, write_checkpoint
from student_train.run_files.position import Position
from tests.published.toys import pictures, source
from tests.student_train.toys import Recipe, write_cache


@pytest.mark.parametrize("name", ["../elsewhere/a.arrow", "/etc/passwd", "..", "", "a\0b", "a" * 300, 1, None])
def test_a_saved_folder_names_no_file_elsewhere(tmp_path: Path, name: object) -> None:
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}], "_split": None}))
    with pytest.raises(MissingSource, match="does not say which files there are"):
        find_split(tmp_path, None)
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": [name]}))
    with pytest.raises(MissingSource, match="does not name its splits"):
        find_split(tmp_path, None)


def test_a_saved_folder_without_a_list_of_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text('{"_data_files": -1}')
    with pytest.raises(MissingSource, match="does not say which files there are"):
        find_split(tmp_path, None)


OPEN = """
import sys
from pathlib import Path
from storage.datasets.arrow import open_arrow
from storage.errors import MissingSource
try:
    open_arrow(Path(sys.argv[1]))
except MissingSource as error:
    sys.exit(f"named: {error.found}")
"""


@pytest.mark.parametrize("message", [0, 1])
@pytest.mark.parametrize("said", [0, 1, 2, 3, 17, 255])
def test_a_message_of_arrow_that_is_of_another_type_does_not_end_the_process(
    tmp_path: Path, message: int, said: int
) -> None:
    """Seen: pyarrow 26.0.1 dies (SIGSEGV) of a schema that says it is something else; so in a process of its own."""
    table, path = pa.table({"a": [1, 2]}), tmp_path / "a.arrow"
    with pa.ipc.new_stream(str(path), table.schema) as stream:
        stream.write_table(table)
    data = bytearray(path.read_bytes())
    starts = [at for at in range(0, len(data), 8) if data[at : at + 4] == b"\xff\xff\xff\xff"]
    # a table of flatbuffers: where it is, where its fields are, and of these the second, `header_type`
    root = starts[message] + 8 + int.from_bytes(data[starts[message] + 8 : starts[message] + 12], "little")
    fields = root - int.from_bytes(data[root : root + 4], "little", signed=True)
    at = root + int.from_bytes(data[fields + 6 : fields + 8], "little")
    assert data[at] == (1, 3)[message]
    data[at] = said
    path.write_bytes(data)
    ended = subprocess.run([sys.executable, "-c", OPEN, path], capture_output=True, text=True, check=False)
    whole = said == (1, 3)[message]
    assert (ended.returncode, ended.stderr.startswith("named: ")) == (0 if whole else 1, not whole), ended.stderr


@pytest.mark.parametrize(
    "key", [["toy", None, ["plain"], 0], ["toy", None, "view-000", 0], ["toy", None, "plain", False]]
)
def test_a_commit_whose_key_is_none_is_refused_though_it_lies_in_its_place(tmp_path: Path, key: list[Any]) -> None:
    """Seen: `verify` called it whole, and then ended with Python's TypeError."""
    cache = write_cache(tmp_path, Recipe(rows=8, rows_per_shard=8))
    path = "toy/ingest/00000.parquet"
    about, table = unseal(cache.objects.get(path))
    cache.objects.put(path, seal(table, about | {"key": key}))
    (bad,) = [each for each in verify(Cache.open(str(tmp_path))).bad if each.key.teacher is None]
    assert "is not a whole commit" in bad.reason


def test_a_label_of_which_nobody_has_as_many_classes_is_refused(tmp_path: Path) -> None:
    """Seen: a name for each number up to 10¹⁹, until memory ended; of whatever source whose classes have no names."""
    table = pictures(["red", "green"], ["red", "green"]).set_column(1, "label", pa.array([2**40, 0], pa.int64()))
    (tmp_path / "parquet").mkdir()
    pq.write_table(table, tmp_path / "parquet/train-00000-of-00001.parquet")
    np.savez(tmp_path / "a.npz", inputs=np.zeros((2, 3), np.uint8), labels=np.array([0, 2**40]))
    sources = [
        source(tmp_path, kind="hf_folder", path="parquet", image="image", label="label", size=8),
        source(tmp_path, kind="arrays", path="a.npz"),
    ]
    for each in sources:
        with pytest.raises(LabelOutOfRange, match="are no numbers of classes") as caught:
            each.class_names()
        assert caught.value.found == f"label {2**40}"


@pytest.mark.parametrize("name", [b"label", b"inner"])
def test_names_of_columns_that_are_no_text_are_refused(tmp_path: Path, name: bytes) -> None:
    table, path = pa.table({"label": [{"inner": 1}, {"inner": 2}]}), tmp_path / "a.arrow"
    with pa.ipc.new_stream(str(path), table.schema) as stream:
        stream.write_table(table)
    path.write_bytes(path.read_bytes().replace(name, b"a\xec" + name[2:]))
    with pytest.raises(MissingSource, match="as an Arrow stream"):
        open_arrow(path)


def test_an_array_whose_header_is_no_python_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(3))
    data = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(data.replace(b"{'descr'", b"{{{{{{{{"))
    with pytest.raises(MissingSource, match="cannot read"):
        load_numpy(tmp_path / "a.npy")


def test_a_template_that_is_deeper_than_python_is_refused() -> None:
    with pytest.raises(BadRequest, match="cannot be parsed"):
        ChatTemplate("t.jinja", "{{ " + "[" * 100_000, None, ()).reads("x")


def test_weights_of_a_checkpoint_that_are_none_are_named(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, Position(), {"w": torch.zeros(2)}, {})
    (file,) = tmp_path.glob("*.safetensors")
    file.write_bytes(b"no tensors")
    said = read_json(tmp_path / "checkpoint.json") | {"weights_digest": digest(b"no tensors"), "student": None}
    (tmp_path / "checkpoint.json").write_bytes(seal_json(said))
    with pytest.raises(CorruptObject, match="is no safetensors file"):
        read_checkpoint(tmp_path, {})


def _page_forged(data: bytes) -> bytes:
    """Return a sealed Parquet file with its first page damaged, and the seal of that."""
    return _sealed(data[:4] + b"\xff" * 12 + data[16:])


def test_an_index_whose_pages_are_none_is_named() -> None:
    table = pa.table({"path": ["a"], "bytes": [1], "version": ["v"], "digest": ["d"]})
    with pytest.raises(CorruptObject, match="is not a whole index"):
        Index.from_parquet(_page_forged(seal(table, {})), "https://example.org")


def without_labels(data: bytes) -> bytes:
    about, table = unseal(data)
    return seal(table.drop_columns(["labels"]), about)


@pytest.mark.parametrize("forge", [_page_forged, without_labels])
def test_a_ledger_that_is_forged_is_as_if_empty(tmp_path: Path, forge: Callable[[bytes], bytes]) -> None:
    cache = write_cache(tmp_path / "cache", Recipe(rows=8, rows_per_shard=8))
    cache.catalogue().ledger().compact()
    (file,) = (tmp_path / "cache/ledger").iterdir()
    file.write_bytes(forge(file.read_bytes()))
    found = Cache.open(cache.url).catalogue().ledger()
    assert (found.of("toy", None, "plain")["rows"].to_list(), found.labels("toy")) == ([8], [])


def test_a_size_that_no_tar_has_is_refused(tmp_path: Path) -> None:
    from tests.fuzz.readers import _samples
    from tests.published.test_webdataset import CLASSES, pairs, write_tar

    path = write_tar(tmp_path / "tars/a.tar", pairs(["red"]))
    data = bytearray(path.read_bytes())
    data[124:136], data[148:156] = b"\x80" + b"\x7f" * 11, b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    path.write_bytes(data)
    with pytest.raises(MissingSource, match="is no whole tar"):
        _samples(tmp_path, kind="webdataset", path="tars", classes=CLASSES, size=8)


def test_a_chat_whose_role_is_no_text_is_set_aside(tmp_path: Path) -> None:
    from tests.chats.toys import CHATML, write_lines, write_model
    from tests.fuzz.readers import _samples

    write_model(tmp_path / "model", CHATML)
    write_lines(tmp_path / "a.jsonl", {"messages": [{"role": ["user"], "content": "a"}]})
    (sample,) = _samples(tmp_path, kind="chat", path="a.jsonl", tokenizer="model", length=64)
    assert "whose role is no text: list" in sample


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"architectures": 2**64}, "is damaged"),
        ({"architectures": float("nan")}, "is damaged"),
        ({"architectures": [1]}, "is damaged"),
        ({"num_hidden_layers": 2**40}, "more layers than any"),  # each of which would be built
        ({"text_config": {"n_layer": 2**40}}, "more layers than any"),
        ({"depths": [2, 10**9]}, "more layers than any"),
        ({"num_local_experts": 10**9}, "more layers than any"),
    ],
)
def test_a_config_that_no_model_has_is_refused_before_it_is_built(
    tmp_path: Path, changed: dict[str, object], told: str
) -> None:
    whole: dict[str, object] = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2}
    (tmp_path / "config.json").write_text(json.dumps(whole))
    assert read_config(tmp_path, BadRequest) == whole
    (tmp_path / "config.json").write_text(json.dumps(whole | changed))
    with pytest.raises(BadRequest, match=told):
        read_config(tmp_path, BadRequest)


def test_a_text_that_is_no_utf8_is_refused_where_a_table_is_opened() -> None:
    odd = pa.StringArray.from_buffers(1, pa.array([0, 1], pa.int32()).buffers()[1], pa.py_buffer(b"\xf6"))
    with pytest.raises(ValueError, match="UTF8"):
        unseal(seal(pa.table({"split": odd}), {}))


@pytest.mark.parametrize("kind", [{}, ["llama"], None, 3])
def test_a_kind_of_model_that_is_no_text_is_named(tmp_path: Path, kind: object) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(BadTeacher, match="knows no model as in"):
        check_known(tmp_path, {"model_type": kind})


def test_weights_of_a_name_that_no_disk_has_are_named(tmp_path: Path) -> None:
    named = {"weight_map": {"a": "x" * 300 + ".safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(named))
    with pytest.raises(BadWeights, match="names no weights"):
        weights_files(tmp_path)


def test_an_id_that_is_no_text_is_named(tmp_path: Path) -> None:
    ids = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xe5\x00")])
    table = pa.table({"image": pa.array([b"x"]), "label": pa.array([0]), "id": ids})
    pq.write_table(table, tmp_path / "a.parquet")
    read = source(tmp_path, kind="parquet_images", path="a.parquet", id="id", classes=["a"])
    with pytest.raises(MissingSource, match="a text in it is none"):
        list(read.read("a.parquet", 0, 1))
