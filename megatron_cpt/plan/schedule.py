"""The learning-rate schedule of a configuration: what is wrong with it, and the frozen `SchedulePlan`. Pure.

The formulas are in train/schedule.py; here lengths given as fractions, tokens or samples become samples.
"""

from __future__ import annotations

import math
from typing import Any, get_args, get_type_hints

from megatron_cpt.config.schema import ExperimentConfig, ScheduleConfig
from megatron_cpt.plan.run_plan import SchedulePlan
from megatron_cpt.record.vocab_layout import VocabLayout

SCHEDULE_KINDS: tuple[str, ...] = get_args(get_type_hints(SchedulePlan)["kind"])
ANNEAL_SHAPES: tuple[str, ...] = get_args(get_type_hints(SchedulePlan)["anneal_shape"])
PHASES = ("warmup", "cooldown", "anneal")
UNITS = ("fraction", "tokens", "samples")
DEFAULT_WARMUP_FRACTION = 0.01  # Ibrahim et al. 2024, arXiv 2403.08763: 0 to 2 % end alike

# The settings that only some kinds have. Elsewhere they would say something that the run does not do.
_KINDS_WITH = {"anneal": ("wsd", "infinite"), "cooldown": ("infinite",), "anneal_shape": ("wsd",), "constant_lr": ("infinite",)}


def schedule_problems(config: ExperimentConfig, vocab: VocabLayout, *, sizes_are_positive: bool) -> list[str]:
    """Return what is wrong with the schedule, and what does not fit the run once batch, sequence and run have sizes."""
    schedule = config.schedule
    if schedule.kind not in SCHEDULE_KINDS:
        return [f"schedule.kind={schedule.kind!r} is not one of {', '.join(SCHEDULE_KINDS)}."]
    problems = [*_rate_problems(schedule), *_length_problems(schedule), *_new_rows_problems(schedule, vocab)]
    return problems if problems or not sizes_are_positive else _fit_problems(config)


def schedule_of(config: ExperimentConfig) -> SchedulePlan:
    """Return the frozen schedule of a configuration without problems."""
    schedule = config.schedule
    stage = _new_rows_samples(config)
    floor = _floor(schedule)
    fields: dict[str, Any] = {
        "kind": schedule.kind,
        "peak_lr": schedule.peak_lr,
        "min_lr": schedule.peak_lr if floor is None else floor,
        "warmup_samples": _samples(config, "warmup"),
        "decay_samples": _num_samples(config) - stage,
    }
    if schedule.kind in _KINDS_WITH["anneal"]:
        fields["anneal_samples"] = _samples(config, "anneal")
    if schedule.kind == "wsd":
        fields["anneal_shape"] = schedule.anneal_shape
    if schedule.kind == "infinite":
        fields |= {"cooldown_samples": _samples(config, "cooldown"), "constant_lr": schedule.constant_lr}
    if schedule.warmup_from_lr is not None:
        fields["warmup_from_lr"] = schedule.warmup_from_lr
    if stage:
        fields |= {"new_rows_samples": stage, "new_rows_lr": schedule.new_rows_lr}
    return SchedulePlan(**fields)


def describe(schedule: SchedulePlan, *, embedding_lr_scale: float) -> str:
    """Return the schedule as one sentence of phases, lengths in samples."""
    end = schedule.decay_samples
    anneal = end - schedule.anneal_samples
    after_warmup = {
        "cosine": f"cosine to {schedule.min_lr:g} at {end}",
        "linear": f"line to {schedule.min_lr:g} at {end}",
        "constant": "constant",
        "wsd": f"constant to {anneal}, then {schedule.anneal_shape} to {schedule.min_lr:g} at {end}",
        "infinite": f"cosine to {schedule.constant_lr:g} over {schedule.cooldown_samples}, constant to {anneal}, then geometric to"
        f" {schedule.min_lr:g} at {end}",
    }[schedule.kind]
    start = f"from {schedule.warmup_from_lr:g} " if schedule.warmup_from_lr else ""
    text = f"{schedule.kind}: {start}up to {schedule.peak_lr:g} over {schedule.warmup_samples} samples, {after_warmup}"
    if schedule.new_rows_samples:
        text = f"new rows alone at {schedule.new_rows_lr:g} for {schedule.new_rows_samples} samples, then {text}"
    if embedding_lr_scale != 1.0:
        text += f"; embedding and output rows at {embedding_lr_scale:g} times that"
    return text


