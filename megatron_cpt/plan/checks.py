"""What makes a configuration impossible, each as one sentence that names the key, its value and the way out. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_cpt.config.schema import ExperimentConfig
from megatron_cpt.errors import printable
from megatron_cpt.plan.blend import ROLES, blend_problems, blend_stage_problems
from megatron_cpt.plan.budget import stop_score_problems, tariff_problems
from megatron_cpt.plan.model_shape import ModelShape
from megatron_cpt.plan.schedule import schedule_problems
from megatron_cpt.record.vocab_layout import VocabLayout

BACKENDS = ("cpu", "cuda")
DTYPES = ("fp32", "bf16")
EXPORT_DTYPES = ("fp32", "bf16", "fp16")
RECOMPUTE = ("none", "selective", "full")
FP8_FORMATS = ("none", "hybrid", "e4m3")
FP8_UNITS = {"delayed": 16, "tensorwise": 16, "blockwise": 16, "mxfp8": 32}  # what each side of a product must divide by, by recipe
LIMIT_METRICS = ("bits_per_byte",)
WANDB_MODES = ("offline", "online", "disabled")


def divisors(number: int, *others: int) -> list[int]:
    """Return every number that divides all the given ones."""
    common = math.gcd(number, *others)
    return [candidate for candidate in range(1, common + 1) if common % candidate == 0]


def _choice(key: str, value: object, allowed: tuple[str, ...]) -> list[str]:
    return [] if value in allowed else [f"{key}={value!r} is not one of {', '.join(allowed)}."]


def _at_least(config: Mapping[str, float], least: float) -> list[str]:
    return [f"{key}={value} is below {least:g}." for key, value in config.items() if not value >= least]


def literal_problems(config: ExperimentConfig) -> list[str]:
    """Check the words and the ranges of single numbers."""
    problems = _choice("cluster.backend", config.cluster.backend, BACKENDS)
    problems += _choice("parallel.dtype", config.parallel.dtype, DTYPES)
    problems += _choice("parallel.recompute", config.parallel.recompute, RECOMPUTE)
    problems += _choice("parallel.fp8", config.parallel.fp8, FP8_FORMATS)
    problems += _choice("parallel.fp8_recipe", config.parallel.fp8_recipe, tuple(FP8_UNITS))
    problems += _choice("monitor.wandb_mode", config.monitor.wandb_mode, WANDB_MODES)
    problems += _at_least(size_keys(config), 1)
    problems += _at_least(
        {
            "seed": config.seed,
            "monitor.eval_every_steps": config.monitor.eval_every_steps,
            "checkpoint.keep_best": config.checkpoint.keep_best,
            "monitor.grace_steps": config.monitor.grace_steps or 0,
            "stop.max_skipped_steps": config.stop.max_skipped_steps,
            "optim.weight_decay": config.optim.weight_decay,
            "optim.clip_grad_norm": config.optim.clip_grad_norm,
            "optim.beta1": config.optim.beta1,
            "optim.beta2": config.optim.beta2,
        },
        0,
    )
    for key, beta in (("optim.beta1", config.optim.beta1), ("optim.beta2", config.optim.beta2)):
        if beta >= 1:
            problems.append(f"{key}={beta} is not below 1.")
    if not 0 <= config.optim.embedding_lr_scale < math.inf:
        problems.append(f"optim.embedding_lr_scale={config.optim.embedding_lr_scale} is not a multiple of a rate. Use 0 or more.")
    if not 0 <= config.optim.router_aux_loss < math.inf:
        problems.append(f"optim.router_aux_loss={config.optim.router_aux_loss} is not a weight. Use 0 or more.")
    if not config.optim.epsilon > 0:
        problems.append(f"optim.epsilon={config.optim.epsilon} is not above 0.")
    if not config.blend.max_epochs > 0:
        problems.append(f"blend.max_epochs={config.blend.max_epochs} is not above 0.")
    problems += keep_best_problems(config) + export_problems(config)
    for key, limit in stop_keys(config).items():
        if limit is not None and not limit > 0:
            problems.append(f"{key}={limit} is not above 0. Use null for no limit.")
    factor = config.stop.spike_factor
    if factor is not None and not factor > 1:
        problems.append(f"stop.spike_factor={factor} is not above 1: half of all steps are above their median. Use null for no such test.")
    return problems


def export_problems(config: ExperimentConfig) -> list[str]:
    """Check what would otherwise be met only when training has been paid for."""
    export = config.export
    problems = [] if export.dtype is None else _choice("export.dtype", export.dtype, EXPORT_DTYPES)
    if not export.max_shard_gb > 0:
        problems.append(f"export.max_shard_gb={export.max_shard_gb} is not above 0.")
    problems += _at_least({"export.completion_tokens": export.completion_tokens}, 0)
    if export.instruct_model is not None and not (Path(export.instruct_model) / "config.json").is_file():
        problems.append(f"export.instruct_model={printable(export.instruct_model)} is no Hugging Face folder: it has no config.json.")
    return problems


def keep_best_problems(config: ExperimentConfig) -> list[str]:
    """Check that checkpoints can be ranked: every one of them is scored, on a domain text."""
    keep, every, scored = config.checkpoint.keep_best, config.checkpoint.every_steps, config.monitor.eval_every_steps
    problems = []
    if keep and (scored < 1 or every % scored):
        problems.append(
            f"checkpoint.keep_best={keep} ranks checkpoints by the in-loop evaluation, and monitor.eval_every_steps={scored} does not "
            f"divide checkpoint.every_steps={every}."
        )
    if keep and not any(config.source[name].role == "domain" for name in config.eval.texts if name in config.source):
        problems.append(f"checkpoint.keep_best={keep} ranks checkpoints by domain texts, and eval.texts names none.")
    return problems


def size_keys(config: ExperimentConfig) -> dict[str, float]:
    return {
        "cluster.num_nodes": config.cluster.num_nodes,
        "cluster.ranks_per_node": config.cluster.ranks_per_node,
        "cluster.threads_per_rank": config.cluster.threads_per_rank,
        "parallel.tensor": config.parallel.tensor,
        "parallel.pipeline": config.parallel.pipeline,
        "parallel.virtual_pipeline": config.parallel.virtual_pipeline,
        "parallel.context": config.parallel.context,
        "parallel.bucket_size": 1 if config.parallel.bucket_size is None else config.parallel.bucket_size,
        "parallel.expert": config.parallel.expert,
        "parallel.micro_batch_size": config.parallel.micro_batch_size,
        "parallel.global_batch_size": config.parallel.global_batch_size,
        "parallel.sequence_length": config.parallel.sequence_length,
        "blend.num_tokens": config.blend.num_tokens,
        "checkpoint.every_steps": config.checkpoint.every_steps,
        "checkpoint.keep_last": config.checkpoint.keep_last,
        "monitor.log_every_steps": config.monitor.log_every_steps,
        "eval.micro_batch_size": config.eval.micro_batch_size,
        "eval.max_bytes": config.eval.max_bytes,
        "eval.max_document_bytes": config.eval.max_bytes if config.eval.max_document_bytes is None else config.eval.max_document_bytes,
        "eval.window_tokens": config.eval.window_tokens,
        "eval.stride_tokens": 1 if config.eval.stride_tokens is None else config.eval.stride_tokens,
        "eval.harness_max_items": 1 if config.eval.harness_max_items is None else config.eval.harness_max_items,
        "gate.bootstrap_samples": config.gate.bootstrap_samples,
    }


def stop_keys(config: ExperimentConfig) -> dict[str, float | None]:
    """Return the limits by key; None is no limit."""
    stop = config.stop
    limits = {"max_hours": stop.max_hours, "max_usd": stop.max_usd, "max_kwh": stop.max_kwh, "max_tokens": stop.max_tokens}
    return {f"stop.{key}": limit for key, limit in limits.items()}


def sizes_are_positive(config: ExperimentConfig) -> bool:
    """Say whether the arithmetic of the other checks can be done at all."""
    return all(value >= 1 for value in size_keys(config).values())


def padding_advice(multiple: int, tensor: int) -> str:
    return f"tokenizer.pad_rows_to_multiple={math.lcm(multiple, tensor)}"


def padding_problem(config: ExperimentConfig) -> str | None:
    """Say why the vocabulary's padding does not fit the tensor ranks of this configuration, before any row is made; None where it does."""
    multiple, tensor = config.tokenizer.pad_rows_to_multiple, config.parallel.tensor
    if tensor < 1 or multiple < 1 or multiple % tensor == 0:
        return None
    return (
        f"tokenizer.pad_rows_to_multiple={multiple} is no multiple of parallel.tensor={tensor}, so the rows may not divide over the ranks. "
        f"Set {padding_advice(multiple, tensor)}."
    )


