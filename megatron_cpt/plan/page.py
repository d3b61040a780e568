"""One page of a plan that a manager can read: 80 columns of plain text."""

from __future__ import annotations

from megatron_cpt.plan.metrics import TEXT_METRIC, metric_named
from megatron_cpt.plan.page_money import money_lines, summary
from megatron_cpt.plan.page_text import field, memory_items, show_bytes, show_count, show_duration
from megatron_cpt.plan.rules import rule_warnings
from megatron_cpt.plan.run_plan import Estimate, Layout, RunPlan, grace_window_steps
from megatron_cpt.plan.schedule import describe
from megatron_cpt.record.unknown import Unavailable

__all__ = ["host_lines", "layout_words", "memory_lines", "page", "show_bytes", "show_count", "show_duration"]
_INDENT = 12
_FEW_STAGES = 4


def page(plan: RunPlan, *, is_expected: bool = False) -> str:
    """Return the plan as text of at most 80 columns.

    Args:
        is_expected: nothing was read yet of the sources that the plan is for, and the page says so.
    """
    parts = [
        _head(plan, is_expected=is_expected),
        _work(plan),
        money_lines(plan),
        _blend(plan, is_expected=is_expected),
        _decision(plan),
        _basis(plan),
    ]
    return "\n\n".join("\n".join(lines) for lines in parts) + "\n"


def _head(plan: RunPlan, *, is_expected: bool) -> list[str]:
    name = plan.run_name if plan.round == 1 else f"{plan.run_name}, round {plan.round}"
    said = (
        field("", "No stage before the plan has finished, so this is what the configuration says, and nothing is frozen or written.")
        if is_expected
        else []
    )
    return [*field("EXPECTED" if is_expected else "PLAN", name), *summary(plan), *said]


def _work(plan: RunPlan) -> list[str]:
    layout, estimate = plan.layout, plan.estimate
    return [
        *field(
            "model",
            f"{show_count(estimate.num_params)} parameters, {plan.shape.num_layers} layers, {plan.vocab.num_ids} ids"
            f" ({plan.vocab.num_ids - plan.vocab.num_base_ids} new)",
        ),
        *field("ranks", layout_words(layout, plan.backend)),
        *field(
            "work",
            f"{show_count(estimate.tokens)} tokens = {estimate.tokens // layout.tokens_per_step} steps"
            f" x {layout.global_batch_size} sequences x {layout.sequence_length} tokens;"
            f" {estimate.flops_per_token / 1e9:.4g} GFLOP a token",
        ),
        *(field("from", f"{plan.resumes_from.checkpoint} of round {plan.resumes_from.round}") if plan.resumes_from else []),
        *field("schedule", describe(plan.schedule, embedding_lr_scale=plan.optimizer.embedding_lr_scale)),
        *memory_lines(plan.estimate),
        *host_lines(plan.estimate, plan.layout, backend=plan.backend),
    ]


def layout_words(layout: Layout, backend: str) -> str:
    """Return how model and batch are split."""
    return (
        f"{layout.num_ranks} on {layout.num_nodes} node(s), {backend}, {layout.dtype}: tensor {layout.tensor}"
        f" x pipeline {layout.pipeline}"
        + (f" x context {layout.context}" if layout.context > 1 else "")
        + f" x data {layout.data}"
        + (f", {layout.virtual_pipeline} chunks a rank" if layout.virtual_pipeline > 1 else "")
        + (f", {layout.recompute} recompute" if layout.recompute != "none" else "")
        + (", weights in shards (FSDP)" if layout.fsdp else "")
        + (", gradients overlapped" if layout.overlap_grad_reduce else "")
        + (", weights overlapped" if layout.overlap_param_gather else "")
        + (f", FP8 {layout.fp8} ({layout.fp8_recipe})" if layout.fp8 != "none" else "")
    )


