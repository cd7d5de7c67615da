"""Partners of mixup and CutMix: as good as drawn from the whole dataset, though its folders lie by class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from storage.cache import Cache
from storage.digests import sample_keys
from storage.format.rows import read_plan
from storage.views import view_name
from tests.teacher_cache.toys import build, contents, write_job

CLASSES, OF_EACH, DUE = 10, 32, 0.9
MIXUP = '{ kind = "mixup", alpha = 1.0 }'


def write_folder(folder: Path, start: int = 0, stop: int = OF_EACH) -> str:
    for label in range(CLASSES):
        (folder / f"photos/{label}").mkdir(parents=True, exist_ok=True)
        for number in range(start, stop):
            pixels = np.full((4, 4, 3), [label, number, 0], np.uint8)
            Image.fromarray(pixels).save(folder / f"photos/{label}/{number:03d}.png")
    return '[[dataset]]\nname = "photos"\nkind = "image_folder"\npath = "photos"\nrows_per_shard = 32\n'


def views(steps: str = MIXUP) -> str:
    return f"[views]\ncount = 1\ntransforms = [{steps}]\n"


def share_of_other_classes(folder: Path) -> float:
    """Return the share of rows whose partner is of another class."""
    cache = Cache.open(str(folder / "cache"))
    spec, samples = cache.catalogue().views["photos"], cache.samples().of("photos")
    different = []
    for (_,), shard in samples.group_by("shard"):
        keys, labels = sample_keys(shard["sample_id"]), shard["label"].to_numpy()
        partners = spec.view(view_name(0)).partners(keys, shard["split"].to_numpy().astype(str))
        different.append(labels != labels[partners])
    return float(np.concatenate(different).mean())


def test_partners_are_of_other_classes_as_often_as_in_the_whole_dataset(tmp_path: Path) -> None:
    report = build(write_job(tmp_path, write_folder(tmp_path), views()))
    assert share_of_other_classes(tmp_path) == pytest.approx(DUE, abs=0.06)
    assert not any("hardly" in line or "lie by class" in line for line in report.classes)


def test_rows_that_nothing_mixes_keep_the_order_of_their_files(tmp_path: Path) -> None:
    build(write_job(tmp_path, write_folder(tmp_path, stop=4), views('{ kind = "flip" }')))
    ids = Cache.open(str(tmp_path / "cache")).samples().of("photos")["sample_id"].to_list()
    assert ids == sorted(ids)


def test_a_dataset_that_grew_is_mixed_among_its_new_rows_and_the_old_ones_stay(tmp_path: Path) -> None:
    build(write_job(tmp_path, write_folder(tmp_path), views()))
    before = contents(tmp_path / "cache")
    again = build(write_job(tmp_path, write_folder(tmp_path), views()))
    assert (again.built, contents(tmp_path / "cache")) == (0, before)
    grown = build(write_job(tmp_path, write_folder(tmp_path, OF_EACH, 2 * OF_EACH), views()))
    assert grown.rows == CLASSES * OF_EACH
    after = contents(tmp_path / "cache")
    assert {path: after[path] for path in before} == before
    assert share_of_other_classes(tmp_path) == pytest.approx(DUE, abs=0.06)
    samples = Cache.open(str(tmp_path / "cache")).samples().of("photos")
    assert samples["sample_id"].n_unique() == 2 * CLASSES * OF_EACH


def test_a_cache_that_was_planned_by_class_goes_on_as_it_was_and_is_told(tmp_path: Path) -> None:
    dataset = write_folder(tmp_path)
    build(write_job(tmp_path, dataset))  # without views, so in the order of its files
    plan = read_plan(Cache.open(str(tmp_path / "cache")).objects, "photos").extents
    build(write_job(tmp_path, dataset, views()))  # without a teacher nothing is missing, and it looks no second time
    report = build(write_job(tmp_path, dataset, views()))
    assert read_plan(Cache.open(str(tmp_path / "cache")).objects, "photos").extents.equals(plan)
    assert share_of_other_classes(tmp_path) < 0.1
    (warning,) = [line for line in report.classes if line.startswith("warning")]
    assert warning.startswith(
        "warning: photos: 0% of the rows that mixup and cutmix mix are of two classes, where rows drawn from the whole "
        "dataset would be 90%: its rows lie by class"
    )


def test_row_groups_of_parquet_stay_whole(tmp_path: Path) -> None:
    images = []
    write_folder(tmp_path, stop=12)
    for label in range(CLASSES):
        images += [(tmp_path / f"photos/{label}/{number:03d}.png").read_bytes() for number in range(12)]
    table = pa.table({"image": images, "label": [row // 12 for row in range(len(images))]})
    pq.write_table(table, tmp_path / "photos.parquet", row_group_size=6)
    dataset = '[[dataset]]\nname = "photos"\nkind = "parquet_images"\npath = "photos.parquet"\nrows_per_shard = 24\n'
    assert build(write_job(tmp_path, dataset, views())).exit_code == 0
    extents = read_plan(Cache.open(str(tmp_path / "cache")).objects, "photos").extents
    assert extents["rows"].to_list() == [6] * 20
    assert (extents["position"] % 6).to_list() == [0] * 20
    assert not extents["position"].is_sorted()
    ids = Cache.open(str(tmp_path / "cache")).samples().of("photos")["sample_id"]
    expected = [f"photos.parquet:{first + i}" for first in extents["position"] for i in range(6)]
    assert ids.equals(pl.Series("sample_id", expected))