def _rate_problems(schedule: ScheduleConfig) -> list[str]:
    peak, floor = schedule.peak_lr, _floor(schedule)
    if not (math.isfinite(peak) and peak > 0):
        return [f"schedule.peak_lr={peak:g} is not a rate. Use peak_lr >= min_lr > 0."]
    problems = []
    if schedule.min_lr is not None and schedule.min_fraction is not None:
        problems.append(
            f"schedule.min_lr={schedule.min_lr:g} and schedule.min_fraction={schedule.min_fraction:g} both give the floor."
            " Set one of them to null."
        )
    elif floor is None:
        if schedule.kind != "constant":
            problems.append("schedule.min_lr has no value. Give it, or schedule.min_fraction of the peak, 0.1 say.")
    elif not peak >= floor > 0:
        key = "min_lr" if schedule.min_lr is not None else "min_fraction"
        problems.append(f"schedule.peak_lr={peak:g} and a floor of {floor:g} (schedule.{key}) do not fit. Use peak_lr >= min_lr > 0.")
    if schedule.kind == "infinite":
        constant = schedule.constant_lr
        if constant is None:
            problems.append("schedule.constant_lr has no value; an infinite schedule needs it, between min_lr and peak_lr.")
        elif not peak >= constant >= (floor or 0) or not constant > 0:
            problems.append(f"schedule.constant_lr={constant:g} does not lie between the floor ({floor}) and the peak ({peak:g}).")
    elif schedule.constant_lr is not None:
        problems.append(_useless("constant_lr", schedule))
    start = schedule.warmup_from_lr
    if start is not None and not 0 <= start <= peak:
        problems.append(f"schedule.warmup_from_lr={start:g} does not lie between 0 and the peak ({peak:g}), to which the warm-up rises.")
    return problems


def _length_problems(schedule: ScheduleConfig) -> list[str]:
    problems = []
    for phase in PHASES:
        given = _given(schedule, phase)
        if phase in _KINDS_WITH and schedule.kind not in _KINDS_WITH[phase]:
            problems += [_useless(f"{phase}_{unit}", schedule) for unit in given]
            continue
        if phase in _KINDS_WITH and not given:
            problems.append(f"schedule.{phase}_fraction has no value; kind={schedule.kind} needs it, or {phase}_tokens or {phase}_samples.")
        if len(given) > 1:
            problems.append(f"schedule.{phase} has {len(given)} lengths ({', '.join(given)}). Set all but one to null.")
        for unit, length in given.items():
            if unit == "fraction" and not 0 <= length < 1:
                problems.append(f"schedule.{phase}_fraction={length} is not a share of the run. Use 0 or more, below 1.")
            elif not length >= 0:
                problems.append(f"schedule.{phase}_{unit}={length} is below 0.")
    if schedule.kind == "wsd" and schedule.anneal_shape not in ANNEAL_SHAPES:
        problems.append(f"schedule.anneal_shape={schedule.anneal_shape!r} is not one of {', '.join(ANNEAL_SHAPES)}.")
    elif schedule.kind != "wsd" and schedule.anneal_shape is not None:
        problems.append(_useless("anneal_shape", schedule))
    return problems


