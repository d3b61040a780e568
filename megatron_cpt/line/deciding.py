"""The body of the stage gate, and what is done about its verdict."""

from __future__ import annotations

from pathlib import Path

from megatron_cpt.errors import DataError, RolledBack
from megatron_cpt.gate.act import GOOD_NAME, GoodCheckpoint, carry_out
from megatron_cpt.gate.decide import decide
from megatron_cpt.gate.limits import verdict_of_breach
from megatron_cpt.gate.page import verdict_lines, verdict_page
from megatron_cpt.gate.verdict import VERDICT_NAME, VERDICT_PAGE, Verdict
from megatron_cpt.launch_ranks import run_in_child
from megatron_cpt.line.run import Run, indented
from megatron_cpt.meter.ledger import Attempt
from megatron_cpt.plan.run_plan import PLAN_NAME, RunPlan, grace_window_steps
from megatron_cpt.record.hashing import sha256_plain
from megatron_cpt.record.manifest import StageResult
from megatron_cpt.record.store import read_json, read_lines, write_json, write_text
from megatron_cpt.record.typed import to_plain


def gate_body(run: Run, result: StageResult, _: Attempt) -> None:
    plan, train = run.plan, run.manifest("train").facts
    baseline = read_json(run.of("baseline") / "eval.json")
    if run.limit:
        verdict = verdict_of_breach(baseline, plan.gate, run.limit, weights_sha256=train["checkpoint_sha256"])
    else:
        candidate = read_json(run.of("eval") / "eval.json")
        verdict = decide(baseline, candidate, plan.gate, step=int(train["step"]), grace_steps=grace_window_steps(plan))
    write_json(result.folder / VERDICT_NAME, to_plain(verdict))
    write_text(result.folder / VERDICT_PAGE, verdict_page(verdict, run_name=plan.run_name))
    result.facts = {"decision": verdict.decision, "reasons": list(verdict.reasons)}


def do_verdict(run: Run, *, say_it: bool = True) -> None:
    """Do what the recorded verdict says; safe after a kill, because doing it twice is doing it once.

    Args:
        say_it: show the rules and the decision, and raise unless it is to promote.
    """
    verdict = Verdict.load(run.of("gate") / VERDICT_NAME)
    candidate = run.manifest("train").facts["checkpoint"]
    init = {name: file.sha256 for name, file in run.manifest("init").outputs.items() if name.startswith("checkpoint/")}
    carry_out(run.folder, verdict, checkpoint=candidate, init_sha256=sha256_plain(init))
    _show_in_wandb(run, verdict)
    if not say_it:
        return
    for line in verdict_lines(verdict):
        indented(line)
    if verdict.decision == "rollback":
        raise RolledBack(
            "The candidate was rolled back:\n    " + "\n    ".join(verdict.reasons),
            where=run.of("gate") / VERDICT_NAME,
            value=f"{GOOD_NAME} names {GoodCheckpoint.load(run.folder).checkpoint}",
            next_step="Change one thing (more replay, a lower rate) and begin a new round: megatron-cpt run --new-round ... <overrides>.",
        )
    if verdict.decision == "unknown":
        raise DataError(
            "The verdict is unknown, which is never a pass:\n    " + "\n    ".join(verdict.reasons),
            where=run.of("gate") / VERDICT_PAGE,
            value=f"{run.of('train').parent / GOOD_NAME} is as it was",
            next_step="More items decide (eval.max_bytes, a larger benchmark), or a margin that these can show, or longer training.",
        )


def _show_in_wandb(run: Run, verdict: Verdict) -> None:
    """Show the verdict and what was done about it in the run's wandb run, in a process of its own; nothing where all is shown."""
    from megatron_cpt.train.metrics import METRICS_NAME  # noqa: PLC0415
    from megatron_cpt.train.tracking import is_shown_in_wandb, unseen_shown  # noqa: PLC0415

    train_dir = run.of("train")
    if is_shown_in_wandb(train_dir, run.plan) and unseen_shown(read_lines(train_dir / METRICS_NAME), verdict):
        run_in_child(_show_in_child, train_dir, plan_path=run.of("plan") / PLAN_NAME, verdict_path=run.of("gate") / VERDICT_NAME)


def _show_in_child(train_dir: Path, *, plan_path: Path, verdict_path: Path) -> None:
    from megatron_cpt.train.tracking import show_events  # noqa: PLC0415

    show_events(train_dir, RunPlan.load(plan_path), verdict=Verdict.load(verdict_path))
