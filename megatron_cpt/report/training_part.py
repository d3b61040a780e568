"""Loss, rate and gradient norm; throughput and utilization; memory as planned and as measured."""

from __future__ import annotations

from megatron_cpt.charts.data import COLOURS, Axis, BarChart, BarSeries, Mark, Series, XYChart, thinned
from megatron_cpt.charts.figure import charts, figure
from megatron_cpt.charts.page import table
from megatron_cpt.plan.page_text import memory_parts, show_bytes
from megatron_cpt.record.unknown import Amount, Unavailable
from megatron_cpt.report.records import RunRecords
from megatron_cpt.report.section import Section, note
from megatron_cpt.report.steps import is_number, points_of

TOKENS = Axis("tokens trained on")
GB = 1e9


def training(records: RunRecords) -> Section:
    """Return loss, learning rate and gradient norm over tokens; steps that were rolled back have a picture of their own."""
    found = records.training
    if not found.steps:
        return Section("training", "Training", "<p>Unknown: no step is recorded.</p>")
    left = [
        Series(f"round {number}", thinned(points_of(steps, "loss")), COLOURS[place % len(COLOURS)], dashed=True)
        for place, (number, steps) in enumerate(found.left.items())
    ]
    marks = [
        Mark(tokens, f"resumed at step {resume['step']}")
        for resume in found.resumes
        if (tokens := found.tokens_at().get(resume.get("step", 0))) is not None and tokens > 0
    ]
    loss = [Series("loss", thinned(found.points("loss")))]
    rates = [Series("rate", thinned(found.points("lr")), "b")]
    if rows := found.points("lr_embedding"):
        rates.append(Series("rate of embedding rows", thinned(rows), "d", dashed=True))
    shown = [
        XYChart("Training loss", loss, TOKENS, Axis("nats per token"), marks=marks),
        *_loss_by_source(records),
        XYChart("Learning rate", rates, TOKENS, Axis("rate")),
        XYChart("Gradient norm, before clipping", [Series("norm", thinned(found.points("grad_norm")))], TOKENS, Axis("L2 norm")),
    ]
    if left:  # a picture of its own: one that ran away would flatten the other
        shown.append(XYChart("Loss of rounds left behind", left, TOKENS, Axis("nats per token")))
    skipped = sum(bool(step.get("is_skipped")) for step in found.steps)
    words = f"{len(found.steps):,} steps led to these weights."
    if skipped:
        words += f" The updates of {skipped:,} were bad, and no weight took them."
    return Section("training", "Training", charts([figure(each) for each in shown]) + note(words))


def _loss_by_source(records: RunRecords) -> list[XYChart]:
    names = dict.fromkeys(name for step in records.steps for name in step.get("source_loss", {}))
    series = []
    for number, name in enumerate(names):
        seen = [(float(step["tokens"]), step.get("source_loss", {}).get(name)) for step in records.steps]
        points = [(tokens, float(loss)) for tokens, loss in seen if is_number(loss)]
        series.append(Series(name, thinned(points), COLOURS[number % len(COLOURS)]))
    return [XYChart("Training loss by source", series, TOKENS, Axis("nats per token"))] if len(series) > 1 else []


def speed(records: RunRecords) -> Section:
    """Return throughput and utilization over tokens."""
    found = records.training
    if not found.steps:
        return Section("speed", "Throughput and utilization", "<p>Unknown: no step is recorded.</p>")
    shown = [XYChart("Throughput", [Series("tokens/s", thinned(found.points("tokens_per_second")), "b")], TOKENS, Axis("tokens/s"))]
    use = [(tokens, 100 * share) for tokens, share in found.points("mfu")]
    words = []
    if use:
        shown.append(XYChart("Model FLOPs utilization (MFU)", [Series("MFU", thinned(use), "d")], TOKENS, Axis("MFU", "%")))
        peak = found.head.get("mfu_peak_tflops_per_device")
        known = f"{peak:.4g} TFLOP/s" if is_number(peak) else str(peak)
        words += [f"MFU counts {found.head.get('mfu_convention', 'unknown')}; the peak of one device is {known}."]
    else:
        words += [f"MFU: unknown ({found.head.get('mfu_peak_tflops_per_device', 'not recorded')})."]
    seconds = sum(float(step["seconds"]) for step in found.steps if is_number(step.get("seconds")))
    tokens = float(found.steps[-1]["tokens"]) - _tokens_before(records)
    if seconds > 0:
        words += [f"Over all steps: {Amount(tokens / seconds):.4g} tokens/s."]
    return Section("speed", "Throughput and utilization", charts([figure(each) for each in shown]) + note(*words))


def _tokens_before(records: RunRecords) -> float:
    """Return the tokens that were seen before the first step that is recorded."""
    first = records.steps[0]
    return float(first["tokens"]) - float(first.get("tokens_per_second", 0.0)) * float(first.get("seconds", 0.0))


def memory(records: RunRecords) -> Section | None:
    """Return the planned peak of each pipeline stage, itemised, beside the measured one; None before there is a plan."""
    plan = records.plan
    if plan is None:
        return None
    ranks = plan.estimate.memory
    key = "device_peak_bytes" if plan.backend == "cuda" else "resident_bytes"
    read = [float(step[key]) for step in records.steps if is_number(step.get(key))]
    measured = max(read) if read else None
    stages = [f", stage {rank.pipeline_rank}" if len(ranks) > 1 else "" for rank in ranks]
    saves = [max(rank.checkpoint_save, rank.checkpoint_load) for rank in ranks]
    save_names = [f"planned: a checkpoint{stage}" for stage in stages if max(saves) > 0]
    names = [*(f"planned: a step{stage}" for stage in stages), *save_names, "measured peak"]
    kinds = list(dict.fromkeys(name for rank in ranks for name, size in memory_parts(rank).items() if size > 0))
    rest = [None] * (len(names) - len(ranks))
    series = [
        BarSeries(kind, [*(memory_parts(rank)[kind] / GB for rank in ranks), *rest], COLOURS[number % len(COLOURS)])
        for number, kind in enumerate(kinds)
    ]
    if save_names:
        series.append(BarSeries("a checkpoint", [*(None for _ in ranks), *(size / GB for size in saves), None], "c"))
    series.append(BarSeries("measured", [*(None for _ in names[:-1]), None if measured is None else measured / GB], "good"))
    chart = BarChart("Memory of a rank", names, series, Axis("GB"), stacked=True, pattern="{:.3g}")
    head = ("part", *(f"stage {rank.pipeline_rank}" for rank in ranks))
    rows = [(kind, *(show_bytes(memory_parts(rank)[kind]) for rank in ranks)) for kind in kinds]
    rows += [("a step in all", *(show_bytes(rank.allocated_peak + rank.allowance + rank.outside_torch) for rank in ranks))]
    rows += [("while a checkpoint is written or read", *(show_bytes(size) for size in saves))]
    limit = plan.estimate.memory_limit_bytes
    peak = "unknown (no step has a reading)" if measured is None else show_bytes(measured)
    words = [
        f"Measured: {peak}, {records.training.head.get('memory_scope', 'of the first rank')}.",
        "It is what torch allocated."
        if plan.backend == "cuda"
        else "It is all that the process holds at the end of a step, Python and libraries included.",
        f"The device has {limit if isinstance(limit, Unavailable) else show_bytes(limit)}.",
    ]
    columns = tuple(range(1, len(head)))
    return Section("memory", "Memory", charts([figure(chart)]) + table(head, rows, numbers=columns) + note(*words))
