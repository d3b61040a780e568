"""What a run would take, for a user who only wants the number: the plan's own functions on a model, devices and tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from megatron_cpt.config.schema import ExperimentConfig
from megatron_cpt.errors import ConfigError, raise_all
from megatron_cpt.plan.budget import estimate_problems, tariff_problems
from megatron_cpt.plan.calibrate import HostFacts
from megatron_cpt.plan.checks import device_problems, layout_problems, sizes_are_positive
from megatron_cpt.plan.derive import estimate_run, layout_of, memory_limit_bytes, stop_conditions_of
from megatron_cpt.plan.machine import machine_of
from megatron_cpt.plan.model_shape import ModelShape
from megatron_cpt.plan.money import tariff_of
from megatron_cpt.plan.run_plan import Estimate, Layout, StopConditions, Tariff
from megatron_cpt.plan.search import parallel_of, search
from megatron_cpt.record.unknown import Unavailable
from megatron_cpt.record.vocab_layout import VocabLayout

_NOT_HERE = Unavailable("not measured: the run is not on this host")


@dataclass(frozen=True)
class Quote:
    """An estimate with what it is for.

    Attributes:
        is_searched: the layout is the fastest that fits, by the step model, and not the user's own.
        problems: where it does not fit or breaks a limit.
    """

    shape: ModelShape
    layout: Layout
    num_tokens: int
    tariff: Tariff
    stop: StopConditions
    estimate: Estimate
    is_searched: bool
    problems: tuple[str, ...]
    backend: Literal["cpu", "cuda"] = "cuda"


def quote(config: ExperimentConfig, *, shape: ModelShape, vocab: VocabLayout, search_layout: bool) -> Quote:
    """Estimate a run on GPUs.

    Args:
        config: its groups parallel, cluster, gpu, tariff, allowance, stop and checkpoint are read, and `blend.num_tokens`.
        search_layout: take the fastest layout that fits in place of the configuration's own.

    Raises:
        ConfigError: listing sizes that do not divide and figures that cannot be; or no layout fits, or none can be predicted.
    """
    problems = [] if sizes_are_positive(config) else ["every number of devices, tokens and sequences must be 1 or more."]
    problems += device_problems(config) + tariff_problems(config)
    if not problems and not search_layout:
        problems += layout_problems(config, shape, vocab)
    raise_all(ConfigError, problems, where="the request", next_step="Change the named values and ask again.")
    if search_layout:
        config = replace(config, parallel=parallel_of(_fastest(config, shape, vocab), config.parallel))
    layout = layout_of(config)
    tariff = tariff_of(config.tariff, config.gpu, num_nodes=config.cluster.num_nodes)
    num_steps = math.ceil(config.blend.num_tokens / layout.tokens_per_step)
    estimate = estimate_run(
        config,
        shape=shape,
        num_rows=vocab.num_padded_rows,
        layout=layout,
        num_steps=num_steps,
        tariff=tariff,
        host=HostFacts(matrix_tflops=_NOT_HERE, memory_available_bytes=_NOT_HERE),
        num_stored_tokens=config.blend.num_tokens,
    )
    stop = stop_conditions_of(config, {})
    return Quote(
        shape=shape,
        layout=layout,
        num_tokens=num_steps * layout.tokens_per_step,
        tariff=tariff,
        stop=stop,
        estimate=estimate,
        is_searched=search_layout,
        problems=tuple(estimate_problems(estimate, stop, layout, tariff)),
    )


def _fastest(config: ExperimentConfig, shape: ModelShape, vocab: VocabLayout) -> Layout:
    machine = machine_of(config.gpu, config.cluster, dtype=config.parallel.dtype)
    if isinstance(machine, Unavailable):
        raise ConfigError(
            "The fastest layout cannot be predicted on this device.",
            where=f"gpu {config.gpu.name}",
            value=str(machine),
            next_step="Name a layout (--tensor, --pipeline, --micro-batch-size), or choose a device with known rates.",
        )
    host = HostFacts(matrix_tflops=_NOT_HERE, memory_available_bytes=_NOT_HERE)
    limit = memory_limit_bytes(config, host)
    found = search(config, shape=shape, vocab=vocab, machine=machine, memory_limit_bytes=limit, own=None, count=1)
    raise_all(ConfigError, list(found.refused), where="the request", next_step="Change the named values and ask again.")
    if not found.best:
        num_ranks = config.cluster.num_nodes * config.cluster.ranks_per_node
        reason = f"{found.num_layouts} divide and none of those looked at fits" if found.num_layouts else "none divides"
        raise ConfigError(
            "No layout of the model fits.",
            value=f"{num_ranks} x {config.gpu.name}, sequences of {config.parallel.sequence_length} tokens: {reason}",
            rule="the fullest rank must fit its device's memory, and the batch must divide",
            next_step="Use more or larger devices, a shorter sequence, or a global batch that divides by more numbers.",
        )
    return found.best[0].layout
