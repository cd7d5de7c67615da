"""A month of nights in which builds are killed, fail and are misled; `make bench` has two years of them."""

from __future__ import annotations

from pathlib import Path

from tests.nights import spend


def test_a_month_of_bad_nights_loses_nothing_and_nothing_grows_without_bound(tmp_path: Path) -> None:
    nights = spend(tmp_path, 30, seed=3)
    assert {"build done", "build killed", "build failed", "second start refused"} <= set(nights.happened), (
        nights.happened
    )
    assert nights.deleted > 0
    assert nights.shards >= 30
    assert nights.most["lease"] <= 4, nights.most
    assert nights.most["ledger"] <= 8, nights.most
    assert max(nights.most["attempt"], nights.most["temporary"]) <= 12, nights.most  # of three nights, young or old
