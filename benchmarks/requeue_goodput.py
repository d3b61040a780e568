"""Goodput of a long run on a cluster that fails: the real job body under a fake clock, against the planner's formula.

    python benchmarks/requeue_goodput.py --nodes 1024 --days 54

Every start of the job runs `slurm/train.sbatch` in bash, as Slurm would: it is sent SIGUSR1 before its time limit, killed when it has
asked to be requeued, killed without a word when a node fails, and started again with the next SLURM_RESTART_COUNT. Only its
surroundings are stood in for: `scontrol` (notes what it is asked), `python` (the preflight and the training, which answer at once),
`sleep`, and the clock, which this program moves on. Failures come at Llama 3's published rate: 466 interruptions in 54 days on 16,384
GPUs (arXiv 2407.21783, section 3.3.4), exponentially distributed, the same for every checkpoint interval. Work since the last checkpoint
is lost with each.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from bench_figures import note  # beside this script

from megatron_cpt.plan.utilization import checkpoint_interval_seconds, goodput

HERE = Path(__file__).resolve().parent.parent
DEVICE_MTBF_HOURS = 54 * 24 * 16384 / 466
NODE_STAYS_BAD = 0.25  # of failures: what the preflight of the next start finds; an assumption, it costs one more start each
DAY = 86_400.0
PATIENCE_SECONDS = 30.0  # of this program, with a body that should have ended

FAKES = {
    "scontrol": """#!/bin/bash
echo "$*" >>"$FAKE/scontrol.log"
if [[ $1 == show ]]; then echo "JobId=$SLURM_JOB_ID JobState=RUNNING"; fi
""",
    # the preflight names a bad node when one is noted; training waits for the stop file, or for what ends it
    "python": """#!/bin/bash
if [[ $* == *preflight* ]]; then
  [[ -e $FAKE/bad-node ]] || exit 0
  mkdir -p "$RUN_DIR/slurm/preflight-$SLURM_JOB_ID"
  mv "$FAKE/bad-node" "$RUN_DIR/slurm/preflight-$SLURM_JOB_ID/bad-nodes"
  exit 1
fi
: >"$FAKE/trains"
[[ $(<"$FAKE/end") == finish ]] && exit 0
until [[ -e $RUN_DIR/train/stop-requested ]]; do /bin/sleep 0.01; done
rm "$RUN_DIR/train/stop-requested"
exit 75
""",
    # ten minutes are what the body waits for its requeue; shorter ones lie between its requests for a checkpoint
    "sleep": '#!/bin/bash\n[[ $1 != 600 ]] || : >"$FAKE/sleeps"\nexec /bin/sleep "$1"\n',
}


@dataclass
class Cluster:
    """What the simulated job runs on; times in seconds."""

    num_nodes: int
    gpus_per_node: int
    checkpoint_seconds: float
    restart_seconds: float
    time_limit: float
    lead: float

    @property
    def num_devices(self) -> int:
        return self.num_nodes * self.gpus_per_node

    @property
    def mtbf(self) -> float:
        return DEVICE_MTBF_HOURS * 3600 / self.num_devices


@dataclass
class Body:
    """The real job body of one job in a folder, with its surroundings."""

    folder: Path
    max_requeues: int
    restarts: int = 0
    excluded: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("bin", "frozen/slurm", "run/train", "run/slurm"):
            (self.folder / name).mkdir(parents=True)
        for name, text in FAKES.items():
            path = self.folder / "bin" / name
            path.write_text(text)
            path.chmod(0o755)
        for body in (HERE / "slurm").glob("*.s*"):
            (self.folder / "frozen" / "slurm" / body.name).write_text(body.read_text())
        (self.folder / "frozen" / "env.sh").write_text("")

    def start(self, end: str) -> subprocess.Popen[bytes]:
        """Start the body as Slurm does; its training ends in the given way: `finish`, or `asked` to stop by a signal or a failure."""
        for name in ("trains", "sleeps", "scontrol.log"):
            (self.folder / name).unlink(missing_ok=True)
        (self.folder / "end").write_text(end)
        environment = {
            "PATH": f"{self.folder / 'bin'}:/usr/bin:/bin",
            "FAKE": str(self.folder),
            "RUN_DIR": str(self.folder / "run"),
            "SLURM_JOB_ID": "4242",
            "SLURM_RESTART_COUNT": str(self.restarts),
        }
        self.restarts += 1
        frozen, run_dir = self.folder / "frozen", self.folder / "run"
        return subprocess.Popen(
            ["bash", str(frozen / "slurm" / "train.sbatch"), str(frozen), str(run_dir), str(self.max_requeues)],
            env=environment, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    def until(self, process: subprocess.Popen[bytes], *marks: str) -> str:
        """Wait until the body has left one of the marks, or has ended; return which."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            for mark in marks:
                if (self.folder / mark).exists():
                    return mark
            if process.poll() is not None:
                return f"exit {process.returncode}"
            time.sleep(0.002)
        kill(process)
        raise TimeoutError(f"the body neither ended nor came to {marks}")

    def requests(self) -> list[str]:
        log = self.folder / "scontrol.log"
        return log.read_text().splitlines() if log.exists() else []


def kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@dataclass
class Outcome:
    """How a simulated job went."""

    elapsed: float = 0.0
    starts: int = 0
    node_failures: int = 0
    warnings: int = 0
    preflight_failures: int = 0
    end: str = ""


