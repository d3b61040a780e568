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
    assert verdict.reasons[0].startswith("web may not worsen: +0.2000 bits per byte (")
    assert "shown to be worse by more than 0.02" in verdict.reasons[0]


def test_the_base_against_itself_is_neither_promoted_nor_rolled_back() -> None:
    same = record("train", {"law": spread(1.8), "web": spread(1.2)})
    verdict = decide(BASELINE, same, RULES)
    assert (verdict.decision, verdict.reasons) == ("unknown", ("the candidate equals the base: no score differs",))
    renamed = record("train", {"law": spread(1.7), "web": spread(1.2)}, weights="base")  # the base's own digest
    assert decide(BASELINE, renamed, RULES).reasons == verdict.reasons


def test_a_candidate_shown_neither_better_nor_worse_is_unknown_and_says_how_many_documents_would_decide() -> None:
    noisy = [value - 0.02 + 0.2 * math.cos(2.3 * index) for index, value in enumerate(spread(1.8))]
    verdict = decide(BASELINE, record("train", {"law": noisy, "web": [value + 0.005 for value in spread(1.2)]}), RULES)
    assert verdict.decision == "unknown"
    law, web = verdict.rules
    assert (law.outcome, web.outcome) == ("unsure", "passed")
    assert law.items_needed is not None
    assert law.items_needed > 40
    assert "not shown to be better, nor worse" in law.reason
    assert f"about {law.items_needed:,} would decide" in law.reason
    # by hand: two rules, so the stricter level is 0.0125 (z 2.2414), power 0.8 (0.8416); items weigh as their bytes
    sizes = np.array(SIZES, dtype=float)
    extra = (np.array(noisy) - np.array(spread(1.8))) * sizes
    residual = extra - extra.sum() / sizes.sum() * sizes
    error = math.sqrt(40 / 39 * (residual**2).sum()) / sizes.sum()
    assert law.smallest_detectable == pytest.approx((2.2414 + 0.8416) * error, rel=1e-4)


def test_harm_to_the_domain_is_rolled_back_even_where_a_gain_was_asked_for() -> None:
    worse = record("train", {"law": [value + 0.1 for value in spread(1.8)], "web": spread(1.2)})
    verdict = decide(BASELINE, worse, RULES)
    assert verdict.decision == "rollback"
    assert "law must improve: +0.1000" in verdict.reasons[0]
    assert "shown to be worse than the base" in verdict.reasons[0]


def test_a_gain_that_is_within_the_noise_between_documents_does_not_pass() -> None:
    noisy = [value - 0.01 + 0.2 * math.cos(2.3 * index) for index, value in enumerate(spread(1.8))]
    verdict = decide(BASELINE, record("train", {"law": noisy, "web": spread(1.2)}), RULES)
    law = verdict.rules[0]
    assert law.difference is not None
    assert law.high is not None
    assert law.difference < 0 < law.high
    assert law.outcome == "unsure"


def test_the_margin_must_be_cleared_by_the_whole_interval() -> None:
    strict = dataclasses.replace(RULES, rules=(GateRule("law", "must_improve", 0.15),))
    verdict = decide(BASELINE, BETTER, strict)
    assert verdict.decision == "unknown"  # a gain that is too small is no harm
    assert "shown not to be better by more than 0.15, but no harm is shown" in verdict.reasons[0]
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
    assert any(reason.startswith("web may not worsen: ") for reason in verdict.reasons)


def test_harm_that_was_shown_is_rolled_back_even_when_another_text_is_missing() -> None:
    verdict = decide(BASELINE, record("train", {"law": spread(2.5)}), RULES)
    assert verdict.decision == "rollback"
    assert [reason.split(":")[0] for reason in verdict.reasons] == ["law must improve", "web may not worsen"]


def test_a_few_documents_that_could_show_nothing_say_so_however_they_agree() -> None:
    def with_documents(number: int) -> Verdict:
        base = record("base", {"law": spread(1.8)[:number], "web": spread(1.2)})
        new = record("train", {"law": [value - 0.1 for value in spread(1.8)[:number]], "web": spread(1.2)})
        return decide(base, new, RULES)

    assert with_documents(1).decision == "unknown"
    # with two rules the first is held against 0.0125; 6 documents that agree have p = 1/64 = 0.0156, 7 have 1/128
    assert with_documents(4).decision == "unknown"
    assert "4 documents can show nothing at this level, 7 can" in with_documents(4).rules[0].reason
    assert with_documents(7).decision == "promote"


def test_a_candidate_whose_loss_is_not_a_number_has_diverged_and_is_rolled_back() -> None:
    verdict = decide(BASELINE, record("train", {"law": [float("nan"), *spread(1.8)[1:]], "web": spread(1.2)}), RULES)
    assert verdict.decision == "rollback"
    assert "diverged" in verdict.reasons[0]


