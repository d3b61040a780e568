"""Reading the corpus stage's shards, and a fair sample of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from megatron_cpt.record.hashing import sha256_text

SIDES = ("train", "test")
parse = json.JSONDecoder().raw_decode  # the corpus stage's own lines begin with the object: nothing to skip


def texts_of(path: Path) -> Iterator[str]:
    """Yield the texts of a shard, one document at a time."""
    with path.open(encoding="utf-8", newline="\n") as lines:
        for line in lines:
            yield parse(line)[0]["text"]


def names_with_role(corpus_facts: dict[str, Any], role: str) -> list[str]:
    return sorted(name for name, facts in corpus_facts["sources"].items() if facts["role"] == role)


def num_bytes(corpus_facts: dict[str, Any], names: Sequence[str], sides: Sequence[str]) -> int:
    return sum(corpus_facts["sources"][name][f"{side}_bytes"] for name in names for side in sides)


def sampled(
    corpus_folder: Path, corpus_facts: dict[str, Any], names: Sequence[str], *, sides: Sequence[str], max_bytes: int
) -> Iterator[str]:
    """Yield about `max_bytes` of the documents of some sources, or all when there are no more.

    A document is taken by the digest of its text, so a sample is fair over sources and places and the same on every run.
    """
    total = num_bytes(corpus_facts, names, sides)
    share = 1.0 if total <= max_bytes else max_bytes / total
    for name in names:
        for side in sides:
            for text in texts_of(corpus_folder / f"{name}.{side}.jsonl"):
                # digits 16-32: the first 16 decide train or test and may not decide this too
                if share == 1.0 or int(sha256_text(text)[16:32], 16) < share * 2.0**64:
                    yield text
