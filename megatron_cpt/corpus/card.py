"""The data card: what the corpus holds, under which licences, from where, what was left out and why, and how it is to be mixed."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_cpt.corpus.coverage_report import coverage_lines
from megatron_cpt.corpus.markdown import cell, share, table
from megatron_cpt.corpus.split import SIDES
from megatron_cpt.errors import printable
from megatron_cpt.record.provenance import provenance_in_words
from megatron_cpt.record.store import write_json, write_text

MB = 1e6


@dataclass(frozen=True)
class Card:
    """What the data card is made of.

    Attributes:
        facts: of the stage: `sources` by name, and `selection`, `duplicates`, `contamination` where there were any.
        examples: beginnings of texts by source.
        lengths: training documents by source and by the bits of their number of characters.
        shares: planned shares of training samples by source; empty where no blend is configured.
        coverage: the report on the domain; None where nothing defines one.
    """

    facts: Mapping[str, Any]
    examples: Mapping[str, list[str]]
    lengths: Mapping[str, Counter[int]]
    shares: Mapping[str, float] = field(default_factory=dict)
    coverage: Mapping[str, Any] | None = None

    @property
    def sources(self) -> Mapping[str, Mapping[str, Any]]:
        sources: Mapping[str, Mapping[str, Any]] = self.facts["sources"]
        return sources


def write_data_card(folder: Path, card: Card) -> None:
    """Write `data_card.json` and `data_card.md`; strangers' text is shown and never becomes markup."""
    write_json(folder / "data_card.json", card_data(card))
    write_text(folder / "data_card.md", "\n".join(card_markdown(card)))


def card_data(card: Card) -> dict[str, Any]:
    """Return the card as plain data; the coverage's list of terms stays in `coverage.json`."""
    sources = {
        name: {
            **facts,
            "examples": [printable(text) for text in card.examples[name]],
            "length_histogram": [
                {"chars_from": low, "chars_below": high, "documents": count} for low, high, count in bins(card.lengths[name])
            ],
        }
        for name, facts in card.sources.items()
    }
    data: dict[str, Any] = {"sources": sources, "mixture": mixture(card)}
    data |= {key: value for key, value in card.facts.items() if key not in data}
    for key in ("language", "licence", "role"):
        data[f"by_{key}"] = [{key: value, "documents": documents, "bytes": size} for value, documents, size in train_by(card, key)]
    if card.coverage is not None:
        data["coverage"] = {key: value for key, value in card.coverage.items() if key != "terms"}
    return data


def bins(lengths: Counter[int]) -> list[tuple[int, int, int]]:
    """Return `(from, below, documents)` in characters, from the shortest document to the longest, each bin twice the one before."""
    if not lengths:
        return []
    return [(2 ** (bits - 1), 2**bits, lengths[bits]) for bits in range(min(lengths), max(lengths) + 1)]


def train_by(card: Card, key: str) -> list[tuple[str, int, int]]:
    """Return training documents and bytes by a label of the sources, the largest first."""
    documents: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for facts in card.sources.values():
        documents[facts[key]] += facts["train_documents"]
        sizes[facts[key]] += facts["train_bytes"]
    return [(label, documents[label], sizes[label]) for label in sorted(documents, key=lambda label: (-sizes[label], label))]


def mixture(card: Card) -> list[dict[str, Any]]:
    """Return for each source of the blend its planned share of the samples beside its share of the text that the blend reads."""
    total = sum(card.shares.values())
    size = sum(card.sources[name]["train_bytes"] for name in card.shares if name in card.sources)
    return [
        {
            "source": name,
            "planned_share": card.shares[name] / total,
            "train_bytes": card.sources[name]["train_bytes"],
            "share_of_bytes": card.sources[name]["train_bytes"] / size if size else None,
        }
        for name in sorted(card.shares)
        if name in card.sources and total > 0
    ]


def card_markdown(card: Card) -> list[str]:
    lines = ["# Data card", "", *size_lines(card), *label_lines(card), *mixture_lines(card), *left_out_lines(card)]
    if card.coverage is not None:
        lines += ["## Coverage of the domain", "", *coverage_lines(dict(card.coverage))]
    lines += length_lines(card)
    for name in card.sources:
        lines += source_lines(card, name)
    return lines


def size_lines(card: Card) -> list[str]:
    has_valid = any(facts["valid_documents"] for facts in card.sources.values())
    sides = [side for side in SIDES if side != "valid" or has_valid]
    rows = []
    totals: defaultdict[str, int] = defaultdict(int)
    for name, facts in card.sources.items():
        numbers = {"read": facts["read"], "kept": facts["kept"], "rejected": sum(facts["rejected"].values())}
        numbers |= {f"{side} {what}": facts[f"{side}_{what}"] for side in sides for what in ("documents", "bytes", "chars")}
        for key, number in numbers.items():
            totals[key] += number
        rows.append([cell(name), facts["role"], *counts_row(numbers, sides)])
    if len(rows) > 1:
        rows.append(["**all**", "", *counts_row(totals, sides)])
    head = ["source", "role", "read", "kept", "rejected"]
    head += [f"{side} {what}" for side in sides for what in ("documents", "MB", "M characters")]
    return [
        *table(head, rows), "",
        "MB are 10^6 bytes of UTF-8 text. Read = kept + rejected for every source; each reject is listed in `rejects/`."
        " The test side is for the gate, a validation side for watching; the digest of a text decides on which side it stands.", "",
    ]  # fmt: skip


