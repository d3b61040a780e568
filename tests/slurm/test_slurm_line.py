"""The whole line as jobs of a real Slurm, two nodes of two ranks each on CPUs, with its records, its bill and its table."""

from __future__ import annotations

import os
import statistics
import sys
from pathlib import Path

import pytest
from submitting import BEFORE_TRAINING, ROOT, copy_prepared, cpt, logs, losses, submit, wait_for_step
from virtual_cluster import WATTS_PER_NODE, VirtualCluster

from megatron_cpt.record.store import read_json, read_lines
from megatron_cpt.submit.slurm import STAGES
from tests.wandb_file import attempts_in_wandb

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def walked(slurm_cluster: VirtualCluster, cluster_workspace: Path) -> dict[str, str]:
    ids = submit(slurm_cluster, cluster_workspace, "whole", "cluster.preflight=true")
    slurm_cluster.wait_for(ids["report"], seconds=400)
    return ids


def test_every_job_completes_and_the_line_ends_with_an_export(
    walked: dict[str, str], slurm_cluster: VirtualCluster, cluster_workspace: Path
) -> None:
    states = {stage: slurm_cluster.states(job_id) for stage, job_id in walked.items()}
    assert states == {stage: ["COMPLETED"] for stage in STAGES}, logs(cluster_workspace, "whole")
    assert (cluster_workspace / "runs" / "whole" / "export" / "hf" / "model.safetensors").is_file()
    outcome = read_json(cluster_workspace / "runs" / "whole" / "train" / "outcome.json")
    assert outcome["status"] == "finished"
    log = (cluster_workspace / "runs" / "whole" / "slurm" / f"train-{walked['train']}.out").read_text()
    assert "preflight: n1, n2 answer and agree; all-reduce of 16 MB over 4 ranks:" in log
    asked = slurm_cluster.out("sacct", "-nXP", "-j", walked["train"], "-o", "ReqMem").removesuffix("M")
    assert float(asked) * 2**20 > 2e9  # the ranks' need: the cluster's default is 500 MiB for each of two cores


def test_the_status_is_a_table_of_finished_stages_with_step_loss_and_spend(
    walked: dict[str, str], slurm_cluster: VirtualCluster, cluster_workspace: Path
) -> None:
    done = cpt(slurm_cluster, cluster_workspace, "status", "run_name=whole")
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if line.split()[:1] and line.split()[0] in STAGES]
    assert [(row[0], row[1], row[2], row[-1]) for row in rows] == [(stage, walked[stage], "COMPLETED", "finished") for stage in STAGES]
    assert "step 32 of 32" in done.stdout
    assert "emulated meter" in " ".join(done.stdout.split())
    assert max(map(len, done.stdout[done.stdout.index("training   step") :].splitlines())) <= 80


def test_the_emulated_joules_of_a_job_are_on_the_bill_marked_as_emulated(
    walked: dict[str, str], slurm_cluster: VirtualCluster, cluster_workspace: Path
) -> None:
    assert cpt(slurm_cluster, cluster_workspace, "status", "run_name=whole").returncode == 0  # settles what ended after the report
    lines = read_lines(cluster_workspace / "runs" / "whole" / "ledger.jsonl")
    (train,) = [line for line in lines if line["kind"] == "imported" and line["stage"] == "train"]
    seconds = float(slurm_cluster.out("sacct", "-nXP", "-j", walked["train"], "-o", "ElapsedRaw"))
    assert train["joules"] == pytest.approx(2 * WATTS_PER_NODE * seconds, abs=2 * WATTS_PER_NODE * 5)
    assert [(part["is_estimate"], "emulated" in part["method"]) for part in train["energy"]] == [(True, True)]
    assert (train["slurm"]["job_id"], train["state"]) == (walked["train"], "COMPLETED")


def test_a_second_submission_finds_only_the_report_to_do(
    walked: dict[str, str], slurm_cluster: VirtualCluster, cluster_workspace: Path
) -> None:
    ids = submit(slurm_cluster, cluster_workspace, "whole")
    assert list(ids) == ["report"]
    assert slurm_cluster.wait_for(ids["report"]) == ["COMPLETED"]