def layout_problems(config: ExperimentConfig, shape: ModelShape, vocab: VocabLayout) -> list[str]:
    """Check that the model divides by the tensor and pipeline degrees, and the ranks and the batch by what they leave over."""
    parallel, cluster = config.parallel, config.cluster
    tensor, pipeline, context = parallel.tensor, parallel.pipeline, parallel.context
    problems = overlap_problems(config) + fp8_problems(config, shape) + fsdp_problems(config)
    split = {
        "the model's attention heads": shape.num_attention_heads,
        "the model's key/value heads": shape.num_query_groups,
        "the model's ffn_hidden_size": shape.ffn_hidden_size,
    }
    rows = vocab.num_padded_rows
    legal = ", ".join(map(str, divisors(*split.values(), rows)))
    if rows % tensor:
        problems.append(
            f"parallel.tensor={tensor} does not divide the padded vocabulary rows ({rows}), fixed by the vocab stage. Use one of: {legal}; "
            f"or set {padding_advice(config.tokenizer.pad_rows_to_multiple, tensor)} under a new run_name."
        )
    problems += [
        f"parallel.tensor={tensor} does not divide {what} ({size}). Use one of: {legal}." for what, size in split.items() if size % tensor
    ]
    problems += stage_problems(shape.num_layers, pipeline=pipeline, virtual_pipeline=parallel.virtual_pipeline)
    if parallel.sequence_parallel and tensor == 1:
        problems.append("parallel.sequence_parallel needs parallel.tensor above 1. Set it to false, or raise parallel.tensor.")
    if parallel.sequence_parallel and parallel.sequence_length % tensor:
        problems.append(f"parallel.sequence_length={parallel.sequence_length} does not divide by parallel.tensor={tensor}.")
    if context > 1 and (shape.window or shape.num_experts):
        what = "a window of attention" if shape.window else "experts"
        problems.append(f"parallel.context={context} is not proven with {what}, which this model has. Use 1.")
    if parallel.fsdp and shape.num_experts:
        problems.append("parallel.fsdp=true is not proven with experts, which this model has. Set it to false.")
    if parallel.overlap_grad_reduce and shape.num_experts:
        problems.append(
            "parallel.overlap_grad_reduce cannot be had with experts: it waits for every weight's gradient, and an expert without a"
            " token has none. Set it to false."
        )
    problems += context_problems(
        parallel.sequence_length, context=context, tensor=tensor, sequence_parallel=parallel.sequence_parallel and tensor > 1
    )
    for key, length in (("parallel.sequence_length", parallel.sequence_length), ("eval.window_tokens", config.eval.window_tokens)):
        if length > shape.max_position:
            problems.append(f"{key}={length} is longer than the model's {shape.max_position} positions.")
    num_ranks = cluster.num_nodes * cluster.ranks_per_node
    if num_ranks % (tensor * pipeline * context):
        return [
            *problems,
            f"cluster has {num_ranks} ranks ({cluster.num_nodes} nodes x {cluster.ranks_per_node}), which do not divide by parallel.tensor"
            f" x parallel.pipeline x parallel.context = {tensor * pipeline * context}.",
        ]
    if config.optim.router_aux_loss and not shape.num_experts:
        problems.append(
            f"optim.router_aux_loss={config.optim.router_aux_loss} weighs a router's loss, and the model has no experts. Use 0."
        )
    problems += expert_problems(
        shape,
        expert=parallel.expert,
        tensor=tensor,
        data=num_ranks // (tensor * pipeline),
        sequence_parallel=parallel.sequence_parallel,
    )
    return problems + batch_problems(
        parallel.global_batch_size,
        micro_batch_size=parallel.micro_batch_size,
        data=num_ranks // (tensor * pipeline * context),
        pipeline=pipeline,
        virtual_pipeline=parallel.virtual_pipeline,
    )