def test_a_base_whose_loss_is_not_a_number_gives_no_verdict() -> None:
    base = record("base", {"law": [float("inf"), *spread(1.8)[1:]], "web": spread(1.2)})
    assert decide(base, BETTER, RULES).decision == "unknown"


def test_a_plan_without_rules_promotes_nothing() -> None:
    assert decide(BASELINE, BETTER, dataclasses.replace(RULES, rules=())).decision == "unknown"
    advisory = tuple(dataclasses.replace(rule, required=False) for rule in RULES.rules)
    assert decide(BASELINE, BETTER, dataclasses.replace(RULES, rules=advisory)).decision == "unknown"


@pytest.mark.parametrize(("candidate", "decision"), [(BETTER, "promote"), (FORGETFUL, "rollback")])
def test_an_advisory_rule_is_shown_and_moves_neither_the_decision_nor_any_figure_of_the_others(candidate: dict, decision: str) -> None:
    alone = decide(BASELINE, candidate, RULES)
    extra = (GateRule("law", "may_not_worsen", 0.0, required=False), GateRule("gone", "must_improve", 0.1, required=False))
    verdict = decide(BASELINE, candidate, dataclasses.replace(RULES, rules=(*RULES.rules, *extra)))
    assert verdict.decision == alone.decision == decision
    assert verdict.rules[:2] == alone.rules
    assert [rule.outcome for rule in verdict.rules[2:]] == ["passed", "unknown"]
    assert "(advisory)" in str(verdict.rules[2])
    assert verdict.reasons == alone.reasons


@pytest.mark.parametrize("candidate", [BETTER, FORGETFUL])
def test_inside_the_grace_window_nothing_is_judged(candidate: dict) -> None:
    inside = decide(BASELINE, candidate, RULES, step=12, grace_steps=12)
    assert inside.decision == "unknown"
    assert "step 12 lies inside the grace window" in inside.reasons[0]
    assert [rule.outcome for rule in inside.rules] == ["unknown", "unknown"]
    after = decide(BASELINE, candidate, RULES, step=13, grace_steps=12)
    assert after.decision == decide(BASELINE, candidate, RULES).decision
    assert (after.step, len(after.rules)) == (13, 2)


def test_more_rules_make_a_rollback_harder_and_a_rules_own_confidence_is_used() -> None:
    """One rule whose p-value lies between the single level and half of it: shown alone, not shown beside another that is not."""
    generator = np.random.default_rng(1)
    shift, sizes = generator.normal(0.0, 0.1, 40), np.array(SIZES, dtype=float)
    shift -= (shift * sizes).sum() / sizes.sum()
    error = math.sqrt(40 / 39 * ((shift * sizes) ** 2).sum()) / sizes.sum()
    shift += 2.15 * error  # so t is 2.15 and the one-sided p about 0.019, between 0.0125 and 0.025
    worse = record("train", {"law": spread(1.8), "web": list(np.array(spread(1.2)) + shift)})
    web = GateRule("web", "may_not_worsen", 0.0)
    law = GateRule("law", "may_not_worsen", 0.1)
    alone = decide(BASELINE, worse, dataclasses.replace(RULES, rules=(web,)))
    beside = decide(BASELINE, worse, dataclasses.replace(RULES, rules=(web, law)))
    assert (alone.decision, beside.decision) == ("rollback", "unknown")
    assert alone.rules[0].p_failed is not None
    assert beside.rules[0].p_failed == pytest.approx(2 * alone.rules[0].p_failed)
    sure = dataclasses.replace(web, confidence=0.99)
    assert decide(BASELINE, worse, dataclasses.replace(RULES, rules=(sure,))).decision == "unknown"


def test_what_a_verdict_does_not_rest_on_is_said() -> None:
    verdict = decide(BASELINE, BETTER, dataclasses.replace(RULES, rules=RULES.rules[:1]))
    assert any("no required rule is on general ability" in note for note in verdict.notes)
    assert any("no overlap" in note for note in verdict.notes)
    assert decide({**BASELINE, "contaminated": {}}, BETTER, RULES).notes == ()


def test_contaminated_documents_are_left_out_and_counted() -> None:
    seen = copy.deepcopy(BETTER)
    for document in seen["subjects"]["train"]["texts"]["law"]["documents"][:5]:
        document["nats"] /= 10  # what it saw in training it knows by heart
    found = {"law": [{"id": f"law-{index}", "share": 1.0, "example": "..."} for index in range(5)]}
    law = decide({**BASELINE, "contaminated": found}, seen, RULES).rules[0]
    assert (law.num_items, law.num_excluded) == (35, 5)
    assert law.difference == pytest.approx(-0.1)
    assert "35 documents (5 more left out as contaminated)" in law.reason
    everything = {"law": [{"id": f"law-{index}"} for index in range(40)]}
    verdict = decide({**BASELINE, "contaminated": everything}, seen, RULES)
    assert verdict.decision == "unknown"
    assert "every item of 'law' is contaminated (40 of 40)" in verdict.reasons[0]


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
