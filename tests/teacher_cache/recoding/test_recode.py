"""Recoding: byte for byte what the teacher's own build gives, without the teacher; and never more than was there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jobs.files.cache_job import CacheJob
from jobs.files.reading import read_job
from storage.cache import Cache
from storage.cache.status import read_status
from storage.cache.verify import verify
from storage.encodings import AnyEncoding, DenseEncoding, SparseEncoding
from storage.encodings.naming import as_toml
from storage.errors import (
    BadRequest,
    CorruptObject,
    IncompleteCache,
    MissingCapability,
    NotInCache,
    RowsMissing,
    StaleCache,
    StillroomError,
)
from storage.format.shards import ShardKey
from teacher_cache.building.prepared import BuildRequest
from teacher_cache.building.runners import run_inline
from teacher_cache.building.stages import BuildReport
from teacher_cache.recoding.recode import prepare_recoding, run_recode
from teacher_cache.work.conversions import convert, refusal
from tests.conftest import Program
from tests.damage import flip
from tests.teacher_cache.pilot.test_pilot import write_tokens
from tests.teacher_cache.test_faults import started, wait_for
from tests.teacher_cache.toys import (
    Silent,
    build,
    contents,
    teacher_section,
    write_digits,
    write_job,
    write_teacher,
)

FEATURES = 'features.h = { layer = "norm", dtype = "fp16" }\nfeatures.c = { layer = "conv", dtype = "bf16" }\n'
LIVELY = {"temperatures": [1.0, 4.0], "standardised_temperatures": [2.0]}
TARGETS = [
    DenseEncoding(dtype="fp16"),
    DenseEncoding(dtype="bf16", temperatures=[1, 2]),
    DenseEncoding(dtype="int8"),
    DenseEncoding(statistics=False),
    SparseEncoding(k=3),
    SparseEncoding(k=4, values="8bit", **LIVELY),  # type: ignore[arg-type]
    SparseEncoding(k=3, n=4, values="8bit", seed=5),
    SparseEncoding(k=8, p=0.5, statistics=False),
    SparseEncoding(n=9),
]


def named(encoding: AnyEncoding) -> str:
    return as_toml(encoding).removeprefix("encoding = ")


def recode(source: Path, job: Path, **request: Any) -> BuildReport:
    read = read_job(job, CacheJob)
    fields = {"cache": read.cache, "sources": tuple(read.dataset), "teachers": tuple(read.teacher), "views": read.views}
    plan = prepare_recoding(
        Cache.open(str(source)), BuildRequest(**(fields | {"job": str(job), "device": "cpu"} | request))
    )
    return run_recode(plan, run_inline, Silent())


def job_of(
    folder: Path,
    encoding: AnyEncoding | None = None,
    *,
    cache: str = "small",
    extra: str = "",
    rows: int = 40,
    views: str = "",
) -> Path:
    line = "" if encoding is None else as_toml(encoding) + "\n"
    return write_job(folder, write_digits(folder, rows), teacher_section(extra=line + extra), views, cache=cache)


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a dense fp32 cache of 40 digits, `cache`, and its teacher; do not change it."""
    folder = tmp_path_factory.mktemp("rich")
    write_teacher(folder)
    build(job_of(folder, cache="cache", extra=FEATURES))
    return folder


@pytest.fixture
def folder(rich: Path, tmp_path: Path) -> Path:
    """Return a copy of it."""
    shutil.copytree(rich, tmp_path, dirs_exist_ok=True)
    return tmp_path


def of(cache: Path, encoding: AnyEncoding, folder: Path) -> Path:
    """Build a cache with an encoding; return the cache."""
    build(job_of(folder, encoding, cache=cache.name, extra=FEATURES))
    return cache


def assert_same_but_rounded_tables(one: Path, other: Path) -> None:
    """Check that all arrays are the same bytes; a table's figures are sums in an order that each encoding has."""
    ours, theirs = contents(one), contents(other)
    assert ours.keys() == theirs.keys()
    for key, found in ours.items():
        tables = [json.loads(each.pop("table")) for each in (found, theirs[key])]
        assert found == theirs[key]
        assert tables[0].keys() == tables[1].keys()
        for name, values in tables[0].items():
            assert [value is None for value in values] == [value is None for value in tables[1][name]]
            there = [[value for value in each if value is not None] for each in (values, tables[1][name])]
            numbers = all(isinstance(value, float) for value in there[1])
            assert there[0] == (pytest.approx(there[1], rel=1e-5, abs=1e-6) if numbers else there[1])