def context_problems(sequence_length: int, *, context: int, tensor: int, sequence_parallel: bool) -> list[str]:
    """Check that a sequence divides into two pieces a context rank, and the pieces over tensor ranks under sequence parallelism."""
    if context == 1:
        return []
    unit = math.lcm(2 * context, context * tensor if sequence_parallel else 1)
    if sequence_length % unit == 0:
        return []
    below = sequence_length // unit * unit
    nearest = " or ".join(str(value) for value in (below, below + unit) if value)
    return [
        f"parallel.sequence_length={sequence_length} does not divide into two pieces for each of parallel.context={context} ranks"
        + (f" and over parallel.tensor={tensor} of each" if sequence_parallel else "")
        + f": it must divide by {unit}. Nearest legal: {nearest}."
    ]


def overlap_problems(config: ExperimentConfig) -> list[str]:
    """Check that what is overlapped is there to be overlapped."""
    parallel = config.parallel
    problems = []
    if parallel.overlap_param_gather and not parallel.distributed_optimizer:
        problems.append(
            "parallel.overlap_param_gather needs parallel.distributed_optimizer=true: a replicated optimizer gathers no weights."
        )
    if parallel.overlap_param_gather and not parallel.overlap_grad_reduce:
        problems.append("parallel.overlap_param_gather needs parallel.overlap_grad_reduce=true: both use the same buckets.")
    if parallel.bucket_size is not None and not parallel.overlap_grad_reduce:
        problems.append(
            f"parallel.bucket_size={parallel.bucket_size} has no effect without parallel.overlap_grad_reduce. Set it to null, or overlap."
        )
    return problems