def assert_trained_as_whole(cluster: VirtualCluster, workspace: Path, name: str, job: str, *ends: str) -> None:
    """Check that a run's training job ended `ends` in turn, and that its losses are those of the run that nothing interrupted."""
    assert cluster.wait_for(job, "COMPLETED", "FAILED", "CANCELLED", seconds=240) == list(ends), logs(workspace, name)
    assert losses(workspace, name) == losses(workspace, "whole")
    assert [step for step, _ in losses(workspace, name)] == list(range(1, 33))


def test_two_runs_share_nodes_and_one_that_is_warned_saves_requeues_and_goes_on(
    walked: dict[str, str], slurm_cluster: VirtualCluster, cluster_workspace: Path
) -> None:
    ids = {}
    for name in ("warned", "beside"):
        copy_prepared(cluster_workspace, name)
        ids[name] = submit(slurm_cluster, cluster_workspace, name, "--until", "train")["train"]
    wait_for_step(cluster_workspace, "warned", 6)
    nodes = slurm_cluster.out("squeue", "--noheader", "--states=running", "--format=%N").split()
    slurm_cluster.out("scancel", "--batch", "--signal=USR1", ids["warned"])  # what --signal=B:USR1 makes Slurm do before the limit
    assert nodes == ["n[1-2]", "n[1-2]"]
    assert_trained_as_whole(slurm_cluster, cluster_workspace, "beside", ids["beside"], "COMPLETED")
    assert_trained_as_whole(slurm_cluster, cluster_workspace, "warned", ids["warned"], "REQUEUED", "COMPLETED")
    lines = read_lines(cluster_workspace / "runs" / "warned" / "ledger.jsonl")
    assert [line["slurm"]["restart"] for line in lines if line["kind"] == "start"] == [0, 1]
    assert [line["status"] for line in lines if line["kind"] == "end"] == ["stopped", "finished"]
    shown = attempts_in_wandb(cluster_workspace / "runs" / "warned" / "train")
    assert len(shown) == 2
    assert len({each.run_id for each in shown}) == 1


@pytest.mark.long  # limits are in minutes, and Slurm looks at them every half minute
def test_a_run_longer_than_its_time_limit_chains_itself_and_has_the_losses_of_one_that_had_the_time(
    walked: dict[str, str], slurm_cluster: VirtualCluster, cluster_workspace: Path
) -> None:
    """The warning comes a minute before the end of two: 75 s of steps do not fit, however fast or busy the machine is."""
    records = read_lines(cluster_workspace / "runs" / "whole" / "train" / "metrics.jsonl")
    num_steps = int(75 / statistics.median(record["seconds"] for record in records if record["kind"] == "step"))
    longer = (f"blend.num_tokens={1024 * num_steps}", "blend.max_epochs=10000", "cluster.checkpoint_seconds=25", "--until", "train")
    copy_prepared(cluster_workspace, "free", stages=BEFORE_TRAINING[:4])
    free = submit(slurm_cluster, cluster_workspace, "free", *longer)["train"]
    assert slurm_cluster.wait_for(free, seconds=900) == ["COMPLETED"], logs(cluster_workspace, "free")
    copy_prepared(cluster_workspace, "short", source="free")
    short = submit(slurm_cluster, cluster_workspace, "short", *longer, 'cluster.time_limit="2"')["train"]
    ends = slurm_cluster.wait_for(short, "COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", seconds=1800)
    assert (ends[-1], set(ends[:-1])) == ("COMPLETED", {"REQUEUED"}), logs(cluster_workspace, "short")
    assert "SIGUSR1 came" in logs(cluster_workspace, "short")
    assert losses(cluster_workspace, "short") == losses(cluster_workspace, "free")
    lines = read_lines(cluster_workspace / "runs" / "short" / "ledger.jsonl")
    starts = [line["slurm"] for line in lines if line["kind"] == "start" and line["stage"] == "train"]
    assert starts == [{"job_id": short, "restart": number} for number in range(len(ends))]


