"""Weights & Biases and TensorBoard, as guests: bounded at start and end, and whatever fails in them is a warning, never the run's end."""

from __future__ import annotations

import logging
import netrc
import os
import secrets
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from megatron_cpt.plan.run_plan import RunPlan
from megatron_cpt.record.store import append_line, read_lines, write_text
from megatron_cpt.record.typed import to_plain
from megatron_cpt.train.hooks import BaseHook
from megatron_cpt.train.metrics import METRICS_NAME, SHOWN, unseen_events
from megatron_cpt.train.state import TrainState

START_SECONDS = 30  # the bound that wandb is told
GRACE_SECONDS = 15  # what it may take longer before it is left behind
FINISH_SECONDS = 60  # an upload that is not done by then stays on disk, for `wandb sync`
RUN_ID_NAME = "wandb-run-id"
DEFAULT_HOST = "https://api.wandb.ai"

logger = logging.getLogger(__name__)


class Guest(BaseHook):
    """A tracker that is dropped with a warning when it fails, or takes longer than its bound."""

    name = "a tracker"

    def __init__(self) -> None:
        self._run: Any = None

    @property
    def is_open(self) -> bool:
        """Whether it has started and nothing has failed since."""
        return self._run is not None

    def record(self, record: Mapping[str, Any]) -> None:
        """Show one record of `metrics.jsonl`."""
        if self._run is not None:
            self._guard("log", lambda: self._show(record))

    def _show(self, record: Mapping[str, Any]) -> None:
        raise NotImplementedError

    def _guard(self, doing: str, action: Callable[[], Any], *, seconds: float | None = None) -> Any:
        """Do something and return its result, or None when it failed: then the tracker is shown nothing more."""
        try:
            return action() if seconds is None else within(seconds, action)
        except BaseException as error:  # whatever a tracker raises must not end a run that costs money
            if isinstance(error, KeyboardInterrupt):
                raise
            logger.warning("%s could not %s (%s: %s); training goes on without it.", self.name, doing, type(error).__name__, error)
            self._run = None
            return None


class WandbRun(Guest):
    """Shows the run as one wandb run that survives restarts by its id.

    The step is a metric of its own and not wandb's: wandb drops what is logged at a lower step than before, and after a rollback
    the steps are done anew. Each restart and rollback is shown as an event.
    """

    name = "wandb"

    def __init__(self, train_dir: Path, *, plan: RunPlan) -> None:
        super().__init__()
        self._train_dir, self._plan = train_dir, plan

    def on_start(self, state: TrainState) -> None:
        mode: str = self._plan.wandb_mode
        if mode == "online" and not has_key(os.environ):
            logger.warning("wandb has no key here (WANDB_API_KEY or .netrc); it writes offline under %s.", self._train_dir)
            mode = "offline"
        self._run = self._guard("start", lambda: self._start(mode), seconds=START_SECONDS + GRACE_SECONDS)
        if self._run is None and mode == "online":
            self._run = self._guard("start offline", self._start_anew_offline, seconds=START_SECONDS + GRACE_SECONDS)
            if self._run is not None:
                logger.warning("wandb writes offline instead, under %s; `wandb sync` sends it later.", self._train_dir)

    def close(self) -> None:
        if self._run is not None:
            run, self._run = self._run, None
            self._guard("finish", run.finish, seconds=FINISH_SECONDS + GRACE_SECONDS)

    def _start_anew_offline(self) -> Any:
        import wandb  # noqa: PLC0415

        wandb.teardown()  # its service still holds the run's id for the start that failed
        return self._start("offline")

    def _start(self, mode: str) -> Any:
        import wandb  # noqa: PLC0415  -- imported only where it is used: it costs a second and may be absent

        run = wandb.init(
            project=self._plan.wandb_project,
            name=self._plan.run_name,
            id=run_id(self._train_dir, new=lambda: secrets.token_hex(4)),
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
        run.define_metric("step")
        run.define_metric("*", step_metric="step")
        return run

    def _show(self, record: Mapping[str, Any]) -> None:
        self._run.log(numbers_of(record))
        if record["kind"] == "event":
            self._run.alert(title=str(record.get("event", "event")), text="; ".join(map(str, record.get("reasons", ()))))


def show_events(train_dir: Path, plan: RunPlan) -> None:
    """Show the events that came after the last attempt in its wandb run at once: there may be no further attempt.

    A failure is a warning: the next attempt shows them then.
    """
    path = train_dir / METRICS_NAME
    events = unseen_events(read_lines(path))
    if plan.wandb_mode == "disabled" or not events or not (train_dir / RUN_ID_NAME).exists():
        return
    guest = WandbRun(train_dir, plan=plan)
    guest.on_start(TrainState.start(plan))
    for event in events:
        guest.record(event)
    if guest.is_open:
        append_line(path, {"kind": SHOWN, "events": len(events)})
    guest.close()


class TensorBoardRun(Guest):
    """Writes the numbers as TensorBoard events under `train/tensorboard/`."""

    name = "tensorboard"

    def __init__(self, train_dir: Path) -> None:
        super().__init__()
        self._folder, self._step = train_dir / "tensorboard", 0

    def on_start(self, state: TrainState) -> None:
        self._run = self._guard("start", lambda: self._start(state.step))

    def close(self) -> None:
        if self._run is not None:
            self._guard("finish", self._run.close)

    def _start(self, step: int) -> Any:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415  -- needs the package tensorboard

        self._step = step
        # purge_step: TensorBoard hides what an earlier attempt wrote of steps that this one does anew
        return SummaryWriter(str(self._folder), purge_step=step + 1)

    def _show(self, record: Mapping[str, Any]) -> None:
        self._step = int(record.get("step", self._step))
        for name, value in numbers_of(record).items():
            if name != "step":
                self._run.add_scalar(name, value, global_step=self._step)
        if record["kind"] == "event":
            self._run.add_text("event", f"{record.get('event')}: {'; '.join(map(str, record.get('reasons', ())))}", global_step=self._step)


def numbers_of(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a record by path, `kind/key/key`; those of a step without the kind. The step keeps its name."""
    prefix = "" if record["kind"] == "step" else f"{record['kind']}/"
    if record["kind"] == "event":
        return {f"event/{record.get('event', 'unnamed')}": 1}
    flat = _flat(record, prefix)
    if prefix and f"{prefix}step" in flat:
        flat["step"] = flat.pop(f"{prefix}step")
    return flat | ({"event/resume": 1} if record["kind"] == "resume" else {})


def _flat(data: Mapping[str, Any], prefix: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for key, value in data.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}/")
        elif isinstance(value, int | float):
            found[f"{prefix}{key}"] = int(value) if isinstance(value, bool) else value
    return found


def within(seconds: float, action: Callable[[], Any]) -> Any:
    """Do something on a thread of its own, wait so long at most, and return its result; it is left behind when it takes longer.

    Raises:
        TimeoutError: it was not done in time.
        BaseException: whatever it raised.
    """
    results: list[Any] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            results.append(action())
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, name="tracker", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"not done within {seconds:g} s")
    if raised:
        raise raised[0]
    return results[0]


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


def run_id(train_dir: Path, *, new: Callable[[], str]) -> str:
    """Return the run's wandb id, made once: a file keeps it between attempts, and every checkpoint carries a copy."""
    path = train_dir / RUN_ID_NAME
    if not path.exists():
        write_text(path, new())
    return path.read_text(encoding="utf-8")
