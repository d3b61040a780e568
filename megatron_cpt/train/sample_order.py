"""Which samples a rank reads when: a pure function of the plan, so that no layout and no restart changes the order."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_cpt.plan.run_plan import Layout


def microbatch_samples(layout: Layout, *, first_sample: int, microbatch: int, data_rank: int) -> range:
    """Return the sample numbers of one micro-batch of one data-parallel rank.

    A step reads the `global_batch_size` samples from `first_sample` on, whatever the layout. Micro-batch 0 of all
    data-parallel ranks comes first, then micro-batch 1, and so on.
    """
    begin = first_sample + (microbatch * layout.data + data_rank) * layout.micro_batch_size
    return range(begin, begin + layout.micro_batch_size)


def step_samples(layout: Layout, *, first_sample: int, data_rank: int) -> Iterator[range]:
    """Yield the micro-batches that one data-parallel rank reads in the step that begins at `first_sample`."""
    for microbatch in range(layout.num_microbatches):
        yield microbatch_samples(layout, first_sample=first_sample, microbatch=microbatch, data_rank=data_rank)
