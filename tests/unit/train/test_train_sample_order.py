"""Every step reads the same samples, each once, whatever the layout."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_cpt.plan.run_plan import Layout
from megatron_cpt.train.sample_order import microbatch_samples, step_samples


def layout(*, data: int, micro: int, batch: int = 12) -> Layout:
    return Layout(1, 1, data, micro, batch, 8, False, True, "fp32", 1, 1)


def test_two_ranks_take_turns_by_micro_batch() -> None:
    two = layout(data=2, micro=3)
    assert [list(r) for r in step_samples(two, first_sample=24, data_rank=0)] == [[24, 25, 26], [30, 31, 32]]
    assert [list(r) for r in step_samples(two, first_sample=24, data_rank=1)] == [[27, 28, 29], [33, 34, 35]]


@pytest.mark.parametrize(("data", "micro"), [(1, 1), (1, 12), (2, 3), (3, 2), (4, 1), (6, 2), (12, 1)])
def test_a_step_is_the_next_global_batch_in_every_layout(data: int, micro: int) -> None:
    shape = layout(data=data, micro=micro)
    seen = [number for rank in range(data) for samples in step_samples(shape, first_sample=36, data_rank=rank) for number in samples]
    assert sorted(seen) == list(range(36, 48))


@given(st.integers(1, 9), st.integers(1, 7), st.integers(1, 6), st.integers(0, 50))
def test_sample_i_of_step_k_is_number_k_times_batch_plus_i_for_every_size_of_cluster_and_micro_batch(
    data: int, micro: int, num_microbatches: int, step: int
) -> None:
    batch = data * micro * num_microbatches
    shape = layout(data=data, micro=micro, batch=batch)
    in_order = [
        number
        for microbatch in range(num_microbatches)
        for rank in range(data)
        for number in microbatch_samples(shape, first_sample=step * batch, microbatch=microbatch, data_rank=rank)
    ]
    assert in_order == [step * batch + i for i in range(batch)]
    for rank in range(data):
        mine = list(step_samples(shape, first_sample=step * batch, data_rank=rank))
        assert [len(samples) for samples in mine] == [micro] * num_microbatches
        assert all(samples[0] // micro % data == rank for samples in mine if step == 0)
