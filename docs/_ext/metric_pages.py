"""The metrics that a rule can be of, from the planner's table; names in Weights & Biases come beside them."""

from __future__ import annotations

from collections.abc import Iterator

from markdown import code, page, table, words

from megatron_cpt.plan.metrics import METRICS

STATISTICS = {
    "ratio": "sum over items by the sum of their bytes",
    "mean": "mean over items",
    "distance": "distance of the mean from 0.5",
    "spread": "largest mean of a subgroup minus the smallest",
}


def metric_pages() -> Iterator[tuple[str, str]]:
    """Yield the page of metrics."""
    rows = [
        (code(metric.name), words(metric.unit), "lower" if metric.lower_is_better else "higher", STATISTICS[metric.statistic])
        for metric in METRICS.values()
    ]
    yield (
        "metrics",
        page(
            "Metrics of texts and tasks",
            "What a rule of the gate, a hard limit or a stop threshold may name; `pass@k` is one for every k from 1.",
            "",
            *table(("metric", "unit", "better", "of the items"), rows),
        ),
    )
