"""Training is stopped, killed and spoilt, under torchrun as a user starts it, and goes on as if nothing had happened."""

# ruff: noqa: PLC0415  -- ranks import torch and megatron in their own process, after the backend is chosen
from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from launch_ranks import launch_ranks
from tiny_run import finish, make_layout, make_plan, make_run, step_records, torchrun, train_on_ranks

from megatron_cpt.plan.run_plan import CheckpointPlan, OptimizerPlan, SchedulePlan, StopConditions

pytestmark = pytest.mark.slow
STEPS = 24
TRAIN = "megatron_cpt.train"


def plan_for(run_dir: Path, *, every_steps: int = 1000, num_steps: int = STEPS, asynchronous: bool = False, **changes: Any) -> Path:
    checkpoint = CheckpointPlan(every_steps, 2, asynchronous=asynchronous)
    return make_plan(run_dir, make_layout(data=2), num_steps=num_steps, checkpoint=checkpoint, **changes)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = make_run(tmp_path_factory.mktemp("whole"))
    assert torchrun(TRAIN, f"plan={plan_for(run_dir)}", num_ranks=2).returncode == 0
    return run_dir


def outcome(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "train" / "outcome.json").read_text(encoding="utf-8"))


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, f"ended too early: {process.communicate()[0]}"
        assert time.monotonic() < deadline, "nothing happened in two minutes"
        time.sleep(0.001)


def has_steps(run_dir: Path, count: int) -> bool:
    return (run_dir / "train" / "metrics.jsonl").exists() and len(step_records(run_dir)) >= count


def weights(run_dir: Path, step: int = STEPS) -> dict[str, Any]:
    """Return every tensor of a checkpoint, weights and moments, as bytes."""
    ((tensors,),) = launch_ranks(flat_tensors, 1, [str(run_dir / "train" / "checkpoints" / f"step_{step:08d}" / "model")])
    return tensors


def flat_tensors(folders: list[str]) -> list[dict[str, bytes]]:
    """Return the tensors of each checkpoint by path, as bytes, on one rank."""
    from megatron_cpt.backend import choose

    backend = choose("cpu")
    from megatron.core.dist_checkpointing import load_plain_tensors

    from megatron_cpt.model.parallel import ranks, single_rank_layout

    with ranks(single_rank_layout(8, dtype="fp32"), backend=backend, seed=0):
        return [dict(_flat(load_plain_tensors(folder))) for folder in folders]


def _flat(tree: Any, path: str = "") -> Iterator[tuple[str, bytes]]:
    if isinstance(tree, dict | list):
        for key, branch in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from _flat(branch, f"{path}/{key}")
    elif hasattr(tree, "numpy"):
        yield path, tree.numpy().tobytes()
    else:  # megatron-core 0.19 keeps plain values beside the tensors
        yield path, repr(tree).encode()


def assert_equal_runs(run_dir: Path, whole: Path) -> None:
    assert [record["step"] for record in step_records(run_dir)] == list(range(1, STEPS + 1))  # none missing, none twice
    for key in ("loss", "grad_norm", "lr", "samples", "tokens", "source_samples", "source_tokens"):
        assert [record[key] for record in step_records(run_dir)] == [record[key] for record in step_records(whole)], key
    mine, theirs = weights(run_dir), weights(whole)
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if mine[name] != theirs[name]] == []
    assert any("exp_avg_sq" in name for name in mine)


def stop_file(run_dir: Path, process: subprocess.Popen[str]) -> None:
    (run_dir / "train" / "stop-requested").touch()


