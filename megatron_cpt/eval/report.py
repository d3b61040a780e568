"""`eval.json`: bits per byte and task scores by subject, with every document's and item's figures for paired comparisons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_cpt.eval.texts import Document
from megatron_cpt.gate.groups import GAP, group_gap
from megatron_cpt.plan.run_plan import EvalTask
from megatron_cpt.record.store import write_json
from megatron_cpt.record.typed import to_plain

SCHEMA_VERSION = 2


@dataclass(frozen=True)
class DocumentScore:
    id: str
    bytes: int
    nats: float
    tokens: int


@dataclass(frozen=True)
class TextScore:
    role: str
    bits_per_byte: float
    nats: float
    bytes: int
    tokens: int
    documents: tuple[DocumentScore, ...]


@dataclass(frozen=True)
class ItemScore:
    """One item of a task; `subgroup` is whom it is about, where the task compares groups."""

    id: str
    subgroup: str | None
    metrics: dict[str, float]


@dataclass(frozen=True)
class TaskScore:
    """A benchmark's score.

    Attributes:
        rule: how an answer is chosen and judged, in words.
        metrics: means over the items, and `gap`, the spread of the first metric's means over subgroups.
        joined_boundaries: items in which this tokenizer would have joined the end of the question and the beginning of an answer.
    """

    kind: str
    group: str
    licence: str
    source: str
    file_sha256: str
    rule: str
    metrics: dict[str, float]
    joined_boundaries: int
    items: tuple[ItemScore, ...]


@dataclass(frozen=True)
class SubjectScore:
    """One model's scores; the digests say which weights and tokenizer they belong to, `prefix_id` what every window starts with.

    `nats_by_start` compares that start with others on a few windows, in nats per token; empty where no other is known. `watched` are the
    base's scores on the validation sides, which in-loop evaluations are held against; empty where there are none, and for other models.
    """

    checkpoint: str
    weights_sha256: str
    tokenizer_sha256: str
    num_ids: int
    prefix_id: int
    texts: dict[str, TextScore]
    tasks: dict[str, TaskScore]
    nats_by_start: dict[str, float] = field(default_factory=dict)
    watched: dict[str, TextScore] = field(default_factory=dict)


@dataclass(frozen=True)
class EvalReport:
    schema_version: int
    subjects: dict[str, SubjectScore]
    seconds: float

    def save(self, path: Path) -> None:
        """Write the report; a loss that is not a finite number, which JSON cannot hold, as the word `float()` reads back."""
        write_json(path, worded(to_plain(self)))


def worded(data: Any) -> Any:
    """Return plain data with numbers that are not finite as words."""
    if isinstance(data, dict):
        return {name: worded(value) for name, value in data.items()}
    if isinstance(data, list):
        return [worded(value) for value in data]
    return str(data) if isinstance(data, float) and not math.isfinite(data) else data


def _total(figures: Sequence[float]) -> float:
    return math.fsum(figures) if all(map(math.isfinite, figures)) else math.nan  # fsum refuses inf - inf


def task_score(task: EvalTask, *, rule: str, joined_boundaries: int, items: Sequence[ItemScore]) -> TaskScore:
    """Return a task's score: means over its items, each of which has every metric of the task but `gap`."""
    metrics = {}
    for name in task.metrics:
        if name == GAP:
            gap = group_gap([item.metrics[task.metrics[0]] for item in items], [item.subgroup for item in items])
            metrics[name] = math.nan if gap is None else gap
        else:
            metrics[name] = _total([item.metrics[name] for item in items]) / len(items)
    return TaskScore(
        kind=task.kind,
        group=task.group,
        licence=task.licence,
        source=task.source,
        file_sha256=task.sha256,
        rule=rule,
        metrics=metrics,
        joined_boundaries=joined_boundaries,
        items=tuple(items),
    )


def text_score(role: str, documents: Sequence[Document], *, tokens: Sequence[int], nats: Sequence[float]) -> TextScore:
    """Return a text's score: the sum of nats over the sum of bytes, never a mean of means."""
    scores = tuple(
        DocumentScore(document.id, document.num_bytes, sum_of_nats, num_tokens)
        for document, num_tokens, sum_of_nats in zip(documents, tokens, nats, strict=True)
    )
    total_nats, total_bytes = _total([score.nats for score in scores]), sum(score.bytes for score in scores)
    return TextScore(role, total_nats / math.log(2) / total_bytes, total_nats, total_bytes, sum(tokens), scores)
