"""Students of several datasets in given shares."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from storage.cache import Cache
from storage.errors import BadRequest, Interrupted
from student_train.feed.own_loop import open_rows, wants
from student_train.options.sections import DataOptions, FleetOptions
from student_train.preparing.dry_run import dry_run
from student_train.running.train import train_students
from tests.student_train.running.test_domains import CODE, LAW, TAUGHT, asked, write_both
from tests.student_train.running.test_loop import stop_after, weights

SHARES = {"law": 0.2, "code": 0.8}
KEPT: list[dict[str, Any]] = [{"residency": "device"}, {"residency": "stream"}]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    law, code = replace(LAW, rows_per_shard=20), replace(CODE, rows_per_shard=20)
    return write_both(tmp_path_factory.mktemp("mixture") / "cache", law, code)


def test_a_mixture_is_the_same_wherever_rows_are_kept_and_where_a_run_was_stopped(cache: Cache, tmp_path: Path) -> None:
    for kept in KEPT:
        request = asked(cache, tmp_path / kept["residency"], TAUGHT, mixture=SHARES, window_shards=2, **kept)
        assert train_students(request).exit_code == 0
    assert weights(tmp_path / "device", "s0") == weights(tmp_path / "stream", "s0")
    stopped = replace(request, runs=tmp_path / "stopped")
    with pytest.raises(Interrupted):
        train_students(stopped, stop=stop_after(8))  # of 6 steps an epoch
    (record,) = train_students(stopped).records
    assert weights(tmp_path / "stopped", "s0") == weights(tmp_path / "device", "s0")
    assert record.identity["data"]["mixture"] == SHARES
    plain = asked(cache, tmp_path / "plain", TAUGHT, window_shards=2)
    assert train_students(plain).exit_code == 0
    assert weights(tmp_path / "plain", "s0") != weights(tmp_path / "device", "s0")
    with pytest.raises(BadRequest, match="mixture"):
        train_students(replace(plain, runs=stopped.runs))


def test_a_mixture_is_the_same_in_a_stack(cache: Cache, tmp_path: Path) -> None:
    request = asked(cache, tmp_path, TAUGHT, TAUGHT, mixture=SHARES)
    found = [
        train_students(replace(request, runs=tmp_path / stacking, fleet=FleetOptions(stacking=stacking))).records
        for stacking in ("always", "never")
    ]
    assert [r.cross_entropy for r in found[0]] == pytest.approx([r.cross_entropy for r in found[1]], rel=1e-4)


def test_what_an_epoch_of_a_mixture_is_is_told(cache: Cache, tmp_path: Path) -> None:
    found = dry_run(asked(cache, tmp_path, TAUGHT, mixture=SHARES))
    assert found.students[0].train_rows == 192
    assert found.warnings[0] == (
        "note: an epoch of the mixture is 192 rows: 38 of law (19.8%; it has 88, each within 3 epochs), "
        "154 of code (80.2%; it has 104, each 1 or 2 times)"
    )


def test_a_share_of_no_row_is_refused(cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="the mixture has no row of law"):
        dry_run(asked(cache, tmp_path, TAUGHT, mixture={"law": 0.001, "code": 0.999}))


@pytest.mark.parametrize(
    ("shares", "told"),
    [
        ({"law": 0.5, "code": 0.6}, "shares of the mixture are 1 together"),
        ({"law": 0.5}, "no share of code"),
        ({"law": 0.5, "code": 0.4, "lore": 0.1}, "a share of lore, not in `train`"),
        ({"law": 0.0, "code": 1.0}, "greater than 0"),
        ({"law": float("nan"), "code": 0.5}, "less than 1"),
        ({}, "no share of law, code"),
    ],
)
def test_shares_that_are_none_are_refused(shares: dict[str, float], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        DataOptions(train=("law/train", "code/train"), validation="law/validation", mixture=shares)
    with pytest.raises(ValidationError, match="of several datasets"):
        DataOptions(train="law/train", validation="law/validation", mixture={"law": 0.5})


def test_a_loop_of_ones_own_refuses_rows_of_which_something_is_not_said(cache: Cache) -> None:
    both, needs = ["law/train", "code/train"], wants(labels=True)
    for rows, needed, shares, told in (
        (both, wants(soft={"law=lawyer": 1.0}), None, "law=lawyer names no teacher of code"),
        (both, wants(soft={"lawyer": 1.0}), None, "code"),
        (both, needs, {"law": 1.5}, "no rows"),
        ("law/test", needs, None, "no rows"),
    ):
        with pytest.raises(BadRequest, match=told):
            open_rows(cache, rows, needed, mixture=shares)


def test_a_loop_of_ones_own_has_the_rows_of_the_job(cache: Cache) -> None:
    needs = wants(labels=True, soft={"law=lawyer,code=coder": 2.0})
    rows, streamed = (
        open_rows(cache, ["law/train", "code/train"], needs, mixture=SHARES, window_shards=2, residency=kept)
        for kept in ("host", "stream")
    )
    assert rows.num_rows == 192
    for one, other in zip(rows.epoch(1, 32, seed=3), streamed.epoch(1, 32, seed=3), strict=True):
        assert torch.equal(one.inputs, other.inputs)
        assert one.labels_B is not None
        assert one.labels_B.tolist() == other.supervision().labels_B.tolist()
