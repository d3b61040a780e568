"""The scores that a rule compares: the same items of base and candidate, without the contaminated ones. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_cpt.gate.scores import NOT_FINITE, NotComparableError, documents_by_id, pair_up
from megatron_cpt.gate.statistics import Floats, resampled_counts
from megatron_cpt.plan.metrics import Metric, metric_named
from megatron_cpt.plan.run_plan import GateRule

BASE, CANDIDATE = "base", "train"
SAME_IN_BOTH = ("file_sha256", "rule", "kind")  # of a task: scores by another file or another rule are not comparable


@dataclass(frozen=True)
class Pairs:
    """Scores of the same N items: `base_N` and `candidate_N`, in bits for a text, with weights in bytes (1 for an item of a task).

    `stratum_N` numbers the subgroups of a spread, and is 0 for every item of another metric.
    """

    metric: Metric
    base_N: Floats
    candidate_N: Floats
    weight_N: Floats
    stratum_N: NDArray[np.int64]
    num_excluded: int = 0

    @property
    def num_items(self) -> int:
        return len(self.weight_N)

    @property
    def sign(self) -> float:
        """The factor that turns candidate minus base into a worsening."""
        return 1.0 if self.metric.lower_is_better else -1.0

    @property
    def worsening_N(self) -> Floats:
        """How much worse the candidate is on each item; their sum over the weights' sum is the worsening of a ratio or mean."""
        return self.sign * (self.candidate_N - self.base_N)

    @property
    def is_figure_of_sums(self) -> bool:
        """Whether the metric is a sum of item scores over a sum of weights, so that a test on item differences judges it."""
        return self.metric.statistic in ("ratio", "mean")

    def figures(self, scores_N: Floats, times_RN: Floats) -> Floats:
        """Return the metric of R resamples, in each of which item n counts `times_RN` times."""
        if self.metric.statistic == "spread":
            means = [times_RN[:, ids] @ scores_N[ids] / times_RN[:, ids].sum(axis=1) for ids in self._subgroups()]
            return np.asarray(np.max(means, axis=0) - np.min(means, axis=0))
        mean_R = (times_RN @ scores_N) / (times_RN @ self.weight_N)
        return np.abs(mean_R - 0.5) if self.metric.statistic == "distance" else np.asarray(mean_R)

    def figure(self, scores_N: Floats) -> float:
        """Return the metric of these scores."""
        with np.errstate(invalid="ignore"):  # inf - inf: the caller asks whether the figure is finite
            return float(self.figures(scores_N, np.ones((1, self.num_items)))[0])

    def resampled_worsening(self, *, num_resamples: int, seed: int) -> Floats:
        """Return the worsening in each resample of the paired bootstrap: both models keep their score of a drawn item."""
        return np.concatenate(
            [
                self.sign * (self.figures(self.candidate_N, times_RN) - self.figures(self.base_N, times_RN))
                for times_RN in resampled_counts(self.stratum_N, num_resamples=num_resamples, seed=seed)
            ]
        )

    def _subgroups(self) -> list[NDArray[np.int64]]:
        return [np.flatnonzero(self.stratum_N == stratum) for stratum in np.unique(self.stratum_N)]


def read_pairs(rule: GateRule, baseline: Mapping[str, Any], candidate: Mapping[str, Any]) -> Pairs:
    """Return the scores that a rule compares.

    Args:
        baseline: an `eval.json` with the subject `base`; `candidate` has the subject `train`.

    Raises:
        NotComparableError: the metric is unknown, or the records do not hold its scores of the same items.
    """
    metric = metric_named(rule.metric)
    if metric is None:
        raise NotComparableError(f"no metric is called {rule.metric!r}")
    excluded = contaminated(baseline, rule.on) | contaminated(candidate, rule.on)
    read = _text_pairs if metric.statistic == "ratio" else _task_pairs
    return read(rule, metric, baseline, candidate, excluded=excluded)


def contaminated(record: Mapping[str, Any], name: str) -> set[str]:
    """Return the ids of a text's or task's items that training may have seen."""
    by_name = record.get("contaminated")
    found = by_name.get(name) if isinstance(by_name, Mapping) else None
    return {str(item["id"]) for item in found if isinstance(item, Mapping) and "id" in item} if isinstance(found, list) else set()


