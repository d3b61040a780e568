"""What trackers show: the one table of metric names, and how a record of `metrics.jsonl` becomes named figures.

The record of truth keeps its own keys; these names are made from it alone, so that wandb and TensorBoard show the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_cpt.plan.run_plan import RunPlan
from megatron_cpt.train.spend import Spend
from megatron_cpt.train.state import TrainState

STEP, TOKENS = "train/step", "train/tokens"
AXES = (STEP, TOKENS)
OF_TOKENS = "eval/*"  # its x axis is the tokens, everybody else's is the step
OF_STEPS = ("train/*", "cost/*", "energy/*", "system/*")


@dataclass(frozen=True)
class Metric:
    """One metric: its name with places in angle brackets, the record and key that it is made from, unit and meaning."""

    name: str
    source: str
    unit: str
    means: str


METRICS = (
    Metric(STEP, "step.step", "steps", "optimizer steps done; an axis"),
    Metric(TOKENS, "step.tokens", "tokens", "tokens read so far, those of earlier attempts included; an axis"),
    Metric("train/samples", "step.samples", "samples", "samples read so far"),
    Metric("train/loss", "step.loss", "nats a token", "mean loss of the step's batch"),
    Metric("train/learning_rate", "step.lr", "", "rate that the update used"),
    Metric("train/learning_rate_embedding", "step.lr_embedding", "", "that of embedding and output rows, where it is another"),
    Metric("train/grad_norm", "step.grad_norm", "", "L2 norm of the gradient before clipping"),
    Metric("train/step_seconds", "step.seconds", "s", "wall time of the step"),
    Metric("train/tokens_per_second", "step.tokens_per_second", "tokens/s", "of all devices together"),
    Metric("train/mfu", "step.mfu", "share", "model FLOPs over the dense peak of all devices"),
    Metric("train/is_skipped", "step.is_skipped", "0 or 1", "the update was bad and left out"),
    Metric("train/skipped_steps", "step.skipped_steps", "steps", "updates left out so far"),
    Metric("train/source/<source>/loss", "step.source_loss", "nats a token", "mean loss of the step on one source"),
    Metric("train/source/<source>/tokens", "step.source_tokens", "tokens", "read of one source so far"),
    Metric("train/source/<source>/samples", "step.source_samples", "samples", "read of one source so far"),
    Metric("train/licence/<licence>/tokens", "step.licence_tokens", "tokens", "read under one licence so far"),
    Metric("train/lost_steps", "resume.lost_steps", "steps", "done before a stop and not in the checkpoint that training goes on from"),
    Metric(
        "train/event/<event>",
        "event.event",
        "1",
        "a resume, a limit, a rollback, a promotion, a new round; `end_<status>` is an attempt's end",
    ),
    Metric("eval/<group>/<name>/bits_per_byte", "eval.bits_per_byte", "bits a byte", "of a held-out text, or its validation side"),
    Metric("eval/<group>/<name>/loss", "eval.loss", "nats a token", "of the same text"),
    Metric("eval/<group>/<name>/<metric>", "eval.tasks", "", "a benchmark's metric, where benchmarks are scored in the loop"),
    Metric("eval/<group>/<name>/base", "forgetting.base", "bits a byte", "the frozen base on the same text"),
    Metric("eval/<group>/<name>/difference", "forgetting.difference", "bits a byte", "this model minus the base: below zero is better"),
    Metric("eval/<group>/<name>/low", "forgetting.low", "bits a byte", "low end of the difference's interval"),
    Metric("eval/<group>/<name>/high", "forgetting.high", "bits a byte", "high end of it"),
    Metric(
        "eval/<group>/<name>/gate_<metric>_difference", "verdict.difference", "the metric's", "what the gate judged: candidate minus base"
    ),
    Metric("eval/<group>/<name>/gate_<metric>_low", "verdict.low", "the metric's", "low end of its interval"),
    Metric("eval/<group>/<name>/gate_<metric>_high", "verdict.high", "the metric's", "high end of it"),
    Metric("eval/seconds", "eval.seconds", "s", "what the evaluation took"),
    Metric("cost/device_hours", "ledger", "device-hours", "of the whole run: every ended attempt of every stage, and this one so far"),
    Metric("cost/usd", "ledger", "USD", "the same, at each attempt's price"),
    Metric("cost/usd_per_million_tokens", "ledger", "USD", "of this attempt's training: its money over the tokens that it read"),
    Metric("cost/limit_used", "step.elapsed_seconds", "share", "training time over the nearest of stop.max_hours, max_usd and max_kwh"),
    Metric("energy/joules", "step.joules", "J", "since the last step, evaluations and saves between included"),
    Metric("energy/watts", "step.joules", "W", "the same over its time"),
    Metric("energy/joules_per_token", "step.joules", "J a token", "the same over the step's tokens"),
    Metric("energy/kwh", "ledger, step.joules", "kWh", "at the meters: every ended attempt of every stage, and this one's steps"),
    Metric("energy/site_kwh", "ledger, step.joules", "kWh", "the same with the PUE"),
    Metric("energy/g_co2e", "ledger, step.joules", "g CO2e", "of the grid where it stands, location-based"),
    Metric("system/resident_bytes", "step.resident_bytes", "bytes", "memory of the first rank's process; not in wandb, which has its own"),
    Metric("system/device_peak_bytes", "step.device_peak_bytes", "bytes", "most device memory that the first rank's torch held"),
)
NOT_IN_WANDB = ("system/resident_bytes",)  # its own system.proc.memory.rssMB is the same

_OF_STEP = {
    metric.source.partition(".")[2]: metric.name
    for metric in METRICS
    if metric.source.startswith("step.") and "<" not in metric.name and metric.name.startswith(("train/", "system/"))
}
_OF_EACH_SOURCE = {
    "source_loss": "train/source/{}/loss",
    "source_tokens": "train/source/{}/tokens",
    "source_samples": "train/source/{}/samples",
    "licence_tokens": "train/licence/{}/tokens",
}


class MetricNames:
    """Names the figures of one run's records in the order in which they come, and puts every row on both axes."""

    def __init__(self, groups: Mapping[str, str], *, spend: Spend | None = None) -> None:
        """Take the group of each text and task by name (`domain`, `general`, ...), and what turns time and energy into cost."""
        self._groups, self._spend = groups, spend or Spend()
        self._step, self._tokens = 0, 0

    @classmethod
    def of(cls, plan: RunPlan, *, spend: Spend | None = None) -> MetricNames:
        """Return the names of a plan's run."""
        texts = {text.name: text.role for text in plan.eval.texts}
        return cls({**{task.name: task.group for task in plan.eval.tasks}, **texts}, spend=spend)

    def begin(self, state: TrainState) -> None:
        """Stand where an attempt begins."""
        self._step, self._tokens = state.step, state.tokens_seen
        self._spend.begin(tokens=state.tokens_seen)

    def stand_at_end_of(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Stand at the last step that the records hold."""
        for record in records:
            if record.get("kind") == "step":
                self._step, self._tokens = int(record["step"]), int(record["tokens"])

    def row(self, record: Mapping[str, Any]) -> dict[str, float]:
        """Return the figures of a record by name, with the axes; empty for a record that shows nothing. Unknown figures are left out."""
        kind = record.get("kind")
        if kind == "step":
            self._step, self._tokens = int(record["step"]), int(record["tokens"])
            found = _step_figures(record) | self._spend.row(record)
        elif kind == "eval":
            found = self._evaluation(record)
        elif kind == "forgetting":
            found = {
                f"{self._place(name)}/{key}": text[key]
                for name, text in record["texts"].items()
                for key in ("base", "difference", "low", "high")
                if key in text
            }
        elif kind == "resume":
            found = {"train/lost_steps": record["lost_steps"], "train/event/resume": 1}
        elif kind == "event":
            name = f"{'end_' if record.get('is_end') else ''}{record.get('event', 'unnamed')}"
            found = {f"train/event/{name}": 1} | self._judged(record.get("rules", ()))
        else:
            return {}
        figures = {name: value + 0 for name, value in found.items() if isinstance(value, int | float)}  # + 0: a bool is 0 or 1
        return {STEP: self._step, TOKENS: self._tokens} | figures

    def _evaluation(self, record: Mapping[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {"eval/seconds": record.get("seconds")}
        for key in ("bits_per_byte", "loss"):
            found |= {f"{self._place(name)}/{key}": value for name, value in record.get(key, {}).items()}
        for name, metrics in record.get("tasks", {}).items():
            found |= {f"{self._place(name)}/{metric}": value for metric, value in metrics.items()}
        return found

    def _judged(self, rules: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {
            f"{self._place(rule['of'])}/gate_{rule['metric']}_{key}": rule[key]
            for rule in rules
            for key in ("difference", "low", "high")
            if rule.get(key) is not None
        }

    def _place(self, name: str) -> str:
        return f"eval/{self._groups.get(name, 'other')}/{name}"


def _step_figures(record: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: record.get(key) for key, name in _OF_STEP.items()}
    for key, pattern in _OF_EACH_SOURCE.items():
        found |= {pattern.format(name): value for name, value in record.get(key, {}).items()}
    return found