def simulate(cluster: Cluster, *, work: float, interval: float, max_requeues: int, seed: int) -> Outcome:
    """Run one job until `work` seconds of training are in a checkpoint, or its body asks for no other start."""
    draw = random.Random(seed)  # noqa: S311 - a simulation
    found, done = Outcome(), 0.0
    next_failure = draw.expovariate(1 / cluster.mtbf)
    with tempfile.TemporaryDirectory() as name:
        body = Body(Path(name), max_requeues)
        while not found.end:
            found.starts += 1
            begun = found.elapsed + cluster.restart_seconds * (found.starts > 1)
            # training seconds to the end, with the checkpoints on the way; and what of them fits before the warning
            left = work - done
            needed = left + cluster.checkpoint_seconds * -(-left // interval)
            warned_at = begun + cluster.time_limit - cluster.lead
            finishes = begun + needed
            first = min(next_failure, warned_at, finishes)
            process = body.start("finish" if first == finishes else "asked")
            came_to = body.until(process, "trains", "sleeps")
            if came_to == "sleeps":  # the preflight named a bad node, and the body asked for a start without it
                assert any(request.startswith("requeuehold") for request in body.requests()), body.requests()
                kill(process)
                found.preflight_failures += 1
                found.elapsed = begun
                continue
            if came_to != "trains":
                found.end = came_to
                break
            if first == finishes:
                assert process.wait(PATIENCE_SECONDS) == 0
                found.elapsed, found.end = finishes, "finished"
            elif first == warned_at:
                os.kill(process.pid, signal.SIGUSR1)
                came_to = body.until(process, "sleeps")
                found.warnings += 1
                trained = trained_by(warned_at - begun, interval, cluster.checkpoint_seconds)
                done += trained
                found.elapsed = warned_at + cluster.checkpoint_seconds
                if came_to != "sleeps":
                    found.end = came_to  # not requeued
                kill(process)
            else:  # Slurm kills what is left of the job and requeues it itself (JobRequeue=1)
                kill(process)
                found.node_failures += 1
                done += saved_by(max(0.0, next_failure - begun), interval, cluster.checkpoint_seconds)
                found.elapsed = max(next_failure, found.elapsed)
                next_failure = found.elapsed + draw.expovariate(1 / cluster.mtbf)
                if draw.random() < NODE_STAYS_BAD:
                    (body.folder / "bad-node").write_text(f"node{draw.randrange(cluster.num_nodes):04d}")
            if next_failure <= found.elapsed:
                next_failure = found.elapsed + draw.expovariate(1 / cluster.mtbf)
    return found


def trained_by(seconds: float, interval: float, checkpoint: float) -> float:
    """Return the training seconds in so many seconds of a start that saves after each interval."""
    whole, rest = divmod(seconds, interval + checkpoint)
    return whole * interval + min(rest, interval)


def saved_by(seconds: float, interval: float, checkpoint: float) -> float:
    """Return the training seconds that are in a checkpoint after so many seconds of a start."""
    return seconds // (interval + checkpoint) * interval


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=1024)
    parser.add_argument("--gpus-per-node", type=int, default=8)
    parser.add_argument("--days", type=float, default=54.0, help="of training, without what is lost")
    parser.add_argument("--checkpoint-seconds", type=float, default=60.0)
    parser.add_argument("--restart-seconds", type=float, default=900.0, help="from an interruption until training goes on")
    parser.add_argument("--time-limit-hours", type=float, default=48.0)
    parser.add_argument("--intervals", type=float, nargs="+", default=[5, 10, 20, 27, 40, 80, 160], help="between checkpoints, in minutes")
    parser.add_argument("--max-requeues", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    cluster = Cluster(
        chosen.nodes, chosen.gpus_per_node, chosen.checkpoint_seconds, chosen.restart_seconds, chosen.time_limit_hours * 3600,
        lead=2 * chosen.checkpoint_seconds + 120,
    )  # fmt: skip
    best = checkpoint_interval_seconds(mtbf_seconds=cluster.mtbf, checkpoint_seconds=cluster.checkpoint_seconds)
    print(f"{cluster.num_devices:,} GPUs, one interruption in {cluster.mtbf / 3600:.2f} h; the planner recommends {best / 60:.1f} min")
    print("interval  goodput  planner  starts  node failures  time limits  bad nodes found  end")
    for minutes in chosen.intervals:
        found = simulate(cluster, work=chosen.days * DAY, interval=minutes * 60, max_requeues=chosen.max_requeues, seed=chosen.seed)
        formula = goodput(
            num_devices=cluster.num_devices, device_mtbf_hours=DEVICE_MTBF_HOURS, checkpoint_seconds=cluster.checkpoint_seconds,
            restart_seconds=cluster.restart_seconds, interval_seconds=minutes * 60,
        )  # fmt: skip
        assert isinstance(formula, float), formula
        share = chosen.days * DAY / found.elapsed if found.end == "finished" else float("nan")
        print(
            f"{minutes:5g} min  {share:7.1%}  {formula:7.1%}  {found.starts:6}  {found.node_failures:13}  {found.warnings:11}"
            f"  {found.preflight_failures:15}  {found.end}",
            flush=True,
        )
        if found.end == "finished":
            detail = f"{cluster.num_devices:,} GPUs, {chosen.days:g} days, {found.starts} starts: {share:.1%} against {formula:.1%}"
            note(f"goodput, a checkpoint every {minutes:g} min, against the planner's formula", share / formula, "times", detail=detail)


if __name__ == "__main__":
    main()