def fp8_problems(config: ExperimentConfig, shape: ModelShape) -> list[str]:
    """Check that FP8 can run where it is wanted, and that every side of a layer's matrix products has a size that its kernels take."""
    parallel = config.parallel
    if parallel.fp8 == "none":
        if parallel.fp8_recipe != "delayed":
            return [f"parallel.fp8_recipe={parallel.fp8_recipe!r} has no effect with parallel.fp8=none."]
        return []
    if parallel.fp8 not in FP8_FORMATS or parallel.fp8_recipe not in FP8_UNITS:
        return []  # said already
    problems = []
    if config.cluster.backend == "cpu":
        problems.append(
            f"parallel.fp8={parallel.fp8} needs cluster.backend=cuda and Transformer Engine: no CPU kernel multiplies FP8 matrices."
            " Use parallel.fp8=none."
        )
    if parallel.dtype != "bf16":
        problems.append(f"parallel.fp8={parallel.fp8} needs parallel.dtype=bf16 (it is {parallel.dtype}): what is not FP8 stays bf16.")
    unit, tensor = FP8_UNITS[parallel.fp8_recipe], parallel.tensor
    tokens = parallel.micro_batch_size * parallel.sequence_length // parallel.context
    sides = {
        "the model's hidden_size": shape.hidden_size,
        "a tensor rank's part of the model's ffn_hidden_size": shape.ffn_hidden_size // tensor,
        "a tensor rank's attention heads x their size": shape.num_attention_heads * shape.head_dim // tensor,
        "a tensor rank's query, key and value columns": (shape.num_attention_heads + 2 * shape.num_query_groups) * shape.head_dim // tensor,
        "the tokens of a rank's micro-batch": tokens // (tensor if parallel.sequence_parallel else 1),
    }
    problems += [
        f"parallel.fp8={parallel.fp8}: {what} ({size}) is no multiple of {unit} (parallel.fp8_recipe={parallel.fp8_recipe})."
        for what, size in sides.items()
        if size % unit
    ]
    return problems


