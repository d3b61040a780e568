"""Layout search: every legal way to split a model and a batch over given ranks, by predicted time, of those that fit.

Time is predicted for every layout, memory only in the order of time until enough of them fit; what is returned is what counting the
memory of all would return. The checks are those of the plan.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from megatron_cpt.config.schema import ExperimentConfig, ParallelConfig
from megatron_cpt.plan.checks import batch_problems, context_problems, divisors, expert_problems, layout_problems, stage_problems
from megatron_cpt.plan.machine import Machine
from megatron_cpt.plan.memory import ON_CPU, ON_CUDA, largest_rank
from megatron_cpt.plan.model_shape import ModelShape
from megatron_cpt.plan.run_plan import Layout
from megatron_cpt.plan.step_time import StepTime, step_time
from megatron_cpt.record.unknown import Figure, Unavailable
from megatron_cpt.record.vocab_layout import VocabLayout

_MICRO_BATCHES = (1, 2, 4, 8, 16)
_RECOMPUTE: tuple[Literal["none", "selective", "full"], ...] = ("none", "selective", "full")


@dataclass(frozen=True)
class Candidate:
    """A layout with its predicted step and the memory of its largest rank."""

    layout: Layout
    step: StepTime
    memory_bytes: float


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        best: fastest first, one for each way to split the model, with its best context, micro-batch, chunks, recomputation and sharding.
        num_layouts: how many divide; `num_too_large` of those looked at do not fit.
        own: the configuration's own layout; `own_problems` says why it cannot run.
        refused: where none is left, why the plan's checks refuse the fastest one that fits: what no layout changes.
    """

    best: tuple[Candidate, ...]
    num_layouts: int
    num_too_large: int
    own: Candidate | None
    own_problems: tuple[str, ...]
    refused: tuple[str, ...] = ()


