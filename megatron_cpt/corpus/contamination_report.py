"""Which documents held what is evaluated: counts by source, and the items that were found, as `contamination.json` and `.md`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_cpt.corpus.markdown import cell
from megatron_cpt.record.store import write_json, write_text

REPORT_NAME = "contamination"
SHOWN_ITEMS = 40


@dataclass
class ContaminationTally:
    """Documents that hold something by source, and what was found by `(bench, item)`: documents, largest share, its run and place."""

    documents: dict[str, int] = field(default_factory=dict)
    items: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)

    def add(self, source: str, rows: Iterable[list[Any]]) -> None:
        """Add the rows `[piece, line, matches]` of a task of a source."""
        for _, _, matches in rows:
            self.documents[source] = self.documents.get(source, 0) + 1
            for bench, item, share, run in matches:
                found = self.items.setdefault((bench, item), {"documents": 0, "share": 0.0, "run": "", "source": ""})
                found["documents"] += 1
                if share > found["share"]:
                    found.update(share=share, run=run, source=source)

    def report(self, *, action: str, num_items: dict[str, int], too_short: dict[str, int]) -> dict[str, Any]:
        """Return the report as plain data; items by bench, the largest shares first."""
        ordered = sorted(self.items.items(), key=lambda pair: (pair[0][0], -pair[1]["share"], pair[0][1]))
        return {
            "action": action,
            "documents": dict(sorted(self.documents.items())),
            "files": {
                name: {"items": count, "found": sum(1 for bench, _ in self.items if bench == name), "too_short": too_short[name]}
                for name, count in sorted(num_items.items())
            },
            "items": [{"file": bench, "id": item, **found} for (bench, item), found in ordered],
        }


def write_contamination_report(folder: Path, report: dict[str, Any]) -> None:
    """Write `contamination.json` and `contamination.md`."""
    write_json(folder / f"{REPORT_NAME}.json", report)
    write_text(folder / f"{REPORT_NAME}.md", report_markdown(report))


def report_markdown(report: dict[str, Any]) -> str:
    what = "left out" if report["action"] == "drop" else "listed and kept"
    lines = [
        "# What is evaluated, in the training documents", "",
        f"Documents of the training side that hold it were {what}.", "",
        "| source | documents |", "| --- | ---: |",
        *(f"| {cell(name)} | {count:,} |" for name, count in report["documents"].items()), "",
        "| file | items | found | too short to tell |", "| --- | ---: | ---: | ---: |",
    ]  # fmt: skip
    lines += [f"| {cell(name)} | {row['items']:,} | {row['found']:,} | {row['too_short']:,} |" for name, row in report["files"].items()]
    lines += ["", "| item | share | documents | source | run |", "| --- | ---: | ---: | --- | --- |"]
    for row in report["items"][:SHOWN_ITEMS]:
        found = f"{row['share']:.0%} | {row['documents']:,} | {cell(row['source'])}"
        lines.append(f"| {cell(row['file'])} {cell(row['id'])} | {found} | {cell(row['run'])} |")
    if len(report["items"]) > SHOWN_ITEMS:
        lines += ["", f"and {len(report['items']) - SHOWN_ITEMS:,} more in `{REPORT_NAME}.json`"]
    return "\n".join([*lines, ""])