def fsdp_problems(config: ExperimentConfig) -> list[str]:
    """Check that weights in shards stand beside nothing that they were not proven with, and with nothing that has no meaning then."""
    parallel = config.parallel
    if not parallel.fsdp:
        return []
    problems = []
    if parallel.pipeline > 1:
        problems.append(
            f"parallel.fsdp=true does not go with parallel.pipeline={parallel.pipeline}: every micro-batch of every stage would gather the"
            " weights anew, and tied rows on two stages were never proven equal. Use parallel.pipeline=1, or parallel.fsdp=false."
        )
    if parallel.fp8 != "none":
        problems.append(f"parallel.fsdp=true does not go with parallel.fp8={parallel.fp8}: gathered FP8 copies were never proven here.")
    if not parallel.distributed_optimizer:
        problems.append("parallel.fsdp=true needs parallel.distributed_optimizer=true: weights in shards have their optimizer in shards.")
    named = [name for name in ("overlap_grad_reduce", "overlap_param_gather") if getattr(parallel, name)]
    named += ["bucket_size"] if parallel.bucket_size is not None else []
    problems += [
        f"parallel.{name} has no effect with parallel.fsdp=true, which overlaps both and sends a layer at once. Leave it out."
        for name in named
    ]
    return problems


def stage_problems(num_layers: int, *, pipeline: int, virtual_pipeline: int) -> list[str]:
    """Check that the layers divide over the pipeline stages, and each stage's layers over its chunks."""
    if num_layers % pipeline:
        legal = ", ".join(map(str, divisors(num_layers)))
        return [f"parallel.pipeline={pipeline} does not divide the model's layers ({num_layers}). Use one of: {legal}."]
    if virtual_pipeline > 1 and pipeline == 1:
        return [f"parallel.virtual_pipeline={virtual_pipeline} needs parallel.pipeline above 1. Set it to 1, or raise parallel.pipeline."]
    per_stage = num_layers // pipeline
    if per_stage % virtual_pipeline:
        legal = ", ".join(map(str, divisors(per_stage)))
        return [
            f"parallel.virtual_pipeline={virtual_pipeline} does not divide the layers of a stage ({num_layers} / {pipeline} = {per_stage})."
            f" Use one of: {legal}."
        ]
    return []


def expert_problems(shape: ModelShape, *, expert: int, tensor: int, data: int, sequence_parallel: bool) -> list[str]:
    """Check that the experts divide over the ranks that share them, and those over the data-parallel ranks."""
    if not shape.num_experts:
        return [f"parallel.expert={expert} shares experts, and the model has none. Use 1."] if expert != 1 else []
    problems = []
    if shape.num_experts % expert or data % expert:
        legal = ", ".join(map(str, divisors(shape.num_experts, data)))
        problems.append(
            f"parallel.expert={expert} does not divide the model's experts ({shape.num_experts}) and the data-parallel ranks ({data})."
            f" Use one of: {legal}."
        )
    if tensor > 1 and not sequence_parallel:
        problems.append(
            f"parallel.tensor={tensor} with experts needs parallel.sequence_parallel=true: megatron-core trains experts in no other way."
        )
    return problems


