"""What a person sees of a verdict: aligned, within 82 columns, and the whole of it on one page."""

from __future__ import annotations

import dataclasses

import pytest
from gate_examples import BASELINE, BETTER, FORGETFUL, RULES, with_task

from megatron_cpt.gate.decide import decide
from megatron_cpt.gate.page import verdict_lines, verdict_page
from megatron_cpt.gate.verdict import Verdict
from megatron_cpt.plan.run_plan import GateRule

EXAM = GateRule("exam_of_the_national_bar_with_a_long_name", "may_not_worsen", 0.5, metric="accuracy", required=False, group="domain")
MANY = dataclasses.replace(RULES, rules=(*RULES.rules, EXAM, GateRule("gone", "must_improve", 0.1, required=False)))
RIGHT = {"accuracy": [1.0, 0.0] * 20}


def verdicts() -> list[Verdict]:
    base = with_task(BASELINE, EXAM.on, RIGHT)
    return [decide(base, with_task(candidate, EXAM.on, RIGHT), MANY, step=40, grace_steps=4) for candidate in (BETTER, FORGETFUL)]


@pytest.mark.parametrize("verdict", verdicts(), ids=["promote", "rollback"])
def test_the_terminal_shows_a_row_for_each_rule_in_columns_and_82_wide(verdict: Verdict) -> None:
    lines = verdict_lines(verdict)
    assert max(map(len, lines)) <= 82
    header, *rows = lines[: len(verdict.rules) + 1]
    assert len(rows) == 4
    column = header.index("outcome")
    assert [row[column:] for row in rows] == [rule.outcome for rule in verdict.rules]
    assert f"verdict: {verdict.decision}" in lines
    text = " ".join(" ".join(lines).split())
    for reason in verdict.reasons:
        assert " ".join(reason.split()) in text


def test_the_page_holds_every_figure_and_both_digests() -> None:
    verdict = verdicts()[1]
    page = verdict_page(verdict, run_name="bad|run")
    assert page.startswith("# bad|run: rollback\n\nROLLBACK: harm was shown.\n")
    (row,) = [line for line in page.splitlines() if line.startswith("| web |")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:6] == ["web", "general", "may not worsen", "0.02", "yes", "40"]
    assert cells[8] == "+0.2000"
    assert cells[-1] == "failed"
    assert "| exam_of_the_national_bar_with_a_long_name accuracy | domain |" in page
    assert "advisory" in page
    assert "Step 40. Weights: base `base`, candidate `train`." in page
    assert verdict.fingerprint in page
    assert "[sign flips of paired differences]" in page


def test_text_of_strangers_does_not_break_the_table() -> None:
    rules = (GateRule("law|<b>`x`\x1b[2J", "must_improve", 0.0),)
    page = verdict_page(decide(BASELINE, BETTER, dataclasses.replace(RULES, rules=rules)), run_name="x")
    assert "\x1b" not in page
    assert "<b>" not in page
    assert "| law\\|&lt;b>'x'" in page
