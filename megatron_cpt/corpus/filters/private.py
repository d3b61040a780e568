"""Private data and secrets in a text: counted, masked, or a reason to drop it. What was found is never returned, only its kind."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from dataclasses import asdict
from typing import NamedTuple

from megatron_cpt.config.filter_schema import PrivateDataConfig
from megatron_cpt.corpus.filters.private_patterns import SHAPES, Shape

# In the manner of StarCoder (Li et al. 2023, arXiv 2305.06161, section 4.3): the kind takes the place of the value.
MASKS = {
    "email": "<EMAIL>", "phone": "<PHONE>", "resident_id_cn": "<ID_NUMBER>", "ssn_us": "<SSN>", "payment_card": "<CARD_NUMBER>",
    "ip_address": "<IP_ADDRESS>", "private_key": "<PRIVATE_KEY>", "api_token": "<API_TOKEN>",
}  # fmt: skip
ACTIONS = ("ignore", "count", "mask", "drop")
NUMBER = re.compile(r"[0-9]{3}")  # every shape without a hint of its own has three digits in a row


class Private(NamedTuple):
    """The text with what is masked, how often each kind stood in it, and the first kind for which it is dropped."""

    text: str
    counts: dict[str, int]
    dropped_for: str | None


class PrivateData:
    """The kinds that are looked for. A place belongs to the first shape that takes it, so that nothing is counted twice."""

    def __init__(self, settings: PrivateDataConfig) -> None:
        self.actions: dict[str, str] = asdict(settings)
        self.shapes = [shape for shape in SHAPES if self.actions[shape.kind] != "ignore"]

    def __call__(self, text: str) -> Private:
        """Return what is to be done with a text."""
        counts: Counter[str] = Counter()
        spans: list[tuple[int, int, str]] = []
        has_number = NUMBER.search(text) is not None if self.shapes else False
        for shape in self.shapes:
            if any(hint in text for hint in shape.hints) if shape.hints else has_number:
                self._find(shape, text, spans, counts)
        dropped_for = next((kind for kind in self.actions if self.actions[kind] == "drop" and counts[kind]), None)
        masked = sorted(span for span in spans if self.actions[span[2]] == "mask")
        if masked:
            parts, end = [], 0
            for begin, stop, kind in masked:
                parts += [text[end:begin], MASKS[kind]]
                end = stop
            text = "".join([*parts, text[end:]])
        return Private(text, dict(sorted(counts.items())), dropped_for)

    @staticmethod
    def _find(shape: Shape, text: str, spans: list[tuple[int, int, str]], counts: Counter[str]) -> None:
        taken = sorted(span[:2] for span in spans)
        found = []
        for match in shape.pattern.finditer(text):
            begin, end = match.span()
            if shape.accept(match.group()) and not _overlaps(taken, begin, end):
                found.append((begin, end, shape.kind))
        spans += found
        if found:
            counts[shape.kind] += len(found)


def _overlaps(taken: list[tuple[int, int]], begin: int, end: int) -> bool:
    """Say whether a span overlaps one of the sorted, disjoint spans."""
    at = bisect_left(taken, (end, 0))
    return at > 0 and taken[at - 1][1] > begin