def batch_problems(global_batch_size: int, *, micro_batch_size: int, data: int, pipeline: int, virtual_pipeline: int) -> list[str]:
    """Check that the global batch divides over ranks and micro-batches, and name the nearest sizes that do.

    The interleaved schedule hands micro-batches on in groups of as many as there are stages, so it needs whole groups.
    """
    factors = {"micro_batch_size": micro_batch_size, "data-parallel ranks": data}
    if virtual_pipeline > 1:
        factors["pipeline stages (virtual_pipeline is above 1)"] = pipeline
    unit = math.prod(factors.values())
    if global_batch_size % unit == 0:
        return []
    below = global_batch_size // unit * unit
    nearest = " or ".join(str(value) for value in (below, below + unit) if value)
    return [
        f"parallel.global_batch_size={global_batch_size} does not divide by {' x '.join(factors)} = "
        f"{' x '.join(map(str, factors.values()))} = {unit}. Nearest legal: {nearest}."
    ]


def eval_problems(config: ExperimentConfig, corpus_facts: Mapping[str, Any]) -> list[str]:
    """Check that every text to score exists with test documents."""
    problems = []
    if not config.eval.texts:
        problems.append("eval.texts is empty: nothing would be measured.")
    for name in config.eval.texts:
        if name not in config.source:
            problems.append(f"eval.texts names {name!r}, which is no source. Sources: {', '.join(sorted(config.source)) or 'none'}.")
            continue
        if config.source[name].role not in ROLES and name not in config.blend.shares:
            problems.append(f"source.{printable(name)}.role={config.source[name].role!r} is not one of {', '.join(ROLES)}.")
        if corpus_facts["sources"].get(name, {}).get("test_documents", 0) < 1:
            problems.append(f"eval.texts names {name!r}, but the corpus kept no test documents of it. Raise source.{name}.test_fraction.")
    problems += [f"eval.texts names {name!r} twice." for name in {text for text in config.eval.texts if config.eval.texts.count(text) > 1}]
    if config.eval.stride_tokens is not None and config.eval.stride_tokens > config.eval.window_tokens:
        problems.append(
            f"eval.stride_tokens={config.eval.stride_tokens} is longer than eval.window_tokens={config.eval.window_tokens}: tokens between"
            " two windows would not be scored. Use at most that many, or null."
        )
    problems += harness_problems(config)
    problems += limit_problems(config)
    return problems


def harness_problems(config: ExperimentConfig) -> list[str]:
    """Check that tasks of lm-evaluation-harness come from a folder of task files; which of them it holds is known when they are loaded."""
    names, folder = config.eval.harness, config.eval.harness_tasks_path
    if not names:
        return [] if folder is None else ["eval.harness_tasks_path is set, and eval.harness names no task. Name one, or set it to null."]
    problems = [f"eval.harness names {name!r} twice." for name in sorted({name for name in names if names.count(name) > 1})]
    problems += [f"eval.harness names {name!r}, which is also a text's name." for name in names if name in config.eval.texts]
    if folder is None or not any(Path(folder).rglob("*.yaml")):
        problems.append(
            f"eval.harness needs task files, and eval.harness_tasks_path={folder} holds no .yaml file. Name a folder of your own tasks."
        )
    return problems


def limit_problems(config: ExperimentConfig) -> list[str]:
    """Check that every hard limit is on a text that the in-loop evaluation scores, and that there is such an evaluation."""
    problems = []
    for number, limit in enumerate(config.gate.limits):
        label = f"gate.limits[{number}]"
        problems += _choice(f"{label}.metric", limit.metric, LIMIT_METRICS)
        if limit.of not in config.eval.texts:
            problems.append(f"{label}.of={limit.of!r} is not one of eval.texts ({', '.join(config.eval.texts) or 'none'}).")
        if not 0 < limit.max_increase < math.inf:
            problems.append(f"{label}.max_increase={limit.max_increase} is not a limit. Use a number above 0, in bits per byte.")
    names = [limit.of for limit in config.gate.limits]
    problems += [f"gate.limits has more than one limit on {name!r}." for name in sorted({name for name in names if names.count(name) > 1})]
    if names and config.monitor.eval_every_steps < 1:
        problems.append("gate.limits are looked at when the model is scored in the loop, and monitor.eval_every_steps=0 never scores it.")
    return problems


