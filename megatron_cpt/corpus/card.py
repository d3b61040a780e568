"""The data card: what the corpus holds, under which licences, from where, and what was left out and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_cpt.errors import printable
from megatron_cpt.record.provenance import provenance_in_words
from megatron_cpt.record.store import write_json, write_text


def write_data_card(folder: Path, sources: dict[str, dict[str, Any]], examples: dict[str, list[str]]) -> None:
    """Write `data_card.json` and `data_card.md`; examples are shown with control characters escaped."""
    shown = {name: [printable(text) for text in texts] for name, texts in examples.items()}
    write_json(folder / "data_card.json", {"sources": {name: {**facts, "examples": shown[name]} for name, facts in sources.items()}})
    write_text(folder / "data_card.md", card_markdown(sources, shown))


def cell(value: object) -> str:
    """Return text that cannot break out of a table cell or start markup."""
    return printable(str(value)).replace("|", "\\|").replace("<", "&lt;").replace("`", "'")


def counts_in_words(counts: dict[str, int]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in counts.items()) or "none"


def card_markdown(sources: dict[str, dict[str, Any]], examples: dict[str, list[str]]) -> str:
    lines = [
        "# Data card", "",
        "| source | role | language | licence | read | kept | rejected | train documents | train MB | test documents | test MB |",
        "| --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]  # fmt: skip
    for name, facts in sources.items():
        lines.append(
            f"| {cell(name)} | {facts['role']} | {cell(facts['language'])} | {cell(facts['licence'])} | {facts['read']:,} "
            f"| {facts['kept']:,} | {sum(facts['rejected'].values()):,} | {facts['train_documents']:,} | {facts['train_bytes'] / 1e6:.2f} "
            f"| {facts['test_documents']:,} | {facts['test_bytes'] / 1e6:.2f} |"
        )
    lines += ["", "MB are 10^6 bytes of UTF-8 text. Read = kept + rejected for every source; each reject is listed in `rejects/`.", ""]
    for name, facts in sources.items():
        lines += [f"## {cell(name)}", "", f"- provenance: {cell(provenance_in_words(facts['provenance']))}"]
        lines.append(f"- rejected: {counts_in_words(facts['rejected'])}")
        lines.append(f"- repaired and kept: {counts_in_words(facts['repaired'])}")
        for key, title in (("found", "found by the filters"), ("languages", "documents by identified language")):
            if key in facts:
                lines.append(f"- {title}: {counts_in_words(facts[key])}")
        lines += [f"- example: {cell(text)}" for text in examples[name]] + [""]
    return "\n".join(lines)