def _new_rows_problems(schedule: ScheduleConfig, vocab: VocabLayout) -> list[str]:
    tokens, rate = schedule.new_rows_first_tokens, schedule.new_rows_lr
    if tokens < 0:
        return [f"schedule.new_rows_first_tokens={tokens} is below 0. Use 0 for no such stage."]
    if not tokens:
        return (
            []
            if rate is None
            else [f"schedule.new_rows_lr={rate:g} has no stage to apply to. Set schedule.new_rows_first_tokens, or null."]
        )
    problems = []
    if vocab.num_ids == vocab.num_base_ids:
        problems.append(f"schedule.new_rows_first_tokens={tokens}, but the vocabulary has no new rows. Use 0, or tokenizer=extend.")
    if rate is None:
        problems.append("schedule.new_rows_lr has no value; the stage that trains only new rows has a rate of its own.")
    elif not (math.isfinite(rate) and rate > 0):
        problems.append(f"schedule.new_rows_lr={rate:g} is not a rate. Use a number above 0.")
    return problems


def _fit_problems(config: ExperimentConfig) -> list[str]:
    """Say where the phases, each of which is a length, are together longer than the run."""
    stage, run = _new_rows_samples(config), _num_samples(config)
    if stage >= run:
        return [
            f"schedule.new_rows_first_tokens={config.schedule.new_rows_first_tokens} are {stage} samples in whole steps, and the run has"
            f" {run}. Leave steps for the whole model."
        ]
    if config.schedule.warmup_from_lr is not None and not _samples(config, "warmup"):
        return [
            f"schedule.warmup_from_lr={config.schedule.warmup_from_lr:g} means nothing without a warm-up, which has no sample here."
            " Give the warm-up a length, or set it to null."
        ]
    phases = {phase: samples for phase in PHASES if (samples := _samples(config, phase))}
    if sum(phases.values()) > run - stage:
        listed = ", ".join(f"{phase} {samples}" for phase, samples in phases.items())
        return [
            f"the schedule's phases are longer than the run: {listed} samples, and there are {run - stage}. Shorten them in schedule.*."
        ]
    return []


def _useless(key: str, schedule: ScheduleConfig) -> str:
    kinds = _KINDS_WITH.get(key) or _KINDS_WITH[key.split("_", maxsplit=1)[0]]
    return (
        f"schedule.{key}={getattr(schedule, key)} means nothing for kind={schedule.kind}, only for {' and '.join(kinds)}. Set it to null."
    )


def _floor(schedule: ScheduleConfig) -> float | None:
    if schedule.min_lr is not None:
        return schedule.min_lr
    return None if schedule.min_fraction is None else schedule.min_fraction * schedule.peak_lr


def _given(schedule: ScheduleConfig, phase: str) -> dict[str, float]:
    """Return the lengths of a phase that have a value, by unit."""
    lengths = {unit: getattr(schedule, f"{phase}_{unit}") for unit in UNITS}
    return {unit: length for unit, length in lengths.items() if length is not None}


def _samples(config: ExperimentConfig, phase: str) -> int:
    """Return the length of a phase in samples; a fraction is of the run after the new-rows stage."""
    given = _given(config.schedule, phase)
    if not given and phase == "warmup":
        given = {"fraction": DEFAULT_WARMUP_FRACTION}
    for unit, length in given.items():
        if unit == "samples":
            return int(length)
        per_unit = 1 / config.parallel.sequence_length if unit == "tokens" else _num_samples(config) - _new_rows_samples(config)
        return round(length * per_unit)
    return 0


def _num_samples(config: ExperimentConfig) -> int:
    parallel = config.parallel
    return math.ceil(config.blend.num_tokens / (parallel.global_batch_size * parallel.sequence_length)) * parallel.global_batch_size


def _new_rows_samples(config: ExperimentConfig) -> int:
    """Return the samples of the new-rows stage: whole steps, at least the tokens asked for."""
    parallel = config.parallel
    tokens_per_step = parallel.global_batch_size * parallel.sequence_length
    return max(0, math.ceil(config.schedule.new_rows_first_tokens / tokens_per_step)) * parallel.global_batch_size
