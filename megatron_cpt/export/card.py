"""The model card of an export, in the Hugging Face form: lineage by hash, texts and licences, scores against the base, the bill."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from megatron_cpt.config.schema import ModelConfig
from megatron_cpt.gate.act import GoodCheckpoint
from megatron_cpt.gate.verdict import Verdict
from megatron_cpt.plan.run_plan import RunPlan


def model_card(
    plan: RunPlan,
    model: ModelConfig,
    *,
    good: GoodCheckpoint,
    verdict: Verdict,
    facts: Mapping[str, Mapping[str, Any]],
    fingerprints: Mapping[str, str],
) -> str:
    """Return the README.md of an exported folder.

    Args:
        facts: the facts of each finished stage's manifest.
        fingerprints: of the stages that decide the weights.
    """
    languages = sorted({source["language"] for source in facts["corpus"]["sources"].values()})
    head = yaml.safe_dump(
        {"license": model.licence.lower(), "language": languages, "library_name": "transformers", "tags": ["continued-pretraining"]},
        sort_keys=False,
        allow_unicode=True,
    )
    consumed = facts["train"]["sources"]
    texts = [
        f"| {entry.source} | {entry.role} | {entry.licence} | {consumed[entry.source]['tokens']:,} | {entry.num_epochs:.3f} |"
        for entry in plan.blend
    ]
    scores = [
        f"| {rule.text} | {_bits(rule.base)} | {_bits(rule.candidate)} | {_interval(rule.low, rule.high)} | {rule.reason} |"
        for rule in verdict.rules
    ]
    lineage = [f"| {name} | `{digest}` |" for name, digest in {**fingerprints, "plan": plan.fingerprint, "weights": good.sha256}.items()]
    return "\n".join(
        [
            f"---\n{head}---",
            f"# {plan.run_name}",
            "",
            f"Continued pretraining of: {model.provenance} (licence {model.licence}).",
            f"{facts['train']['tokens']:,} tokens in {facts['train']['step']} steps; "
            f"{plan.vocab.num_ids - plan.vocab.num_base_ids} vocabulary pieces were added and no id of the base moved.",
            "",
            "## Trained on",
            "| source | role | licence | tokens | epochs |",
            "| --- | --- | --- | --- | --- |",
            *texts,
            "",
            "## Against the frozen base, in bits per byte",
            f"| held-out text | base | this model | difference, {100 * verdict.confidence:.0f} % interval | |",
            "| --- | --- | --- | --- | --- |",
            *scores,
            "",
            "## Lineage (SHA-256)",
            "| record | digest |",
            "| --- | --- |",
            *lineage,
            "",
            "## Known limits",
            "Judged by bits per byte on held-out text only: no task, safety or bias score was taken.",
            "",
        ]
    )


def _bits(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4f}"


def _interval(low: float | None, high: float | None) -> str:
    return "unknown" if low is None or high is None else f"{low:+.4f} to {high:+.4f}"
