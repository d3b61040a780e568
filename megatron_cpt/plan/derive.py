"""Derives the frozen plan from a configuration and the facts of earlier stages. Pure: all problems at once, or a plan."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, cast

from megatron_cpt.config.schema import ExperimentConfig, GateRuleConfig, OptimConfig
from megatron_cpt.errors import ConfigError, raise_all
from megatron_cpt.plan.benches import Benches, metrics_of, task_of, task_problems
from megatron_cpt.plan.blend import blend_entries, blend_stages
from megatron_cpt.plan.budget import estimate_problems
from megatron_cpt.plan.calibrate import HostFacts
from megatron_cpt.plan.checks import device_problems, input_problems, layout_problems, sizes_are_positive
from megatron_cpt.plan.machine import FP32_REASON, Machine, machine_of
from megatron_cpt.plan.memory import ON_CPU, ON_CUDA, memory_of_stages
from megatron_cpt.plan.metrics import TEXT_METRIC
from megatron_cpt.plan.model_shape import ModelShape
from megatron_cpt.plan.money import bill_of, known, stored_gb, tariff_of
from megatron_cpt.plan.page_text import show_duration
from megatron_cpt.plan.parameters import num_params
from megatron_cpt.plan.resume import Earlier, blend_after, resume_problems, with_earlier_samples
from megatron_cpt.plan.retry import retry_of, retry_problems, with_changes
from megatron_cpt.plan.rules import Task, rule_problems
from megatron_cpt.plan.run_plan import (
    PLAN_SCHEMA_VERSION,
    BlendEntry,
    BlendStage,
    CheckpointPlan,
    ContaminationPlan,
    Estimate,
    EvalPlan,
    EvalText,
    GateLimit,
    GatePlan,
    GateRule,
    HarnessPlan,
    Layout,
    OptimizerPlan,
    PackingPlan,
    RuleGroup,
    RunPlan,
    StopConditions,
    StopScore,
    Tariff,
)
from megatron_cpt.plan.schedule import schedule_of
from megatron_cpt.plan.step_time import step_time
from megatron_cpt.plan.throughput import FLOPS_CONVENTION, flops_per_token, recomputed_flops_per_token, training_seconds
from megatron_cpt.plan.utilization import checkpoint_interval_seconds, comparable_runs, goodput, published_utilization
from megatron_cpt.record.hashing import sha256_folder
from megatron_cpt.record.unknown import Figure, Interval, Unavailable, combine, likely_of, product
from megatron_cpt.record.vocab_layout import VocabLayout

WandbMode = Literal["offline", "online", "disabled"]
Recompute = Literal["none", "selective", "full"]
Fp8 = Literal["none", "hybrid", "e4m3"]
Fp8Recipe = Literal["delayed", "tensorwise", "blockwise", "mxfp8"]
_NEXT_STEP = "Change the named keys in conf/ or on the command line, then run the plan again."


def derive(
    config: ExperimentConfig,
    *,
    init_facts: Mapping[str, Any],
    index_facts: Mapping[str, Any],
    corpus_facts: Mapping[str, Any],
    shape: ModelShape,
    vocab: VocabLayout,
    identity: dict[str, str],
    host: HostFacts,
    benches: Benches | None = None,
    round_number: int = 1,
    num_retries: int = 0,
    earlier: Earlier | None = None,
) -> RunPlan:
    """Derive the plan of a run.

    Args:
        init_facts: facts of the init stage; its `num_params`, when present, must equal the count of the plan.
        index_facts: `{"sources": {name: {"documents", "tokens", "role", "licence"}}}`, of the train splits.
        corpus_facts: `{"sources": {name: {"test_documents", "valid_documents" where there are any, ...}}}`.
        shape: the base model's shape; `vocab` gives the rows after extension.
        identity: fingerprints of the stages that the plan is derived from.
        host: figures of this host, used by CPU clusters only.
        benches: the files of `eval.tasks`, as `plan.benches.read_benches` found them.
        num_retries: how many changes of the retry policy `config` has taken already.
        earlier: the checkpoint that a later round goes on from; None begins with the initial weights.

    Raises:
        ConfigError: listing everything that does not divide, fit, exist or stay within a limit.
    """
    benches = benches or Benches()
    problems = input_problems(config, shape=shape, vocab=vocab, index_facts=index_facts, corpus_facts=corpus_facts)
    problems += task_problems(config, benches, max_position=shape.max_position)
    tasks = tasks_of_rules(config, benches)
    problems += rule_problems(config.gate, texts=config.eval.texts, tasks=tasks)
    problems += retry_problems(config, num_used=num_retries, is_resumed=earlier is not None)
    if earlier is not None:
        problems += resume_problems(config, earlier, vocab_sha256=vocab.tokenizer_sha256)
    if problems:
        problems += problems_of_size(config, shape=shape, vocab=vocab, host=host)
    raise_all(ConfigError, problems, where="plan", next_step=_NEXT_STEP)

    layout = layout_of(config)
    num_steps = math.ceil(config.blend.num_tokens / layout.tokens_per_step)
    grace = config.monitor.grace_steps
    if grace is not None and grace >= num_steps:
        late = f"monitor.grace_steps={grace} covers all {num_steps} steps of the run: its candidate would never be judged."
        raise_all(ConfigError, [late], where="plan", next_step=_NEXT_STEP)
    blend, stages, problems = _blend(config, index_facts, num_steps=num_steps, layout=layout, earlier=earlier)
    for number in range(num_retries + 1, config.gate.max_retries + 1):
        changed = with_changes(config, map(retry_of, config.gate.retries[num_retries:number]))
        _, _, then = _blend(changed, index_facts, num_steps=num_steps, layout=layout, earlier=earlier)
        problems += [f"after gate.retries[{number - 1}]: {problem}" for problem in then if problem not in problems]
    tariff = tariff_of(config.tariff, config.gpu, num_nodes=config.cluster.num_nodes)
    stop = stop_conditions_of(config, tasks)
    estimate = estimate_run(
        config,
        shape=shape,
        num_rows=vocab.num_padded_rows,
        layout=layout,
        num_steps=num_steps - (earlier.step if earlier is not None else 0),
        tariff=tariff,
        host=host,
        num_stored_tokens=sum(int(source["tokens"]) for source in index_facts["sources"].values()),
    )
    recorded = init_facts.get("num_params")
    if recorded is not None and recorded != estimate.num_params:
        problems.append(f"the init stage made a model of {recorded} parameters; this configuration describes {estimate.num_params}.")
    problems += estimate_problems(estimate, stop, layout, tariff)
    raise_all(ConfigError, problems, where="plan", next_step=_NEXT_STEP)

    return RunPlan(
        schema_version=PLAN_SCHEMA_VERSION,
        run_name=config.run_name,
        seed=config.seed,
        backend="cpu" if config.cluster.backend == "cpu" else "cuda",
        shape=shape,
        vocab=vocab,
        layout=layout,
        blend=blend,
        num_steps=num_steps,
        optimizer=optimizer_of(config.optim),
        schedule=schedule_of(config),
        checkpoint=CheckpointPlan(
            every_steps=config.checkpoint.every_steps,
            keep_last=config.checkpoint.keep_last,
            asynchronous=config.checkpoint.asynchronous,
            keep_best=config.checkpoint.keep_best,
        ),
        log_every_steps=config.monitor.log_every_steps,
        eval_every_steps=config.monitor.eval_every_steps,
        wandb_mode=cast(WandbMode, config.monitor.wandb_mode),
        wandb_project=config.monitor.wandb_project,
        eval=eval_plan_of(config, benches, corpus_facts=corpus_facts),
        gate=gate_plan_of(config, tasks),
        stop=stop,
        tariff=tariff,
        estimate=estimate,
        identity=dict(identity),
        blend_stages=stages,
        packing=PackingPlan(
            reset_positions=config.blend.reset_positions,
            cross_document_attention=config.blend.cross_document_attention,
            loss_on_end_of_document=config.blend.loss_on_end_of_document,
        ),
        tensorboard=config.monitor.tensorboard,
        grace_steps=config.monitor.grace_steps,
        round=round_number,
        resumes_from=None if earlier is None else earlier.point,
    )


def problems_of_size(config: ExperimentConfig, *, shape: ModelShape, vocab: VocabLayout, host: HostFacts) -> list[str]:
    """Return where a configuration with other problems does not fit either or costs too much, as far as that can be counted at all."""
    if not sizes_are_positive(config) or layout_problems(config, shape, vocab) or device_problems(config):
        return []
    layout = layout_of(config)
    tariff = tariff_of(config.tariff, config.gpu, num_nodes=config.cluster.num_nodes)
    estimate = estimate_run(
        config,
        shape=shape,
        num_rows=vocab.num_padded_rows,
        layout=layout,
        num_steps=math.ceil(config.blend.num_tokens / layout.tokens_per_step),
        tariff=tariff,
        host=host,
        num_stored_tokens=0,
    )
    return estimate_problems(estimate, stop_conditions_of(config, {}), layout, tariff)


def stop_conditions_of(config: ExperimentConfig, tasks: Mapping[str, Task | None]) -> StopConditions:
    """Return the limits with the metric of each score that is one: a text's bits per byte, a task's main metric."""
    stop = config.stop
    return StopConditions(
        max_hours=stop.max_hours,
        max_usd=stop.max_usd,
        max_kwh=stop.max_kwh,
        max_skipped_steps=stop.max_skipped_steps,
        spike_factor=stop.spike_factor,
        max_tokens=stop.max_tokens,
        scores=tuple(
            StopScore(
                of=score.of,
                metric=task[1][0] if (task := tasks.get(score.of)) else TEXT_METRIC,
                at_most=score.at_most,
                at_least=score.at_least,
            )
            for score in stop.scores
        ),
    )


def _blend(
    config: ExperimentConfig, index_facts: Mapping[str, Any], *, num_steps: int, layout: Layout, earlier: Earlier | None
) -> tuple[tuple[BlendEntry, ...], tuple[BlendStage, ...], list[str]]:
    """Return the entries and stages of the blend, and what is wrong with its size."""
    blend = config.blend if earlier is None else blend_after(config.blend, earlier)
    stages = blend_stages(blend, num_steps=num_steps, layout=layout)
    entries, problems = blend_entries(
        blend,
        config.source,
        index_facts,
        stages=stages,
        num_steps=num_steps,
        global_batch_size=layout.global_batch_size,
        sequence_length=layout.sequence_length,
    )
    return (entries if earlier is None else with_earlier_samples(entries, earlier)), stages, problems


def optimizer_of(settings: OptimConfig) -> OptimizerPlan:
    return OptimizerPlan(
        beta1=settings.beta1,
        beta2=settings.beta2,
        epsilon=settings.epsilon,
        weight_decay=settings.weight_decay,
        clip_grad_norm=settings.clip_grad_norm,
        embedding_lr_scale=settings.embedding_lr_scale,
        router_aux_loss=settings.router_aux_loss,
    )


def layout_of(config: ExperimentConfig) -> Layout:
    """Return the layout of a configuration that has passed its checks; the data-parallel size is what the ranks leave over."""
    parallel, cluster = config.parallel, config.cluster
    return Layout(
        tensor=parallel.tensor,
        pipeline=parallel.pipeline,
        data=cluster.num_nodes * cluster.ranks_per_node // (parallel.tensor * parallel.pipeline * parallel.context),
        micro_batch_size=parallel.micro_batch_size,
        global_batch_size=parallel.global_batch_size,
        sequence_length=parallel.sequence_length,
        sequence_parallel=parallel.sequence_parallel,
        distributed_optimizer=parallel.distributed_optimizer,
        dtype="fp32" if parallel.dtype == "fp32" else "bf16",
        num_nodes=cluster.num_nodes,
        threads_per_rank=cluster.threads_per_rank,
        virtual_pipeline=parallel.virtual_pipeline,
        recompute=cast(Recompute, parallel.recompute),
        context=parallel.context,
        overlap_grad_reduce=parallel.overlap_grad_reduce,
        overlap_param_gather=parallel.overlap_param_gather,
        bucket_size=parallel.bucket_size,
        fp8=cast(Fp8, parallel.fp8),
        fp8_recipe=cast(Fp8Recipe, parallel.fp8_recipe),
        expert=parallel.expert,
        fsdp=parallel.fsdp,
    )


def eval_plan_of(config: ExperimentConfig, benches: Benches, *, corpus_facts: Mapping[str, Any]) -> EvalPlan:
    """Return what is scored; of a source with validation documents these are watched while training."""
    return EvalPlan(
        texts=tuple(
            EvalText(
                name=name,
                role="domain" if config.source[name].role == "domain" else "general",
                path=f"corpus/{name}.test.jsonl",
                max_bytes=config.eval.max_bytes,
                max_document_bytes=config.eval.max_document_bytes,
                watch_path=f"corpus/{name}.valid.jsonl" if corpus_facts["sources"][name].get("valid_documents") else None,
            )
            for name in config.eval.texts
        ),
        window_tokens=config.eval.window_tokens,
        micro_batch_size=config.eval.micro_batch_size,
        tasks=tuple(task_of(name, config.bench[name], benches.found[name]) for name in config.eval.tasks),
        tasks_in_loop=config.eval.tasks_in_loop,
        run_code_unconfined=config.eval.run_code_unconfined,
        contamination=ContaminationPlan(**asdict(config.eval.contamination)),
        stride_tokens=config.eval.stride_tokens,
        cache=config.eval.cache,
        harness=harness_plan_of(config),
    )


def harness_plan_of(config: ExperimentConfig) -> HarnessPlan | None:
    """Return the tasks of lm-evaluation-harness with the digest of their folder; None where none is named."""
    if not config.eval.harness:
        return None
    assert config.eval.harness_tasks_path is not None, "eval_problems was asked before"
    folder = Path(config.eval.harness_tasks_path).resolve()
    return HarnessPlan(
        path=str(folder),
        sha256=sha256_folder(folder),
        tasks=tuple(config.eval.harness),
        runs_code=config.eval.harness_runs_code,
        max_items=config.eval.harness_max_items,
    )


def tasks_of_rules(config: ExperimentConfig, benches: Benches) -> dict[str, Task | None]:
    """Return group and metrics of each task that a rule can be on; None for a file that cannot be read and for a harness's task."""
    tasks: dict[str, Task | None] = dict.fromkeys(config.eval.harness)
    for name in config.eval.tasks:
        bench, settings = benches.found.get(name), config.bench.get(name)
        tasks[name] = None
        if bench is not None and settings is not None:
            tasks[name] = (settings.group or bench.group or "general", metrics_of(bench, settings.pass_at))
    tasks.update(dict.fromkeys(config.eval.harness))  # a task file says what it measures when it is loaded
    return tasks


