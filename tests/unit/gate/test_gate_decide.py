"""The decision: promote only on evidence, unknown never passes, and the interval holds what it promises."""

from __future__ import annotations

import copy
import dataclasses
import math

import numpy as np
import pytest
from gate_examples import BASELINE, BETTER, FORGETFUL, RULES, SIZES, record, spread

from megatron_cpt.gate.decide import decide
from megatron_cpt.gate.scores import PairedScores, bits_per_byte, bootstrap_interval
from megatron_cpt.gate.verdict import Verdict
from megatron_cpt.plan.run_plan import GateRule
from megatron_cpt.record.typed import from_plain, to_plain


def test_a_candidate_that_learned_the_domain_and_kept_general_text_is_promoted() -> None:
    verdict = decide(BASELINE, BETTER, RULES)
    assert verdict.decision == "promote"
    law, web = verdict.rules
    assert law.difference == pytest.approx(-0.1)
    assert web.difference == pytest.approx(0.005)
    assert law.base == pytest.approx(sum(v * s for v, s in zip(spread(1.8), SIZES, strict=True)) / sum(SIZES))
    assert (verdict.base_weights_sha256, verdict.candidate_weights_sha256) == ("base", "train")


def test_a_candidate_that_forgot_general_text_is_rolled_back_and_the_reason_names_it() -> None:
    verdict = decide(BASELINE, FORGETFUL, RULES)
    assert verdict.decision == "rollback"
    assert [rule.passed for rule in verdict.rules] == [True, False]
    assert verdict.reasons[0].startswith("web may_not_worsen: +0.2000 bits per byte")


def test_the_base_against_itself_improves_nothing_and_worsens_nothing() -> None:
    same = record("train", {"law": spread(1.8), "web": spread(1.2)})
    assert [rule.passed for rule in decide(BASELINE, same, RULES).rules] == [False, True]


def test_a_gain_that_is_within_the_noise_between_documents_does_not_pass() -> None:
    noisy = [value - 0.01 + 0.2 * math.cos(2.3 * index) for index, value in enumerate(spread(1.8))]
    verdict = decide(BASELINE, record("train", {"law": noisy, "web": spread(1.2)}), RULES)
    law = verdict.rules[0]
    assert law.difference is not None
    assert law.high is not None
    assert law.difference < 0 < law.high
    assert law.passed is False


def test_the_margin_must_be_cleared_by_the_whole_interval() -> None:
    strict = dataclasses.replace(RULES, rules=(GateRule("law", "must_improve", 0.15),))
    assert decide(BASELINE, BETTER, strict).decision == "rollback"
    assert decide(BASELINE, BETTER, dataclasses.replace(RULES, rules=(GateRule("law", "must_improve", 0.05),))).decision == "promote"


def without_text() -> dict:
    return record("train", {"law": [value - 0.1 for value in spread(1.8)]})


def other_ids() -> dict:
    changed = copy.deepcopy(BETTER)
    changed["subjects"]["train"]["texts"]["web"]["documents"][3]["id"] = "web-999"
    return changed


def other_bytes() -> dict:
    changed = copy.deepcopy(BETTER)
    changed["subjects"]["train"]["texts"]["web"]["documents"][3]["bytes"] += 1
    return changed


def no_score() -> dict:
    changed = copy.deepcopy(BETTER)
    changed["subjects"]["train"]["texts"]["web"]["documents"][3]["nats"] = None
    return changed


def scored_twice() -> dict:
    changed = copy.deepcopy(BETTER)
    documents = changed["subjects"]["train"]["texts"]["web"]["documents"]
    documents[4] = dict(documents[3])
    return changed


def one_document() -> dict:
    return record("train", {"law": [value - 0.1 for value in spread(1.8)], "web": [1.0]})


@pytest.mark.parametrize("make", [without_text, other_ids, other_bytes, no_score, scored_twice, dict, lambda: {"subjects": []}])
def test_missing_or_unlike_scores_make_the_verdict_unknown_and_never_a_pass(make) -> None:  # type: ignore[no-untyped-def]
    verdict = decide(BASELINE, make(), RULES)
    assert verdict.decision == "unknown"
    assert verdict.rules[1].passed is None
    assert any(reason.startswith("web may_not_worsen: ") for reason in verdict.reasons)


