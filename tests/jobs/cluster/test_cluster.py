"""The cluster that a command starts for itself."""

from __future__ import annotations

import psutil
import pytest

from jobs.cluster.opening import ClusterOptions, open_client


@pytest.mark.slow
def test_what_a_command_starts_listens_to_this_machine_alone() -> None:
    with open_client(ClusterOptions(kind="local", workers=1), environments=[{}]):
        mine = [psutil.Process(), *psutil.Process().children(recursive=True)]
        listening = [c.laddr.ip for process in mine for c in process.net_connections("inet") if c.status == "LISTEN"]
    assert set(listening) == {"127.0.0.1"}
