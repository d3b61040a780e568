"""Private data and secrets in a text: counted, masked, or a reason to drop it. What was found is never returned, only its kind."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import NamedTuple

from megatron_cpt.config.filter_schema import PrivateDataConfig
from megatron_cpt.corpus.filters import private_patterns as shapes

# In the manner of StarCoder (Li et al. 2023, arXiv 2305.06161, section 4.3): the kind takes the place of the value.
MASKS = {
    "email": "<EMAIL>", "phone": "<PHONE>", "resident_id_cn": "<ID_NUMBER>", "ssn_us": "<SSN>", "payment_card": "<CARD_NUMBER>",
    "ip_address": "<IP_ADDRESS>", "private_key": "<PRIVATE_KEY>", "api_token": "<API_TOKEN>",
}  # fmt: skip
ACTIONS = ("ignore", "count", "mask", "drop")
Span = tuple[int, int, str]


class Private(NamedTuple):
    """The text with what is masked, how often each kind stood in it, and the first kind for which it is dropped."""

    text: str
    counts: dict[str, int]
    dropped_for: str | None


class PrivateData:
    """The kinds that are looked for. A place belongs to the first shape that takes it, so that nothing is counted twice."""

    def __init__(self, settings: PrivateDataConfig) -> None:
        self.actions: dict[str, str] = asdict(settings)
        self.asked = any(action != "ignore" for action in self.actions.values())
        self.prefixed = [shape for shape in (*shapes.PRIVATE_KEYS, *shapes.API_TOKENS) if self.actions[shape.kind] != "ignore"]
        self.numbers = [shape for shape in shapes.NUMBERS if self.actions[shape.kind] != "ignore"]

    def __call__(self, text: str) -> Private:
        """Return what is to be done with a text."""
        counts: Counter[str] = Counter()
        first = True
        masked: str | None = text
        while masked is not None:  # a mask sets free what stood beside the value, which may be private by itself
            text = masked
            spans = self._disjoint(text)
            counts.update(kind for _, _, kind in spans if first or self.actions[kind] == "mask")
            first = False
            masked = self._masked(text, spans)
        dropped_for = next((kind for kind, action in self.actions.items() if action == "drop" and counts[kind]), None)
        return Private(text, dict(sorted(counts.items())), dropped_for)

    def _disjoint(self, text: str) -> list[Span]:
        """Return what is found, in order; of two that overlap, the one of the earlier shape."""
        taken: list[Span] = []
        for span in self._spans(text):
            at = bisect_left(taken, span[1:2])
            if not (at and taken[at - 1][1] > span[0]):
                insort(taken, span)
        return taken

    def _masked(self, text: str, spans: list[Span]) -> str | None:
        """Return the text with masks; None where there is nothing to mask."""
        parts, end = [], 0
        for begin, stop, kind in spans:
            if self.actions[kind] == "mask":
                parts += [text[end:begin], MASKS[kind]]
                end = stop
        return "".join([*parts, text[end:]]) if parts else None

    def _spans(self, text: str) -> Iterator[Span]:
        for shape in self.prefixed:
            yield from _prefixed(shape, text)
        if self.actions["email"] != "ignore" and "@" in text:
            yield from _emails(text)
        if self.numbers:
            yield from self._numbers(text)
        if self.actions["ip_address"] != "ignore" and shapes.IPV6_COLONS.search(text):
            for match in shapes.IPV6.finditer(text):
                if shapes.IPV6_ACCEPT(match.group()):
                    yield *match.span(), "ip_address"

    def _numbers(self, text: str) -> Iterator[Span]:
        for run in shapes.NUMBER_RUN.finditer(text):
            begin, end = max(run.start() - shapes.BEFORE_RUN, 0), run.end() + shapes.AFTER_RUN
            for shape in self.numbers:
                for match in shape.pattern.finditer(text, begin, end):
                    if shape.accept(match.group()):
                        yield (*match.span(), shape.kind)


def _prefixed(shape: shapes.Shape, text: str) -> Iterator[Span]:
    for prefix in shape.prefixes:
        at = text.find(prefix)
        while at >= 0:
            end = at + len(prefix)
            if not (at and (text[at - 1].isascii() and (text[at - 1].isalnum() or text[at - 1] == "_"))):
                match = shape.pattern.match(text, at)
                if match and shape.accept(match.group()):
                    end = match.end()
                    yield at, end, shape.kind
            at = text.find(prefix, end)


def _emails(text: str) -> Iterator[Span]:
    for sign in shapes.EMAIL_AT.finditer(text):
        at = sign.start()
        before = text[max(at - shapes.EMAIL_NAME_CHARS - 1, 0) : at]
        num_chars = len(before) - len(before.rstrip(shapes.EMAIL_NAME))
        if 0 < num_chars <= shapes.EMAIL_NAME_CHARS:
            host = shapes.EMAIL_HOST.match(text, at + 1)
            if host and shapes.EMAIL_ACCEPT(text[at - num_chars : host.end()]):
                yield at - num_chars, host.end(), "email"
