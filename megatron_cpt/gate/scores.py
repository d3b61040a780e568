"""Paired scores of two models on the same documents, checked before they are compared."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from megatron_cpt.gate.statistics import Floats, resampled_counts

NOT_FINITE = ("nan", "inf", "-inf")  # how an `eval.json` writes them


@dataclass(frozen=True)
class PairedScores:
    """Losses in nats and sizes in bytes of the same N documents: `base_N`, `candidate_N`, `bytes_N`."""

    base_N: Floats
    candidate_N: Floats
    bytes_N: Floats

    @property
    def num_documents(self) -> int:
        return len(self.bytes_N)


def bits_per_byte(nats: float, num_bytes: float) -> float:
    """Return the loss in bits over the size in bytes: comparable between tokenizers, unlike any figure per token."""
    return nats / math.log(2) / num_bytes


class NotComparableError(Exception):
    """Two records do not hold scores of the same documents; the text says why. Caught by the gate, which then answers `unknown`."""


def documents_by_id(record: Mapping[str, Any], subject: str, text: str) -> dict[str, tuple[int, float]]:
    """Return `{id: (bytes, nats)}` of one scored text.

    Raises:
        NotComparableError: the record lacks the subject, the text, or a usable score of one of its documents.
    """
    documents = _at(record, "subjects", subject, "texts", text, "documents")
    if not isinstance(documents, list) or not documents:
        raise NotComparableError(f"no scored documents of {text!r} for the subject {subject!r}")
    by_id: dict[str, tuple[int, float]] = {}
    for document in documents:
        if not isinstance(document, Mapping) or not {"id", "bytes", "nats"} <= document.keys():
            raise NotComparableError(f"a document of {text!r} for {subject!r} lacks id, bytes or nats")
        name, size, nats = document["id"], document["bytes"], document["nats"]
        if not isinstance(size, int) or isinstance(size, bool) or size <= 0:
            raise NotComparableError(f"the document {name!r} of {text!r} has {size!r} bytes")
        if nats in NOT_FINITE:
            nats = float(nats)
        if isinstance(nats, bool) or not isinstance(nats, int | float):
            raise NotComparableError(f"the document {name!r} of {text!r} has no score for {subject!r}")
        if str(name) in by_id:
            raise NotComparableError(f"the document {name!r} of {text!r} is scored twice for {subject!r}")
        by_id[str(name)] = (size, float(nats))
    return by_id


def _at(data: object, *keys: str) -> object:
    for key in keys:
        if not isinstance(data, Mapping):
            return None
        data = data.get(key)
    return data


def pair_up(base: Mapping[str, tuple[int, float]], candidate: Mapping[str, tuple[int, float]]) -> PairedScores:
    """Return the scores side by side.

    Raises:
        NotComparableError: the two sets of documents, or their sizes, are not the same.
    """
    if base.keys() != candidate.keys():
        raise NotComparableError(f"base and candidate were scored on other documents ({len(base.keys() ^ candidate.keys())} differ)")
    ids = sorted(base)
    resized = [name for name in ids if base[name][0] != candidate[name][0]]
    if resized:
        raise NotComparableError(f"the document {resized[0]!r} has another size for base and candidate")
    return PairedScores(
        base_N=np.array([base[name][1] for name in ids], dtype=np.float64),
        candidate_N=np.array([candidate[name][1] for name in ids], dtype=np.float64),
        bytes_N=np.array([base[name][0] for name in ids], dtype=np.float64),
    )


def subject_of(record: Mapping[str, Any], subject: str) -> Mapping[str, Any]:
    """Return what a record holds of a subject, or nothing when it does not name it."""
    found = _at(record, "subjects", subject)
    return found if isinstance(found, Mapping) else {}


def weights_sha256(record: Mapping[str, Any], subject: str) -> str | None:
    """Return the digest of the weights that a subject was scored with, or None when the record does not name it."""
    found = _at(record, "subjects", subject, "weights_sha256")
    return found if isinstance(found, str) else None


def bootstrap_interval(scores: PairedScores, *, confidence: float, num_resamples: int, seed: int) -> tuple[float, float]:
    """Return the interval of the difference in bits per byte, candidate minus base, by a paired bootstrap over documents.

    Both models keep their score of a drawn document, so what makes a document hard for both cancels. The interval is that of
    percentiles: `(1 - confidence) / 2` on either side (Koehn 2004 for the pairing, Efron and Tibshirani 1993 for percentiles).
    """
    extra_N = scores.candidate_N - scores.base_N
    one_stratum_N = np.zeros(scores.num_documents, dtype=np.int64)
    differences = [
        (times_RN @ extra_N) / math.log(2) / (times_RN @ scores.bytes_N)
        for times_RN in resampled_counts(one_stratum_N, num_resamples=num_resamples, seed=seed)
    ]
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(differences), [tail, 1 - tail])
    return float(low), float(high)