# What comes out


@pytest.mark.parametrize("encoding", TARGETS, ids=named)
def test_from_dense_fp32_comes_byte_for_byte_what_the_teacher_s_own_build_gives(
    folder: Path, encoding: AnyEncoding
) -> None:
    direct = of(folder / "direct", encoding, folder)
    job = job_of(folder, encoding, extra=FEATURES)
    report = recode(folder / "cache", job)
    assert (report.built, report.exit_code) == (6, 0)
    assert_same_but_rounded_tables(folder / "small", direct)
    specs = [Cache.open(str(cache)).teacher("digits", "toy") for cache in (folder / "small", direct)]
    assert specs[0] == specs[1]
    assert verify(Cache.open(str(folder / "small"))).bad == ()


def test_neither_the_teacher_s_files_nor_the_source_s_need_exist(folder: Path) -> None:
    job = job_of(folder, SparseEncoding(k=3))
    for name in ("toy.py", "toy.safetensors", "digits.npz"):
        (folder / name).unlink()
    assert recode(folder / "cache", job).built == 6
    assert read_status(Cache.open(str(folder / "small")).catalogue())["rows_missing"].to_list() == [0, 0]


def test_a_build_with_the_same_job_finds_nothing_missing(folder: Path) -> None:
    job = job_of(folder, SparseEncoding(k=3, n=2), extra=FEATURES)
    recode(folder / "cache", job)
    assert (build(job).built, build(job).present) == (0, 6)


def test_a_recoding_says_where_it_is_from(folder: Path) -> None:
    recode(folder / "cache", job_of(folder, DenseEncoding(dtype="fp16")))
    recode(folder / "small", job_of(folder, SparseEncoding(k=2), cache="smaller"))
    caches = [Cache.open(str(folder / name)) for name in ("cache", "small", "smaller")]
    commits = [cache.commit(ShardKey("digits", "toy", "plain", 0)) for cache in caches]
    about = [commit.about for commit in commits]
    assert "recoded_from" not in about[0]
    first = {"cache": caches[0].id, "encoding": DenseEncoding().model_dump(mode="json")}
    assert about[1]["recoded_from"] == first
    second = {"cache": caches[1].id, "encoding": DenseEncoding(dtype="fp16").model_dump(mode="json")}
    assert about[2]["recoded_from"] == second | {"before": first}
    assert [commit.promise for commit in commits] == [c.teacher("digits", "toy").fingerprint for c in caches]
    assert [commit.belonging and commit.belonging.cache for commit in commits] == [cache.id for cache in caches]
    assert about[2]["view_fingerprint"] == about[0]["view_fingerprint"]


def test_features_may_be_fewer_and_stay_as_they_are(folder: Path) -> None:
    recode(folder / "cache", job_of(folder, SparseEncoding(k=2), extra=FEATURES.splitlines()[1]))
    was, now = (
        Cache.open(str(folder / name)).commit(ShardKey("digits", "toy", "plain", 1)) for name in ("cache", "small")
    )
    assert [name for name in now.array_names if name.startswith("feature/")] == ["feature/c"]
    digests = [{o.digest for o in commit.members if o.path.startswith("feature/c/")} for commit in (was, now)]
    assert digests[0] == digests[1]


def test_quarantined_rows_stay_zeros_and_nulls(tmp_path: Path) -> None:
    write_teacher(tmp_path)
    dataset = write_digits(tmp_path, 40)
    arrays = dict(np.load(tmp_path / "digits.npz"))
    floats = arrays["inputs"].astype(np.float32) / 255
    floats[[3, 4, *range(16, 32)]] = np.nan  # of the second shard nothing can be read
    np.savez(tmp_path / "digits.npz", inputs=floats, labels=arrays["labels"])
    dataset = dataset.replace("classes", "max_quarantined = 0.9\nclasses")
    build(write_job(tmp_path, dataset, teacher_section()))
    encoding = as_toml(SparseEncoding(k=3, n=2))
    job = write_job(tmp_path, dataset, teacher_section(extra=encoding), cache="small")
    report = recode(tmp_path / "cache", job)
    assert (report.exit_code, len(report.quarantined["digits"])) == (3, 18)
    build(write_job(tmp_path, dataset, teacher_section(extra=encoding), cache="direct"))
    assert_same_but_rounded_tables(tmp_path / "small", tmp_path / "direct")


