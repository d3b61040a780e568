"""Lets the gate judge candidates that are no better and no worse than the base, and counts how often it is fooled.

`python -m megatron_cpt.gate.null_experiment eval_json=<baseline/eval.json> [plan=<plan.yaml>] [candidate=<eval.json>] [seeds=200]`

Three experiments, each with as many seeds: `itself`, the base's own scores; `swapped`, in which a coin decides for each item which
of two real models' scores is called the base's, so that neither model is better while their items differ as real ones do; and
`noise`, the base's scores with random changes of mean 0. Without a plan the rules are: every domain text must improve, and every
other text may not worsen by 0.02 bits per byte.
"""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_cpt.errors import ConfigError, CptError, DataError
from megatron_cpt.gate.decide import decide
from megatron_cpt.gate.pairs import BASE, CANDIDATE
from megatron_cpt.gate.statistics import at_most_share
from megatron_cpt.plan.run_plan import GatePlan, GateRule, RunPlan
from megatron_cpt.record.store import read_json

KEYS = ("eval_json", "plan", "candidate", "seeds", "noise")
SURPRISE = 0.001  # a count above the stated rate is taken for chance unless chance makes it this rarely
Scores = dict[str, Any]
Pair = tuple[Scores, Scores]


@dataclass(frozen=True)
class Count:
    """How many of `seeds` verdicts were which. `level` is the stated rate of false promotions, and that of false rollbacks."""

    experiment: str
    seeds: int
    promoted: int
    rolled_back: int
    unknown: int
    level: float

    @property
    def holds(self) -> bool:
        """Whether both counts can be chance at the stated rate; the base against itself has no chance in it."""
        if self.experiment == "itself":
            return self.unknown == self.seeds
        return all(1 - _below(count, self.seeds, self.level) >= SURPRISE for count in (self.promoted, self.rolled_back))

    def __str__(self) -> str:
        rates = " ".join(
            f"{count / self.seeds:.1%} {word} (at most {at_most_share(count, self.seeds, level=0.025):.1%}),"
            for word, count in (("promoted", self.promoted), ("rolled back", self.rolled_back))
        )
        stated = f"stated: {self.level:.1%} each" if self.experiment != "itself" else "stated: none"
        return f"{self.experiment:<8} {self.seeds} seeds: {rates} {self.unknown / self.seeds:.1%} unknown; {stated}"


def _below(count: int, num: int, rate: float) -> float:
    """Return the chance of fewer than `count` events."""
    if count == 0:
        return 0.0
    tails = np.cumsum(np.log(np.arange(1, num + 1)))
    log_factorial = np.concatenate([[0.0], tails])
    k = np.arange(count)
    logs = log_factorial[num] - log_factorial[k] - log_factorial[num - k] + k * np.log(rate) + (num - k) * np.log1p(-rate)
    return float(np.exp(logs).sum())


def null_experiment(base: Scores, other: Scores | None, plan: GatePlan, *, seeds: int, noise: float) -> list[Count]:
    """Return the counts of each experiment; `swapped` needs another model's scores of the same items.

    Args:
        base: a subject of an `eval.json`; `other` likewise.
        noise: of a text, the standard deviation of a document's loss as a share of it; of a task, the share of items that change.
    """
    experiments: dict[str, Callable[[np.random.Generator], Pair]] = {
        "itself": lambda _: (base, base),
        "swapped": lambda generator: swapped(base, other or base, generator),
        "noise": lambda generator: (base, noisy(base, generator, noise=noise)),
    }
    if other is None:
        del experiments["swapped"]
    return [count_verdicts(name, draw, plan, seeds=seeds) for name, draw in experiments.items()]


def count_verdicts(name: str, draw: Callable[[np.random.Generator], Pair], plan: GatePlan, *, seeds: int) -> Count:
    """Judge a pair of subjects drawn for each seed, and count the verdicts."""
    decisions: Counter[str] = Counter()
    for seed in range(seeds):
        first, second = draw(np.random.default_rng(seed))
        verdict = decide({"subjects": {BASE: first}}, {"subjects": {CANDIDATE: second}}, dataclasses.replace(plan, seed=seed))
        decisions[verdict.decision] += 1
    return Count(name, seeds, decisions["promote"], decisions["rollback"], decisions["unknown"], level=(1 - plan.confidence) / 2)


