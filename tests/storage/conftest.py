"""Small real caches, written the way a build writes them, and a real S3 server."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from storage.cache import Cache
from storage.digests import digest, fingerprint
from storage.encodings import DenseEncoding, FeatureEncoding
from storage.format.objects import LocalObjects
from storage.format.rows import EXTENT_SCHEMA, Segment, create_segment
from storage.format.shards import Commit, ShardKey
from storage.format.specs import DatasetSpec, TeacherSpec, write_spec
from storage.views import PLAIN, view_fingerprint

UNREADABLE_ROW = 3  # of the little cache


@pytest.fixture
def objects(tmp_path: Path) -> LocalObjects:
    return LocalObjects(tmp_path / "cache")


@pytest.fixture(scope="session")
def dataset_spec() -> DatasetSpec:
    return DatasetSpec(
        name="digits",
        source={"kind": "digits", "seed": 0, "size": [8, 8]},
        classes=["zero", "one", "two"],
        input_shape=(1, 2, 2),
        input_dtype="uint8",
    )


@pytest.fixture(scope="session")
def teacher_spec() -> TeacherSpec:
    return TeacherSpec(
        name="cnn",
        model={"factory": "cnn:build", "weights": "ab12"},
        num_classes=3,
        encoding=DenseEncoding(dtype="fp32", statistics=False),
        features={"last": FeatureEncoding(layer="body.3")},
    )


@pytest.fixture(scope="session")
def segment() -> Callable[..., Segment]:
    """Return a plan segment from (file, position, rows) triples."""

    def make(*extents: tuple[str, int, int], rows_per_shard: int = 4) -> Segment:
        rows = [(file, 1, "v", position, count) for file, position, count in extents]
        return Segment(pl.DataFrame(rows, schema=EXTENT_SCHEMA, orient="row"), rows_per_shard)

    return make


@pytest.fixture(scope="session")
def write_ingest() -> Callable[..., Commit | None]:
    """Write the ingest of one shard of the dataset `digits`: input and label of a row follow from its number."""

    def write(cache: Cache, shard: int, start: int, stop: int, *, seed: int = 0) -> Commit | None:
        rows = np.arange(start, stop)
        inputs_S = np.random.default_rng([seed, shard]).integers(0, 256, (len(rows), 1, 2, 2), dtype=np.uint8)
        bad_S = rows == UNREADABLE_ROW
        inputs_S[bad_S] = 0
        table = pa.table(
            {
                "row": pa.array(rows, pa.int64()),
                "sample_id": pa.array([f"digits:{row}" for row in rows], pa.string()),
                "label": pa.array(rows % 3, pa.int64()),
                "split": pa.array(["validation" if row % 5 == 0 else "train" for row in rows], pa.string()),
                "payload_digest": pa.array([digest(f"{row}".encode()) for row in rows], pa.string()),
                "label_digest": pa.array([fingerprint(int(row % 3)) for row in rows], pa.string()),
                "error": pa.array(["OSError: truncated" if bad else None for bad in bad_S], pa.string()),
            }
        )
        about = {"quarantined": int(bad_S.sum()), "inputs_digest": digest(inputs_S.tobytes()), "seconds": 0.5}
        key = ShardKey("digits", None, PLAIN, shard)
        return cache.write_shard(key, rows=(start, stop), arrays={"inputs": inputs_S}, table=table, about=about)

    return write


@pytest.fixture(scope="session")
def write_targets() -> Callable[..., Commit | None]:
    """Write the targets of the teacher `cnn` for one ingested shard."""

    def write(cache: Cache, shard: int, *, logits_SC: np.ndarray | None = None) -> Commit | None:
        ingest = cache.commit(ShardKey("digits", None, PLAIN, shard), with_table=True)
        rows = np.arange(ingest.start, ingest.stop)
        if logits_SC is None:
            logits_SC = np.random.default_rng(shard).standard_normal((len(rows), 3)).astype(np.float32)
        table = pa.table(
            {
                "row": pa.array(rows, pa.int64()),
                "top": pa.array(logits_SC.argmax(axis=1), pa.int64()),
                "top_probability": pa.array(np.full(len(rows), 0.75), pa.float32()),
                "entropy": pa.array(rows / 10, pa.float32()),
                "label_log_probability": pa.array(-rows / 10, pa.float32()),
            }
        )
        inputs_S = cache.read_inputs("digits", shard)
        about = {"inputs_digest": ingest.about["inputs_digest"], "view_fingerprint": view_fingerprint(inputs_S)}
        arrays = {"logits": logits_SC, "feature/last": np.ones((len(rows), 5), np.float16)}
        key = ShardKey("digits", "cnn", PLAIN, shard)
        return cache.write_shard(key, rows=(ingest.start, ingest.stop), arrays=arrays, table=table, about=about)

    return write


@pytest.fixture(scope="session")
def built(
    tmp_path_factory: pytest.TempPathFactory,
    dataset_spec: DatasetSpec,
    teacher_spec: TeacherSpec,
    segment: Callable[..., Segment],
    write_ingest: Callable[..., Commit],
    write_targets: Callable[..., Commit],
) -> Path:
    cache = Cache.create(str(tmp_path_factory.mktemp("built") / "cache"))
    write_spec(cache.objects, "digits/dataset.json", dataset_spec, "test")
    create_segment(cache.objects, "digits", 0, segment(("a", 0, 10)))
    write_spec(cache.objects, "digits/cnn/teacher.json", teacher_spec, "test")
    for shard, start, stop in cache.catalogue().shards("digits"):
        write_ingest(cache, shard, start, stop)
        write_targets(cache, shard)
    return Path(cache.url)


@pytest.fixture
def cache(tmp_path: Path, built: Path) -> Cache:
    """Return a whole cache of one's own: 10 rows in shards of 4, 4 and 2, row 3 unreadable, one teacher."""
    shutil.copytree(built, tmp_path / "cache")  # without the syncs of a build
    return Cache.open(str(tmp_path / "cache"))