def group_of_rule(rule: GateRuleConfig, config: ExperimentConfig, tasks: Mapping[str, Task | None]) -> RuleGroup:
    """Return what a rule protects: what it says itself, else the role of its text or the group of its task."""
    if rule.group is not None:
        return cast(RuleGroup, rule.group)  # its words are checked before
    task = tasks.get(rule.of)
    if task is not None:
        return cast(RuleGroup, task[0])
    source = config.source.get(rule.of)
    return "domain" if source is not None and source.role == "domain" else "general"


def gate_plan_of(config: ExperimentConfig, tasks: Mapping[str, Task | None]) -> GatePlan:
    return GatePlan(
        rules=tuple(
            GateRule(
                of=rule.of,
                kind="must_improve" if rule.kind == "must_improve" else "may_not_worsen",
                margin=rule.margin,
                metric=rule.metric,
                group=group_of_rule(rule, config, tasks),
                required=rule.required,
                confidence=rule.confidence,
            )
            for rule in config.gate.rules
        ),
        confidence=config.gate.confidence,
        bootstrap_samples=config.gate.bootstrap_samples,
        seed=config.seed,
        limits=tuple(GateLimit(of=limit.of, max_increase=limit.max_increase) for limit in config.gate.limits),
        retries=tuple(retry_of(retry) for retry in config.gate.retries),
        max_retries=config.gate.max_retries,
    )


