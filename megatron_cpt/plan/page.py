"""One page of a plan that a manager can read: 80 columns of plain text."""

from __future__ import annotations

import textwrap

from megatron_cpt.plan.metrics import TEXT_METRIC, metric_named
from megatron_cpt.plan.rules import rule_warnings
from megatron_cpt.plan.run_plan import RunPlan, grace_window_steps
from megatron_cpt.plan.schedule import describe
from megatron_cpt.record.unknown import Figure, Unavailable, show

WIDTH = 80
_INDENT = 12


def show_duration(seconds: Figure) -> str:
    """Return seconds as seconds, minutes, hours or days, whichever reads best."""
    if isinstance(seconds, Unavailable):
        return str(seconds)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s"


def show_count(number: float) -> str:
    """Return a large count with its unit: 134.5 M, 8.03 G."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.4g} {unit}"
    return f"{number:g}"


def show_bytes(size: float) -> str:
    """Return a size in decimal units: 24.1 MB, 61.7 GB."""
    for unit, length in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= length:
            return f"{size / length:.3g} {unit}"
    return f"{size:g} B"


def _field(label: str, text: str) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=f"{label:<{_INDENT}}", subsequent_indent=" " * _INDENT, break_long_words=True, break_on_hyphens=False
    )


def page(plan: RunPlan) -> str:
    """Return the plan as text of at most 80 columns."""
    return "\n".join([*_work(plan), "", *_price(plan), "", *_blend(plan), "", *_decision(plan), "", *_basis(plan)]) + "\n"


def _work(plan: RunPlan) -> list[str]:
    layout, estimate = plan.layout, plan.estimate
    largest = max(estimate.memory, key=lambda rank: rank.total)
    parts = ("weights", "gradients", "optimizer", "activations", "logits")
    limit = estimate.memory_limit_bytes
    of_limit = str(limit) if isinstance(limit, Unavailable) else show_bytes(limit)
    return [
        *_field("PLAN", plan.run_name if plan.round == 1 else f"{plan.run_name}, round {plan.round}"),
        *_field(
            "model",
            f"{show_count(estimate.num_params)} parameters, {plan.shape.num_layers} layers, {plan.vocab.num_ids} ids"
            f" ({plan.vocab.num_ids - plan.vocab.num_base_ids} new)",
        ),
        *_field(
            "ranks",
            f"{layout.num_ranks} on {layout.num_nodes} node(s), {plan.backend}, {layout.dtype}: tensor {layout.tensor}"
            f" x pipeline {layout.pipeline}"
            + (f" x context {layout.context}" if layout.context > 1 else "")
            + f" x data {layout.data}"
            + (f", {layout.virtual_pipeline} chunks a rank" if layout.virtual_pipeline > 1 else "")
            + (f", {layout.recompute} recompute" if layout.recompute != "none" else "")
            + (", weights in shards (FSDP)" if layout.fsdp else "")
            + (", gradients overlapped" if layout.overlap_grad_reduce else "")
            + (", weights overlapped" if layout.overlap_param_gather else "")
            + (f", FP8 {layout.fp8} ({layout.fp8_recipe})" if layout.fp8 != "none" else ""),
        ),
        *_field(
            "work",
            f"{show_count(estimate.tokens)} tokens = {estimate.tokens // layout.tokens_per_step} steps"
            f" x {layout.global_batch_size} sequences x {layout.sequence_length} tokens;"
            f" {estimate.flops_per_token / 1e9:.4g} GFLOP a token",
        ),
        *(_field("from", f"{plan.resumes_from.checkpoint} of round {plan.resumes_from.round}") if plan.resumes_from else []),
        *_field("schedule", describe(plan.schedule, embedding_lr_scale=plan.optimizer.embedding_lr_scale)),
        *_field(
            "memory",
            f"{show_bytes(largest.total)} of {of_limit} on the largest rank (stage {largest.pipeline_rank}): "
            + ", ".join(f"{part} {show_bytes(getattr(largest, part))}" for part in parts),
        ),
    ]


def _price(plan: RunPlan) -> list[str]:
    estimate = plan.estimate
    if isinstance(estimate.seconds, Unavailable):
        time = str(estimate.seconds)
    else:
        time = f"{show_duration(estimate.seconds)} likely, {show_duration(estimate.seconds_low)} to {show_duration(estimate.seconds_high)}"
    stop = plan.stop
    limits = [
        f"{value:g} {unit}" for value, unit in ((stop.max_hours, "h"), (stop.max_usd, "USD"), (stop.max_kwh, "kWh")) if value is not None
    ]
    return [
        *_field("time", time),
        *_field("device use", show(estimate.device_hours, "{:.4g} device-hours")),
        *_field("cost", show(estimate.usd, "{:.4g} USD") + _source(estimate.usd, plan.tariff.price_source)),
        *_field("energy", show(estimate.kwh, "{:.4g} kWh")),
        *_field("carbon", show(estimate.kg_co2e, "{:.4g} kg CO2e") + _source(estimate.kg_co2e, plan.tariff.grid_source)),
        *_field("stops at", f"{show_count(estimate.tokens)} tokens" + "".join(f", or {limit}" for limit in limits)),
    ]


def _source(figure: Figure, source: str) -> str:
    return "" if isinstance(figure, Unavailable) else f" ({source})"


def _blend(plan: RunPlan) -> list[str]:
    lines: list[str] = []
    for entry in plan.blend:
        lines += _field(
            "" if lines else "blend",
            f"{entry.share:.1%} {entry.source} ({entry.role}, {entry.licence}): {entry.num_samples} samples,"
            f" {entry.num_epochs:.2f} times its {show_count(entry.num_tokens)} tokens",
        )
    ends = [*(stage.first_step for stage in plan.blend_stages), plan.num_steps][1:]
    for stage, end in zip(plan.blend_stages, ends, strict=True):
        parts = ", ".join(
            f"{count / sum(stage.samples):.1%} {entry.source}" for entry, count in zip(plan.blend, stage.samples, strict=True)
        )
        lines += _field("", f"- steps {stage.first_step + 1} to {end}: {parts}")
    packing = {
        "positions restart in each document": plan.packing.reset_positions,
        "documents do not see each other": not plan.packing.cross_document_attention,
        "no loss from an end mark": not plan.packing.loss_on_end_of_document,
    }
    if any(packing.values()):
        lines += _field("", "- packing: " + ", ".join(words for words, holds in packing.items() if holds))
    return lines


def _decision(plan: RunPlan) -> list[str]:
    lines = [f"{'promoted if':<{_INDENT}}at {plan.gate.confidence:.0%} confidence, against the frozen base,"]
    for rule in plan.gate.rules:
        metric = metric_named(rule.metric)
        down = metric is not None and metric.lower_is_better
        margin = f"{rule.margin:g} {metric.unit if metric is not None and rule.metric == TEXT_METRIC else rule.metric}"
        falls, rise = ("falls", "rise") if down else ("rises", "fall")
        promise = f"{falls} by more than {margin}" if rule.kind == "must_improve" else f"does not {rise} by {margin} or more"
        own = f" (at {rule.confidence:.0%})" if rule.confidence is not None else ""
        lines += _field("", f"- {rule.on} {promise}{own}" + ("" if rule.required else " (advisory: decides nothing)"))
    lines += _field("", "shown by both a paired interval and a test; rolled back if harm beyond a margin is shown; otherwise unknown")
    start = "the initial weights" if plan.resumes_from is None else plan.resumes_from.checkpoint
    lines += _field("", f"a rollback goes back to {start}")
    for limit in plan.gate.limits:
        lines += _field("", f"rolled back at once when {limit.on} rises by more than {limit.max_increase:g} bits per byte in the loop")
    tried = ", then ".join(map(str, plan.gate.retries[: plan.gate.max_retries]))
    lines += _field("retries", f"after a rollback: {tried}; then it stops for you") if tried else []
    warnings = rule_warnings({rule.group for rule in plan.gate.rules if rule.required})
    if grace_window_steps(plan) >= plan.num_steps:
        warnings.append(f"the warm-up covers all {plan.num_steps} steps, in which nothing is judged: the verdict will be unknown")
    return [*lines, *(line for warning in warnings for line in _field("", f"- WARNING: {warning}"))]


def _basis(plan: RunPlan) -> list[str]:
    lines: list[str] = []
    for line in (*plan.estimate.basis, plan.estimate.flops_convention):
        lines += _field("" if lines else "basis", f"- {line}")
    return lines
