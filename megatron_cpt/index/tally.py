"""Counts an index's documents and tokens by source and by licence, and remembers some texts for the comparison at the end."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from megatron_cpt.index.batches import LABELS, Labels

MAX_LABELS = 1000  # pairs of source and licence; a field with another value in each document is no label
OTHERS = "(others)"
UNKNOWN = "(none)"
SAMPLE_FIRST = 20
SAMPLE_MOST = 200
SAMPLE_CHARS = 32_000  # longer documents are compared only when nothing else was


class LabelTally:
    """Documents and tokens by label; memory is bounded by `MAX_LABELS`."""

    def __init__(self, defaults: Mapping[str, str]) -> None:
        self._defaults = tuple(defaults.get(name, UNKNOWN) for name in LABELS)
        self._code_of: dict[Labels, int] = {}
        self._documents = np.zeros(MAX_LABELS + 1, dtype=np.int64)
        self._tokens = np.zeros(MAX_LABELS + 1, dtype=np.int64)

    def add(self, labels: Sequence[Labels], lengths: npt.NDArray[np.int64]) -> None:
        code_of = self._code_of
        for label in dict.fromkeys(labels):
            if label not in code_of and len(code_of) < MAX_LABELS:
                code_of[label] = len(code_of)
        codes = np.fromiter((code_of.get(label, MAX_LABELS) for label in labels), dtype=np.int64, count=len(labels))
        self._documents += np.bincount(codes, minlength=MAX_LABELS + 1)
        self._tokens += np.bincount(codes, weights=lengths, minlength=MAX_LABELS + 1).astype(np.int64)

    def plain(self) -> dict[str, dict[str, dict[str, int]]]:
        """Return `{"by_source": {name: {"documents", "tokens"}}, "by_licence": ...}`."""
        found: dict[str, dict[str, Counter[str]]] = {f"by_{name}": {} for name in LABELS}
        labelled = [*self._code_of.items(), ((OTHERS,) * len(LABELS), MAX_LABELS)]
        for label, code in labelled:
            if not self._documents[code]:
                continue
            for name, value, default in zip(LABELS, label, self._defaults, strict=True):
                counts = found[f"by_{name}"].setdefault(default if value is None else value, Counter())
                counts["documents"] += int(self._documents[code])
                counts["tokens"] += int(self._tokens[code])
        return {name: {value: dict(counts) for value, counts in sorted(groups.items())} for name, groups in found.items()}


class TextSample:
    """Digests of the first texts and of about 100 to 200 more, spread evenly over however many documents come."""

    def __init__(self, expected_back: Callable[[str], str]) -> None:
        self._expected_back = expected_back
        self._stride = 1
        self._first: dict[int, bytes] = {}
        self._spread: dict[int, bytes] = {}
        self._long: dict[int, bytes] = {}

    def add(self, first: int, texts: Sequence[str]) -> None:
        """Take some of the documents `first`, `first + 1`, ... of the index."""
        for number in range(first, min(first + len(texts), SAMPLE_FIRST)):
            self._take(self._first, number, texts[number - first])
        for number in range(first + -first % self._stride, first + len(texts), self._stride):
            if number % self._stride == 0 and number >= SAMPLE_FIRST:
                self._take(self._spread, number, texts[number - first])
                if len(self._spread) > SAMPLE_MOST:
                    self._stride *= 2
                    self._spread = {kept: digest for kept, digest in self._spread.items() if kept % self._stride == 0}

    def _take(self, where: dict[int, bytes], number: int, text: str) -> None:
        if len(text) <= SAMPLE_CHARS:
            where[number] = digest_of(self._expected_back(text))
        elif not self._long:
            self._long[number] = digest_of(self._expected_back(text))

    def digests(self) -> dict[int, bytes]:
        """Return by document what the digest of its decoded text must be."""
        return (self._first | self._spread) or self._long


def digest_of(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8")).digest()