def counts_row(numbers: Mapping[str, int], sides: list[str]) -> list[str]:
    row = [f"{numbers[key]:,}" for key in ("read", "kept", "rejected")]
    for side in sides:
        row += [f"{numbers[f'{side} documents']:,}", f"{numbers[f'{side} bytes'] / MB:.2f}", f"{numbers[f'{side} chars'] / MB:.2f}"]
    return row


def label_lines(card: Card) -> list[str]:
    size = sum(facts["train_bytes"] for facts in card.sources.values())
    lines = ["## Languages and licences of the training side", ""]
    for key, head in (("language", "declared language"), ("licence", "licence (SPDX)")):
        rows = [[cell(label), f"{documents:,}", f"{part / MB:.2f}", share(part, size)] for label, documents, part in train_by(card, key)]
        lines += [*table([head, "documents", "MB", "share of bytes"], rows), ""]
    found: Counter[str] = Counter()
    for facts in card.sources.values():
        found.update(facts.get("languages", {}))
    if found:
        named = ", ".join(f"{cell(language)} {count:,}" for language, count in found.most_common())
        lines += [f"Languages found in the documents that were read: {named}.", ""]
    return lines


def mixture_lines(card: Card) -> list[str]:
    rows = []
    for entry in mixture(card):
        of_bytes = entry["share_of_bytes"]
        weight = f"{entry['planned_share'] / of_bytes:.2f}" if of_bytes else "-"
        rows.append([cell(entry["source"]), f"{entry['planned_share']:.1%}", f"{of_bytes:.1%}" if of_bytes is not None else "-", weight])
    if not rows:
        return []
    return [
        "## Mixture", "", *table(["source", "planned share of samples", "share of the text", "weight"], rows), "",
        "A weight above 1 reads a source more often than its size asks for. How many times each is read in all (epochs) is in the"
        " plan, which knows the number of tokens.", "",
    ]  # fmt: skip


def left_out_lines(card: Card) -> list[str]:
    lines = ["## Left out", ""]
    reasons = sorted({reason for facts in card.sources.values() for reason in facts["rejected"]})
    if reasons:
        rows = [[cell(name), *(f"{facts['rejected'].get(reason, 0):,}" for reason in reasons)] for name, facts in card.sources.items()]
        lines += [*table(["source", *map(cell, reasons)], rows), ""]
    else:
        lines += ["Nothing: every record was kept.", ""]
    if copies := card.facts.get("duplicates"):
        lines += [
            f"Copies: {copies['dropped_equal']:,} equal and {copies['dropped_near']:,} near ones of {copies['clusters']:,} documents"
            " were left out (duplicates.md).",
            "",
        ]
    if found := card.facts.get("contamination"):
        documents = found["documents"]
        count = sum(documents.values()) if isinstance(documents, Mapping) else documents
        action = "left out" if found["action"] == "drop" else "kept and reported"
        lines += [f"Evaluation: {count:,} training documents hold items that are evaluated; they were {action} (contamination.md).", ""]
    if chosen := card.facts.get("selection"):
        weights = chosen["mean_log_weight_chosen"], chosen["mean_log_weight_pool"]
        means = f" Mean log weight {weights[0]:.1f} nats, of the whole pool {weights[1]:.1f}." if None not in weights else ""
        lines += [
            f"Selection: {chosen['chosen_documents']:,} of {chosen['pool_documents']:,} documents of the pool were chosen,"
            f" {chosen['chosen_bytes'] / MB:.2f} of {chosen['pool_bytes'] / MB:.2f} MB.{means}",
            "",
        ]
    return lines


def length_lines(card: Card) -> list[str]:
    together: Counter[int] = Counter()
    for lengths in card.lengths.values():
        together.update(lengths)
    if not together:
        return []
    names = [name for name in card.sources if card.lengths[name]]
    rows = [
        [f"{low:,} to {high - 1:,}", *(f"{card.lengths[name][low.bit_length()]:,}" for name in names)] for low, high, _ in bins(together)
    ]
    return ["## Length of training documents, in characters", "", *table(["characters", *map(cell, names)], rows), ""]


def counts_in_words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{cell(reason)} {count:,}" for reason, count in counts.items()) or "none"


def source_lines(card: Card, name: str) -> list[str]:
    facts = card.sources[name]
    lines = [f"## {cell(name)}", "", f"- {cell(facts['role'])}, language {cell(facts['language'])}, licence {cell(facts['licence'])}"]
    lines.append(f"- provenance: {cell(provenance_in_words(facts['provenance']))}")
    lines.append(f"- rejected: {counts_in_words(facts['rejected'])}")
    lines.append(f"- repaired and kept: {counts_in_words(facts['repaired'])}")
    for key, title in (("found", "found by the filters"), ("languages", "documents by identified language")):
        if key in facts:
            lines.append(f"- {title}: {counts_in_words(facts[key])}")
    return [*lines, *(f"- example: {cell(text)}" for text in card.examples[name]), ""]
