"""The real job bodies without a Slurm: commands of the test stand where scontrol, srun, torchrun and Python would."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
# A trainer: it says that it runs, ends with 75 when it finds the stop file, and writes why as the ranks do.
TRAINER = """\
if [[ $3 == preflight ]]; then
  [[ -z ${BAD_NODES:-} ]] || { mkdir -p "$RUN/slurm/preflight-7"; printf %s "$BAD_NODES" > "$RUN/slurm/preflight-7/bad-nodes"; }
  exit "${PREFLIGHT:-0}"
fi
trap 'reason="signal SIGTERM"; touch "$RUN/train/stop-requested"' TERM
touch "$RUN/started"
for _ in $(seq 200); do
  if [[ -e $RUN/train/stop-requested ]]; then
    echo "{\\"reason\\": \\"${reason:-a stop was requested}\\"}" > "$RUN/train/outcome.json"
    rm "$RUN/train/stop-requested"
    exit 75
  fi
  sleep 0.05
done
exit 3
"""
SCONTROL = """\
echo "$*" >> "$RUN/scontrol.calls"
case $1 in
  show) [[ $2 == hostnames ]] && printf '%s\\n' $HOSTNAMES || echo "JobId=7 JobState=$STATE Reason=None" ;;
  requeue) kill -KILL "$PPID" ;;  # as Slurm ends the batch shell
