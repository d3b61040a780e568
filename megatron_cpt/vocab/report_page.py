"""The vocabulary report as one self-contained page with pictures."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from megatron_cpt.charts.data import Axis, BarChart, BarSeries, Colour, Mark, Series, XYChart
from megatron_cpt.charts.figure import charts, still
from megatron_cpt.charts.page import table, whole_page
from megatron_cpt.record.vocab_contract import Check
from megatron_cpt.vocab.advice import economy_rows
from megatron_cpt.vocab.measure import MAX_LENGTH
from megatron_cpt.vocab.report import HEAD, NOTES, NUM_SHOWN_PIECES, TERMS_NOTE, TITLES, fit_rows, term_rows

VERDICTS = {True: ("promote", "Extend"), False: ("rollback", "Do not extend"), None: ("unknown", "Unknown whether to extend")}
COLOURS: dict[str, Colour] = {"base": "c", "extended": "a"}


def report_page(report: dict[str, Any], checks: Sequence[Check], pieces: Sequence[dict[str, Any]]) -> str:
    """Return the page; every word of a stranger's text in it is escaped."""
    parts = [_verdict(report), _pictures(report)]
    if report.get("economy"):
        parts.append(f"<h2>Break-even</h2>{table(('figure', 'value'), economy_rows(report['economy']))}")
    for role, title in TITLES.items():
        if role in report:
            parts.append(f"<h2>{title}</h2>{table(HEAD, fit_rows(report[role]), numbers=range(1, len(HEAD)))}")
    parts.append(f'<p class="soft">{escape(NOTES)}</p><ul class="soft">')
    parts += [f"<li>{escape(remark)}</li>" for remark in report["comparison"]]
    parts.append("</ul>")
    parts.append(_terms(report))
    if checks:
        rows = [(check.name, "yes" if check.holds else "NO", f"{check.num_cases:,}", check.detail) for check in checks]
        parts.append(f"<h2>Contract</h2>{table(('clause', 'holds', 'cases', 'remark'), rows, numbers=(2,))}")
    if pieces:
        shown = [(piece["id"], piece["piece"].replace(" ", "␠"), f"{piece['count']:,}") for piece in pieces[:NUM_SHOWN_PIECES]]
        head = ("id", "piece", "tokens saved on the sample")
        parts.append(f"<h2>First new pieces of {len(pieces):,}</h2>{table(head, shown, numbers=(0, 2))}")
    return whole_page("Vocabulary report", "".join(parts))


def _verdict(report: dict[str, Any]) -> str:
    if "advice" not in report:
        return ""
    css, words = VERDICTS[report["advice"]["extend"]]
    why, rule = report["advice"]["why"], report["advice"]["rule"]
    return f'<p class="verdict {css}">{words}</p><p>{escape(why[0].upper() + why[1:])}.</p><p class="soft">{escape(rule)}</p>'


def _pictures(report: dict[str, Any]) -> str:
    pictures = []
    for role in TITLES:
        fits = {name: fit["tokens_per_char"] for name, fit in report.get(role, {}).items() if fit is not None}
        if fits:
            bars = [
                BarSeries(name, [value if each == name else None for each in fits], COLOURS.get(name, "b")) for name, value in fits.items()
            ]
            title = f"Tokens per character, {role} text"
            pictures.append(still(BarChart(title, list(fits), bars, Axis("less is better"), pattern="{:.3f}"), has_keys=False))
    lengths = [
        BarSeries(name, [count / fit["num_tokens"] for count in fit["token_lengths"]], COLOURS[name])
        for name, fit in report.get("domain", {}).items()
        if fit is not None and name in COLOURS
    ]
    if lengths:
        names = ["part", *map(str, range(1, MAX_LENGTH)), f"{MAX_LENGTH}+"]
        across = Axis("characters of a token (part: less than one)")
        columns = BarChart("Tokens by length, domain text", names, lengths, Axis("share of tokens"), names_axis=across, across=False)
        pictures.append(still(columns))
    gain = report.get("gain")
    if gain and gain["sample_tokens"]:
        points = [(float(rows), saved / gain["sample_tokens"]) for rows, saved in gain["points"]]
        mark = Mark(float(gain["asked"]), f"{gain['asked']:,} rows")
        axes = Axis("added rows"), Axis("share of tokens saved")
        pictures.append(still(XYChart("What each row brings, training sample", [Series("saved", points)], *axes, marks=[mark])))
    return f"<h2>Pictures</h2>{charts(pictures)}" if pictures else ""


def _terms(report: dict[str, Any]) -> str:
    terms = report.get("terms")
    if not terms:
        return ""
    head = ("vocabulary", "terms that are one token", "tokens per term")
    words = " ".join([TERMS_NOTE, *terms["remarks"]])
    return (
        f"<h2>The {terms['num_terms']:,} terms of the list</h2>{table(head, term_rows(terms), numbers=(1, 2))}"
        f'<p class="soft">{escape(words)}</p>'
    )