def _text_pairs(rule: GateRule, metric: Metric, baseline: Mapping[str, Any], candidate: Mapping[str, Any], *, excluded: set[str]) -> Pairs:
    base, new = documents_by_id(baseline, BASE, rule.on), documents_by_id(candidate, CANDIDATE, rule.on)
    pair_up(base, new)
    clean = {name: score for name, score in base.items() if name not in excluded}
    _refuse_empty(rule, clean, num_excluded=len(base) - len(clean))
    scores = pair_up(clean, {name: new[name] for name in clean})
    return Pairs(
        metric,
        scores.base_N / math.log(2),
        scores.candidate_N / math.log(2),
        scores.bytes_N,
        np.zeros(len(clean), dtype=np.int64),
        num_excluded=len(base) - len(clean),
    )


def _task_pairs(rule: GateRule, metric: Metric, baseline: Mapping[str, Any], candidate: Mapping[str, Any], *, excluded: set[str]) -> Pairs:
    base_task, new_task = _task(baseline, BASE, rule.on), _task(candidate, CANDIDATE, rule.on)
    for key in SAME_IN_BOTH:
        if base_task.get(key) != new_task.get(key):
            raise NotComparableError(f"{rule.on!r} was scored with another {key} for base and candidate")
    wanted = _scored_metric(metric, base_task)
    base = dict(_items(base_task, wanted, f"{rule.on!r} for {BASE!r}"))
    new = dict(_items(new_task, wanted, f"{rule.on!r} for {CANDIDATE!r}"))
    if base.keys() != new.keys():
        raise NotComparableError(f"base and candidate were scored on other items ({len(base.keys() ^ new.keys())} differ)")
    moved = [name for name in base if base[name][1] != new[name][1]]
    if moved:
        raise NotComparableError(f"the item {moved[0]!r} is in another subgroup for base and candidate")
    ids = sorted(name for name in base if name not in excluded)
    num_excluded = len(base) - len(ids)
    groups = np.zeros(len(ids), dtype=np.int64)
    if metric.statistic == "spread":
        ids = [name for name in ids if base[name][1] is not None]
        names = sorted({str(base[name][1]) for name in ids})
        groups = np.array([names.index(str(base[name][1])) for name in ids], dtype=np.int64)
        _refuse_small_groups(rule, names, groups)
    _refuse_empty(rule, ids, num_excluded=num_excluded)
    return Pairs(
        metric,
        np.array([base[name][0] for name in ids], dtype=np.float64),
        np.array([new[name][0] for name in ids], dtype=np.float64),
        np.ones(len(ids)),
        groups,
        num_excluded=num_excluded,
    )


def _refuse_empty(rule: GateRule, clean: object, *, num_excluded: int) -> None:
    if not clean:
        raise NotComparableError(f"every item of {rule.on!r} is contaminated ({num_excluded} of {num_excluded})")


def _refuse_small_groups(rule: GateRule, names: list[str], groups: NDArray[np.int64]) -> None:
    if len(names) < 2:
        raise NotComparableError(f"{rule.on!r} has no two subgroups to compare")
    small = [name for number, name in enumerate(names) if np.count_nonzero(groups == number) < 2]
    if small:
        raise NotComparableError(f"the subgroup {small[0]!r} of {rule.on!r} has a single item, which says nothing of a mean")


def _task(record: Mapping[str, Any], subject: str, name: str) -> Mapping[str, Any]:
    found: object = record
    for key in ("subjects", subject, "tasks", name):
        found = found.get(key) if isinstance(found, Mapping) else None
    if not isinstance(found, Mapping) or not isinstance(found.get("items"), list) or not found["items"]:
        raise NotComparableError(f"no scored items of {name!r} for the subject {subject!r}")
    return found


def _scored_metric(metric: Metric, task: Mapping[str, Any]) -> str:
    """Return the metric whose item scores are read: a gap is that of the task's main metric, the first that it names."""
    if metric.statistic != "spread":
        return metric.name
    named = task.get("metrics")
    main = next((name for name in named if name != metric.name), None) if isinstance(named, Mapping) else None
    if main is None:
        raise NotComparableError("the task names no metric whose gap could be taken")
    return str(main)


def _items(task: Mapping[str, Any], metric: str, label: str) -> Iterator[tuple[str, tuple[float, str | None]]]:
    seen: set[str] = set()
    for item in task["items"]:
        if not isinstance(item, Mapping) or "id" not in item or not isinstance(item.get("metrics"), Mapping):
            raise NotComparableError(f"an item of {label} lacks id or metrics")
        name, score, group = str(item["id"]), item["metrics"].get(metric), item.get("subgroup")
        if score in NOT_FINITE:
            score = float(score)
        if isinstance(score, bool) or not isinstance(score, int | float):
            raise NotComparableError(f"the item {name!r} of {label} has no {metric}")
        if name in seen:
            raise NotComparableError(f"the item {name!r} of {label} is scored twice")
        seen.add(name)
        yield name, (float(score), None if group is None else str(group))