def ranks_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return the ranks in their order: torchrun starts them so."""
    found = [child for child in psutil.Process(process.pid).children() if TRAIN in " ".join(child.cmdline())]
    return sorted(found, key=lambda child: child.pid)


def signal_to_one_rank(run_dir: Path, process: subprocess.Popen[str]) -> None:
    ranks_of(process)[-1].send_signal(signal.SIGUSR1)  # one rank alone: the ranks have to agree


def terminate_one_rank(run_dir: Path, process: subprocess.Popen[str]) -> None:
    ranks_of(process)[-1].send_signal(signal.SIGTERM)


def terminate_launcher(run_dir: Path, process: subprocess.Popen[str]) -> None:
    process.terminate()


@pytest.mark.parametrize(
    ("ask", "asynchronous"),
    [
        pytest.param(stop_file, False, id="stop-file", marks=pytest.mark.long),  # every stop of `megatron-cpt run` in test_line.py is one
        pytest.param(signal_to_one_rank, True, id="sigusr1-to-one-rank-while-a-save-is-under-way"),
        pytest.param(terminate_launcher, False, id="sigterm-to-the-launcher", marks=pytest.mark.long),
        pytest.param(terminate_one_rank, True, id="sigterm-to-one-rank", marks=pytest.mark.long),
    ],
)
def test_a_stop_saves_says_75_and_the_next_attempt_ends_bit_for_bit_as_uninterrupted(
    ask: Any, asynchronous: bool, uninterrupted: Path, tmp_path: Path
) -> None:
    run_dir = make_run(tmp_path)
    plan_path = plan_for(run_dir, every_steps=2 if asynchronous else 1000, asynchronous=asynchronous)
    process = torchrun(TRAIN, f"plan={plan_path}", num_ranks=2, wait=False)
    wait_for(lambda: has_steps(run_dir, 3), process)
    ask(run_dir, process)
    said = finish(process)
    assert process.returncode != 0, said
    end = outcome(run_dir)
    assert (end["status"], end["exit_code"]) == ("stopped", 75), said
    assert 3 <= end["step"] < STEPS
    assert end["checkpoint"] == f"train/checkpoints/step_{end['step']:08d}"
    assert "Traceback" not in said.split("ChildFailedError")[0].split("torch/distributed")[0]
    again = torchrun(TRAIN, f"plan={plan_path}", num_ranks=2)
    assert again.returncode == 0, again.said
    assert outcome(run_dir)["status"] == "finished"
    assert_equal_runs(run_dir, uninterrupted)


def test_no_orphan_trains_on_after_its_launcher_was_killed_and_the_run_goes_on(uninterrupted: Path, tmp_path: Path) -> None:
    run_dir = make_run(tmp_path)
    plan_path = plan_for(run_dir, every_steps=4)
    process = torchrun(TRAIN, f"plan={plan_path}", num_ranks=2, wait=False)
    wait_for(lambda: (run_dir / "train" / "checkpoints" / "step_00000004").exists() and has_steps(run_dir, 6), process)
    workers = psutil.Process(process.pid).children()
    process.kill()
    finish(process)
    gone, alive = psutil.wait_procs(workers, timeout=5)
    assert len(gone) == 2
    assert alive == []
    assert not (run_dir / "train" / "outcome.json").exists()
    again = torchrun(TRAIN, f"plan={plan_path}", num_ranks=2)
    assert again.returncode == 0, again.said
    assert_equal_runs(run_dir, uninterrupted)


@pytest.mark.parametrize("asynchronous", [pytest.param(False, marks=pytest.mark.long), True])
def test_a_kill_in_the_middle_of_a_save_leaves_the_previous_checkpoint(asynchronous: bool, uninterrupted: Path, tmp_path: Path) -> None:
    run_dir = make_run(tmp_path)
    plan_path = plan_for(run_dir, every_steps=2, asynchronous=asynchronous)
    folder = run_dir / "train" / "checkpoints"
    process = torchrun(TRAIN, f"plan={plan_path}", num_ranks=2, wait=False)
    wait_for(lambda: any(folder.glob("step_*")) and any(folder.glob(".step_*.partial/model")), process)
    family = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGKILL)
    finish(process)
    _, alive = psutil.wait_procs(family, timeout=5)
    assert alive == []  # no writer goes on in a folder that the next attempt removes
    assert list(folder.glob(".step_*.partial")), "the kill came too late to leave a torso"
    complete = sorted(path.name for path in folder.glob("step_*"))
    again = torchrun(TRAIN, f"plan={plan_path}", num_ranks=2)
    assert again.returncode == 0, again.said
    assert "Removing an unfinished checkpoint" in again.said
    assert f"from {folder / complete[-1]}" in again.said
    assert not list(folder.glob(".step_*"))
    assert_equal_runs(run_dir, uninterrupted)


@pytest.mark.long
def test_a_cut_newest_checkpoint_is_skipped_for_the_one_before(uninterrupted: Path, tmp_path: Path) -> None:
    run_dir = make_run(tmp_path)
    plan_path = plan_for(run_dir, every_steps=8)
    assert torchrun(TRAIN, f"plan={plan_path}", num_ranks=2).returncode == 0
    newest = run_dir / "train" / "checkpoints" / f"step_{STEPS:08d}"
    part = max((newest / "model").glob("*.distcp"), key=lambda path: path.stat().st_size)
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 0xFF  # one changed byte, the same size
    part.write_bytes(data)
    again = torchrun(TRAIN, f"plan={plan_path}", num_ranks=2)
    assert again.returncode == 0, again.said
    assert "Skipping a damaged checkpoint" in again.said
    assert "Resuming after step 16" in again.said
    assert "The rate was" in again.said
    assert_equal_runs(run_dir, uninterrupted)


DP2 = {"data": 2}


@pytest.mark.parametrize(
    ("source", "layout"),
    [
        pytest.param(DP2, {}, id="dp2-to-one-rank", marks=pytest.mark.long),
        pytest.param({}, DP2, id="one-rank-to-dp2", marks=pytest.mark.long),
        pytest.param(DP2, {"tensor": 2, "pipeline": 2}, id="dp2-to-tp2-pp2", marks=pytest.mark.long),
    ],
)
def test_a_checkpoint_of_one_layout_goes_on_in_another(source: dict, layout: dict, uninterrupted: Path, tmp_path: Path) -> None:
    run_dir = make_run(tmp_path)
    first, other = make_layout(**source), make_layout(**layout)
    process = torchrun(TRAIN, f"plan={make_plan(run_dir, first, num_steps=STEPS)}", num_ranks=first.num_ranks, wait=False)
    wait_for(lambda: has_steps(run_dir, 3), process)
    stop_file(run_dir, process)
    finish(process)
    stopped_at = outcome(run_dir)["step"]
    assert 3 <= stopped_at < STEPS
    assert set(train_on_ranks(make_plan(run_dir, other, num_steps=STEPS), other.num_ranks)) == {0}
    resumed = step_records(run_dir)
    worst = max(abs(a["loss"] / b["loss"] - 1) for a, b in zip(resumed, step_records(uninterrupted), strict=True))
    print(f"{source} to {layout} after step {stopped_at}: largest relative difference of loss up to step {STEPS}: {worst:.1e}")
    assert worst < 1e-5  # fp32 in another order of sums; all pairs of two ranks: test_train_layout_resume.py


def test_a_killed_rank_ends_the_job_within_a_minute_and_is_named_with_its_step(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path)
    process = torchrun(TRAIN, f"plan={plan_for(run_dir, num_steps=2000)}", num_ranks=2, wait=False)
    wait_for(lambda: has_steps(run_dir, 3), process)
    ranks_of(process)[1].kill()
    killed = time.monotonic()
    said = finish(process)
    seconds = time.monotonic() - killed
    print(f"the job ended {seconds:.1f} s after its rank was killed")
    assert seconds < 60
    assert process.returncode != 0
    end = outcome(run_dir)
    assert (end["status"], end["exit_code"]) == ("failed", 1)
    assert end["reason"].startswith(f"Rank 1 died without a word after step {end['step']} was done.")
    assert end["step"] >= 3
    assert f"Rank 1 died without a word after step {end['step']} was done." in said
    assert "Traceback" not in said.split("ChildFailedError")[0].split("torch/distributed")[0]


def test_another_plan_is_refused_and_its_checkpoint_kept(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path)
    assert torchrun(TRAIN, f"plan={plan_for(run_dir, num_steps=2)}", num_ranks=2).returncode == 0
    before = (run_dir / "train" / "checkpoints" / "step_00000002" / "checkpoint.json").read_bytes()
    changed = plan_for(run_dir, num_steps=2, optimizer=OptimizerPlan(0.9, 0.99, 1e-8, 0.1, 1.0))
    again = torchrun(TRAIN, f"plan={changed}", num_ranks=2)
    assert again.returncode != 0
    assert outcome(run_dir)["exit_code"] == 4
    assert "written under another plan" in again.said
    assert "plan fingerprint" in again.said
    assert (run_dir / "train" / "checkpoints" / "step_00000002" / "checkpoint.json").read_bytes() == before


def test_a_diverged_run_ends_on_all_ranks_without_saving_spoilt_weights(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path)
    # step 1 warms up at 1e30/30 and overflows the weights: the loss of step 2 is not finite
    plan_path = plan_for(run_dir, every_steps=2, schedule=SchedulePlan("cosine", 1e30, 0.0, 240, 480))
    again = torchrun(TRAIN, f"plan={plan_path}", num_ranks=2)
    assert again.returncode != 0
    end = outcome(run_dir)
    assert (end["status"], end["exit_code"]) == ("failed", 1)
    assert "is not a finite number" in again.said
    assert again.said.count("is not a finite number") == 1  # said once, not once a rank
    assert not list((run_dir / "train" / "checkpoints").glob("step_*"))


def test_a_time_budget_saves_and_says_6_and_counts_earlier_attempts(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path)
    plan_path = plan_for(run_dir, num_steps=2000, stop=StopConditions(max_hours=1.5 / 3600, max_usd=None, max_kwh=None))
    first = torchrun(TRAIN, f"plan={plan_path}", num_ranks=2)
    end = outcome(run_dir)
    assert (end["status"], end["exit_code"]) == ("budget", 6), first.said
    assert 0 < end["step"] < 2000
    torchrun(TRAIN, f"plan={plan_path}", num_ranks=2)
    assert (outcome(run_dir)["status"], outcome(run_dir)["step"]) == ("budget", end["step"])
