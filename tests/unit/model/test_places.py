"""The start tells where the ranks are, and refuses two on one device."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor

import pytest
from torch._C._distributed_c10d import HashStore

from megatron_cpt.errors import ConfigError
from megatron_cpt.model.places import Place, check_places, crowded, described, problem_of


def places(*devices: str | None, host: str = "n1", cores: int = 8, threads: int = 1) -> list[Place]:
    return [Place(host, device, cores, threads) for device in devices]


def test_a_launcher_for_every_gpu_that_starts_all_ranks_is_refused_by_the_device_that_two_have() -> None:
    """Two tasks a node, each with a torchrun of two ranks (TRI-ML/prismatic-vlms#39): every GPU is there twice."""
    assert problem_of(places("GPU a", "GPU b", "GPU a", "GPU b")) == "ranks 0 and 2 both have GPU a of n1"
    assert problem_of([*places("GPU a", "GPU b"), *places("GPU c", "GPU d", host="n2")]) is None
    assert problem_of([*places("0", "1"), *places("0", "1", host="n2")]) is None  # a number says which of a host
    assert problem_of(places(None, None)) is None  # ranks on a CPU share it


def test_hosts_are_told_with_their_ranks_and_cores() -> None:
    on_two = [*places("a", "b", cores=64), *places("c", "d", host="rack-7-b", cores=32)]
    assert described(on_two) == "4 ranks: n1 0-1 (64 cores), rack-7-b 2-3 (32 cores)"
    mixed = [*places("a"), *places("b", host="n2"), *places("c")]
    assert described(mixed) == "3 ranks: n1 0, 2 (8 cores), n2 1 (8 cores)"


def test_a_step_that_was_not_given_the_cores_of_its_job_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert crowded(places("a", "b", cores=1, threads=8)) == [
        "n1: 2 ranks start 16 threads and may use 1 core; under Slurm a step needs its own --cpus-per-task"
    ]
    assert crowded(places("a", "b", cores=16, threads=8)) == []


def start(devices: list[str], caplog: pytest.LogCaptureFixture) -> list[object]:
    store, hosts = HashStore(), ["n1", "n2"]

    def one(rank: int) -> object:
        try:
            return check_places(store, rank=rank, num_ranks=2, place=Place(hosts[rank % len(set(devices))], devices[rank], 4, 1))
        except ConfigError as error:
            return error

    with caplog.at_level(logging.INFO), ThreadPoolExecutor(2) as pool:
        return list(pool.map(one, (0, 1)))


def test_every_rank_refuses_a_device_that_two_have(caplog: pytest.LogCaptureFixture) -> None:
    found = start(["GPU a", "GPU a"], caplog)
    assert [type(error) for error in found] == [ConfigError, ConfigError]
    assert "ranks 0 and 1 both have GPU a of n1" in str(found[1])


def test_the_first_rank_says_where_all_are(caplog: pytest.LogCaptureFixture) -> None:
    assert start(["GPU a", "GPU b"], caplog) == [None, None]
    assert [record.getMessage() for record in caplog.records] == ["2 ranks: n1 0 (4 cores), n2 1 (4 cores)"]
