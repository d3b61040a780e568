"""`coverage.json` and `coverage.md`: how much of the domain the corpus holds, and what is missing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_cpt.corpus.coverage import Seen, Yardstick
from megatron_cpt.corpus.markdown import cell, share, table
from megatron_cpt.record.store import write_json, write_text

OFTEN = 10
SELDOM = 0.25  # a topic with less than this part of its share in the target is named as seldom
TOPIC_HEAD = ["topic of the target", "share of the target", "share of the corpus", "documents", ""]
NUM_SHOWN_TERMS, NUM_SHOWN_MISSING = 30, 100


def coverage_report(yardstick: Yardstick, seen: Mapping[str, Seen], *, target: list[str]) -> dict[str, Any]:
    """Return the report as plain data.

    Args:
        seen: what was counted in each source's training documents.
        target: how the target was named.
    """
    whole = Seen()
    for counted in seen.values():
        whole += counted
    terms: list[dict[str, Any]] = [
        {"term": term, "count": whole.terms[place], "documents": whole.term_documents[place], "in_target": yardstick.in_target[place]}
        for place, term in enumerate(yardstick.terms)
    ]
    return {
        "target": target,
        "documents": whole.documents,
        "bytes": whole.num_bytes,
        "terms_from": yardstick.terms_from,
        "num_terms": len(terms),
        "terms_seen": sum(1 for term in terms if term["count"]),
        "terms_often": sum(1 for term in terms if term["count"] >= OFTEN),
        "never_seen": [term["term"] for term in terms if not term["count"]],
        "terms": terms,
        "topics": topics_of(yardstick, whole),
        "outside_documents": whole.topics[len(yardstick.topics.shares)] if yardstick.topics else None,
        "decades_named": {str(decade): whole.decades[decade] for decade in sorted(whole.decades)},
        "sources": {
            name: {
                "documents": counted.documents,
                "bytes": counted.num_bytes,
                "terms_seen": sum(1 for place in range(len(terms)) if counted.terms[place]),
                "hits_per_mb": counted.terms.total() / counted.num_bytes * 1e6 if counted.num_bytes else None,
                "outside_documents": counted.topics[len(yardstick.topics.shares)] if yardstick.topics else None,
            }
            for name, counted in sorted(seen.items())
        },
    }


def topics_of(yardstick: Yardstick, whole: Seen) -> list[dict[str, Any]]:
    if yardstick.topics is None:
        return []
    inside = whole.documents - whole.topics[len(yardstick.topics.shares)]
    return [
        {
            "words": list(words),
            "target_share": of_target,
            "documents": whole.topics[place],
            "share": whole.topics[place] / inside if inside else 0.0,
        }
        for place, (words, of_target) in enumerate(zip(yardstick.topics.words, yardstick.topics.shares, strict=True))
    ]


def write_coverage(folder: Path, report: dict[str, Any]) -> dict[str, Any]:
    """Write both files; return the numbers for the stage's facts."""
    write_json(folder / "coverage.json", report)
    write_text(
        folder / "coverage.md", "\n".join(["# Coverage of the domain", "", *coverage_lines(report, missing=len(report["never_seen"]))])
    )
    return {
        key: report[key] for key in ("target", "terms_from", "num_terms", "terms_seen", "terms_often", "documents", "outside_documents")
    }


def coverage_lines(report: dict[str, Any], *, missing: int = NUM_SHOWN_MISSING) -> list[str]:
    """Return the report in Markdown, without its heading.

    Args:
        missing: how many of the terms that were never seen are listed.
    """
    given = ", ".join(cell(name) for name in report["target"]) or "none"
    lines = [f"Of the training side: {report['documents']:,} documents, {report['bytes'] / 1e6:.2f} MB. Target: {given}.", ""]
    lines += term_lines(report, missing=missing)
    lines += topic_lines(report)
    if report["decades_named"]:
        named = ", ".join(f"{decade}s {count:,}" for decade, count in report["decades_named"].items())
        lines += [f"Years named in the texts, by decade and number of documents: {named}. A year that a text names is not its date.", ""]
    return lines


def term_lines(report: dict[str, Any], *, missing: int) -> list[str]:
    num_terms, seen = report["num_terms"], report["terms_seen"]
    if not num_terms:
        return ["No terms: there is neither a term list nor a target whose terms differ from the other texts'.", ""]
    origin = "your list" if report["terms_from"] == "list" else "the target (those most over-represented in it)"
    lines = [
        f"**{seen:,} of {num_terms:,} terms ({share(seen, num_terms)}) are seen, {report['terms_often']:,} of them {OFTEN} times or more.**"
        f" Terms are from {origin}.",
        "",
        *table(
            ["source", "documents", "terms seen", "hits per MB"],
            [
                [
                    cell(name),
                    f"{facts['documents']:,}",
                    f"{facts['terms_seen']:,}",
                    f"{facts['hits_per_mb']:,.0f}" if facts["documents"] else "-",
                ]
                for name, facts in report["sources"].items()
            ],
        ),
        "",
    ]
    most = sorted(report["terms"], key=lambda term: (-term["count"], term["term"]))[:NUM_SHOWN_TERMS]
    named = ", ".join(f"{cell(term['term'])} {term['count']:,}" for term in most if term["count"])
    lines += [f"Most often: {named or 'none'}.", ""]
    if never := report["never_seen"]:
        rest = f", and {len(never) - missing:,} more in coverage.json" if len(never) > missing else ""
        lines += [f"Never seen ({len(never):,}): {', '.join(map(cell, never[:missing]))}{rest}.", ""]
    return lines


def topic_lines(report: dict[str, Any]) -> list[str]:
    if not report["topics"]:
        return []
    rows = []
    for topic in report["topics"]:
        is_seldom = topic["share"] < SELDOM * topic["target_share"]
        remark = "missing" if not topic["documents"] else "seldom" if is_seldom else ""
        rows.append(
            [
                cell(", ".join(topic["words"]) or "(no words of its own)"),
                f"{topic['target_share']:.1%}",
                f"{topic['share']:.1%}",
                f"{topic['documents']:,}",
                remark,
            ]
        )
    outside = report["outside_documents"]
    return [
        *table(TOPIC_HEAD, rows),
        "",
        f"{outside:,} documents ({share(outside, report['documents'])}) are of no topic of the target;"
        " shares of the corpus are of the others.",
        "",
    ]
