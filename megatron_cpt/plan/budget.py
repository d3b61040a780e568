"""Checks of prices, factors and stop conditions, and of the estimate against memory and limits."""

from __future__ import annotations

import math
import re
from datetime import date
from itertools import pairwise

from megatron_cpt.config.schema import ExperimentConfig
from megatron_cpt.plan.grid import region_problem
from megatron_cpt.plan.money import clock_limits
from megatron_cpt.plan.page_text import memory_items
from megatron_cpt.plan.run_plan import Estimate, Layout, StopConditions, Tariff
from megatron_cpt.record.unknown import Amount, Figure, Unavailable

_DAY = re.compile(r"\d{4}-\d{2}(-\d{2})?")


def tariff_problems(config: ExperimentConfig) -> list[str]:
    """Check prices and factors for values that nothing real can have, and each for its source; a price needs the date of its quotation."""
    tariff, allowance = config.tariff, config.allowance
    problems = [
        f"{key}={value} is not 0 or more. Use null when it is not known."
        for key, value in {
            "tariff.usd_per_device_hour": tariff.usd_per_device_hour,
            "tariff.grid_g_co2e_per_kwh": tariff.grid_g_co2e_per_kwh,
            "tariff.market_g_co2e_per_kwh": tariff.market_g_co2e_per_kwh,
            "tariff.usd_per_gb_month": tariff.usd_per_gb_month,
            "tariff.keep_months": tariff.keep_months,
            "tariff.embodied_g_co2e_per_device_hour": tariff.embodied_g_co2e_per_device_hour,
            "allowance.likely": allowance.likely,
        }.items()
        if value is not None and not (value >= 0 and math.isfinite(value))
    ]
    for key, value in (("pue", tariff.pue), ("pue_low", tariff.pue_low)):
        if value is not None and not (value >= 1 and math.isfinite(value)):
            problems.append(f"tariff.{key}={value} is below 1: a site cannot draw less than its machines.")
    problems += _interval_problems(config)
    problems += _source_problems(config)
    for key, price, day in (
        ("price_date", tariff.usd_per_device_hour, tariff.price_date),
        ("storage_date", tariff.usd_per_gb_month, tariff.storage_date),
    ):
        if price is not None and not _is_day(day):
            problems.append(
                f"tariff.{key}={day!r} is not the date of the price (2026-05-20 or 2026-05): a price without its date cannot be checked."
            )
    if tariff.grid_region is not None:
        wrong = region_problem(tariff.grid_region)
        problems += [] if wrong is None else [wrong]
    if tariff.usd_per_gb_month is not None and tariff.keep_months is None:
        problems.append("tariff.usd_per_gb_month is set, and tariff.keep_months does not say for how long the run's files are kept.")
    return problems


def _is_day(text: str) -> bool:
    if not _DAY.fullmatch(text):
        return False
    try:
        date.fromisoformat(text if len(text) > len("2026-05") else f"{text}-01")
    except ValueError:
        return False
    return True


def _interval_problems(config: ExperimentConfig) -> list[str]:
    tariff, allowance = config.tariff, config.allowance
    problems = []
    for key, low, likely, high in (
        ("tariff.usd_per_device_hour", tariff.usd_per_device_hour_low, tariff.usd_per_device_hour, tariff.usd_per_device_hour_high),
        ("tariff.pue", tariff.pue_low, tariff.pue, tariff.pue_high),
        ("allowance", allowance.low, allowance.likely, allowance.high),
    ):
        ends = [value for value in (low, likely, high) if value is not None]
        if key == "tariff.pue" and likely is not None and not likely >= 1:
            continue  # said already
        if (likely is None and ends) or any(not left <= right for left, right in pairwise(ends)):
            problems.append(f"{key}: low {low}, likely {likely}, high {high} are not an interval. Use low <= likely <= high, or null.")
    return problems


