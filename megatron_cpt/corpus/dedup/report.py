"""Which documents went because others say the same: numbers, sizes of the clusters, and the largest with examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_cpt.corpus.markdown import cell
from megatron_cpt.record.store import write_json, write_text
from megatron_cpt.text.runs import Places

REPORT_NAME = "duplicates"
SHOWN_CLUSTERS = 20
SHOWN_MEMBERS = 4
SHOWN_CHARACTERS = 160


@dataclass(frozen=True)
class Shown:
    """A document as the report names it."""

    id: str
    source: str
    text: str


def duplicates_report(
    kept_of: Places, *, equal: NDArray[np.bool_], source_of: Places, sources: Sequence[str], shown_of: Callable[[Places], Sequence[Shown]]
) -> dict[str, Any]:
    """Return the report as plain data.

    Args:
        kept_of: see `find_duplicates`; shape (documents,).
        equal: whether a document that goes has the very text of the one that is kept; shape (documents,).
        source_of: the source of each document, as a place in `sources`; shape (documents,).
        shown_of: returns id, source and text of the documents at some indices; asked for a few hundred at most.
    """
    gone = np.flatnonzero(kept_of != np.arange(len(kept_of)))
    kept, counts = np.unique(kept_of[gone], return_counts=True)
    pairs = Counter(zip(source_of[gone].tolist(), source_of[kept_of[gone]].tolist(), strict=True))
    largest = np.lexsort((kept, -counts))[:SHOWN_CLUSTERS]
    by_cluster = gone[np.argsort(kept_of[gone], kind="stable")]
    begins = np.cumsum([0, *counts.tolist()])
    clusters = []
    for cluster in largest.tolist():
        members = by_cluster[begins[cluster] : begins[cluster + 1]][: SHOWN_MEMBERS - 1]
        first, *others = shown_of(np.concatenate([kept[cluster : cluster + 1], members]))
        dropped = [{**_shortened(shown), "equal": bool(same)} for shown, same in zip(others, equal[members].tolist(), strict=True)]
        clusters.append({"documents": int(counts[cluster]) + 1, "kept": _shortened(first), "dropped": dropped})
    return {
        "documents": len(kept_of),
        "dropped_equal": int(np.count_nonzero(equal[gone])),
        "dropped_near": int(np.count_nonzero(~equal[gone])),
        "clusters": len(kept),
        "cluster_sizes": {str(size): number for size, number in sorted(Counter((counts + 1).tolist()).items())},
        "between_sources": [
            {"dropped_from": sources[ours], "kept_in": sources[theirs], "documents": number}
            for (ours, theirs), number in sorted(pairs.items())
        ],
        "largest": clusters,
    }


def write_duplicates_report(folder: Path, report: dict[str, Any]) -> None:
    """Write `duplicates.json` and `duplicates.md`."""
    write_json(folder / f"{REPORT_NAME}.json", report)
    write_text(folder / f"{REPORT_NAME}.md", report_markdown(report))


def report_markdown(report: dict[str, Any]) -> str:
    gone = report["dropped_equal"] + report["dropped_near"]
    sizes = ", ".join(f"{number:,} of {int(size):,}" for size, number in list(report["cluster_sizes"].items())[:10])
    sizes += ", and larger" if len(report["cluster_sizes"]) > 10 else ""
    lines = [
        "# Duplicates", "",
        f"Of {report['documents']:,} documents {gone:,} went for others that say the same: {report['dropped_equal']:,} with an equal text, "
        f"{report['dropped_near']:,} with nearly the same. {report['clusters']:,} documents stand for them.", "",
    ]  # fmt: skip
    if not report["clusters"]:
        return "\n".join(lines)
    lines += [
        f"Documents in a cluster, the one that is kept among them: {sizes}.",
        "", "| dropped from | kept in | documents |", "| --- | --- | ---: |",
    ]  # fmt: skip
    lines += [f"| {cell(row['dropped_from'])} | {cell(row['kept_in'])} | {row['documents']:,} |" for row in report["between_sources"]]
    lines += ["", "The largest clusters; every document that went is in `rejects/` with the id of the one that is kept.", ""]
    for cluster in report["largest"]:
        lines += [f"## {cluster['documents']:,} documents", "", f"- kept: {_named(cluster['kept'])}"]
        lines += [f"- {'equal' if shown['equal'] else 'near'}: {_named(shown)}" for shown in cluster["dropped"]]
        more = cluster["documents"] - 1 - len(cluster["dropped"])
        lines += [*([f"- and {more:,} more"] if more else []), ""]
    return "\n".join(lines)


def _named(shown: dict[str, str]) -> str:
    return f"{cell(shown['id'])} ({cell(shown['source'])}): {cell(shown['text'])}"


def _shortened(shown: Shown) -> dict[str, str]:
    text = shown.text if len(shown.text) <= SHOWN_CHARACTERS else shown.text[: SHOWN_CHARACTERS - 1] + "…"
    return {"id": shown.id, "source": shown.source, "text": text}
