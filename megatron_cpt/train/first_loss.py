"""Compares the first loss after a load with what was recorded of the same weights: weights that answer otherwise are not those.

Digests say that a file is the one that was saved; only a loss says that what stands in it is the model. The records are those of the
`init` subject in `baseline/eval.json` at a start, and the last training steps in `metrics.jsonl` at a resume.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatron_cpt.errors import CheckpointError
from megatron_cpt.plan.run_plan import RunPlan
from megatron_cpt.record.store import read_json, read_lines
from megatron_cpt.train.collectives import totals
from megatron_cpt.train.metrics import METRICS_NAME
from megatron_cpt.train.runtime import is_first_rank
from megatron_cpt.train.state import TrainState

RECORDED_STEPS = 8  # what the weights gave is the mean over so many last steps: one batch says little
FACTOR, SLACK_NATS = 2.0, 1.0  # one batch of one source may lie so far above its record: documents differ, and low losses by much
FACTOR_ABOVE_UNIFORM = 1.25  # weights that were recorded near or above a uniform guess, such as random ones, may still vary


@dataclass(frozen=True)
class PromisedLoss:
    """What was recorded of the weights that training starts from: nats per token by source, in the order of `plan.blend`.

    None stands for a source that no record speaks of; such a source is left out of the comparison.
    """

    nats_per_token: tuple[float | None, ...]
    record: str
    checkpoint: str
    num_ids: int

    def check(self, *, source_nats: Sequence[float], source_loss_tokens: Sequence[int], step: int) -> None:
        """Refuse a global batch's loss that the recorded weights would not give; without a record, or a finite loss, say nothing.

        The limit is twice the record plus one nat, and not above a uniform guess over all ids where the record is below it.

        Raises:
            CheckpointError: with the loss, the record and the limit.
        """
        known = [
            (promised, nats, tokens)
            for promised, nats, tokens in zip(self.nats_per_token, source_nats, source_loss_tokens, strict=True)
            if promised is not None and tokens
        ]
        num_tokens = sum(tokens for _, _, tokens in known)
        if not num_tokens:
            return
        found = sum(nats for _, nats, _ in known) / num_tokens
        promised = sum(nats * tokens for nats, _, tokens in known) / num_tokens
        limit = highest_loss(promised, num_ids=self.num_ids)
        if not math.isfinite(found) or found <= limit:  # a loss that is no number has its own error
            return
        raise CheckpointError(
            "The first loss is not what was recorded of these weights; no update was applied.",
            where=self.checkpoint,
            value=f"{found:.3f} nats per token at step {step}; {self.record}: {promised:.3f}",
            rule=f"at most {limit:.3f}: {FACTOR:g} x the record + {SLACK_NATS:g}, and no worse than a uniform guess"
            f" (ln {self.num_ids} = {math.log(self.num_ids):.3f}) unless the record is",
            next_step="Look for weights, a tokenizer or an index that were replaced since; use a new run_name when that was on purpose.",
        )


def highest_loss(promised: float, *, num_ids: int) -> float:
    """Return the highest loss in nats per token at which weights recorded with `promised` pass for themselves."""
    return min(FACTOR * promised + SLACK_NATS, max(math.log(num_ids), FACTOR_ABOVE_UNIFORM * promised))


def promised_loss(plan: RunPlan, run_dir: Path, state: TrainState, *, checkpoint: str, device: torch.device) -> PromisedLoss:
    """Return what the run's records say of the weights that were just loaded, as the first rank reads them. Collective."""
    if state.step == 0:
        found, record = _of_baseline(plan, run_dir), "baseline/eval.json records of its texts"
    else:
        found, record = _of_steps(plan, run_dir, step=state.step), f"mean of up to {RECORDED_STEPS} steps before"
    shared = totals([nats if is_first_rank() else 0.0 for nats in found], device=device)  # the first rank's alone
    return PromisedLoss(tuple(None if nats < 0 else nats for nats in shared), record, checkpoint, plan.vocab.num_ids)


UNKNOWN = -1.0  # no loss in nats is below zero


def _of_baseline(plan: RunPlan, run_dir: Path) -> list[float]:
    path = run_dir / "baseline" / "eval.json"
    texts = read_json(path)["subjects"].get("init", {}).get("texts", {}) if is_first_rank() and path.exists() else {}
    return [_nats_per_token(texts.get(entry.source, {})) for entry in plan.blend]


def _nats_per_token(text: Mapping[str, Any]) -> float:
    nats, tokens = text.get("nats"), text.get("tokens")
    return nats / tokens if isinstance(nats, float) and tokens and math.isfinite(nats) else UNKNOWN


def _of_steps(plan: RunPlan, run_dir: Path, *, step: int) -> list[float]:
    lines = read_lines(run_dir / "train" / METRICS_NAME) if is_first_rank() else []
    by_step = {line["step"]: line for line in lines if line.get("kind") == "step" and line["step"] <= step}  # the last word on each
    steps = [by_step[number] for number in sorted(by_step)[-RECORDED_STEPS:]]
    by_source = [[line.get("source_loss", {}).get(entry.source) for line in steps] for entry in plan.blend]
    known = [[loss for loss in losses if loss is not None] for losses in by_source]
    return [sum(losses) / len(losses) if losses else UNKNOWN for losses in known]
