"""The model card of an export, in the Hugging Face form: lineage by hash, texts and licences, scores against the base, the bill.

A card is published: nothing in it names a place on the machine, and what is not known says so and why.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from megatron_cpt.config.schema import ModelConfig
from megatron_cpt.errors import DataError, printable
from megatron_cpt.gate.act import GoodCheckpoint
from megatron_cpt.gate.verdict import Verdict
from megatron_cpt.meter.totals import StageTotals, Total
from megatron_cpt.plan.run_plan import RunPlan
from megatron_cpt.record.provenance import provenance_in_words
from megatron_cpt.record.unknown import Figure, Unavailable, combine, show

JOULES_PER_KWH = 3.6e6
# What the hub knows as a language: ISO 639-1 or 639-3, with a region or script where it matters.
LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z]{2,8})*")
LICENCE = re.compile(r"[a-z0-9.-]+")


def model_card(
    plan: RunPlan,
    model: ModelConfig,
    *,
    good: GoodCheckpoint,
    verdict: Verdict,
    facts: Mapping[str, Mapping[str, Any]],
    lineage: Mapping[str, str],
    totals: Sequence[StageTotals] = (),
    completions: Sequence[Mapping[str, str]] = (),
    private: Sequence[str] = (),
) -> str:
    """Return the README.md of an exported folder.

    Args:
        facts: the facts of each finished stage's manifest.
        lineage: name and digest of everything that the weights come from; the plan's and the weights' are added.
        totals: the bill up to the export, by stage.
        completions: `prompt`, `base` and `continued` text.
        private: texts that must not be published, such as folders of this machine.

    Raises:
        DataError: one of the private texts is in what the configuration says of model and sources.
    """
    licence = model.licence.lower()
    known_licence = LICENCE.fullmatch(licence) is not None
    languages = sorted({source["language"] for source in facts["corpus"]["sources"].values()})
    head = {
        "license": licence if known_licence else "other",
        **({} if known_licence else {"license_name": model.licence}),
        "language": [language for language in languages if LANGUAGE.fullmatch(language)],
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["continued-pretraining", "megatron-core"],
    }
    text = "\n".join(
        [
            f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---",
            f"# {plan.run_name}",
            "",
            f"Continued pretraining of: {cell(model.provenance)} (licence {cell(model.licence)}).",
            f"{facts['train']['tokens']:,} tokens in {facts['train']['step']} steps; "
            f"{plan.vocab.num_ids - plan.vocab.num_base_ids} vocabulary pieces were added and no id of the base moved.",
            "",
            *_texts(plan, facts),
            *_scores(verdict),
            *_bill(plan, totals),
            *_completions(completions),
            *_lineage({**lineage, "plan": plan.fingerprint, "checkpoint": good.sha256}),
            *_limits(plan, verdict),
            "",
        ]
    )
    told = [secret for secret in private if secret and secret in text]
    if told:
        raise DataError(
            "The model card would publish a place on this machine.",
            where="README.md",
            value=told[0],
            next_step="Say in model.provenance and in the sources' provenance where things come from, not where they lie.",
        )
    return text


def with_chat(card: str, *, instruct_sha256: str) -> str:
    """Return the card of the folder whose weights are continued + (instruct - base); its scores are not those of the plain export."""
    note = (
        "**Not the model that was scored.** What an instruct model of the same base had learned was added to these weights by arithmetic "
        "(continued + instruct - base, in fp32). No score below was taken of them, and neither chat nor safety was measured. "
        f"Instruct model: `{instruct_sha256}` (SHA-256 over its config and weights files)."
    )
    front, title, rest = card.partition("\n# ")
    name, newline, body = rest.partition("\n")
    return f"{front}{title}{name} with chat added{newline}\n{note}\n{body}"


def cell(value: object) -> str:
    """Return text that cannot break out of a table cell or start markup."""
    return printable(str(value)).replace("|", "\\|").replace("<", "&lt;").replace("`", "'")


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [*("| " + " | ".join(str(part) for part in line) + " |" for line in lines), ""]


def _texts(plan: RunPlan, facts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    consumed, sources = facts["train"]["sources"], facts["corpus"]["sources"]
    rows = [
        (cell(entry.source), entry.role, cell(entry.licence), f"{consumed[entry.source]['tokens']:,}", f"{entry.num_epochs:.3f}",
         cell(provenance_in_words(sources[entry.source].get("provenance", "unknown: not recorded"))))
        for entry in plan.blend
    ]  # fmt: skip
    by_licence = ", ".join(f"{cell(licence)} {tokens:,}" for licence, tokens in facts["train"].get("licences", {}).items())
    head = ("source", "role", "licence", "tokens consumed", "epochs planned", "provenance")
    return ["## Trained on", "", *_table(head, rows), f"Tokens by licence: {by_licence or 'unknown: not recorded'}.", ""]


def _scores(verdict: Verdict) -> list[str]:
    rows = [
        (cell(rule.name), rule.num_items, _bits(rule.base), _bits(rule.candidate), _interval(rule.low, rule.high), cell(rule.reason))
        for rule in verdict.rules
    ]
    percent = f"{100 * verdict.confidence:g} %"
    head = ("held-out text or task", "items", "base", "this model", f"difference, {percent} interval", "judged")
    return [
        "## Against the frozen base",
        "",
        "Bits per byte of held-out texts (lower is better), shares of tasks where their metric is named. Intervals: paired, over documents "
        f"or items, {verdict.bootstrap_samples:,} resamples, corrected for the number of rules.",
        "",
        *_table(head, rows),
    ]


def _bill(plan: RunPlan, totals: Sequence[StageTotals]) -> list[str]:
    rows: list[tuple[str, ...]] = []
    for total in totals:
        joules = _figure(total.joules)
        kwh = combine(lambda value, pue: value / JOULES_PER_KWH * pue, joules, plan.tariff.pue)
        carbon = combine(lambda value, grams: value * grams / 1000, kwh, plan.tariff.grid_g_co2e_per_kwh)
        rows.append(
            (
                total.stage,
                _said(total.device_seconds.show("{:.3g} h", 1 / 3600)),
                _said(total.usd.show("{:.4g} USD")),
                _said(show(kwh, "{:.4g} kWh")),
                _said(show(carbon, "{:.4g} kg CO2e")),
            )
        )
    if not rows:
        rows = [("all stages", *["unknown: no ledger"] * 4)]
    estimate = plan.estimate
    planned = ("planned training", _said(show(estimate.device_hours, "{:.3g} h")), _said(show(estimate.usd, "{:.4g} USD")),
               _said(show(estimate.kwh, "{:.4g} kWh")), _said(show(estimate.kg_co2e, "{:.4g} kg CO2e")))  # fmt: skip
    return [
        "## What it took",
        "",
        *_table(("", "device time", "cost", "energy (measured x PUE)", "carbon (location-based)"), [*rows, planned]),
        "Measured, every attempt included, except for the last line, which is the plan's estimate. Stages after the export are not in it.",
        "",
    ]


def _figure(total: Total) -> Figure:
    """Return a sum only where every attempt was measured: a part of the energy is not the energy."""
    if total.num_known == total.num_attempts and total.num_attempts and not total.num_lower_bounds and not total.share_measured:
        return total.value
    if total.share_measured:
        return Unavailable(f"measured {total.share_measured}: {'; '.join(total.reasons)}")
    return Unavailable("; ".join(total.reasons) or f"measured {total.num_known} of {total.num_attempts} attempts")


def _said(text: str) -> str:
    """Write `unknown (why)` as `unknown: why`."""
    return cell(f"unknown: {text.removeprefix('unknown (').removesuffix(')')}" if text.startswith("unknown (") else text)


def _completions(completions: Sequence[Mapping[str, str]]) -> list[str]:
    if not completions:
        return []
    rows = [(cell(each["prompt"]), cell(each["base"]), cell(each["continued"])) for each in completions]
    return ["## Greedy completions, to be looked at and not to be counted", "", *_table(("prompt", "base", "this model"), rows)]


def _lineage(lineage: Mapping[str, str]) -> list[str]:
    rows = [(name, f"`{digest}`") for name, digest in lineage.items()]
    return [
        "## Lineage (SHA-256)",
        "",
        *_table(("what", "digest"), rows),
        "A stage's digest covers its inputs and the content of every file that it wrote; the base's covers its config and weights files.",
        "",
    ]


def _limits(plan: RunPlan, verdict: Verdict) -> list[str]:
    limits = [
        "Judged by bits per byte on held-out text only: no task, safety or bias score was taken.",
        f"{len(verdict.rules)} rules were judged; what they do not cover may have been forgotten without being seen.",
        "A base that chatted or followed instructions may do so less well after training on plain text; this was not measured.",
        f"Longest sequence in training: {plan.layout.sequence_length:,} tokens, of {plan.shape.max_position:,} that the base was made for.",
    ]
    if plan.vocab.num_ids > plan.vocab.num_base_ids:
        limits.append("Added pieces occur in this run's texts only; pieces that were seldom seen have rows that were little trained.")
    return ["## Known limits", "", *(f"- {limit}" for limit in limits)]


def _bits(value: float | None) -> str:
    return "unknown: not scored" if value is None else f"{value:.4f}"


def _interval(low: float | None, high: float | None) -> str:
    return "unknown: not judged" if low is None or high is None else f"{low:+.4f} to {high:+.4f}"
