"""Writes `report.html`, one self-contained page, and `summary.txt` from the records of a run."""

from __future__ import annotations

from html import escape
from pathlib import Path

from megatron_cpt.charts.page import whole_page
from megatron_cpt.record.store import write_text
from megatron_cpt.report.bill_part import bill
from megatron_cpt.report.gain_part import benchmarks, gain
from megatron_cpt.report.history_part import history, lineage
from megatron_cpt.report.records import RunRecords
from megatron_cpt.report.summary import summary
from megatron_cpt.report.texts_part import completions, sources, tokenizer
from megatron_cpt.report.training_part import memory, speed, training
from megatron_cpt.report.verdict_part import rounds, rules, verdict_head

PARTS = (rules, rounds, gain, benchmarks, training, sources, tokenizer, speed, memory, bill, history, lineage, completions)
"""The sections in their order; one that does not concern a run is None."""


def write_report(folder: Path, run_dir: Path) -> None:
    """Write the page and the summary of a run; what is not recorded is shown as unknown."""
    records = RunRecords.read(run_dir)
    write_text(folder / "summary.txt", summary(records))
    write_text(folder / "report.html", html(records))


def html(records: RunRecords) -> str:
    """Return the whole page."""
    sections = [section for part in PARTS if (section := part(records)) is not None]
    links = "".join(f'<a href="#{section.id}">{escape(section.title)}</a>' for section in sections)
    body = f"{verdict_head(records)}<nav>{links}</nav>{''.join(section.html for section in sections)}"
    return whole_page(records.run_dir.name, body, is_interactive=True)
