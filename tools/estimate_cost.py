#!/usr/bin/env python3
"""Say what training a model would take: memory, days, money, energy and carbon, by the planner's own functions.

The model is a Hugging Face config.json (--config), or sizes (--layers, --hidden-size, ...). Without a layout the fastest one that fits is
taken. Exit status 2 when it does not fit, costs more than a limit, or the request makes no sense.

examples:
  estimate_cost.py --config model/config.json --gpus 8 --gpu h100_sxm --tokens 1e9 --sequence-length 4096 --tariff market_h100
  estimate_cost.py --layers 32 --hidden-size 4096 --heads 32 --kv-heads 8 --ffn 14336 --vocabulary 128256 --gpus 64 --gpu h100_sxm \\
      --tokens 1e11 --sequence-length 8192 --price 2.50 --price-date 2026-11-01 --price-source "our contract" --json
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

from megatron_cpt.config.files import read_option
from megatron_cpt.config.schema import (
    AllowanceConfig,
    BlendConfig,
    CheckpointConfig,
    ClusterConfig,
    EvalConfig,
    ExperimentConfig,
    GpuConfig,
    ParallelConfig,
    StopConfig,
    TariffConfig,
)
from megatron_cpt.errors import CheckpointError, ConfigError, CptError, raise_all
from megatron_cpt.plan.families import FAMILIES
from megatron_cpt.plan.model_shape import ModelShape
from megatron_cpt.plan.page import host_lines, layout_words, memory_lines
from megatron_cpt.plan.page_money import money_lines, summary
from megatron_cpt.plan.page_text import field, show_count
from megatron_cpt.plan.quote import Quote, quote
from megatron_cpt.record.typed import to_plain
from megatron_cpt.record.vocab_layout import VocabLayout, padded_rows

BATCH_TOKENS = 2**20  # a step of about a million tokens, where no batch is named
_LAYOUT = ("tensor", "pipeline", "virtual_pipeline", "context", "expert", "micro_batch_size", "recompute", "sequence_parallel", "fsdp")


def parser() -> argparse.ArgumentParser:
    """Return the parser; layout flags have no default, so that one that is named can be told from none."""
    root = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    model = root.add_argument_group("model")
    model.add_argument("--config", type=Path, help="a Hugging Face config.json, or the folder that holds it")
    for flag, words in (
        ("--layers", "layers"), ("--hidden-size", "width"), ("--heads", "attention heads"),
        ("--kv-heads", "key/value heads (default: heads)"),
        ("--ffn", "columns of the MLP's middle"), ("--vocabulary", "ids of the base"),
    ):  # fmt: skip
        model.add_argument(flag, type=int, metavar="N", help=words)
    model.add_argument("--family", default="llama", choices=sorted(FAMILIES), help="with sizes: the family that they are of")
    model.add_argument("--tied", action="store_true", help="with sizes: the output layer is the embedding")
    model.add_argument("--new-ids", type=int, default=0, metavar="N", help="ids that the vocabulary is extended by")
    run = root.add_argument_group("run")
    run.add_argument("--gpus", type=int, required=True, metavar="N", help="devices of the run")
    run.add_argument("--gpus-per-node", type=int, default=8, metavar="N", help="devices of a node")
    run.add_argument("--gpu", required=True, help="a file of conf/gpu/, e.g. h100_sxm")
    run.add_argument("--tokens", type=float, required=True, help="tokens to train on, e.g. 1e9")
    run.add_argument("--sequence-length", type=int, required=True, metavar="N", help="tokens of a sequence")
    run.add_argument("--global-batch-size", type=int, metavar="N", help="sequences a step (default: about 2^20 tokens)")
    run.add_argument("--dtype", default="bf16", choices=["bf16", "fp32"], help="type of weights and activations")
    run.add_argument("--fp8", default="none", choices=["none", "hybrid", "e4m3"], help="format of the layers' matrix products")
    run.add_argument("--mfu", help="your share of the peak: LIKELY, or LOW,LIKELY,HIGH (default: from published runs on this device)")
    layout = root.add_argument_group("layout (default: the fastest that fits)")
    for flag in ("--tensor", "--pipeline", "--virtual-pipeline", "--context", "--expert", "--micro-batch-size"):
        layout.add_argument(flag, type=int, metavar="N", help=f"as parallel.{flag[2:].replace('-', '_')}")
    layout.add_argument("--recompute", choices=["none", "selective", "full"], help="what is computed again in the backward pass")
    layout.add_argument("--sequence-parallel", action="store_true", default=None, help="as parallel.sequence_parallel")
    layout.add_argument("--fsdp", action="store_true", default=None, help="share out weights and gradients too (ZeRO-3)")
    layout.add_argument("--whole-optimizer", action="store_true", help="the optimizer's state is not shared out")
    cost = root.add_argument_group("cost")
    cost.add_argument("--tariff", help="a file of conf/tariff/ (default: own_machine, where nothing is known)")
    cost.add_argument("--price", type=float, metavar="USD", help="of one GPU hour")
    cost.add_argument("--price-date", metavar="DAY", help="when it was quoted, e.g. 2026-05-20")
    cost.add_argument("--price-source", metavar="TEXT", help="who quoted it")
    cost.add_argument("--pue", type=float, help="power usage effectiveness of the site, 1 or more")
    cost.add_argument("--region", help="for the grid's carbon intensity: an ISO code of three letters, or gcp:REGION")
    cost.add_argument("--market-intensity", type=float, metavar="G", help="g CO2e per kWh of your electricity contract")
    cost.add_argument("--allowance", type=float, metavar="SHARE", help="development and failed runs, e.g. 0.5 of the run")
    cost.add_argument("--max-usd", type=float, help="a limit that the estimate is held against")
    cost.add_argument("--max-hours", type=float, help="the same in hours")
    cost.add_argument("--max-kwh", type=float, help="the same in kWh")
    root.add_argument("--config-dir", type=Path, metavar="DIR", help="a folder of your own with gpu/ and tariff/")
    root.add_argument("--json", action="store_true", help="print everything as JSON")
    return root


def shape_of(options: argparse.Namespace) -> ModelShape:
    """Return the model of the flags.

    Raises:
        CheckpointError: the config.json is missing, no JSON, or of no known family, or has values that cannot be kept.
        ConfigError: neither a config nor all sizes are given, or both.
    """
    sizes = {flag: getattr(options, flag) for flag in ("layers", "hidden_size", "heads", "ffn", "vocabulary")}
    given = [flag for flag, value in sizes.items() if value is not None]
    if options.config is not None:
        if given:
            raise ConfigError("--config and sizes both describe the model.", value=", ".join(given), next_step="Give one of them.")
        return _from_file(options.config)
    missing = [f"--{flag.replace('_', '-')} is missing." for flag, value in sizes.items() if value is None]
    missing += [f"--{flag.replace('_', '-')}={value} is not above 0." for flag, value in sizes.items() if value is not None and value < 1]
    raise_all(ConfigError, missing, where="the model", next_step="Give --config, or every size.")
    heads = options.heads
    if options.hidden_size % heads:
        raise ConfigError("--heads does not divide --hidden-size.", value=f"{heads}, {options.hidden_size}")
    family = FAMILIES[options.family]
    if family.experts:
        raise ConfigError("A mixture of experts needs --config.", value=options.family, next_step="Give its config.json.")
    return ModelShape(
        hidden_size=options.hidden_size,
        num_layers=options.layers,
        num_attention_heads=heads,
        num_query_groups=options.kv_heads or heads,
        head_dim=options.hidden_size // heads,
        ffn_hidden_size=options.ffn,
        num_base_ids=options.vocabulary,
        max_position=options.sequence_length,
        norm_epsilon=1e-5,
        rotary_base=0.0 if family.positions == "learned" else 10_000.0,
        tied_embeddings=options.tied,
        family=options.family,
    )


def _from_file(path: Path) -> ModelShape:
    if path.is_dir():
        return ModelShape.from_hf_folder(path)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError("There is no such config.json.", where=path) from None
    except ValueError as error:
        raise CheckpointError("The file is not JSON.", where=path, value=str(error)) from None
    if not isinstance(config, dict):
        raise CheckpointError("The file is not a Hugging Face config.json.", where=path, rule="one JSON object")
    return ModelShape.from_hf_config(config, where=path)


def experiment_of(options: argparse.Namespace) -> ExperimentConfig:
    """Return the groups of a configuration that an estimate reads."""
    gpu = read_option(GpuConfig, "gpu", options.gpu, config_dir=options.config_dir)
    tariff = read_option(TariffConfig, "tariff", options.tariff or "own_machine", config_dir=options.config_dir)
    if options.mfu is not None:
        gpu.mfu_low, gpu.mfu_likely, gpu.mfu_high = _interval(options.mfu)
    if options.price is not None:  # a price of one's own has its own date and source, and no ends of another's
        tariff.usd_per_device_hour, tariff.usd_per_device_hour_low, tariff.usd_per_device_hour_high = options.price, None, None
        tariff.price_date, tariff.price_source = options.price_date or "", options.price_source or "given on the command line"
    if options.pue is not None:
        tariff.pue, tariff.pue_low, tariff.pue_high, tariff.pue_source = options.pue, None, None, "given on the command line"
    if options.region is not None:
        tariff.grid_region, tariff.grid_g_co2e_per_kwh = options.region, None
    if options.market_intensity is not None:
        tariff.market_g_co2e_per_kwh, tariff.market_source = options.market_intensity, "given on the command line"
    nodes = math.ceil(options.gpus / options.gpus_per_node) if options.gpus > 0 and options.gpus_per_node > 0 else 0
    if nodes and options.gpus % nodes:
        raise ConfigError(
            "The GPUs do not divide over the nodes.",
            value=f"{options.gpus} GPUs, {options.gpus_per_node} a node",
            next_step=f"Use a multiple of {options.gpus_per_node}, or set --gpus-per-node.",
        )
    own = {key: value for key in _LAYOUT if (value := getattr(options, key)) is not None}
    batch = options.global_batch_size
    return ExperimentConfig(
        run_name="estimate",
        blend=BlendConfig(num_tokens=_tokens(options.tokens)),
        parallel=ParallelConfig(
            **{
                "tensor": 1,
                "pipeline": 1,
                "micro_batch_size": 1,
                "global_batch_size": _batch(options) if batch is None else batch,
                "sequence_length": options.sequence_length,
                "distributed_optimizer": not options.whole_optimizer,
                "dtype": options.dtype,
                "fp8": options.fp8,
                **own,
            }
        ),
        cluster=ClusterConfig(backend="cuda", num_nodes=nodes, ranks_per_node=options.gpus // nodes if nodes else 0),
        gpu=gpu,
        tariff=tariff,
        allowance=AllowanceConfig(likely=options.allowance, source="given on the command line"),
        eval=EvalConfig(window_tokens=options.sequence_length),
        checkpoint=CheckpointConfig(every_steps=500),
        stop=StopConfig(max_hours=options.max_hours, max_usd=options.max_usd, max_kwh=options.max_kwh),
    )


def _tokens(count: float) -> int:
    return int(count) if math.isfinite(count) else 0


def _batch(options: argparse.Namespace) -> int:
    """Return about a million tokens a step, in whole sequences that divide by the GPUs."""
    gpus, length = max(options.gpus, 1), max(options.sequence_length, 1)
    return gpus * max(1, round(BATCH_TOKENS / length / gpus))


def _interval(text: str) -> tuple[float, float, float]:
    try:
        shares = [float(part) for part in text.split(",")]
    except ValueError:
        shares = []
    if len(shares) == 1:
        return shares[0], shares[0], shares[0]
    if len(shares) != 3:
        raise ConfigError("--mfu is no share of the peak.", value=text, rule="LIKELY, or LOW,LIKELY,HIGH, between 0 and 1")
    return shares[0], shares[1], shares[2]


def text_of(found: Quote, *, num_new_ids: int) -> str:
    """Return the answer in 80 columns."""
    layout, estimate = found.layout, found.estimate
    chosen = " (the fastest that fits, by the step model)" if found.is_searched else ""
    new = f", {num_new_ids} new ids" if num_new_ids else ""
    lines = [
        *summary(found),
        "",
        *field("model", f"{show_count(estimate.num_params)} parameters, {found.shape.num_layers} layers{new}"),
        *field("layout", layout_words(layout, found.backend) + chosen),
        *field(
            "work",
            f"{show_count(estimate.tokens)} tokens = {estimate.tokens // layout.tokens_per_step} steps x {layout.global_batch_size}"
            f" sequences x {layout.sequence_length} tokens; {estimate.flops_per_token / 1e9:.4g} GFLOP a token",
        ),
        *memory_lines(estimate),
        *host_lines(estimate, layout, backend=found.backend),
        "",
        *money_lines(found),
        "",
    ]
    for number, line in enumerate((*estimate.basis, estimate.flops_convention)):
        lines += field("" if number else "basis", f"- {line}")
    return "\n".join(lines) + "\n"


def json_of(found: Quote) -> dict[str, Any]:
    """Return the answer as plain data: bytes, seconds, USD, kWh and kg CO2e; what is unknown is {"unavailable": why}."""
    estimate = to_plain(found.estimate)
    for rank, plain in zip(found.estimate.memory, estimate["memory"], strict=True):
        plain["total"] = rank.total
    return {
        "layout": to_plain(found.layout),
        "layout_is_searched": found.is_searched,
        "tokens": found.num_tokens,
        "estimate": estimate,
        "tariff": to_plain(found.tariff),
        "problems": list(found.problems),
    }


def main(arguments: list[str] | None = None) -> int:
    """Print the estimate and return the exit status."""
    options = parser().parse_args(arguments)
    try:
        shape = shape_of(options)
        num_ids = shape.num_base_ids + max(options.new_ids, 0)
        rows = padded_rows(num_ids, multiple=128 if options.new_ids else 1)
        config = experiment_of(options)
        found = quote(
            config,
            shape=shape,
            vocab=VocabLayout(shape.num_base_ids, num_ids, rows, 0, ""),
            search_layout=all(getattr(options, key) is None for key in _LAYOUT) and not options.whole_optimizer,
        )
    except CptError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    if options.json:
        print(json.dumps(json_of(found), indent=2, allow_nan=False))
    else:
        print(text_of(found, num_new_ids=options.new_ids), end="")
    for number, problem in enumerate(found.problems, 1):
        print(f"{number}. {problem}", file=sys.stderr)
    return ConfigError.exit_code if found.problems else 0


if __name__ == "__main__":
    sys.exit(main())
