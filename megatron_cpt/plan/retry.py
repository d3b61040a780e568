"""What a round after a rollback changes, by the policy that the plan has frozen. Pure."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping

from megatron_cpt.config.schema import ExperimentConfig, RetryConfig
from megatron_cpt.plan.run_plan import Retry

KEEP = "keep"
RATES = ("peak_lr", "min_lr", "constant_lr", "warmup_from_lr")


def retry_of(config: RetryConfig) -> Retry:
    """Return the frozen form of a change without problems."""
    return Retry(config.lower_rate, config.replay, KEEP if config.vocabulary == KEEP else None)  # type: ignore[arg-type]  # KEEP is its only word


def with_changes(config: ExperimentConfig, changes: Iterable[Retry]) -> ExperimentConfig:
    """Return a copy of a configuration with changes on top of each other, in their order."""
    changed = copy.deepcopy(config)
    for change in changes:
        if change.lower_rate is not None:
            _lower_rate(changed, change.lower_rate)
        if change.replay is not None:
            _set_replay(changed, change.replay)
        if change.vocabulary is not None:
            changed.tokenizer.num_new_pieces = 0
            changed.schedule.new_rows_first_tokens, changed.schedule.new_rows_lr = 0, None
    return changed


def _lower_rate(config: ExperimentConfig, factor: float) -> None:
    for name in RATES:
        rate = getattr(config.schedule, name)
        if rate is not None:
            setattr(config.schedule, name, rate * factor)


def _set_replay(config: ExperimentConfig, share: float) -> None:
    config.blend.shares = _with_replay(config, config.blend.shares, share)
    for stage in config.blend.stages:
        stage.shares = _with_replay(config, stage.shares, share)


def _with_replay(config: ExperimentConfig, shares: Mapping[str, float], share: float) -> dict[str, float]:
    """Give the general sources together a share and the domain ones the rest; within either the proportions stay."""
    general = math.fsum(value for name, value in shares.items() if config.source[name].role == "general")
    domain = math.fsum(shares.values()) - general
    if not general or not domain:
        return dict(shares)
    scale = {True: share / general, False: (1 - share) / domain}
    return {name: value * scale[config.source[name].role == "general"] for name, value in shares.items()}


def retry_problems(config: ExperimentConfig, *, num_used: int = 0, is_resumed: bool = False) -> list[str]:
    """Say which changes of the policy are none, or cannot be made.

    Args:
        num_used: how many of them `config` has taken already.
        is_resumed: the round goes on from a checkpoint, whose vocabulary is what it is.
    """
    gate = config.gate
    problems = []
    for number, retry in enumerate(gate.retries):
        label = f"gate.retries[{number}]"
        given = {key: value for key, value in vars(retry).items() if value is not None}
        if len(given) != 1:
            problems.append(f"{label} changes {len(given)} things ({', '.join(given) or 'none'}). Each retry changes exactly one.")
        if retry.lower_rate is not None and not 0 < retry.lower_rate < 1:
            problems.append(f"{label}.lower_rate={retry.lower_rate} is no factor that lowers a rate. Use a number between 0 and 1.")
        if retry.replay is not None:
            problems += _replay_problems(label, retry.replay, config)
        if retry.vocabulary is not None and retry.vocabulary != KEEP:
            problems.append(f"{label}.vocabulary={retry.vocabulary!r} is not {KEEP}.")
        if number < num_used:
            continue
        if retry.vocabulary == KEEP and is_resumed:
            problems.append(f"{label}.vocabulary=keep begins anew, and this round goes on from a promoted checkpoint. Leave it out.")
        elif retry.vocabulary == KEEP and config.tokenizer.num_new_pieces == 0:
            problems.append(f"{label}.vocabulary=keep changes nothing: tokenizer.num_new_pieces is 0.")
    if not 0 <= gate.max_retries <= len(gate.retries):
        problems.append(f"gate.max_retries={gate.max_retries} is not between 0 and the {len(gate.retries)} changes of gate.retries.")
    return problems


def _replay_problems(label: str, share: float, config: ExperimentConfig) -> list[str]:
    if not 0 < share < 1:
        return [f"{label}.replay={share} is not a share. Use a number between 0 and 1."]
    roles = {config.source[name].role for name, value in config.blend.shares.items() if name in config.source and value > 0}
    if not {"general", "domain"} <= roles:
        return [f"{label}.replay={share} needs a general and a domain source with a share in blend.shares."]
    return []