def device_problems(config: ExperimentConfig) -> list[str]:
    """Check the device's figures for values that nothing real can have."""
    gpu = config.gpu
    problems = [
        f"{key}={value} is not above 0. Use null when it is not known."
        for key, value in {
            "gpu.dense_tflops": gpu.dense_tflops,
            "gpu.dense_fp8_tflops": gpu.dense_fp8_tflops,
            "gpu.memory_gb": gpu.memory_gb,
            "gpu.node_watts_per_device": gpu.node_watts_per_device,
            "gpu.matmul_tflops": gpu.matmul_tflops,
            "gpu.matmul_fp8_tflops": gpu.matmul_fp8_tflops,
            "gpu.memory_tb_per_second": gpu.memory_tb_per_second,
            "gpu.link_gb_per_second": gpu.link_gb_per_second,
            "gpu.network_gb_per_second": gpu.network_gb_per_second,
            "gpu.num_multiprocessors": gpu.num_multiprocessors,
            "gpu.mtbf_hours": gpu.mtbf_hours,
            "gpu.device_watts": gpu.device_watts,
            "cluster.checkpoint_seconds": config.cluster.checkpoint_seconds,
            "cluster.restart_seconds": config.cluster.restart_seconds,
        }.items()
        if value is not None and not (value > 0 and math.isfinite(value))
    ]
    for key, reached, peak in (("", gpu.matmul_tflops, gpu.dense_tflops), ("fp8_", gpu.matmul_fp8_tflops, gpu.dense_fp8_tflops)):
        if reached is not None and peak is not None and reached > peak:
            problems.append(
                f"gpu.matmul_{key}tflops={reached:g} is above the dense peak, {peak:g}: no device computes faster than that."
                " Correct the one that is wrong."
            )
    for prefix, shares in {
        "mfu_": (gpu.mfu_low, gpu.mfu_likely, gpu.mfu_high),
        "fp8_mfu_": (gpu.fp8_mfu_low, gpu.fp8_mfu_likely, gpu.fp8_mfu_high),
        "watts_share_": (gpu.watts_share_low, gpu.watts_share_likely, gpu.watts_share_high),
    }.items():
        given = [share for share in shares if share is not None]
        if given and (len(given) != len(shares) or not 0 < given[0] <= given[1] <= given[2] <= 1):
            problems.append(
                f"gpu.{prefix}low, {prefix}likely, {prefix}high = {shares} are not an interval."
                " Use 0 < low <= likely <= high <= 1, or null for all."
            )
    problems += [
        f"{key}={value} is not 0 or more. Use null when it is not known."
        for key, value in {
            "gpu.rest_of_node_watts": gpu.rest_of_node_watts,
            "gpu.network_watts": gpu.network_watts,
            "cluster.memory_gb": config.cluster.memory_gb,
        }.items()
        if value is not None and not (value >= 0 and math.isfinite(value))
    ]
    return problems


def input_problems(
    config: ExperimentConfig, *, shape: ModelShape, vocab: VocabLayout, index_facts: Mapping[str, Any], corpus_facts: Mapping[str, Any]
) -> list[str]:
    """Return everything that is wrong before any estimate is made."""
    problems = literal_problems(config)
    if sizes_are_positive(config):
        problems += layout_problems(config, shape, vocab)
        tokens_per_step = config.parallel.global_batch_size * config.parallel.sequence_length
        problems += blend_stage_problems(config.blend, tokens_per_step=tokens_per_step)
    problems += blend_problems(config.blend, config.source, index_facts)
    problems += schedule_problems(config, vocab, sizes_are_positive=sizes_are_positive(config))
    problems += eval_problems(config, corpus_facts)
    problems += device_problems(config)
    problems += tariff_problems(config)
    problems += stop_score_problems(config)
    return problems
