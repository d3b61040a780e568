"""The body of the stage train, which works in place: it resumes from what an earlier attempt left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_cpt.errors import EXIT_ROLLED_BACK, BudgetReached, CheckpointError, ConfigError, CptError, DataError, Stopped
from megatron_cpt.line.ranks import start_ranks
from megatron_cpt.line.run import Run, indented
from megatron_cpt.meter.killed import consumption_of
from megatron_cpt.meter.ledger import STEP_RECORDS, Attempt
from megatron_cpt.record.hashing import sha256_plain
from megatron_cpt.record.store import make_folder, read_json, read_lines
from megatron_cpt.record.typed import to_plain

STOP_FILE = "stop-requested"


def train_body(run: Run, folder: Path, entry: Attempt) -> dict[str, Any]:
    """Train in place, since training resumes from what an earlier attempt left; return the facts of a finished run.

    Raises:
        Stopped, BudgetReached: a checkpoint was saved; run again to go on.
        CptError: a rank failed; its own words are on the terminal.
    """
    from megatron_cpt.train.outcome import OUTCOME_NAME, read_outcome  # noqa: PLC0415

    plan = run.plan
    make_folder(folder)
    before, code = read_outcome(folder), 0
    if before is None or before.status != "limit":  # one that a limit ended is over, even if its command was killed before it said so
        (folder / OUTCOME_NAME).unlink(missing_ok=True)
        (folder / STOP_FILE).unlink(missing_ok=True)
        code = start_ranks(run, plan, "megatron_cpt.train", [], stop_file=folder / STOP_FILE, attempt_id=entry.attempt_id)
        (folder / STOP_FILE).unlink(missing_ok=True)
    recorded = consumption_of(read_lines(run.folder / STEP_RECORDS), entry.attempt_id)
    if recorded is not None:  # all that is known of ranks that ended without a word
        entry.start_tokens, entry.tokens = recorded.start_tokens, recorded.tokens
        entry.training_seconds = recorded.training_seconds
        entry.source_tokens, entry.licence_tokens = recorded.source_tokens, recorded.licence_tokens
    outcome = read_outcome(folder)
    if outcome is None:
        raise CptError("Training ended without a word.", where=folder, value=f"torchrun exit {code}", next_step="Run again to resume.")
    licences = {entry.source: entry.licence for entry in plan.blend}
    entry.tokens = sum(outcome.source_tokens.values())  # this attempt's: the bill adds up attempts
    entry.source_tokens, entry.licence_tokens = outcome.source_tokens, _by_licence(outcome.source_tokens, licences)
    if outcome.status == "stopped":
        raise Stopped(f"Training stopped after step {outcome.step} of {plan.num_steps}: {outcome.reason}", next_step="Run again to go on.")
    if outcome.status == "budget":
        raise BudgetReached(f"A stop condition ended training after step {outcome.step}: {outcome.reason}", where=outcome.checkpoint)
    if outcome.status == "limit" and outcome.breach is not None:
        entry.status, entry.exit_code = "rolled_back", EXIT_ROLLED_BACK
        indented(outcome.reason)
    elif outcome.status != "finished" or outcome.checkpoint is None:
        raise _failure_of_rank(outcome.exit_code, outcome.reason, folder)
    ended = {} if outcome.breach is None else {"limit": to_plain(outcome.breach)}
    if outcome.checkpoint is None:
        return {"step": outcome.step, "checkpoint": None, "checkpoint_sha256": None, "sources": {}, "tokens": entry.tokens, **ended}
    record = read_json(run.folder / outcome.checkpoint / "checkpoint.json")
    return {
        "step": outcome.step,
        "tokens": record["tokens_seen"],
        "checkpoint": outcome.checkpoint,
        "checkpoint_sha256": sha256_plain({name: file["sha256"] for name, file in record["files"].items()}),
        "sources": {
            name: {"samples": samples, "tokens": tokens}
            for name, samples, tokens in zip(record["sources"], record["source_samples"], record["source_tokens"], strict=True)
        },
        "licences": _by_licence(dict(zip(record["sources"], record["source_tokens"], strict=True)), licences),
        "skipped_steps": record.get("skipped_steps", 0),
        **ended,
    }


def _by_licence(source_tokens: dict[str, int], licences: dict[str, str]) -> dict[str, int]:
    sums: dict[str, int] = {}
    for name, tokens in source_tokens.items():
        sums[licences[name]] = sums.get(licences[name], 0) + tokens
    return sums


def _failure_of_rank(exit_code: int, reason: str, folder: Path) -> CptError:
    kinds: dict[int, type[CptError]] = {2: ConfigError, 3: DataError, 4: CheckpointError}
    return kinds.get(exit_code, CptError)(
        "Training failed.", where=folder, value=reason, next_step="Mend the cause, then run again to resume."
    )