def test_a_missing_text_is_unknown_even_when_another_rule_failed() -> None:
    assert decide(BASELINE, record("train", {"law": spread(2.5)}), RULES).decision == "unknown"


def test_one_document_is_unknown_and_a_few_are_judged_with_a_warning() -> None:
    def with_documents(number: int) -> Verdict:
        base = record("base", {"law": spread(1.8)[:number], "web": spread(1.2)})
        new = record("train", {"law": [value - 0.1 for value in spread(1.8)[:number]], "web": spread(1.2)})
        return decide(base, new, RULES)

    assert with_documents(1).decision == "unknown"
    assert with_documents(4).decision == "promote"
    assert "only 4 documents" in with_documents(4).rules[0].reason
    assert "only" not in with_documents(5).rules[0].reason


def test_a_candidate_whose_loss_is_not_a_number_has_diverged_and_is_rolled_back() -> None:
    verdict = decide(BASELINE, record("train", {"law": [float("nan"), *spread(1.8)[1:]], "web": spread(1.2)}), RULES)
    assert verdict.decision == "rollback"
    assert "diverged" in verdict.reasons[0]


def test_a_base_whose_loss_is_not_a_number_gives_no_verdict() -> None:
    base = record("base", {"law": [float("inf"), *spread(1.8)[1:]], "web": spread(1.2)})
    assert decide(base, BETTER, RULES).decision == "unknown"


def test_a_plan_without_rules_promotes_nothing() -> None:
    assert decide(BASELINE, BETTER, dataclasses.replace(RULES, rules=())).decision == "unknown"


def test_a_verdict_repeats_exactly_and_reads_back_as_it_was_written() -> None:
    verdict = decide(BASELINE, BETTER, RULES)
    assert decide(BASELINE, BETTER, RULES) == verdict
    assert from_plain(Verdict, to_plain(verdict), where="test") == verdict


def test_bits_per_byte_do_not_depend_on_the_number_of_tokens() -> None:
    # 120 nats over 100 bytes are 1.7312 bits per byte, whether a tokenizer made 120 tokens of them or 40
    assert bits_per_byte(120, 100) == pytest.approx(1.731234, abs=1e-6)


def test_the_interval_agrees_with_the_standard_error_of_a_ratio() -> None:
    # independent check: the delta method for sum(d) / sum(b), normal at 95 %, on 400 documents
    generator = np.random.default_rng(0)
    sizes = generator.integers(500, 5000, 400).astype(float)
    base = sizes * 1.3
    candidate = base + sizes * generator.normal(-0.02, 0.1, 400)
    low, high = bootstrap_interval(PairedScores(base, candidate, sizes), confidence=0.95, num_resamples=4000, seed=1)
    extra = (candidate - base) / math.log(2)
    ratio = extra.sum() / sizes.sum()
    error = math.sqrt(((extra - ratio * sizes) ** 2).sum()) / sizes.sum()
    # 4,000 resamples place a 2.5 % quantile within about 3 % of its distance from the center
    assert low == pytest.approx(ratio - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(ratio + 1.96 * error, abs=0.15 * error)


def test_without_any_real_change_no_more_than_the_stated_share_of_trials_is_promoted() -> None:
    # 300 null experiments: an upper end below 0 is expected in 2.5 %; more than 6 % has a chance below 1e-3 (binomial), with
    # room for the bootstrap's known optimism at 40 documents
    generator = np.random.default_rng(3)
    sizes = np.array(SIZES, dtype=float)
    promoted = 0
    for trial in range(300):
        base = sizes * generator.normal(1.5, 0.3, 40)
        candidate = base + sizes * generator.normal(0.0, 0.05, 40)
        _, high = bootstrap_interval(PairedScores(base, candidate, sizes), confidence=0.95, num_resamples=400, seed=trial)
        promoted += high < 0
    assert promoted <= 18
