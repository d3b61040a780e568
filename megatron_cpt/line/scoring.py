"""Bodies of the stages that score: the baseline before training, and the candidate after it, by the same code."""

from __future__ import annotations

from pathlib import Path

from megatron_cpt.errors import CptError
from megatron_cpt.gate.rounds import past_rounds
from megatron_cpt.line.ranks import start_ranks
from megatron_cpt.line.run import Run, indented
from megatron_cpt.meter.ledger import Attempt
from megatron_cpt.plan.run_plan import PLAN_NAME, RunPlan
from megatron_cpt.record.manifest import MANIFEST_NAME, Manifest, StageResult, commit_in_use, versions_in_use
from megatron_cpt.record.store import read_json, write_json


def baseline_body(run: Run, result: StageResult, entry: Attempt) -> None:
    from megatron_cpt.eval.contamination import find_contaminated  # noqa: PLC0415

    contaminated = find_contaminated(run.plan, run.folder, say=indented)  # before ranks are paid for
    path = result.folder / "eval.json"
    earlier = _baseline_before(run)
    if earlier is None:
        _evaluate(run, result, subjects="base,init", attempt_id=entry.attempt_id)
    else:
        write_json(path, read_json(earlier / "eval.json"))
        result.facts = Manifest.load(earlier).facts
        indented(f"the scores of {earlier.relative_to(run.folder)}: same models, texts, layout and code")
    write_json(path, {**read_json(path), "contaminated": contaminated})


def _baseline_before(run: Run) -> Path | None:
    """Return the baseline of the round before where it would come out the same: models, what is scored, layout and code are equal."""
    rounds = past_rounds(run.folder)
    folder = rounds[-1] / "baseline" if rounds else None
    if folder is None or not (folder / MANIFEST_NAME).exists():
        return None
    manifest, plan, before = Manifest.load(folder), run.plan, RunPlan.load(rounds[-1] / "plan" / PLAN_NAME)
    manifest.check_outputs(folder)
    is_same = (
        manifest.inputs["init"] == run.manifest("init").fingerprint
        and (plan.eval, plan.layout, plan.vocab, plan.backend) == (before.eval, before.layout, before.vocab, before.backend)
        and (manifest.versions, manifest.commit) == (versions_in_use(), commit_in_use())
    )
    return folder if is_same else None


def eval_body(run: Run, result: StageResult, entry: Attempt) -> None:
    _evaluate(run, result, subjects="train", attempt_id=entry.attempt_id)


def _evaluate(run: Run, result: StageResult, *, subjects: str, attempt_id: str) -> None:
    plan = run.plan
    out = result.folder / "eval.json"
    code = start_ranks(run, plan, "megatron_cpt.eval", [f"subjects={subjects}", f"out={out}"], attempt_id=attempt_id)
    if code != 0 or not out.exists():
        raise CptError("The evaluation failed; the rank's own words are above.", where=result.folder.name, value=f"torchrun exit {code}")
    report = read_json(out)
    result.facts = {
        name: {text: score["bits_per_byte"] for text, score in subject["texts"].items()} for name, subject in report["subjects"].items()
    }
    for name, scores in result.facts.items():
        indented(f"{name:<6}" + "  ".join(f"{text} {float(bits):.4f}" for text, bits in scores.items()) + "  bits per byte")
        for task, score in report["subjects"][name].get("tasks", {}).items():
            indented(f"{'':<6}{task} " + "  ".join(f"{metric} {float(value):.4f}" for metric, value in score["metrics"].items()))
