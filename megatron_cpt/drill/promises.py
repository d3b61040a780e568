"""What the gate and the rollback promise, each compared with what is on disk after a bad continuation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from megatron_cpt.errors import CptError
from megatron_cpt.gate.act import (
    BRANCH_NAME,
    BRANCHES,
    CHECKPOINTS,
    INIT_CHECKPOINT,
    LEDGER,
    METRICS,
    GoodCheckpoint,
    branch_id,
    rollback_event_in,
)
from megatron_cpt.gate.audit import audit
from megatron_cpt.gate.verdict import VERDICT_NAME, Verdict
from megatron_cpt.record.hashing import sha256_plain
from megatron_cpt.record.manifest import Manifest
from megatron_cpt.train.checkpoint_files import check_contents, complete_checkpoints


@dataclass(frozen=True)
class Promise:
    """One promise: whether it held (None: it could not be tested) and what was seen."""

    promise: str
    held: bool | None
    seen: str


@dataclass
class Checklist:
    """Promises in the order of their tests; an error while one is tested is a promise that did not hold."""

    promises: list[Promise] = field(default_factory=list)

    def test(self, promise: str, look: Callable[[], tuple[bool, str]]) -> bool:
        """Look whether a promise holds, note what was seen and say whether it held."""
        try:
            held, seen = look()
        except CptError as error:
            held, seen = False, " ".join(str(error).split())
        self.promises.append(Promise(promise, held, seen))
        return held

    def skip(self, *promises: str, because: str) -> None:
        self.promises += [Promise(promise, None, because) for promise in promises]

    @property
    def broken(self) -> list[Promise]:
        return [promise for promise in self.promises if not promise.held]


CAUGHT = "the gate catches it and says rollback"
POINTER = "the pointer stays at the good checkpoint"
INTACT = "its files are what they were, by digest"
ABANDONED = "the bad steps lie in a branch, out of the way"
EVENTS = "the ledger and the metrics hold the event"
RESUMES = "the next training would start from the good checkpoint"
REFUSED = "the export refuses"
RECORDS = "the records are complete and follow from the scores"
AFTER_ROLLBACK = (POINTER, INTACT, ABANDONED, EVENTS, RESUMES)


def caught(run_dir: Path) -> tuple[bool, str]:
    """Say whether the verdict is rollback, and by which rules."""
    verdict = Verdict.load(run_dir / "gate" / VERDICT_NAME)
    if verdict.decision == "rollback":
        return True, "; ".join(verdict.reasons)
    return False, f"verdict {verdict.decision}: " + "; ".join(map(str, verdict.rules))


def check_rollback(checklist: Checklist, run_dir: Path, *, good: GoodCheckpoint) -> None:
    """Test what a rollback leaves behind.

    Args:
        good: the pointer as it was before.
    """
    verdict = Verdict.load(run_dir / "gate" / VERDICT_NAME)
    checklist.test(POINTER, lambda: _pointer(run_dir, good))
    checklist.test(INTACT, lambda: _intact(run_dir, good))
    checklist.test(ABANDONED, lambda: _abandoned(run_dir, verdict))
    checklist.test(EVENTS, lambda: _events(run_dir, branch_id(verdict)))
    checklist.test(RESUMES, lambda: _resumes(run_dir, good))


def _pointer(run_dir: Path, good: GoodCheckpoint) -> tuple[bool, str]:
    now = GoodCheckpoint.load(run_dir)
    same = (now.checkpoint, now.sha256, now.verdict) == (good.checkpoint, good.sha256, "rollback")
    return same, f"{now.checkpoint}, sha256 {now.sha256[:12]} (before: {good.checkpoint}, {good.sha256[:12]}; verdict {now.verdict})"


def weights_sha256(run_dir: Path, checkpoint: str) -> str:
    """Hash every file of a checkpoint and return the digest by which the pointer names its weights.

    Raises:
        CptError: a file is missing, or is not what its record says.
    """
    folder = run_dir / checkpoint
    if checkpoint == INIT_CHECKPOINT:
        manifest = Manifest.load(folder.parent)
        manifest.check_outputs(folder.parent)
        return sha256_plain({name: file.sha256 for name, file in manifest.outputs.items() if name.startswith("checkpoint/")})
    record = next((record for path, record in complete_checkpoints(folder.parent) if path == folder), None)
    if record is None:
        return "of no complete checkpoint"
    check_contents(folder, record)
    return sha256_plain({name: file.sha256 for name, file in record.files.items()})


def _intact(run_dir: Path, good: GoodCheckpoint) -> tuple[bool, str]:
    found = weights_sha256(run_dir, good.checkpoint)
    return found == good.sha256, f"sha256 {found[:12]} of {good.checkpoint}"


def _abandoned(run_dir: Path, verdict: Verdict) -> tuple[bool, str]:
    folder = run_dir / BRANCHES / branch_id(verdict)
    steps = sorted(path.name for path in folder.glob("step_*"))
    return bool(steps) and (folder / BRANCH_NAME).exists(), f"{BRANCHES}/{folder.name} holds {', '.join(steps) or 'nothing'}"


def _events(run_dir: Path, branch: str) -> tuple[bool, str]:
    held = {name: rollback_event_in(run_dir / name, branch) for name in (LEDGER, METRICS)}
    return all(held.values()), "; ".join(f"{name}: {'there' if there else 'missing'}" for name, there in held.items())


def _resumes(run_dir: Path, good: GoodCheckpoint) -> tuple[bool, str]:
    """Resolve as training does: the complete checkpoint with the highest step by its record, or the initial weights."""
    found = complete_checkpoints(run_dir / CHECKPOINTS)
    if not found:
        return good.checkpoint == INIT_CHECKPOINT, f"it would load {INIT_CHECKPOINT}, step 0"
    folder, record = found[0]
    name = folder.relative_to(run_dir).as_posix()
    digest = sha256_plain({file: entry.sha256 for file, entry in record.files.items()})
    seen = f"it would load {name}: step {record.step}, {record.samples_seen} samples seen, sha256 {digest[:12]}"
    return (name, digest) == (good.checkpoint, good.sha256), seen


def records_hold(run_dir: Path) -> tuple[bool, str]:
    """Say whether the audit finds nothing to complain about."""
    problems = audit(run_dir)
    return not problems, "; ".join(problems) or "the audit finds no problem"
