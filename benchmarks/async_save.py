"""How long training stands still for a checkpoint, written beside it or not, on the CPU: `python benchmarks/async_save.py`.

One process trains a model of SmolLM2-135M's shape (random weights, fp32, AdamW: 1.6 GB a checkpoint) and saves it in turn both ways
through the product's own `Checkpoints`. Blocked is the time inside its calls, up to the last one; beside it stands what the
writer costs the steps that run at the same time, and the time until the checkpoint is whole. Medians, interleaved, after one save
that warms up, because one machine's speed drifts within minutes.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench_figures import note  # beside this script

from megatron_cpt.backend import choose

SEQUENCE = 128  # short: what is measured does not depend on it


class Trainer:
    """The product's model and optimizer on fixed ids."""

    def __init__(self, plan: Any, backend: Any) -> None:
        import torch  # noqa: PLC0415

        from megatron_cpt.model.build import build_chunks  # noqa: PLC0415
        from megatron_cpt.train.optimizer import wrap_and_optimize  # noqa: PLC0415
        from megatron_cpt.train.state import TrainState  # noqa: PLC0415

        self.state = TrainState.start(plan)
        self.chunks, self.optimizer = wrap_and_optimize(build_chunks(plan.shape, plan.vocab, plan.layout, backend=backend), plan)
        ids = torch.tensor([[(7919 * number + 13) % 49152 for number in range(SEQUENCE + 1)]])
        self._tokens_BS, self._labels_BS, self._positions_BS = ids[:, :-1], ids[:, 1:].contiguous(), torch.arange(SEQUENCE)[None]

    def step(self) -> float:
        """Make one step and return its seconds."""
        started = time.perf_counter()
        chunk = self.chunks[0]
        chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        chunk(self._tokens_BS, self._positions_BS, None, labels=self._labels_BS).mean().backward()
        chunk.finish_grad_sync()
        self.optimizer.step()
        self.state = dataclasses.replace(self.state, step=self.state.step + 1, samples_seen=self.state.samples_seen + 1)
        return time.perf_counter() - started


@dataclasses.dataclass
class Saves:
    """Seconds of each save of one kind."""

    blocked: list[float] = dataclasses.field(default_factory=list)
    whole: list[float] = dataclasses.field(default_factory=list)
    slower_steps: list[float] = dataclasses.field(default_factory=list)


def save_once(trainer: Trainer, checkpoints: Any, quiet_step: float) -> tuple[float, float, float]:
    """Save, train until the checkpoint is whole, and return seconds: blocked, to the whole checkpoint, lost by slower steps."""
    began = time.perf_counter()
    checkpoints.save_beside_training(trainer.state)
    blocked, lost = time.perf_counter() - began, 0.0
    whole = f"train/checkpoints/step_{trainer.state.step:08d}"
    while checkpoints.newest != whole:
        lost += trainer.step() - quiet_step
        started = time.perf_counter()
        checkpoints.advance()
        blocked += time.perf_counter() - started
    return blocked, time.perf_counter() - began, lost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary folder)")
    arguments = parser.parse_args()
    backend = choose("cpu")
    from smollm2_shape import make_plan  # noqa: PLC0415

    from megatron_cpt.launch_ranks import tie_helpers_to_this_process  # noqa: PLC0415
    from megatron_cpt.model.parallel import ranks  # noqa: PLC0415
    from megatron_cpt.train.checkpoint import Checkpoints  # noqa: PLC0415

    tie_helpers_to_this_process()
    plan = make_plan(SEQUENCE)
    root = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        with ranks(plan.layout, backend=backend, seed=1):
            trainer = Trainer(plan, backend)
            kinds = {
                kind: Checkpoints(
                    root / kind,
                    plan=dataclasses.replace(plan, checkpoint=dataclasses.replace(plan.checkpoint, asynchronous=kind == "asynchronous")),
                    chunks=trainer.chunks,
                    optimizer=trainer.optimizer,
                    device=backend.device,
                )
                for kind in ("synchronous", "asynchronous")
            }
            seconds = {kind: Saves() for kind in kinds}
            for round_number in range(arguments.rounds + 1):
                for kind, checkpoints in kinds.items():
                    quiet = statistics.median(trainer.step() for _ in range(3))
                    blocked, whole, lost = save_once(trainer, checkpoints, quiet)
                    if round_number:
                        seconds[kind].blocked.append(blocked)
                        seconds[kind].whole.append(whole)
                        seconds[kind].slower_steps.append(lost)
                    print(f"{kind:<13}blocked {blocked:6.2f} s  whole after {whole:6.2f} s", file=sys.stderr)
    finally:
        shutil.rmtree(root)
    medians = {kind: statistics.median(saves.blocked) for kind, saves in seconds.items()}
    for kind, saves in seconds.items():
        print(
            f"{kind:<13}blocked {medians[kind]:6.2f} s   whole after {statistics.median(saves.whole):6.2f} s   "
            f"lost by slower steps {statistics.median(saves.slower_steps):6.2f} s   median of {len(saves.blocked)}"
        )
    ratio = medians["asynchronous"] / medians["synchronous"]
    print(f"ratio of blocked times {ratio:5.2f} (goal: at most 0.30)")
    detail = f"{medians['asynchronous']:.2f} s against {medians['synchronous']:.2f} s, 1.6 GB"
    note("time training stands still for a checkpoint, asynchronous against synchronous", ratio, "times", at_most=0.30, detail=detail)


if __name__ == "__main__":
    main()