esac
"""


@dataclass
class Stage:
    """A folder in which a job body finds its frozen code, its run and the commands that it calls."""

    folder: Path

    def command(self, name: str, body: str) -> None:
        path = self.folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{body}")
        path.chmod(0o755)

    def environment(self, **more: str) -> dict[str, str]:
        own = {"RUN": str(self.folder / "run"), "STATE": "RUNNING", "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "8"}
        return {"PATH": f"{self.folder}/bin:/usr/bin:/bin", "HOME": str(self.folder), **own, **more}

    def start(self, **more: str) -> subprocess.Popen[str]:
        body = ROOT / "slurm" / "train.sbatch"
        argv = ["bash", str(body), str(self.folder / "frozen"), str(self.folder / "run"), "2"]
        process = subprocess.Popen(argv, env=self.environment(**more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        last_look = time.monotonic() + 20
        while not (self.folder / "run" / "started").exists() and process.poll() is None and time.monotonic() < last_look:
            time.sleep(0.02)
        return process

    @property
    def calls(self) -> list[str]:
        path = self.folder / "run" / "scontrol.calls"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    frozen = tmp_path / "frozen"
    (frozen / "code").mkdir(parents=True)
    for name in ("train", "slurm"):
        (tmp_path / "run" / name).mkdir(parents=True)
    (frozen / "slurm").symlink_to(ROOT / "slurm")
    (frozen / "env.sh").write_text("")
    made = Stage(tmp_path)
    made.command("python", TRAINER)
    made.command("scontrol", SCONTROL)
    return made


def test_a_warning_that_comes_before_the_ranks_reaches_them_all_the_same(stage: Stage) -> None:
    """Ranks that begin remove a stop request that is older than they are, so that one of an earlier attempt does not end them."""
    stage.command("python", TRAINER.replace('touch "$RUN/started"', 'touch "$RUN/started"; sleep 1; rm -f $RUN/train/stop-requested'))
    process = stage.start()
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=20)
    assert stage.calls == ["show job 7", "requeue 7"]
    assert not (stage.folder / "run" / "train" / "stop-requested").exists()


def test_training_that_ends_while_the_shell_is_being_warned_keeps_its_code(stage: Stage) -> None:
    stage.command("date", "sleep 0.5\n")  # the trap is slow
    process = stage.start()
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGUSR1)
    (stage.folder / "run" / "train" / "stop-requested").touch()
    while Path(f"/proc/{child}/exe").exists():  # neither of a process that has gone nor of one that nobody has waited for
        time.sleep(0.01)
    process.communicate(timeout=20)
    assert stage.calls == ["show job 7", "requeue 7"]


def test_a_warning_during_the_preflight_requeues_without_a_start(stage: Stage) -> None:
    stage.command("python", TRAINER.replace('exit "${PREFLIGHT:-0}"', 'touch "$RUN/looking"; sleep 1; exit 0'))
    argv = ["bash", str(ROOT / "slurm" / "train.sbatch"), str(stage.folder / "frozen"), str(stage.folder / "run"), "2"]
    process = subprocess.Popen(argv, env=stage.environment())
    while not (stage.folder / "run" / "looking").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGUSR1)
    process.wait(timeout=20)
    assert stage.calls == ["show job 7", "requeue 7"]
    assert not (stage.folder / "run" / "started").exists()
    assert not (stage.folder / "run" / "train" / "stop-requested").exists()


@pytest.mark.parametrize("warning", [signal.SIGUSR1, signal.SIGTERM])
def test_a_warning_to_the_batch_shell_ends_in_a_checkpoint_and_a_requeue(stage: Stage, warning: signal.Signals) -> None:
    process = stage.start()
    process.send_signal(warning)
    _, errors = process.communicate(timeout=20)
    assert stage.calls == ["show job 7", "requeue 7"]
    assert f"{warning.name} came" in errors


def test_a_signal_that_reaches_only_the_trainer_requeues_too(stage: Stage) -> None:
    process = stage.start()
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(child), signal.SIGTERM)
    process.communicate(timeout=20)
    assert stage.calls[-1] == "requeue 7"


def test_a_stop_that_somebody_asked_for_ends_the_job_with_75(stage: Stage) -> None:
    process = stage.start()
    (stage.folder / "run" / "train" / "stop-requested").touch()
    process.communicate(timeout=20)
    assert (process.returncode, stage.calls) == (75, [])


def test_a_job_is_requeued_as_often_as_allowed_and_then_ends_with_75(stage: Stage) -> None:
    process = stage.start(SLURM_RESTART_COUNT="2")
    process.send_signal(signal.SIGUSR1)
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, stage.calls) == (75, ["show job 7"])
    assert "requeued 2 times, the most allowed" in errors


def test_a_job_that_was_cancelled_is_not_put_back_into_the_queue(stage: Stage) -> None:
    process = stage.start(STATE="COMPLETING")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert (process.returncode, stage.calls) == (75, ["show job 7"])


def test_a_failure_keeps_its_code_and_is_not_tried_again(stage: Stage) -> None:
    stage.command("python", '[[ $3 == preflight ]] || { touch "$RUN/started"; exit 4; }\n')
    process = stage.start()
    process.communicate(timeout=20)
    assert (process.returncode, stage.calls) == (4, [])


def test_bad_nodes_of_the_preflight_and_of_earlier_ones_are_left_out_of_the_next_start(stage: Stage) -> None:
    stage.command("scontrol", SCONTROL.replace("requeue)", "release)"))
    (stage.folder / "run" / "slurm" / "bad-nodes-7").write_text("n4\n")
    process = stage.start(PREFLIGHT="1", BAD_NODES="n2,n3")
    process.communicate(timeout=20)
    assert stage.calls == ["show job 7", "requeuehold 7", "update JobId=7 ExcNodeList=n4,n2,n3", "release 7"]
    assert not (stage.folder / "run" / "started").exists()


def test_a_preflight_that_blames_no_node_ends_the_job(stage: Stage) -> None:
    process = stage.start(PREFLIGHT="1")
    process.communicate(timeout=20)
    assert (process.returncode, stage.calls) == (1, [])
    assert not (stage.folder / "run" / "started").exists()


@pytest.mark.parametrize("hostnames", ["linux1 linux2", "node01", "a-b-c rack-7", "login"])
def test_the_ranks_meet_at_the_first_host_of_the_schedulers_own_expansion(stage: Stage, hostnames: str) -> None:
    """The node list is never cut by hand: `linux[1,2]` cut at a comma is no host (Lightning-AI/pytorch-lightning#14896)."""
    stage.command("srun", 'printf "%s\\n" "$MASTER_ADDR" "$MASTER_PORT" "$@"\n')
    lists = {"SLURM_JOB_NODELIST": "linux[1,2]", "SLURM_JOB_NUM_NODES": "2", "HOSTNAMES": hostnames}
    launcher = [str(stage.folder / "frozen" / "slurm" / "ranks.sh"), "2", "some.module", "plan=a b"]
    done = subprocess.run(launcher, env=stage.environment(**lists), capture_output=True, text=True, check=True)
    host, port, *argv = done.stdout.splitlines()
    assert stage.calls == ["show hostnames linux[1,2]"]
    assert (host, 20000 <= int(port) < 30000) == (hostnames.split(maxsplit=1)[0], True)
    assert {"--ntasks-per-node=1", "--cpus-per-task=8", "--kill-on-bad-exit=1", "torchrun"} <= set(argv)
    assert argv[-3:] == ["-m", "some.module", "plan=a b"]


def test_a_node_list_that_cannot_be_expanded_ends_the_start(stage: Stage) -> None:
    stage.command("srun", 'touch "$RUN/reached"\n')
    launcher = [str(stage.folder / "frozen" / "slurm" / "ranks.sh"), "2", "some.module"]
    lists = {"SLURM_JOB_NODELIST": "linux[1", "SLURM_JOB_NUM_NODES": "2", "HOSTNAMES": ""}
    stage.command("scontrol", "exit 1\n")
    done = subprocess.run(launcher, env=stage.environment(**lists), capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "scontrol named no node of this job" in done.stderr
    assert not (stage.folder / "run" / "reached").exists()


def test_an_environment_may_read_variables_that_are_not_set_and_ends_the_job_when_it_fails(stage: Stage) -> None:
    """Lmod and conda do the first; the second is a module that is not there any more."""
    env, body = stage.folder / "frozen" / "env.sh", [str(ROOT / "slurm" / "stage.sbatch"), str(stage.folder / "frozen"), "index"]
    stage.command("srun", 'echo "$ADDED"\n')
    env.write_text("export ADDED=$CONDA_SHLVL-is-not-set\n")
    done = subprocess.run(["bash", *body], env=stage.environment(), capture_output=True, text=True, check=True)
    assert done.stdout == "-is-not-set\n"
    env.write_text("module load apptainer\n")
    done = subprocess.run(["bash", *body], env=stage.environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (127, "")


def test_containers_stand_between_srun_and_the_command(stage: Stage) -> None:
    (stage.folder / "frozen" / "env.sh").write_text("srun_options=(--container-image=a.sqsh) wrap=(apptainer exec --nv 'my image.sif')\n")
    stage.command("srun", 'printf "%s\\n" "$@"\n')
    body = [str(ROOT / "slurm" / "stage.sbatch"), str(stage.folder / "frozen"), "index"]
    done = subprocess.run(["bash", *body], env=stage.environment(), capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "--nodes=1", "--ntasks=1", "--cpus-per-task=8", "--container-image=a.sqsh", "apptainer", "exec", "--nv", "my image.sif",
        "python", "-m", "megatron_cpt", "run", "--only", "index", "--composed", f"{stage.folder}/frozen/config.yaml",
    ]  # fmt: skip


def test_an_element_does_its_share_in_the_sites_environment_on_the_cores_that_it_asked_for(stage: Stage) -> None:
    (stage.folder / "frozen" / "env.sh").write_text("export FROM_SITE=yes\nsrun_options=(--mpi=none) wrap=(apptainer exec image.sif)\n")
    stage.command("srun", 'printf "%s\n" "$FROM_SITE" "$RAYON_NUM_THREADS" "$OMP_NUM_THREADS" "$PYTHONPATH" "$@"\n')
    body = ["bash", str(ROOT / "slurm" / "element.sbatch"), str(stage.folder / "frozen"), "index", "12"]
    done = subprocess.run(body, env=stage.environment(SLURM_ARRAY_TASK_ID="7"), capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "yes", "8", "8", f"{stage.folder}/frozen/code", "--nodes=1", "--ntasks=1", "--cpus-per-task=8", "--mpi=none", "apptainer", "exec",
        "image.sif", "python", "-m", "megatron_cpt", "run", "--only", "index", "--share", "7/12", "--composed",
        f"{stage.folder}/frozen/config.yaml",
    ]  # fmt: skip
