"""Finds other weights with the same figures: the mark of one model's answers given for another's."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping
from typing import Any

logger = logging.getLogger(__name__)

MADE_OF_ONE = {"base", "init"}  # without new ids the initial model is the base in another form


def warn_of_equal_scores(subjects: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Warn of, and return, pairs of subjects with other weights and the same figures in every document and item.

    Args:
        subjects: scores by name, in the form of `eval.json`.
    """
    found = []
    for (one, left), (other, right) in itertools.combinations(subjects.items(), 2):
        if {one, other} == MADE_OF_ONE or left.get("weights_sha256") == right.get("weights_sha256"):
            continue
        figures = _figures(left)
        if figures and figures == _figures(right):
            found.append((one, other))
            logger.warning(
                "%s and %s have other weights (%.12s, %.12s) and the same scores item by item. Only a copy in another form explains that.",
                one,
                other,
                left.get("weights_sha256"),
                right.get("weights_sha256"),
            )
    return found


def _figures(subject: Mapping[str, Any]) -> list[Any]:
    texts = [(name, [(each["id"], each["nats"]) for each in text["documents"]]) for name, text in subject.get("texts", {}).items()]
    tasks = [(name, [(each["id"], each["metrics"]) for each in task["items"]]) for name, task in subject.get("tasks", {}).items()]
    return sorted(texts, key=lambda pair: pair[0]) + sorted(tasks, key=lambda pair: pair[0])