def _source_problems(config: ExperimentConfig) -> list[str]:
    tariff = config.tariff
    sourced = {
        "tariff.price_source": (tariff.usd_per_device_hour, tariff.price_source),
        "tariff.pue_source": (tariff.pue, tariff.pue_source),
        "tariff.grid_source": (tariff.grid_g_co2e_per_kwh, tariff.grid_source),
        "tariff.market_source": (tariff.market_g_co2e_per_kwh, tariff.market_source),
        "tariff.storage_source": (tariff.usd_per_gb_month, tariff.storage_source),
        "tariff.embodied_source": (tariff.embodied_g_co2e_per_device_hour, tariff.embodied_source),
        "allowance.source": (config.allowance.likely, config.allowance.source),
    }
    return [
        f"{key} is empty: a figure without its source and date cannot be checked."
        for key, (figure, source) in sourced.items()
        if figure is not None and not source.strip()
    ]


def stop_score_problems(config: ExperimentConfig) -> list[str]:
    """Check that every score at which training stops is one that the in-loop evaluation makes."""
    problems = []
    tokens_per_step = config.parallel.global_batch_size * config.parallel.sequence_length
    most = config.stop.max_tokens
    if most is not None and most < tokens_per_step:
        problems.append(f"stop.max_tokens={most} is below one step, {tokens_per_step} tokens. Raise it, or use null for no such limit.")
    for number, score in enumerate(config.stop.scores):
        label = f"stop.scores[{number}]"
        given = [value for value in (score.at_most, score.at_least) if value is not None]
        if len(given) != 1 or not math.isfinite(given[0]):
            problems.append(f"{label} on {score.of!r} needs one of at_most and at_least, a number in the metric's unit.")
        if score.of in config.eval.tasks and not config.eval.tasks_in_loop:
            problems.append(f"{label}.of={score.of!r} is a task, and eval.tasks_in_loop=false: no task is scored while training.")
        elif score.of not in (*config.eval.texts, *config.eval.tasks):
            known = ", ".join((*config.eval.texts, *config.eval.tasks)) or "none"
            problems.append(f"{label}.of={score.of!r} is not one of eval.texts and eval.tasks ({known}).")
    if config.stop.scores and config.monitor.eval_every_steps < 1:
        problems.append("stop.scores are looked at when the model is scored in the loop, and monitor.eval_every_steps=0 never scores it.")
    return problems


def estimate_problems(estimate: Estimate, stop: StopConditions, layout: Layout, tariff: Tariff) -> list[str]:
    """Say where the estimate does not fit the memory or breaks a limit. A limit on an unknown figure cannot be kept, so it is refused."""
    problems = []
    largest = max(estimate.memory, key=lambda rank: rank.total)
    limit = estimate.memory_limit_bytes
    if not isinstance(limit, Unavailable) and largest.total > limit:
        problems.append(
            f"a rank of pipeline stage {largest.pipeline_rank} needs {largest.total / 1e9:.2f} GB and has {limit / 1e9:.2f} GB"
            f" ({memory_items(largest)})."
            f" Lower parallel.micro_batch_size ({layout.micro_batch_size}) or sequence_length, or split the model over more ranks."
        )
    hours: Figure = estimate.seconds if isinstance(estimate.seconds, Unavailable) else estimate.seconds / 3600
    limits: tuple[tuple[str, float | None, Figure, str], ...] = (
        ("stop.max_hours", stop.max_hours, hours, "h"),
        ("stop.max_usd", stop.max_usd, estimate.usd, "USD"),
        ("stop.max_kwh", stop.max_kwh, estimate.kwh, "kWh"),
    )
    for key, allowed, figure, unit in limits:
        if allowed is None:
            continue
        if not isinstance(figure, Unavailable) and figure > allowed:
            problems.append(
                f"the run is estimated at {Amount(figure):.4g} {unit}; {key} is {allowed:g}. Lower blend.num_tokens or raise the limit."
            )
    for key, seconds in clock_limits(stop, tariff, num_ranks=layout.num_ranks).items():
        if isinstance(seconds, Unavailable):
            problems.append(f"{key}={getattr(stop, key.removeprefix('stop.')):g} cannot be kept, because the rate is {seconds}.")
    return problems