def test_a_run_of_a_user_without_root_that_a_higher_partition_preempts_goes_on_after_it(
    walked: dict[str, str], slurm_cluster: VirtualCluster, cluster_workspace: Path
) -> None:
    copy_prepared(cluster_workspace, "preempted", owner="nobody")
    low = ("cluster.partition=low", "--until", "train")
    job = submit(slurm_cluster, cluster_workspace, "preempted", *low, user="nobody")["train"]
    wait_for_step(cluster_workspace, "preempted", 6)
    high = slurm_cluster.out("sbatch", "--parsable", "-phigh", "-N4", "--exclusive", "--output=/dev/null", "--wrap", "sleep 2")
    assert slurm_cluster.wait_for(high) == ["COMPLETED"]
    states = slurm_cluster.wait_for(job, "COMPLETED", "FAILED", "CANCELLED", seconds=240)
    assert (states[-1], len(states), states[0] in ("PREEMPTED", "REQUEUED")) == ("COMPLETED", 2, True), logs(cluster_workspace, "preempted")
    assert losses(cluster_workspace, "preempted") == losses(cluster_workspace, "whole")
    assert (cluster_workspace / "runs" / "preempted" / "train" / "outcome.json").owner() == "nobody"


def test_a_node_that_dies_in_mid_run_ends_in_a_requeue_on_others_and_the_same_losses(
    walked: dict[str, str], slurm_cluster: VirtualCluster, cluster_workspace: Path
) -> None:
    copy_prepared(cluster_workspace, "struck")
    job = submit(slurm_cluster, cluster_workspace, "struck", "--until", "train")["train"]
    wait_for_step(cluster_workspace, "struck", 10)
    slurm_cluster.kill_node("n2")
    slurm_cluster.out("scontrol", "update", "nodename=n2", "state=down", "reason=test")  # at once, not after SlurmdTimeout
    try:
        assert_trained_as_whole(slurm_cluster, cluster_workspace, "struck", job, "NODE_FAIL", "COMPLETED")
        nodes = slurm_cluster.out("sacct", "-nXP", "-j", job, "-o", "NodeList")
        assert "n2" not in slurm_cluster.out("scontrol", "show", "hostnames", nodes).split()
    finally:
        slurm_cluster.start_node("n2")
        slurm_cluster.out("scontrol", "update", "nodename=n2", "state=resume")


@pytest.mark.long  # with two preflights over a minute; the rest of this file stays below six
def test_a_node_that_the_preflight_finds_unfit_is_named_and_left_out_of_the_next_start(
    walked: dict[str, str], slurm_cluster: VirtualCluster, cluster_workspace: Path
) -> None:
    copy_prepared(cluster_workspace, "unfit")
    broken = cluster_workspace / "broken_on_n2.sh"
    broken.write_text('#!/bin/bash\n[[ $SLURMD_NODENAME != n2 ]] || exit 1\nexec "$@"\n')
    broken.chmod(0o755)
    env_file = cluster_workspace / "unfit.sh"
    env_file.write_text(f"PATH={Path(sys.executable).parent}:$PATH\nwrap=({broken})\n")
    site = ("cluster.preflight=true", f"cluster.env_file={env_file}", "--until", "train")
    job = submit(slurm_cluster, cluster_workspace, "unfit", *site)["train"]
    assert_trained_as_whole(slurm_cluster, cluster_workspace, "unfit", job, "REQUEUED", "COMPLETED")
    log = (cluster_workspace / "runs" / "unfit" / "slurm" / f"train-{job}.out").read_text()
    assert "n2: gave no answer" in log
    assert "answer and agree; all-reduce" in log
    nodes = slurm_cluster.out("sacct", "-nXP", "-j", job, "-o", "NodeList")
    assert "n2" not in slurm_cluster.out("scontrol", "show", "hostnames", nodes).split()


