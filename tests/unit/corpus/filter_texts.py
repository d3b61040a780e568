"""Real text that is at hand wherever the tests run, the presets' rules, and datatrove's filters with the same thresholds."""

from __future__ import annotations

import json
import sys
import sysconfig
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
sys.path.append(str(ROOT / "benchmarks"))
import corpus_filter  # noqa: E402

STATUTES = ROOT / "data" / "samples" / "china_law.jsonl"
rules_of = cache(corpus_filter.rules_of)
stock_filters = corpus_filter.stock_filters


@cache
def python_texts() -> tuple[str, ...]:
    """Source files of the standard library, those of its top folder."""
    return tuple(path.read_text(encoding="utf-8", errors="replace") for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")))


@cache
def english_texts() -> tuple[str, ...]:
    """Descriptions and licences of installed packages, by beginnings and groups of paragraphs, and pieces of Python source: thousands."""
    texts = []
    for folder in sorted(Path(sysconfig.get_paths()["purelib"]).glob("*.dist-info")):
        for path in sorted(folder.rglob("*")):
            if path.is_file() and (path.name == "METADATA" or "LICENSE" in path.name.upper()):
                text = path.read_text(encoding="utf-8", errors="replace")
                paragraphs = text.split("\n\n")
                texts += [text[:2000], *("\n\n".join(paragraphs[first : first + 4])[:2000] for first in range(0, 24, 4))]
    for text in python_texts():
        texts += [piece[:2000] for piece in text.split("\n\n\n")[:8]]
    return tuple(dict.fromkeys(text for text in texts if text.strip()))


@cache
def statutes() -> tuple[str, ...]:
    """Statutes of the sample corpus, at most 8,000 characters of each."""
    if not STATUTES.is_file():
        pytest.skip(f"{STATUTES} is not there: python tools/fetch_samples.py china_law")
    with STATUTES.open(encoding="utf-8") as lines:
        return tuple(json.loads(line)["text"][:8_000] for line in lines)


def one_group(rules: Any, group: str) -> Any:
    """Return rules of which only one group is on."""
    return type(rules)(words=rules.words, **{group: getattr(rules, group)})
