"""`megatron-cpt search`: the layout search on a configuration, before any stage has run."""

from __future__ import annotations

import math
from pathlib import Path

from megatron_cpt.config.schema import ClusterConfig, ExperimentConfig
from megatron_cpt.errors import ConfigError, raise_all
from megatron_cpt.line.expecting import expected_vocab
from megatron_cpt.plan.calibrate import HostFacts
from megatron_cpt.plan.checks import layout_problems
from megatron_cpt.plan.derive import layout_of, memory_limit_bytes
from megatron_cpt.plan.machine import machine_of
from megatron_cpt.plan.model_shape import ModelShape
from megatron_cpt.plan.money import tariff_of
from megatron_cpt.plan.search import search
from megatron_cpt.plan.search_page import search_page
from megatron_cpt.record.unknown import Unavailable


def search_layouts(config: ExperimentConfig, *, count: int = 10) -> str:
    """Return the page of the best layouts.

    Raises:
        ConfigError: the device's rates are unknown, or the configuration is refused whatever the layout.
    """
    machine = machine_of(config.gpu, config.cluster, dtype=config.parallel.dtype)
    if isinstance(machine, Unavailable):
        raise ConfigError(
            "The time of a layout cannot be predicted on this device.",
            where=f"gpu {config.gpu.name}",
            value=str(machine),
            rule="a layout is ranked by what the device and its links can do, and nothing is assumed of them",
            next_step="Choose a device with known rates, e.g. cluster=h100_8 gpu=h100_sxm, or measure yours with"
            " megatron-cpt calibrate --out FILE.",
        )
    shape = ModelShape.from_hf_folder(Path(config.model.path))
    vocab = expected_vocab(config, shape)
    nothing = Unavailable("not measured")
    found = search(
        config,
        shape=shape,
        vocab=vocab,
        machine=machine,
        memory_limit_bytes=memory_limit_bytes(config, HostFacts(matrix_tflops=nothing, memory_available_bytes=nothing)),
        own=None if layout_problems(config, shape, vocab) else layout_of(config),
        count=count,
    )
    raise_all(ConfigError, list(found.refused), where="search", next_step="Change the named keys; no layout can.")
    tokens_per_step = config.parallel.global_batch_size * config.parallel.sequence_length
    return search_page(
        found,
        num_steps=math.ceil(config.blend.num_tokens / tokens_per_step),
        usd_per_device_hour=tariff_of(config.tariff, config.gpu).usd_per_device_hour,
        device=f"{_ranks(config.cluster)} x {config.gpu.name}",
    )


def _ranks(cluster: ClusterConfig) -> int:
    return cluster.num_nodes * cluster.ranks_per_node