def test_views_are_recoded_one_by_one_and_may_be_fewer(tmp_path: Path) -> None:
    write_teacher(tmp_path)
    views = '[views]\ncount = {}\ntransforms = [{{ kind = "pad_crop", padding = 1 }}]\n'
    build(job_of(tmp_path, cache="cache", views=views.format(3)))
    encoding = SparseEncoding(k=3, n=4)
    job = job_of(tmp_path, encoding, views=views.format(2))
    recode(tmp_path / "cache", job)
    build(job_of(tmp_path, encoding, views=views.format(2), cache="direct"))
    assert_same_but_rounded_tables(tmp_path / "small", tmp_path / "direct")
    assert Cache.open(str(tmp_path / "small")).catalogue().view_names("digits", "toy") == ["view-000", "view-001"]
    assert build(job).built == 0
    with pytest.raises(NotInCache, match="lacks views") as caught:
        recode(tmp_path / "cache", job_of(tmp_path, encoding, views=views.format(5), cache="other"))
    assert caught.value.expected == "view-003, view-004"
    with pytest.raises(StaleCache, match="transforms"):
        recode(
            tmp_path / "cache", job_of(tmp_path, encoding, views=views.format(2).replace("= 1", "= 2"), cache="other")
        )
    with pytest.raises(NotInCache, match="lacks views"):
        recode(tmp_path / "cache", job_of(tmp_path, encoding, cache="other"))  # plain was never asked for


def test_tokens_are_recoded_position_by_position(tmp_path: Path) -> None:
    unpadded = '[[teacher]]\nname = "tiny"\n'
    build(write_tokens(tmp_path))
    encoding = as_toml(SparseEncoding(k=4, n=6, values="8bit", statistics=False)) + "\n"

    def job(cache: str) -> Path:
        path = write_tokens(tmp_path, extra=encoding)
        path.write_text(path.read_text().replace('cache = "cache"', f'cache = "{cache}"'))
        return path

    assert unpadded in job("small").read_text()
    recode(tmp_path / "cache", job("small"))
    build(job("direct"))
    small, direct = (Cache.open(str(tmp_path / name)) for name in ("small", "direct"))
    assert verify(small).bad == ()
    for name in ("ids", "counts"):
        mine, theirs = (cache.read_targets("book", "tiny", 0, names=[name])[name] for cache in (small, direct))
        assert mine.shape == theirs.shape
    ids = [cache.read_targets("book", "tiny", 0, names=["ids"])["ids"] for cache in (small, direct)]
    assert (ids[0] == ids[1]).all()


# From sparse to sparser