def swapped(base: Scores, other: Scores, generator: np.random.Generator) -> Pair:
    """Return two subjects that share out the items of two models by a coin for each."""
    first, second = _copy(base), _copy(other)
    for name, text in first["texts"].items():
        if name in second["texts"]:
            text["documents"], second["texts"][name]["documents"] = _dealt(text["documents"], second["texts"][name]["documents"], generator)
    for name, task in first["tasks"].items():
        if name in second["tasks"]:
            task["items"], second["tasks"][name]["items"] = _dealt(task["items"], second["tasks"][name]["items"], generator)
    return first, second


def _dealt(base: list[Any], other: list[Any], generator: np.random.Generator) -> tuple[list[Any], list[Any]]:
    by_id = {str(item["id"]): item for item in other}
    if {str(item["id"]) for item in base} != by_id.keys():
        raise DataError("The two models were not scored on the same items.", next_step="Leave candidate= out, or score both again.")
    coins = generator.integers(0, 2, size=len(base))
    pairs = [(item, by_id[str(item["id"])]) for item in base]
    return [pair[coin] for pair, coin in zip(pairs, coins, strict=True)], [pair[1 - coin] for pair, coin in zip(pairs, coins, strict=True)]


def noisy(base: Scores, generator: np.random.Generator, *, noise: float) -> Scores:
    """Return the base with losses changed at random, and some items' scores dealt out anew among those items."""
    changed = _copy(base)
    for text in changed["texts"].values():
        factors = 1 + noise * generator.standard_normal(len(text["documents"]))
        text["documents"] = [
            {**document, "nats": float(document["nats"]) * factor} for document, factor in zip(text["documents"], factors, strict=True)
        ]
    for task in changed["tasks"].values():
        items = list(task["items"])
        chosen = np.flatnonzero(generator.random(len(items)) < noise)
        dealt = {int(target): items[int(source)]["metrics"] for target, source in zip(chosen, generator.permutation(chosen), strict=True)}
        task["items"] = [{**item, "metrics": dealt.get(number, item["metrics"])} for number, item in enumerate(items)]
    return changed


def _copy(subject: Scores) -> Scores:
    """Return a copy whose lists of items can be replaced; its digest is dropped, because it is no checkpoint's."""
    return {kind: {name: dict(scores) for name, scores in subject.get(kind, {}).items()} for kind in ("texts", "tasks")}


def default_rules(base: Mapping[str, Any], *, confidence: float = 0.95, resamples: int = 2000) -> GatePlan:
    """Return a plan for a record without one."""
    rules = tuple(
        GateRule(name, "must_improve", 0.0, group="domain")
        if text.get("role") == "domain"
        else GateRule(name, "may_not_worsen", 0.02, group="general")
        for name, text in base.get("texts", {}).items()
    )
    return GatePlan(rules, confidence, resamples, 0)


def main(arguments: list[str]) -> int:
    """Print the counts; 3 when the gate is fooled more often than it states."""
    try:
        given = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
        if set(given) - set(KEYS) or "eval_json" not in given or len(given) != len(arguments):
            raise ConfigError("The arguments are not understood.", value=" ".join(arguments), rule=f"key=value of {', '.join(KEYS)}")
        record = read_json(Path(given["eval_json"]))
        base = _subject(record, BASE, given["eval_json"])
        other = _subject(read_json(Path(given["candidate"])), CANDIDATE, given["candidate"]) if "candidate" in given else None
        other = other if other is not None else record["subjects"].get("init")
        plan = RunPlan.load(Path(given["plan"])).gate if "plan" in given else default_rules(base)
        counts = null_experiment(base, other, plan, seeds=int(given.get("seeds", 200)), noise=float(given.get("noise", 0.02)))
    except CptError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    for count in counts:
        print(count)
    return 0 if all(count.holds for count in counts) else DataError("").exit_code


def _subject(record: Any, name: str, where: str) -> Scores:
    found = record.get("subjects", {}).get(name) if isinstance(record, dict) else None
    if not isinstance(found, dict):
        raise DataError(f"The record has no scores of {name!r}.", where=where)
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