def memory_lines(estimate: Estimate) -> list[str]:
    """Return what a rank of each pipeline stage needs, itemised; of many stages, the fullest one itemised and the sums of all."""
    stages, limit = estimate.memory, estimate.memory_limit_bytes
    of_limit = f"of {limit}" if isinstance(limit, Unavailable) else f"of {show_bytes(limit)}"
    largest = max(stages, key=lambda rank: rank.total)
    shown = stages if len(stages) <= _FEW_STAGES else (largest,)
    lines: list[str] = []
    for rank in shown:
        text = f"stage {rank.pipeline_rank}: {show_bytes(rank.total)} {of_limit} ({memory_items(rank)})"
        lines += field("" if lines else "memory", text if len(stages) > 1 else text.removeprefix("stage 0: "))
    if len(shown) < len(stages):
        lines += field("", "all stages: " + ", ".join(show_bytes(rank.total) for rank in stages))
    return lines


def host_lines(estimate: Estimate, layout: Layout, *, backend: str) -> list[str]:
    """Return what checkpoints take of a node's own memory, where the devices have theirs."""
    most = max(rank.host_checkpoint for rank in estimate.memory)
    if backend == "cpu" or most == 0:
        return []
    ranks = layout.num_ranks // layout.num_nodes
    text = f"{show_bytes(ranks * most)} of a node's memory while a checkpoint is written or read ({show_bytes(most)} a rank)"
    return field("host", text)


def _blend(plan: RunPlan, *, is_expected: bool) -> list[str]:
    lines: list[str] = []
    for entry in plan.blend:
        lines += field(
            "" if lines else "blend",
            f"{entry.share:.1%} {entry.source} ({entry.role}, {entry.licence}): {entry.num_samples} samples"
            + ("" if is_expected else f", {entry.num_epochs:.2f} times its {show_count(entry.num_tokens)} tokens"),
        )
    ends = [*(stage.first_step for stage in plan.blend_stages), plan.num_steps][1:]
    for stage, end in zip(plan.blend_stages, ends, strict=True):
        parts = ", ".join(
            f"{count / sum(stage.samples):.1%} {entry.source}" for entry, count in zip(plan.blend, stage.samples, strict=True)
        )
        lines += field("", f"- steps {stage.first_step + 1} to {end}: {parts}")
    packing = {
        "positions restart in each document": plan.packing.reset_positions,
        "documents do not see each other": not plan.packing.cross_document_attention,
        "no loss from an end mark": not plan.packing.loss_on_end_of_document,
    }
    if any(packing.values()):
        lines += field("", "- packing: " + ", ".join(words for words, holds in packing.items() if holds))
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
        lines += field("", f"- {rule.of} {promise}{own}" + ("" if rule.required else " (advisory: decides nothing)"))
    lines += field("", "shown by both a paired interval and a test; otherwise unknown")
    start = "the initial weights" if plan.resumes_from is None else plan.resumes_from.checkpoint
    lines += field("", f"rolled back to {start} if harm beyond a margin is shown")
    for limit in plan.gate.limits:
        lines += field("", f"rolled back at once when {limit.of} rises by more than {limit.max_increase:g} bits per byte in the loop")
    warnings = rule_warnings({rule.group for rule in plan.gate.rules if rule.required})
    if grace_window_steps(plan) >= plan.num_steps:
        warnings.append(f"the warm-up covers all {plan.num_steps} steps, in which nothing is judged: the verdict will be unknown")
    lines += [line for warning in warnings for line in field("", f"- WARNING: {warning}")]
    tried = ", then ".join(map(str, plan.gate.retries[: plan.gate.max_retries]))
    return lines + (field("retries", f"after a rollback: {tried}; then it stops for you") if tried else [])


def _basis(plan: RunPlan) -> list[str]:
    lines: list[str] = []
    for line in (*plan.estimate.basis, plan.estimate.flops_convention):
        lines += field("" if lines else "basis", f"- {line}")
    return lines