def answers(rows: int = 30, classes: int = 40) -> tuple[torch.Tensor, dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(rows, classes, generator=generator)
    return logits, {"labels_B": torch.arange(rows) % classes, "keys_B": torch.arange(rows)}


def converted(found: SparseEncoding, wanted: SparseEncoding) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what a conversion gives, and what encoding the logits gives, as numbers."""
    logits, rest = answers()
    arrays = found.encode(logits, num_classes=40, **rest)
    assert refusal(found, wanted) is None
    got = convert(arrays, found, wanted, labels_N=rest["labels_B"], keys_N=rest["keys_B"], num_classes=40)
    direct = wanted.encode(logits, num_classes=40, **rest)
    return got, direct


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (SparseEncoding(k=8), SparseEncoding(k=3)),
        (SparseEncoding(k=8, n=5), SparseEncoding(k=8)),
        (SparseEncoding(k=8, n=5), SparseEncoding(k=8, n=5, statistics=False)),
        (SparseEncoding(k=8, **LIVELY), SparseEncoding(k=8, temperatures=[4])),  # type: ignore[arg-type]
        (SparseEncoding(k=8, **LIVELY), SparseEncoding(k=3, **LIVELY)),  # type: ignore[arg-type]
        (SparseEncoding(k=20, p=0.8), SparseEncoding(k=5, p=0.8)),
        (SparseEncoding(n=9, temperatures=[1, 2]), SparseEncoding(n=9)),
        (SparseEncoding(k=8), SparseEncoding(k=8, values="8bit")),
        (SparseEncoding(k=8, values="8bit"), SparseEncoding(k=3, values="8bit")),
    ],
    ids=str,
)
def test_sparse_becomes_sparser_as_if_the_teacher_had_been_asked(found: SparseEncoding, wanted: SparseEncoding) -> None:
    got, direct = converted(found, wanted)
    assert {name: (values.shape, values.dtype) for name, values in got.items()} == {
        name: (values.shape, values.dtype) for name, values in direct.items()
    }
    for name in got.keys() & {"ids", "draws", "counts"}:
        assert (got[name] == direct[name]).all(), name
    for name in got.keys() & {"lse", "statistics"}:  # sums over other classes first
        assert got[name].numpy() == pytest.approx(direct[name].numpy(), rel=1e-3)
    mine, theirs = wanted.decode(got, 40), wanted.decode(direct, 40)
    if wanted.k:
        student = answers()[0].flip(0)
        for temperature in wanted.temperatures:
            ours, own = mine.pair(student, temperature), theirs.pair(student, temperature)
            assert ours.log_p.exp().numpy() == pytest.approx(own.log_p.exp().numpy(), abs=6e-3)
    if wanted.k and wanted.values == found.values == "fp16":
        assert (got["values"] == direct["values"]).all()


# What is refused


REFUSED = [
    (DenseEncoding(dtype="fp16"), DenseEncoding(), "logits in fp32"),
    (DenseEncoding(dtype="bf16"), DenseEncoding(dtype="fp16"), "logits in fp16"),
    (DenseEncoding(dtype="int8"), DenseEncoding(dtype="bf16"), "logits in bf16"),
    (DenseEncoding(dtype="bf16"), SparseEncoding(k=3), "log-probabilities in fp16"),
    (DenseEncoding(dtype="int8"), SparseEncoding(n=3), "logits in fp16 or better to draw from"),
    (SparseEncoding(k=3), DenseEncoding(dtype="int8"), "logits of all classes"),
    (SparseEncoding(k=3), SparseEncoding(k=4), "the 4 largest classes"),
    (SparseEncoding(k=3, values="8bit"), SparseEncoding(k=3), "log-probabilities in fp16"),
    (SparseEncoding(k=3), SparseEncoding(k=3, temperatures=[1, 4]), "temperatures 4"),
    (SparseEncoding(k=3), SparseEncoding(k=3, standardised_temperatures=[2]), "standardised temperatures 2"),
    (SparseEncoding(k=3), SparseEncoding(k=3, n=4), "4 draws by seed 0 from the rest"),
    (SparseEncoding(k=3, n=4), SparseEncoding(k=2, n=4), "4 draws by seed 0 from the rest"),
    (SparseEncoding(k=3, n=4), SparseEncoding(n=4), "4 draws by seed 0 from all classes"),
    (SparseEncoding(n=4), SparseEncoding(n=4, seed=1), "4 draws by seed 1 from all classes"),
    (SparseEncoding(n=4), SparseEncoding(n=3), "3 draws by seed 0 from all classes"),
    (SparseEncoding(k=3), SparseEncoding(k=3, p=0.9), "a nucleus cut p = 0.9"),
    (SparseEncoding(k=3, statistics=False), SparseEncoding(k=3), "statistics"),
]


@pytest.mark.parametrize(
    ("found", "wanted", "lacking"), REFUSED, ids=lambda value: value if isinstance(value, str) else ""
)
def test_what_is_not_there_is_named(found: AnyEncoding, wanted: AnyEncoding, lacking: str) -> None:
    assert refusal(found, wanted) == lacking


ALLOWED = [
    (DenseEncoding(dtype="fp16"), SparseEncoding(k=3, n=4, temperatures=[1, 9])),
    (DenseEncoding(dtype="fp16", statistics=False), DenseEncoding(dtype="fp16", temperatures=[1, 2])),
    (DenseEncoding(dtype="int8"), DenseEncoding(dtype="int8", temperatures=[1, 2])),
    (DenseEncoding(dtype="int8", temperatures=[1, 2]), DenseEncoding(dtype="int8")),
    (DenseEncoding(dtype="bf16"), SparseEncoding(k=3, values="8bit")),
]


@pytest.mark.parametrize(("found", "wanted"), ALLOWED, ids=str)
def test_rounded_logits_become_what_they_hold(found: DenseEncoding, wanted: AnyEncoding) -> None:
    logits, rest = answers()
    arrays = found.encode(logits, num_classes=40, **rest)
    assert refusal(found, wanted) is None
    got = convert(arrays, found, wanted, labels_N=rest["labels_B"], keys_N=rest["keys_B"], num_classes=40)
    assert got.keys() == wanted.encode(logits, num_classes=40, **rest).keys()
    for name in set(wanted.array_names(())) & {"logits", "scale"}:
        assert (got[name] == arrays[name]).all()  # not rounded a second time
    student = logits.flip(0)
    p = wanted.decode(got, 40).pair(student, 1.0).log_p.exp().sum(1)
    assert p.numpy() == pytest.approx(np.ones(30), abs=1e-3)


@pytest.mark.parametrize(
    ("dtype", "wanted"),
    [
        ("int8", DenseEncoding(dtype="int8", **LIVELY)),  # type: ignore[arg-type]
        ("fp16", DenseEncoding(dtype="int8", **LIVELY)),  # type: ignore[arg-type]
        ("fp16", SparseEncoding(k=3, n=4, **LIVELY)),  # type: ignore[arg-type]
        ("bf16", SparseEncoding(k=3, values="8bit", **LIVELY)),  # type: ignore[arg-type]
    ],
    ids=str,
)
def test_statistics_of_rounded_logits_stay_those_of_the_teacher_where_they_are_stored(
    dtype: Any, wanted: AnyEncoding
) -> None:
    logits, rest = answers()
    found = DenseEncoding(dtype=dtype, temperatures=[1, 2, 4], standardised_temperatures=[1, 2])
    arrays = found.encode(logits, num_classes=40, **rest)
    got = convert(arrays, found, wanted, labels_N=rest["labels_B"], keys_N=rest["keys_B"], num_classes=40)
    teacher_s = DenseEncoding(**LIVELY).encode(logits, num_classes=40, **rest)  # type: ignore[arg-type]
    assert all((got[name] == teacher_s[name]).all() for name in ("lse", "statistics"))


def larger(folder: Path) -> Path:
    recode(folder / "cache", job_of(folder, SparseEncoding(k=3)))
    shutil.rmtree(folder / "cache")
    (folder / "small").rename(folder / "cache")
    return job_of(folder, DenseEncoding())


def damaged(folder: Path) -> Path:
    flip(Cache.open(str(folder / "cache")), ShardKey("digits", "toy", "plain", 1), "logits/c/0/0")
    return job_of(folder, SparseEncoding(k=3))


def changed_weights(folder: Path) -> Path:
    write_teacher(folder, seed=9)
    return job_of(folder, SparseEncoding(k=3))


def changed_arguments(folder: Path) -> Path:
    (folder / "toy.safetensors").unlink()
    path = job_of(folder, SparseEncoding(k=3))
    path.write_text(path.read_text().replace("arguments = {  }", "arguments = { channels = 3 }"))
    return path


def changed(folder: Path, old: str, new: str) -> Path:
    path = job_of(folder, SparseEncoding(k=3))
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return path


def built_by_another(folder: Path) -> Path:
    build(job_of(folder, DenseEncoding(dtype="fp16")))
    return job_of(folder, SparseEncoding(k=3))


def something_else(folder: Path) -> Path:
    (folder / "small").mkdir()
    (folder / "small/thesis.tex").write_text("")
    return job_of(folder, SparseEncoding(k=3))


def empty(folder: Path) -> Path:
    for commit in folder.glob("cache/digits/*/*.parquet"):
        if commit.parent.name != "plan":
            commit.unlink()
    for commit in folder.glob("cache/digits/toy/plain/*.parquet"):
        commit.unlink()
    return job_of(folder, SparseEncoding(k=3))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (larger, MissingCapability, "holds too little of digits/toy"),
        (changed_weights, StaleCache, "model.weights"),
        (changed_arguments, StaleCache, "model.arguments.channels"),
        (lambda folder: changed(folder, 'name = "digits"', 'name = "birds"'), NotInCache, "has no dataset birds"),
        (lambda folder: changed(folder, 'name = "toy"', 'name = "owl"'), NotInCache, "has no teacher owl"),
        (
            lambda folder: changed(folder, "rows_per_shard", "validation = 0.5\nrows_per_shard"),
            StaleCache,
            "validation",
        ),
        (lambda folder: changed(folder, "k = 3", "k = 11"), BadRequest, "more classes than the 10"),
        (
            lambda folder: job_of(folder, SparseEncoding(k=3), extra='features.x = { layer = "head" }\n'),
            NotInCache,
            "has no such feature x",
        ),
        (lambda folder: job_of(folder, SparseEncoding(k=3), cache="cache"), BadRequest, "the very one to recode from"),
        (lambda folder: job_of(folder, SparseEncoding(k=3), cache="cache/in"), BadRequest, "inside the other"),
        (built_by_another, StaleCache, "was built by another job"),
        (something_else, BadRequest, "holds something that is not a cache"),
        (empty, NotInCache, "lacks views of digits/toy"),
    ],
)
def test_a_request_that_cannot_be_served_is_told_and_nothing_is_written(
    folder: Path, make: Any, error: type[StillroomError], message: str
) -> None:
    job = make(folder)
    before = sorted(folder.rglob("*"))
    with pytest.raises(error, match=message) as caught:
        recode(folder / "cache", job)
    assert type(caught.value) is error
    assert caught.value.do
    assert caught.value.found
    new = set(folder.rglob("*")) - set(before)
    assert [path for path in new if path.name.endswith((".zarr", ".zip", ".parquet"))] == []


def test_a_cache_that_holds_nothing_of_a_job_without_teachers_is_told(folder: Path) -> None:
    empty(folder)
    with pytest.raises(IncompleteCache, match="holds nothing of this job"):
        recode(folder / "cache", write_job(folder, write_digits(folder, 40), cache="small"))


def test_a_damaged_shard_is_set_aside_and_the_others_are_recoded(folder: Path) -> None:
    report = recode(folder / "cache", damaged(folder))
    assert (report.built, len(report.failed), report.exit_code) == (5, 1, 1)
    assert "is not what was committed" in report.failed[0]
    assert Cache.open(str(folder / "small")).committed("digits", "toy") == {0, 2}


def test_a_logit_too_large_for_its_new_form_refuses_the_shard(tmp_path: Path) -> None:
    write_teacher(tmp_path)
    dataset = write_digits(tmp_path, 40, marked=(20,))
    build(write_job(tmp_path, dataset, teacher_section(fault="large")))
    fp16 = as_toml(DenseEncoding(dtype="fp16"))
    report = recode(
        tmp_path / "cache", write_job(tmp_path, dataset, teacher_section(fault="large", extra=fp16), cache="small")
    )
    assert (report.built, len(report.refused), report.exit_code) == (5, 1, RowsMissing.exit_code)
    assert "do not fit this cache's encoding" in report.refused[0]


def test_shards_of_other_inputs_are_never_put_together(folder: Path) -> None:
    recode(folder / "cache", write_job(folder, write_digits(folder, 40), cache="small"))  # ingest only
    job = job_of(folder, cache="cache")
    inputs, labels = np.load(folder / "digits.npz").values()
    inputs[5] = 255 - inputs[5]
    np.savez(folder / "digits.npz", inputs=inputs, labels=labels)
    plan = (folder / "cache/digits/plan/00000.parquet").read_bytes()
    shutil.rmtree(folder / "cache")
    build(job)
    (folder / "cache/digits/plan/00000.parquet").write_bytes(plan)  # the file's age is in it
    report = recode(folder / "cache", job_of(folder, SparseEncoding(k=3)))
    assert (report.built, len(report.failed)) == (2, 1)
    assert CorruptObject.__name__ in report.failed[0]


# Again, and after a kill


def test_a_second_recoding_does_nothing_and_a_lost_shard_is_made_again(folder: Path) -> None:
    job = job_of(folder, SparseEncoding(k=3, n=2))
    recode(folder / "cache", job)
    before = contents(folder / "small")
    again = recode(folder / "cache", job)
    assert (again.built, again.present) == (0, 6)
    (folder / "small/digits/toy/plain/00001.parquet").unlink()
    (folder / "small/digits/ingest/00002.parquet").unlink()
    assert recode(folder / "cache", job).built == 2
    assert contents(folder / "small") == before


def test_a_half_built_cache_is_recoded_as_far_as_it_goes_and_the_rest_later(folder: Path, program: Program) -> None:
    job = job_of(folder, SparseEncoding(k=3))
    hidden = folder / "cache/digits/toy/plain/00001.parquet"
    data = hidden.read_bytes()
    hidden.unlink()
    done = program("cache", "recode", folder / "cache", job)
    assert (done.code, "digits/toy: 1 shard" in done.err) == (3, True), done.err
    hidden.write_bytes(data)
    done = program("cache", "recode", folder / "cache", job)
    assert (done.code, "1 shard" in " ".join(done.out.split())) == (0, True), done.out
    assert verify(Cache.open(str(folder / "small"))).bad == ()


SHARDS, LOCAL = 30, 'kind = "local"\nworkers = 2'


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a cache of many small shards, and what becomes of it undisturbed, `whole`."""
    folder = tmp_path_factory.mktemp("many")
    write_teacher(folder)
    dataset = write_digits(folder, 4 * SHARDS, rows_per_shard=4)
    build(write_job(folder, dataset, teacher_section()))
    recode(folder / "cache", many_job(folder, folder / "whole"))
    return folder


def many_job(folder: Path, cache: Path, cluster: str = 'kind = "inline"') -> Path:
    section = teacher_section(extra=as_toml(SparseEncoding(k=3, n=2)))
    dataset = write_digits(folder, 4 * SHARDS, rows_per_shard=4)
    return write_job(folder, dataset, section, cache=str(cache), cluster=cluster)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "cluster"), [("ingest", 'kind = "inline"'), ("toy/plain", 'kind = "inline"'), ("toy/plain", LOCAL)]
)
def test_a_killed_recoding_is_made_good_by_the_same_command(
    many: Path, tmp_path: Path, program: Program, stage: str, cluster: str
) -> None:
    job, small = many_job(many, tmp_path / "small", cluster), tmp_path / "small"
    with started("cache", "recode", many / "cache", job) as process:
        wait_for(lambda: len(list((small / "digits" / stage).glob("0*.parquet"))) >= 2, process)
        process.kill()
        process.wait()
    assert len(list((small / "digits/toy/plain").glob("0*.parquet"))) < SHARDS
    done = program("cache", "recode", many / "cache", job)
    assert (done.code, "Traceback" in done.err) == (0, False), done.err
    assert contents(small) == contents(many / "whole")
    assert verify(Cache.open(str(small))).bad == ()


@pytest.mark.slow
def test_two_recodings_at_once_end_in_one_correct_cache(many: Path, tmp_path: Path) -> None:
    command = ("cache", "recode", many / "cache", many_job(many, tmp_path / "small"), "--json", "--wait")
    with started(*command) as one, started(*command) as other:
        printed = [process.communicate(timeout=300) for process in (one, other)]
    assert [one.returncode, other.returncode] == [0, 0], printed
    told = [json.loads(out) for out, _ in printed]
    assert sorted(each["built"] for each in told) == [0, 2 * SHARDS]  # nothing was computed twice
    assert sorted(each["present"] for each in told) == [0, 2 * SHARDS]
    assert contents(tmp_path / "small") == contents(many / "whole")
    assert len(list((tmp_path / "small").rglob("*.zarr.zip"))) == 2 * SHARDS