def peak_of(config: ExperimentConfig, host: HostFacts) -> Figure:
    """Return the dense peak of one device in TFLOP/s, in the format that the run multiplies in, or which key would set it."""
    gpu = config.gpu
    if config.parallel.fp8 != "none":
        return known(gpu.dense_fp8_tflops, key="gpu.dense_fp8_tflops", reason="parallel.fp8 is not measured by the bf16 peak")
    if config.cluster.backend == "cpu" and gpu.dense_tflops is None:
        return host.matrix_tflops
    if config.cluster.backend == "cuda" and config.parallel.dtype == "fp32":
        return Unavailable(FP32_REASON)
    return known(gpu.dense_tflops, key="gpu.dense_tflops")


def utilization_of(config: ExperimentConfig, shape: ModelShape, *, peak: Figure) -> tuple[Interval | Unavailable, str]:
    """Return the expected share of the device's peak and where it is from: the configuration's own, or published runs like this one.

    bf16's share says nothing about FP8's, and no other device's about this one.
    """
    gpu, fp8 = config.gpu, config.parallel.fp8 != "none"
    shares = (gpu.fp8_mfu_low, gpu.fp8_mfu_likely, gpu.fp8_mfu_high) if fp8 else (gpu.mfu_low, gpu.mfu_likely, gpu.mfu_high)
    low, likely, high = shares
    if low is not None and likely is not None and high is not None:
        return Interval(low=low, likely=likely, high=high), "set in the configuration"
    if isinstance(peak, Unavailable):
        return peak, ""
    runs = comparable_runs(
        gpu_name=gpu.name,
        peak_tflops=peak,
        fp8=fp8,
        has_experts=bool(shape.num_experts),
        num_params=num_params(shape, num_rows=shape.num_base_ids),
    )
    if runs:
        names = ", ".join(run.id for run in runs[:4])
        return published_utilization(runs), f"{len(runs)} published runs: {names}{', ...' if len(runs) > 4 else ''}"
    if fp8:
        return Unavailable("set gpu.fp8_mfu_low, gpu.fp8_mfu_likely and gpu.fp8_mfu_high: shares of the FP8 peak that you measured"), ""
    return published_utilization(runs), ""


