"""The metrics that a rule can be of, and those that trackers show, from the tables that the code reads."""

from __future__ import annotations

from collections.abc import Iterator

from markdown import code, page, table, words

from megatron_cpt.plan.metrics import METRICS
from megatron_cpt.train import metric_names

STATISTICS = {
    "ratio": "sum over items by the sum of their bytes",
    "mean": "mean over items",
    "distance": "distance of the mean from 0.5",
    "spread": "largest mean of a subgroup minus the smallest",
}


def metric_pages() -> Iterator[tuple[str, str]]:
    """Yield the page of metrics."""
    rules = [
        (code(metric.name), words(metric.unit), "lower" if metric.lower_is_better else "higher", STATISTICS[metric.statistic])
        for metric in METRICS.values()
    ]
    shown = [(code(metric.name), code(metric.source), words(metric.unit), words(metric.means)) for metric in metric_names.METRICS]
    yield (
        "metrics",
        page(
            "Metrics",
            "## Of texts and tasks",
            "",
            "What a rule of the gate, a hard limit or a stop threshold may name; `pass@k` is one for every k from 1.",
            "",
            *table(("metric", "unit", "better", "of the items"), rules),
            "## In Weights & Biases and TensorBoard",
            "",
            "Each is made from a record of `train/metrics.jsonl`, which is what counts ([trackers](/reference/trackers.md)).",
            "",
            *table(("metric", "record and key", "unit", "means"), shown),
        ),
    )
