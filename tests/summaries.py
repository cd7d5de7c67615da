"""What a ledger says of all commits, as one table."""

from __future__ import annotations

import polars as pl

from storage.format.ledger import Ledger
from storage.format.ledger.segments import FIGURES


def everything(ledger: Ledger) -> pl.DataFrame:
    """Return one row per commit, by stage and shard."""
    tables = [
        table.with_columns(
            dataset=pl.lit(dataset, pl.String), teacher=pl.lit(teacher, pl.String), view=pl.lit(view, pl.String)
        )
        for (dataset, teacher, view), table in sorted(ledger.stages.items(), key=str)
    ]
    return pl.concat(tables) if tables else pl.DataFrame(schema=FIGURES)