def goodput_of(config: ExperimentConfig, *, seconds_per_step: Figure) -> Figure:
    """Return the share of elapsed time that trains, at the configuration's checkpoint interval."""
    mtbf: Figure = known(config.gpu.mtbf_hours, key="gpu.mtbf_hours")
    if isinstance(seconds_per_step, Unavailable):
        return seconds_per_step
    if seconds_per_step == 0:
        return Unavailable("no step is trained")
    return goodput(
        num_devices=config.cluster.num_nodes * config.cluster.ranks_per_node,
        device_mtbf_hours=mtbf,
        checkpoint_seconds=config.cluster.checkpoint_seconds,
        restart_seconds=config.cluster.restart_seconds,
        interval_seconds=config.checkpoint.every_steps * seconds_per_step,
    )


def estimate_run(
    config: ExperimentConfig,
    *,
    shape: ModelShape,
    num_rows: int,
    layout: Layout,
    num_steps: int,
    tariff: Tariff,
    host: HostFacts,
    num_stored_tokens: int,
) -> Estimate:
    """Estimate memory, time, money, energy and carbon of the training steps; `num_stored_tokens` are those of the token files."""
    gpu = config.gpu
    on_cpu = config.cluster.backend == "cpu"
    tokens = num_steps * layout.tokens_per_step
    flops = flops_per_token(shape, num_rows=num_rows, sequence_length=layout.sequence_length)
    peak = peak_of(config, host)
    utilization, from_where = utilization_of(config, shape, peak=peak)
    repeated = recomputed_flops_per_token(shape, sequence_length=layout.sequence_length, recompute=layout.recompute)
    seconds = training_seconds(total_flops=(flops + repeated) * tokens, layout=layout, dense_tflops=peak, utilization=utilization)
    likely: Figure = seconds if isinstance(seconds, Unavailable) else seconds.likely
    machine = Unavailable("a step is predicted for GPUs only") if on_cpu else machine_of(gpu, config.cluster, dtype=config.parallel.dtype)
    predicted = step_time(shape, layout, machine, num_rows=num_rows).total if isinstance(machine, Machine) else machine
    trained = goodput_of(config, seconds_per_step=combine(lambda value: value / max(num_steps, 1), likely))
    params = num_params(shape, num_rows=num_rows)
    stored = stored_gb(
        num_params=params,
        layout=layout,
        num_checkpoints=config.checkpoint.keep_last + config.checkpoint.keep_best,
        num_tokens=num_stored_tokens,
        num_ids=num_rows,
    )
    device_hours = product(seconds, layout.num_ranks / 3600)
    bill = bill_of(device_hours, tariff, stored_gb=stored, goodput=trained, allowance=config.allowance)
    return Estimate(
        num_params=params,
        memory=memory_of_stages(shape, layout, num_rows=num_rows, build=ON_CPU if on_cpu else ON_CUDA),
        memory_limit_bytes=memory_limit_bytes(config, host),
        flops_per_token=flops,
        flops_convention=FLOPS_CONVENTION,
        tokens=tokens,
        seconds_low=seconds if isinstance(seconds, Unavailable) else seconds.low,
        seconds=likely,
        seconds_high=seconds if isinstance(seconds, Unavailable) else seconds.high,
        device_hours=likely_of(device_hours),
        usd=likely_of(bill.usd),
        kwh=likely_of(bill.kwh),
        kg_co2e=likely_of(bill.kg_location),
        basis=_basis(config, peak, utilization, from_where=from_where, goodput=trained, step_seconds=predicted),
        dense_tflops=peak,
        step_seconds=predicted,
        goodput=trained,
        elapsed_seconds=combine(lambda value, share: value / share, likely, trained),
        bill=bill,
    )


