"""The text of a layout search: the best layouts with memory, days and cost, and what the configuration's own loses."""

from __future__ import annotations

import textwrap

from megatron_cpt.plan.page import show_duration
from megatron_cpt.plan.run_plan import Layout
from megatron_cpt.plan.search import Candidate, SearchResult, overrides_of, why_slower
from megatron_cpt.record.unknown import Amount, Figure, Unavailable

_HEADER = (
    f"{'':4}{'tp x pp x cp x dp':>18} {'chunks':>6} {'ep':>3} {'mbs':>3} {'recompute':>9} {'optimizer':>9}"
    f" {'GB':>6} {'s/step':>8} {'time':>8} {'USD':>10}"
)


def search_page(found: SearchResult, *, num_steps: int, usd_per_device_hour: Figure, device: str) -> str:
    """Return the page.

    Args:
        num_steps: of the run; time is that of its training steps, as the step model predicts it.
    """
    lines = [
        f"{found.num_layouts} layouts divide on {device}; {found.num_too_large} of those looked at do not fit. Fastest first"
        " (with given ranks also cheapest first):",
        _HEADER,
    ]
    lines += [
        _line(f"{number}.", candidate, num_steps=num_steps, usd_per_device_hour=usd_per_device_hour)
        for number, candidate in enumerate(found.best, 1)
    ]
    if not found.best:
        lines.append("  none fits: more ranks, a shorter sequence or a smaller model is needed")
    if found.own is not None:
        lines.append(_line("own", found.own, num_steps=num_steps, usd_per_device_hour=usd_per_device_hour))
    lines += [f"  the configuration's own layout cannot run: {problem}" for problem in found.own_problems]
    if found.best and found.own is not None:
        share = found.own.step.total / found.best[0].step.total - 1
        reasons = why_slower(found.own.step, found.best[0].step)
        if share <= 0.01:
            lines.append("  the configuration's own layout is as fast as the best one, to 1 %")
        else:
            lines.append(f"  the configuration's own layout is {share:.0%} slower than the first one:")
            lines += [f"    {reason} a step" for reason in reasons]
    if found.best:
        lines += [
            "the first one:",
            *textwrap.wrap(" ".join(overrides_of(found.best[0].layout)), 118, initial_indent="  ", subsequent_indent="  "),
        ]
    return "\n".join(lines) + "\n"


def _line(label: str, candidate: Candidate, *, num_steps: int, usd_per_device_hour: Figure) -> str:
    layout, step = candidate.layout, candidate.step
    seconds = step.total * num_steps
    price = "unknown"
    if not isinstance(usd_per_device_hour, Unavailable):
        price = f"{Amount(seconds / 3600 * layout.num_ranks * usd_per_device_hour):.4g}"
    split = f"{layout.tensor} x {layout.pipeline} x {layout.context} x {layout.data}"
    return (
        f"{label:<4}{split:>18} {layout.virtual_pipeline:>6} {layout.expert:>3} {layout.micro_batch_size:>3} {layout.recompute:>9}"
        f" {_sharding(layout):>9} {candidate.memory_bytes / 1e9:>6.1f} {step.total:>8.3g} {show_duration(seconds):>8} {price:>10}"
    )


def _sharding(layout: Layout) -> str:
    return "fsdp" if layout.fsdp else "sharded" if layout.distributed_optimizer else "whole"
