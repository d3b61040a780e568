"""The model card as the hub's own library reads it; what is unknown says so, and no place on the machine is published."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from megatron_cpt.config.schema import ModelConfig
from megatron_cpt.errors import DataError
from megatron_cpt.export.card import model_card, with_chat
from megatron_cpt.gate.act import GoodCheckpoint
from megatron_cpt.gate.verdict import RuleResult, Verdict
from megatron_cpt.meter.attempts import attempts_in
from megatron_cpt.meter.totals import totals_by_stage
from megatron_cpt.plan.derive import derive
from megatron_cpt.record.unknown import Unavailable
from tests.unit.plan import plan_examples

RULES = (
    RuleResult(
        "law", "bits_per_byte", "must_improve", "domain", 0.0, True, "passed", "the upper end is below | 0",
        num_items=31, base=1.25, candidate=1.0, difference=-0.25, low=-0.3, high=-0.2,
    ),
    RuleResult("news", "bits_per_byte", "may_not_worsen", "general", 0.05, True, "unknown", "not scored", num_items=12),
)  # fmt: skip
VERDICT = Verdict("promote", RULES, (), 0.95, 2000, 1, "a" * 64, "b" * 64)
GOOD = GoodCheckpoint("train/checkpoints/step_00000010", "c" * 64, "promote", "d" * 64)
FACTS: dict[str, dict[str, Any]] = {
    "corpus": {"sources": {"law": {"language": "zh", "provenance": "a gazette"}, "web": {"language": "Klingon!", "provenance": "a crawl"}}},
    "train": {
        "tokens": 10_485_760, "step": 10, "licences": {"CC0-1.0": 10_485_760},
        "sources": {"law": {"tokens": 7_864_320}, "web": {"tokens": 2_621_440}},
    },
}  # fmt: skip
LINEAGE = {"base": "1" * 64, "corpus": "2" * 64, "tokenizer": "3" * 64, "index": "4" * 64}
MODEL = ModelConfig(path="/data/base", licence="Apache-2.0", provenance="Example 8B of Example Org")


def an_attempt(**figures: Any) -> list[dict[str, Any]]:
    end = {"kind": "end", "attempt": "x", "stage": "train", "status": "finished", "exit_code": 0, "num_ranks": 8, "seconds": 900.0,
           "device_seconds": 7200.0, "tokens": 1, "joules": 3.6e6, "usd": 5.0}  # fmt: skip
    return [{**end, **figures}]


@pytest.fixture(scope="module")
def plan():
    return derive(plan_examples.experiment(), **plan_examples.facts())


def card(plan, **changes: Any) -> str:
    given: dict[str, Any] = {"good": GOOD, "verdict": VERDICT, "facts": FACTS, "lineage": LINEAGE, **changes}
    return model_card(plan, given.pop("model", MODEL), **given)


def test_the_hubs_library_reads_the_front_matter_and_every_record_is_in_the_text(plan, tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text(card(plan))
    read = ModelCard.load(path)
    assert read.data.license == "apache-2.0"
    assert read.data.language == ["zh"]  # what the hub does not know as a language is left out of the metadata
    assert read.data.library_name == "transformers"
    assert read.data.pipeline_tag == "text-generation"
    for digest in (*LINEAGE.values(), plan.fingerprint, GOOD.sha256):
        assert f"`{digest}`" in read.text
    for words in ("| law | domain | CC0-1.0 | 7,864,320 |", "CC0-1.0 10,485,760", "a gazette", "-0.3000 to -0.2000", "## Known limits"):
        assert words in read.text
    assert "below \\| 0" in read.text  # a bar in a reason does not add a column
    assert "unknown: not scored" in read.text
    assert "unknown: no ledger" in read.text


def test_a_licence_that_the_hub_has_no_name_for_is_told_in_full(plan, tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text(card(plan, model=replace(MODEL, licence="Our own terms, version 2")))
    data = ModelCard.load(path).data.to_dict()
    assert (data["license"], data["license_name"]) == ("other", "Our own terms, version 2")


def test_measured_energy_becomes_carbon_by_the_plans_factors(plan) -> None:
    tariff = replace(plan.tariff, pue=1.5, grid_g_co2e_per_kwh=400.0)
    text = card(replace(plan, tariff=tariff), totals=totals_by_stage(attempts_in(an_attempt())))
    # 3.6 MJ are 1 kWh; x 1.5 of the site; x 400 g. 7,200 device seconds are 2 h.
    assert "| train | 2 h | 5 USD | 1.5 kWh | 0.6 kg CO2e |" in text


@pytest.mark.parametrize(
    ("figures", "factor", "words"),
    [
        ({"joules": {"unavailable": "no NVML"}}, 400.0, "| 5 USD | unknown: no NVML | unknown: no NVML |"),
        ({}, Unavailable("no grid is named"), "| 1.5 kWh | unknown: no grid is named |"),
        ({"usd": {"unavailable": "no price"}}, 400.0, "| unknown: no price | 1.5 kWh |"),
    ],
)
def test_what_was_not_measured_is_unknown_with_its_reason(plan, figures: dict[str, Any], factor: Any, words: str) -> None:
    tariff = replace(plan.tariff, pue=1.5, grid_g_co2e_per_kwh=factor)
    assert words in card(replace(plan, tariff=tariff), totals=totals_by_stage(attempts_in(an_attempt(**figures))))


def test_a_place_on_the_machine_is_refused_before_it_is_published(plan) -> None:
    with pytest.raises(DataError, match=r"place on this machine[\s\S]*/home/ann"):
        card(plan, model=replace(MODEL, provenance="copied from /home/ann/models"), private=["/home/ann"])
    assert "/data/base" not in card(plan)


def test_text_of_strangers_cannot_start_markup(plan) -> None:
    each = {"prompt": "<script>a</script>", "base": "one\ntwo | three", "continued": "`x`"}
    row = next(line for line in card(plan, completions=[each]).splitlines() if "script" in line)
    assert row == "| &lt;script>a&lt;/script> | one\\ntwo \\| three | 'x' |"


def test_the_card_of_the_merged_folder_says_that_it_was_not_scored(plan, tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text(with_chat(card(plan), instruct_sha256="e" * 64))
    read = ModelCard.load(path)
    assert read.data.license == "apache-2.0"
    assert f"# {plan.run_name} with chat added\n\n**Not the model that was scored.**" in read.text
    assert "e" * 64 in read.text