def layouts(config: ExperimentConfig, shape: ModelShape, vocab: VocabLayout) -> Iterator[Layout]:
    """Yield every layout that divides. A tensor group stays in a node, and sequence parallelism comes with it."""
    cluster, length = config.cluster, config.parallel.sequence_length
    num_ranks = cluster.num_nodes * cluster.ranks_per_node
    sizes = (shape.num_attention_heads, shape.num_query_groups, shape.ffn_hidden_size, vocab.num_padded_rows)
    tensors = [size for size in divisors(*sizes, num_ranks) if size <= cluster.ranks_per_node and (size == 1 or length % size == 0)]
    contexts = [1] if shape.window or shape.num_experts else [1, 2, 4, 8, 16]
    for tensor, pipeline, context in itertools.product(tensors, divisors(shape.num_layers), contexts):
        if num_ranks % (tensor * pipeline * context):
            continue
        if context_problems(length, context=context, tensor=tensor, sequence_parallel=tensor > 1):
            continue
        data = num_ranks // (tensor * pipeline * context)
        for chunks in divisors(shape.num_layers // pipeline):
            if not stage_problems(shape.num_layers, pipeline=pipeline, virtual_pipeline=chunks):
                yield from _of_split(config, shape, tensor=tensor, pipeline=pipeline, context=context, data=data, chunks=chunks)


def _of_split(
    config: ExperimentConfig, shape: ModelShape, *, tensor: int, pipeline: int, context: int, data: int, chunks: int
) -> Iterator[Layout]:
    parallel = config.parallel
    experts = [1]
    if shape.num_experts:
        experts = [
            size for size in divisors(shape.num_experts, data * context)
            if not expert_problems(shape, expert=size, tensor=tensor, data=data * context, sequence_parallel=tensor > 1)
        ]  # fmt: skip
    shardings = [(True, False), (False, False)]
    if data * context > 1 and pipeline == 1 and not shape.num_experts and parallel.fp8 == "none":
        shardings.append((True, True))
    for micro_batch, expert, recompute, (sharded, fsdp) in itertools.product(_MICRO_BATCHES, experts, _RECOMPUTE, shardings):
        sizes = {"micro_batch_size": micro_batch, "data": data, "pipeline": pipeline, "virtual_pipeline": chunks}
        if batch_problems(parallel.global_batch_size, **sizes):
            continue
        overlaps = data * context > 1 and not shape.num_experts and not fsdp
        yield Layout(
            tensor=tensor,
            pipeline=pipeline,
            data=data,
            micro_batch_size=micro_batch,
            global_batch_size=parallel.global_batch_size,
            sequence_length=parallel.sequence_length,
            sequence_parallel=tensor > 1,
            distributed_optimizer=sharded,
            dtype="fp32" if parallel.dtype == "fp32" else "bf16",
            num_nodes=config.cluster.num_nodes,
            threads_per_rank=config.cluster.threads_per_rank,
            virtual_pipeline=chunks,
            recompute=recompute,
            context=context,
            overlap_grad_reduce=overlaps,
            overlap_param_gather=overlaps and sharded,
            fp8="none" if parallel.fp8 == "none" else "hybrid" if parallel.fp8 == "hybrid" else "e4m3",
            expert=expert,
            fsdp=fsdp,
        )


def parallel_of(layout: Layout, parallel: ParallelConfig) -> ParallelConfig:
    """Return the configuration of a layout; what a layout does not decide is kept."""
    return replace(
        parallel,
        tensor=layout.tensor,
        pipeline=layout.pipeline,
        virtual_pipeline=layout.virtual_pipeline,
        context=layout.context,
        expert=layout.expert,
        micro_batch_size=layout.micro_batch_size,
        sequence_parallel=layout.sequence_parallel,
        distributed_optimizer=layout.distributed_optimizer,
        recompute=layout.recompute,
        overlap_grad_reduce=layout.overlap_grad_reduce,
        overlap_param_gather=layout.overlap_param_gather,
        bucket_size=None,
        fsdp=layout.fsdp,
    )


def overrides_of(layout: Layout) -> list[str]:
    """Return what to put on the command line for a layout."""
    chosen = {
        "tensor": layout.tensor, "pipeline": layout.pipeline, "virtual_pipeline": layout.virtual_pipeline, "context": layout.context,
        "expert": layout.expert, "micro_batch_size": layout.micro_batch_size, "recompute": layout.recompute,
        "sequence_parallel": layout.sequence_parallel, "distributed_optimizer": layout.distributed_optimizer,
        "overlap_grad_reduce": layout.overlap_grad_reduce, "overlap_param_gather": layout.overlap_param_gather, "fsdp": layout.fsdp,
    }  # fmt: skip
    return [f"parallel.{key}={str(value).lower()}" for key, value in chosen.items()]


def search(
    config: ExperimentConfig,
    *,
    shape: ModelShape,
    vocab: VocabLayout,
    machine: Machine,
    memory_limit_bytes: Figure,
    own: Layout | None,
    count: int = 10,
    prune: bool = True,
) -> SearchResult:
    """Rank the layouts of a configuration's ranks, batch and sequence by predicted time. With given ranks that is the order by cost too.

    Args:
        memory_limit_bytes: of one rank; where it is unknown, everything fits.
        own: the configuration's own layout, None where it has none that divides.
        prune: false counts the memory of every layout first; for tests.
    """
    rows = vocab.num_padded_rows
    on_cpu = config.cluster.backend == "cpu"
    timed = [(step_time(shape, layout, machine, num_rows=rows), layout) for layout in layouts(config, shape, vocab)]
    timed.sort(key=lambda pair: (pair[0].total, _order(pair[1])))
    fitting: list[Candidate] = []
    seen: set[tuple[object, ...]] = set()
    refused: list[str] = []
    too_large = 0
    for step, layout in timed:
        split = (layout.tensor, layout.pipeline, layout.expert, layout.fsdp)
        if prune and (len(fitting) == count or split in seen):
            continue
        candidate = Candidate(layout, step, memory_bytes(shape, layout, num_rows=rows, on_cpu=on_cpu))
        if not isinstance(memory_limit_bytes, Unavailable) and candidate.memory_bytes > memory_limit_bytes:
            too_large += 1
            continue
        if split in seen:
            continue
        if problems := layout_problems(replace(config, parallel=parallel_of(layout, config.parallel)), shape, vocab):
            refused = refused or problems
            continue
        seen.add(split)
        fitting.append(candidate)
    problems = layout_problems(config, shape, vocab)
    chosen = None
    if own is not None and not problems:
        chosen = Candidate(own, step_time(shape, own, machine, num_rows=rows), memory_bytes(shape, own, num_rows=rows, on_cpu=on_cpu))
        if not isinstance(memory_limit_bytes, Unavailable) and chosen.memory_bytes > memory_limit_bytes:
            problems.append(f"its largest rank needs {chosen.memory_bytes / 1e9:.1f} GB of {memory_limit_bytes / 1e9:.1f} GB.")
    return SearchResult(tuple(fitting[:count]), len(timed), too_large, chosen, tuple(problems), () if fitting else tuple(refused))


def memory_bytes(shape: ModelShape, layout: Layout, *, num_rows: int, on_cpu: bool = False) -> float:
    """Return the bytes of the largest rank."""
    return largest_rank(shape, layout, num_rows=num_rows, build=ON_CPU if on_cpu else ON_CUDA).total


def _order(layout: Layout) -> tuple[int, ...]:
    """Return what decides between layouts of equal time: the simpler one, and the one that keeps less."""
    return (
        layout.pipeline, layout.tensor, layout.context, layout.expert, layout.virtual_pipeline, _RECOMPUTE.index(layout.recompute),
        layout.fsdp, not layout.distributed_optimizer, layout.micro_batch_size,
    )  # fmt: skip


def why_slower(own: StepTime, best: StepTime) -> list[str]:
    """Return in words what the own layout loses against the best one, largest first; causes below 1 % of a step are left out."""
    ours, theirs = own.items(), best.items()
    lost = sorted(((ours[cause] - theirs[cause], cause) for cause in ours), reverse=True)
    return [f"{cause}: {seconds:+.3g} s" for seconds, cause in lost if seconds > 0.01 * best.total]