def train_by_hand(cluster: VirtualCluster, workspace: Path, name: str, *command: str) -> str:
    """Train a prepared run by a script of launch/ and return what it said; its losses are those of the line that Slurm walked."""
    copy_prepared(workspace, name)
    own = {"PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    plan = f"runs/{name}/plan/plan.yaml"
    done = cluster.run(*(word.replace("PLAN", plan) for word in command), cwd=workspace, env=own, timeout_s=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert losses(workspace, name) == losses(workspace, "whole")
    assert read_json(workspace / "runs" / name / "train" / "outcome.json")["status"] == "finished"
    return done.stderr


@pytest.mark.long  # another training
def test_the_script_for_an_allocation_trains_on_both_of_its_nodes_with_the_losses_of_the_line(
    walked: dict[str, str], slurm_cluster: VirtualCluster, cluster_workspace: Path
) -> None:
    script = str(ROOT / "launch" / "multi_node_slurm.sh")
    allocate = ("salloc", "--quiet", "--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=2")
    said = train_by_hand(slurm_cluster, cluster_workspace, "allocated", *allocate, script, "2", "PLAN")
    assert "4 ranks: n1 0-1 (" in said
    assert ", n2 2-3 (" in said


@pytest.mark.long  # another training
def test_a_launcher_that_dies_on_one_node_ends_the_whole_job_and_not_its_time_limit(
    walked: dict[str, str], slurm_cluster: VirtualCluster, cluster_workspace: Path
) -> None:
    copy_prepared(cluster_workspace, "orphaned")
    job = submit(slurm_cluster, cluster_workspace, "orphaned", "--until", "train")["train"]
    wait_for_step(cluster_workspace, "orphaned", 6)
    slurm_cluster.kill_node("n2", only="torchrun")
    assert slurm_cluster.wait_for(job, seconds=60) == ["FAILED"]
    assert "srun: error: n2" in logs(cluster_workspace, "orphaned")
    again = submit(slurm_cluster, cluster_workspace, "orphaned", "--until", "train")["train"]
    assert_trained_as_whole(slurm_cluster, cluster_workspace, "orphaned", again, "COMPLETED")


@pytest.mark.long  # two more trainings, half a minute each
def test_the_script_for_every_node_trains_on_two_nodes_and_on_one_with_the_losses_of_the_line(
    walked: dict[str, str], slurm_cluster: VirtualCluster, cluster_workspace: Path
) -> None:
    script = ROOT / "launch" / "multi_node.sh"
    on_node = "srun --nodes=1 --cpus-per-task=2 --nodelist"  # as ssh would
    both = f"{on_node} n2 {script} 1 2 n1 2 PLAN & {on_node} n1 {script} 0 2 n1 2 PLAN && wait $!"
    train_by_hand(slurm_cluster, cluster_workspace, "by-hand", "bash", "-euc", both)
    alone = ("srun", "--nodes=1", "--cpus-per-task=4", "--nodelist=n1", str(script), "0", "1", "n1", "4", "PLAN")
    train_by_hand(slurm_cluster, cluster_workspace, "alone", *alone)


def test_a_cancelled_line_of_a_user_without_root_ends_with_a_checkpoint_and_its_table_says_stopped(
    walked: dict[str, str], slurm_cluster: VirtualCluster, cluster_workspace: Path
) -> None:
    copy_prepared(cluster_workspace, "cancelled", owner="nobody")
    ids = submit(slurm_cluster, cluster_workspace, "cancelled", user="nobody")
    slurm_cluster.wait_for(ids["train"], "RUNNING")
    script = cluster_workspace / "runs" / "cancelled" / "slurm" / "submission-1" / "slurm" / "train.sbatch"
    shown = slurm_cluster.out("squeue", "--noheader", f"--jobs={ids['train']}", "--format=%o")
    assert shown.startswith(f"{script} ")  # a submission that is taken back knows its jobs by it
    refused = cpt(slurm_cluster, cluster_workspace, "submit", "run_name=cancelled", user="nobody")
    assert (refused.returncode, "still in the queue" in refused.stderr) == (2, True)
    wait_for_step(cluster_workspace, "cancelled", 1)
    done = cpt(slurm_cluster, cluster_workspace, "cancel", "run_name=cancelled", user="nobody")
    assert done.returncode == 0, done.stderr
    assert slurm_cluster.states(ids["train"]) == ["FAILED"]
    outcome = read_json(cluster_workspace / "runs" / "cancelled" / "train" / "outcome.json")
    assert (outcome["status"], outcome["exit_code"]) == ("stopped", 75)
    assert (cluster_workspace / "runs" / "cancelled" / outcome["checkpoint"] / "checkpoint.json").is_file()
    shown = cpt(slurm_cluster, cluster_workspace, "status", "run_name=cancelled", user="nobody").stdout
    assert "stopped with a checkpoint" in shown
    assert shown.count("not run, since train did not finish") == 3


def test_a_stage_that_fails_stops_its_dependants_and_the_report_is_still_made(
    slurm_cluster: VirtualCluster, cluster_workspace: Path
) -> None:
    env_file = cluster_workspace / "fails.sh"
    env_file.write_text(f"[[ $SLURM_JOB_NAME != *-vocab ]] || {{ sleep 2; exit 3; }}\nPATH={Path(sys.executable).parent}:$PATH\n")
    ids = submit(slurm_cluster, cluster_workspace, "failing", f"cluster.env_file={env_file}", user="nobody")
    slurm_cluster.wait_for(ids["report"], seconds=120)
    states = {stage: slurm_cluster.states(job_id) for stage, job_id in ids.items()}
    ended = {"corpus": ["COMPLETED"], "vocab": ["FAILED"], "report": ["COMPLETED"]}
    assert states == {stage: ended.get(stage, ["CANCELLED"]) for stage in STAGES}, logs(cluster_workspace, "failing")
    shown = cpt(slurm_cluster, cluster_workspace, "status", "run_name=failing", user="nobody").stdout
    assert "failed with exit 3: see vocab-" in shown
    assert shown.count("not run, since vocab did not finish") == 9  # eight stages, and the array of the index
    lines = read_lines(cluster_workspace / "runs" / "failing" / "ledger.jsonl")
    billed = [line for line in lines if line["kind"] == "imported" and line["slurm"]["job_id"] == ids["vocab"]]
    assert [(line["state"], line["exit_code"], line["num_nodes"]) for line in billed] == [("FAILED", 3, 1)]  # it died before it could write


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (("cluster.partition=nowhere",), "invalid partition specified: nowhere"),
        (("cluster.partition=short", 'cluster.time_limit="10"'), "time limit"),
        (("cluster.qos=brief", 'cluster.time_limit="30"'), "QOSMaxWallDurationPerJobLimit"),
        (("cluster.num_nodes=8", "parallel.micro_batch_size=1"), "Node count"),
        (("cluster.memory_gb=9",), "Memory specification"),
    ],
)
def test_what_the_cluster_does_not_allow_is_refused_with_slurms_reason_and_nothing_is_left(
    overrides: tuple[str, ...], reason: str, slurm_cluster: VirtualCluster, cluster_workspace: Path
) -> None:
    slurm_cluster.run("sacctmgr", "-i", "add", "qos", "brief", "MaxWall=2", "Flags=DenyOnLimit")
    slurm_cluster.run("sacctmgr", "-i", "modify", "user", "root", "set", "qos+=brief")
    done = cpt(slurm_cluster, cluster_workspace, "submit", "run_name=refused", *overrides)
    assert done.returncode == 2, done.stdout
    assert reason.lower() in done.stderr.lower()
    assert "Traceback" not in done.stderr
    assert slurm_cluster.out("squeue", "--noheader", "--format=%j") == ""
    assert not [path for path in (cluster_workspace / "runs" / "refused").rglob("*") if path.name != ".lock" and path.is_file()]
