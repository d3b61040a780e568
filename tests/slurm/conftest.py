"""One virtual Slurm cluster for a test process, started for the first test that asks for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from virtual_cluster import NoCluster, VirtualCluster, install


@pytest.fixture(scope="session")
def slurm_cluster() -> Iterator[VirtualCluster]:
    """A running cluster of four nodes. Its tests share it: each leaves every job ended and every node up."""
    try:
        install()
        cluster = VirtualCluster().__enter__()
    except NoCluster as reason:
        pytest.skip(str(reason))
    yield cluster
    cluster.__exit__()