def memory_limit_bytes(config: ExperimentConfig, host: HostFacts) -> Figure:
    """Return what one rank may use: the device's memory, or its part of this node's free memory on a CPU."""
    if config.gpu.memory_gb is not None:
        return config.gpu.memory_gb * 1e9
    if config.cluster.backend == "cpu":
        return combine(lambda free: free / config.cluster.ranks_per_node, host.memory_available_bytes)
    return Unavailable("set gpu.memory_gb")


def _basis(
    config: ExperimentConfig, peak: Figure, utilization: Interval | Unavailable, *, from_where: str, goodput: Figure, step_seconds: Figure
) -> tuple[str, ...]:
    gpu = config.gpu
    measured = config.cluster.backend == "cpu" and gpu.dense_tflops is None
    rate = str(peak) if isinstance(peak, Unavailable) else f"{peak:.4g} TFLOP/s" + (" in FP8" if config.parallel.fp8 != "none" else "")
    share = str(utilization)
    if isinstance(utilization, Interval):
        share = f"{utilization.low:.2g} low, {utilization.likely:.2g} likely, {utilization.high:.2g} high ({from_where})"
    lines = [
        f"peak of one device: {rate} ({'fp32 matrix rate measured on this host' if measured else gpu.source})",
        f"share of peak: {share}, before the pipeline bubble and recomputation",
    ]
    if not isinstance(step_seconds, Unavailable):
        lines.append(f"a step predicted from kernels and links alone: {step_seconds:.3g} s, as a check of the share")
    lines.append(_allowance(config, goodput))
    return tuple(lines)


def _allowance(config: ExperimentConfig, share: Figure) -> str:
    """Return what the time leaves out, and what checkpoints and interruptions add where that can be said."""
    if isinstance(share, Unavailable):
        return "time is that of the training steps: no allowance for checkpoints, evaluation, waiting or failures"
    assert config.gpu.mtbf_hours is not None, "the share is known"
    mtbf = config.gpu.mtbf_hours * 3600 / (config.cluster.num_nodes * config.cluster.ranks_per_node)
    best = checkpoint_interval_seconds(mtbf_seconds=mtbf, checkpoint_seconds=config.cluster.checkpoint_seconds)
    return (
        f"time is that of the training steps, {share:.1%} of what elapses; checkpoints and interruptions (one in {show_duration(mtbf)})"
        f" take the rest. The checkpoint interval that loses least is {show_duration(best)}."
    )
