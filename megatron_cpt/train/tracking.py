"""Weights & Biases and TensorBoard: what they are shown of a run while it trains, and of its verdict afterwards."""

from __future__ import annotations

import logging
import netrc
import os
import re
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from megatron_cpt.gate.verdict import Verdict
from megatron_cpt.plan.run_plan import RunPlan
from megatron_cpt.record.store import append_line, read_lines, write_text
from megatron_cpt.record.typed import to_plain
from megatron_cpt.train.alerts import Alert
from megatron_cpt.train.guests import Guest, within
from megatron_cpt.train.metric_names import AXES, NOT_IN_WANDB, OF_STEPS, OF_TOKENS, STEP, TOKENS, MetricNames
from megatron_cpt.train.metrics import METRICS_NAME, SHOWN, unseen_events
from megatron_cpt.train.state import TrainState

START_SECONDS = 30  # the bound that wandb is told
GRACE_SECONDS = 15  # what it may take longer before it is left behind
RUN_ID_NAME = "wandb-run-id"
DEFAULT_HOST = "https://api.wandb.ai"

logger = logging.getLogger(__name__)


class WandbRun(Guest):
    """Shows the run as one wandb run that survives restarts by its id.

    The axes are metrics of our own and not wandb's step: wandb drops what is logged at a lower step than before, and after a
    rollback the steps are done anew. Each restart and rollback is shown as an event.
    """

    name = extra = "wandb"

    def __init__(self, train_dir: Path, *, plan: RunPlan, names: MetricNames | None = None) -> None:
        super().__init__(names or MetricNames.of(plan))
        self._train_dir, self._plan = train_dir, plan
        self._last_row = -1

    def _load(self) -> None:
        import wandb  # noqa: F401, PLC0415  -- imported only where it is used: it costs a second and may be absent

    def _start(self) -> Any:
        mode: str = self._plan.wandb_mode
        if mode == "online" and not has_key(os.environ):
            logger.warning("wandb has no key here (WANDB_API_KEY or .netrc); it writes offline under %s.", self._train_dir)
            mode = "offline"
        if mode != "online":
            return self._open_run(mode)
        try:
            return within(START_SECONDS + GRACE_SECONDS, lambda: self._open_run("online"))
        except BaseException as error:
            logger.warning("wandb could not start (%s: %s). It writes offline instead, under %s; `wandb sync` sends it later.",
                           type(error).__name__, error, self._train_dir)  # fmt: skip
            import wandb  # noqa: PLC0415

            wandb.teardown()  # its service still holds the run's id for the start that failed
            return self._open_run("offline")

    def _open_run(self, mode: str) -> Any:
        import wandb  # noqa: PLC0415

        run = wandb.init(
            project=self._plan.wandb_project,
            name=self._plan.run_name,
            id=run_id(self._train_dir, new=new_id),
            resume="allow",
            dir=str(self._train_dir),
            mode=mode,  # type: ignore[arg-type]
            config=to_plain(self._plan),
            settings=wandb.Settings(
                init_timeout=START_SECONDS,
                login_timeout=START_SECONDS,
                console="off",
                silent=True,
                disable_git=True,
                disable_code=True,
            ),
        )
        for axis in AXES:
            run.define_metric(axis)
        for pattern in OF_STEPS:
            run.define_metric(pattern, step_metric=STEP)
        run.define_metric(OF_TOKENS, step_metric=TOKENS)
        return run

    def _show(self, row: Mapping[str, float], alert: Alert | None) -> None:
        if row:
            # wandb's own step is a number of the row. Offline it would begin at 0 with each attempt, and rows that are sent later share it.
            self._last_row = max(self._last_row + 1, milliseconds_since_birth(self._train_dir))
            self._run.log({name: value for name, value in row.items() if name not in NOT_IN_WANDB}, step=self._last_row)
        if alert is not None:
            self._run.alert(title=alert.title, text=alert.text, level=alert.level)

    def _finish(self) -> None:
        self._run.finish(exit_code=self._exit_code)


def show_events(train_dir: Path, plan: RunPlan, *, verdict: Verdict | None = None) -> None:
    """Show the verdict, and the events that came after the last attempt, in its wandb run at once: there may be no further attempt.

    Each is shown once, however often this is called. A failure is a warning: the events are shown by the next attempt, the verdict
    when the gate is next asked.
    """
    path = train_dir / METRICS_NAME
    records = read_lines(path)
    events = unseen_shown(records, verdict)
    if not is_shown_in_wandb(train_dir, plan) or not events:
        return
    names = MetricNames.of(plan)
    names.stand_at_end_of(records)
    guest = WandbRun(train_dir, plan=plan, names=names)
    guest.open()
    for event in events:
        guest.record(event)
    guest.close()
    if guest.num_shown == len(events):
        append_line(path, {"kind": SHOWN, "events": len(events), **({} if verdict is None else {"verdict": verdict.fingerprint})})


def is_shown_in_wandb(train_dir: Path, plan: RunPlan) -> bool:
    """Say whether training opened a wandb run: where it did not, nothing is shown later."""
    return plan.wandb_mode != "disabled" and (train_dir / RUN_ID_NAME).exists()


def unseen_shown(records: list[dict[str, Any]], verdict: Verdict | None) -> list[dict[str, Any]]:
    """Return what of the records and the verdict no wandb run has shown yet; a rollback's event is its verdict."""
    events = unseen_events(records)
    if verdict is None:
        return events
    rules = to_plain(verdict.rules)
    if verdict.decision == "rollback":
        return [{**event, "rules": rules} if event.get("event") == "rollback" else event for event in events]
    if any(record.get("kind") == SHOWN and record.get("verdict") == verdict.fingerprint for record in records):
        return events
    return [*events, {"kind": "event", "event": verdict.decision, "reasons": list(verdict.reasons), "rules": rules}]


class TensorBoardRun(Guest):
    """Writes the figures as TensorBoard events under `train/tensorboard/`."""

    name = extra = "tensorboard"

    def __init__(self, train_dir: Path, *, names: MetricNames) -> None:
        super().__init__(names)
        self._folder, self._first_step = train_dir / "tensorboard", 0

    def on_start(self, state: TrainState) -> None:
        self._first_step = state.step
        super().on_start(state)

    def _load(self) -> None:
        import torch.utils.tensorboard  # noqa: F401, PLC0415  -- needs the package tensorboard

    def _start(self) -> Any:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415

        # purge_step: TensorBoard hides what an earlier attempt wrote of steps that this one does anew
        return SummaryWriter(str(self._folder), purge_step=self._first_step + 1)

    def _show(self, row: Mapping[str, float], alert: Alert | None) -> None:
        step = int(row.get(STEP, self._first_step))
        for name, value in row.items():
            if name != STEP:
                self._run.add_scalar(name, value, global_step=step)
        if alert is not None:
            self._run.add_text("alert", f"{alert.title}: {alert.text}", global_step=step)

    def _finish(self) -> None:
        self._run.close()


def has_key(environment: Mapping[str, str]) -> bool:
    """Say whether wandb can find a key without asking: in the environment, or in the user's .netrc for its host."""
    if environment.get("WANDB_API_KEY"):
        return True
    host = urlsplit(environment.get("WANDB_BASE_URL") or DEFAULT_HOST).hostname
    path = Path(environment.get("NETRC") or Path(environment.get("HOME") or "~").expanduser() / ".netrc")
    try:
        return host is not None and netrc.netrc(str(path)).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def new_id() -> str:
    """Return an id that no other run has, which begins with the second in which it was made."""
    return f"{int(time.time()):08x}{secrets.token_hex(4)}"


def milliseconds_since_birth(train_dir: Path) -> int:
    """Return the age of the run's wandb id in ms: it grows from attempt to attempt, whatever became of the one before."""
    path = train_dir / RUN_ID_NAME
    known = re.fullmatch(r"([0-9a-f]{8})[0-9a-f]{8}", path.read_text(encoding="utf-8"))
    return int(1000 * (time.time() - (int(known[1], 16) if known else path.stat().st_mtime)))


def run_id(train_dir: Path, *, new: Callable[[], str]) -> str:
    """Return the run's wandb id, made once: a file keeps it between attempts, and every checkpoint carries a copy."""
    path = train_dir / RUN_ID_NAME
    if not path.exists():
        write_text(path, new())
    return path.read_text(encoding="utf-8")
