"""`megatron-cpt submit` from the shell of a login node, with commands of the test where Slurm's would be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from megatron_cpt.config.compose import load_composed
from megatron_cpt.submit.slurm import STAGES

ROOT = Path(__file__).resolve().parents[3]
BASE = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": True,
}  # fmt: skip
EXPERIMENT = """\
# @package _global_
defaults:
  - override /cluster: laptop
run_name: law
model: {licence: Apache-2.0, provenance: a test}
tokenizer: {num_new_pieces: 32, document_separator: "<|endoftext|>", row_init: mean}
source:
  law: {path: law.jsonl, role: domain, licence: MIT, language: zh, test_fraction: 0.2,
        provenance: {origin: a test, date: 2026-11, obtained: written here}}
blend: {num_tokens: 10240, shares: {law: 1.0}}
schedule: {peak_lr: 5.0e-3, min_lr: 5.0e-4, warmup_fraction: 0.1}
parallel: {tensor: 1, pipeline: 1, micro_batch_size: 4, global_batch_size: 8, sequence_length: 128, dtype: fp32}
checkpoint: {every_steps: 4}
eval: {texts: [law], window_tokens: 128}
gate: {rules: [{of: law, kind: must_improve, margin: 0.0}]}
"""
# a Slurm that gives each job the next number and keeps it waiting; where a test says so it takes a job and then dies
COMMANDS = {
    "sbatch": """\
exec 9>"$STATE/lock" && flock 9
number=$(($(wc -l <"$STATE/jobs") + 101))
script="" # with its arguments, as squeue shows it
for word in "$@"; do [[ -z $script && $word != *.sbatch ]] || script="${script:+$script }$word"; done
echo "$number|$script" >>"$STATE/jobs"
[[ $number != "${DIES_AT:-}" ]] || kill -KILL $$
echo "$number;virtual"
""",
    "squeue": """\
[[ "$*" != *%o* ]] || exec cat "$STATE/jobs"
while IFS='|' read -r number _; do grep -qsw "$number" "$STATE/cancelled" || echo "$number|PENDING|0:00||Dependency"; done <"$STATE/jobs"
""",
    "scancel": 'echo "$@" >>"$STATE/cancelled"\n',
    "scontrol": """\
case "$*" in
  *partition*) echo 'PartitionName=debug Default=YES DefMemPerNode=UNLIMITED' && echo 'PartitionName=big Default=NO DefMemPerNode=900000' ;;
  *config*) echo 'DefMemPerCPU            = 500' ;;
  *) echo "$*" >>"$STATE/scontrol" ;;
esac
""",
}


class Login:
    """A login node: a folder to work in, and Slurm's commands."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.state = folder, folder / "state"
        for name, body in COMMANDS.items():
            path = folder / "bin" / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"#!/bin/bash\nset -eu\n{body}")
            path.chmod(0o755)
        self.state.mkdir()
        (self.state / "jobs").touch()
        base = folder / "底座 v=1, #2"
        base.mkdir()
        (base / "config.json").write_text(json.dumps(BASE))
        (folder / "law.jsonl").write_text('{"text": "第一条"}\n')
        (folder / "conf" / "experiment").mkdir(parents=True)
        (folder / "conf" / "experiment" / "law.yaml").write_text(EXPERIMENT)

    def start(self, *words: str, **environment: str) -> subprocess.Popen[str]:
        code = (
            "import sys\nfrom megatron_cpt.cli import main\ncode = main(sys.argv[1:])\n"
            "heavy = [name for name in ('torch', 'transformers', 'megatron') if name in sys.modules]\n"
            "print('HEAVY', heavy, file=sys.stderr)\nsys.exit(code)"
        )
        own = {"PATH": f"{self.folder}/bin:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "STATE": str(self.state)}
        line = [sys.executable, "-c", code, "submit", "experiment=law", 'model.path="底座 v=1, #2"', "--config-dir", "conf", *words]
        pipe = subprocess.PIPE
        return subprocess.Popen(line, cwd=self.folder, env={**os.environ, **own, **environment}, stdout=pipe, stderr=pipe, text=True)

    def submit(self, *words: str, **environment: str) -> tuple[int, str, str]:
        process = self.start(*words, **environment)
        out, err = process.communicate(timeout=120)
        return process.returncode, out, err

    def jobs(self) -> Sequence[str]:
        return (self.state / "jobs").read_text().splitlines()


@pytest.fixture
def login(tmp_path: Path) -> Login:
    return Login(tmp_path)


def test_five_submissions_of_one_run_in_the_same_second_are_one_line_of_jobs(login: Login) -> None:
    ends = [(*process.communicate(timeout=200), process.returncode) for process in [login.start() for _ in range(5)]]
    assert sorted(code for *_, code in ends) == [0, 2, 2, 2, 2], ends
    assert all("still in the queue" in err or "Another process is submitting" in err for _, err, code in ends if code)
    assert len(login.jobs()) == len(STAGES)
    (frozen,) = (login.folder / "runs" / "law" / "slurm").glob("submission-*")
    jobs = json.loads((frozen / "jobs.json").read_text())["jobs"]
    assert [job["job_id"] for job in jobs] == [str(101 + number) for number in range(len(STAGES))]
    assert all("HEAVY []" in err for _, err, _ in ends)  # a login node has no torch
    assert load_composed(frozen / "config.yaml").model.path == "底座 v=1, #2"


def test_a_job_whose_sbatch_died_before_it_said_the_number_is_taken_back_too(login: Login) -> None:
    code, _, err = login.submit(DIES_AT="104")
    assert (code, "sbatch refused a job" in err) == (2, True)
    assert len(login.jobs()) == 4
    assert (login.state / "cancelled").read_text().split() == ["101", "102", "103", "104"]
    assert not (login.state / "scontrol").exists()  # the first one was never released
    assert list((login.folder / "runs" / "law" / "slurm").glob("submission-*")) == []


def test_a_dry_run_shows_every_script_and_line_and_writes_nothing(login: Login) -> None:
    (login.folder / "site.sh").write_text("module load everything\n")
    code, out, err = login.submit("--dry-run", "cluster.env_file=site.sh")
    assert code == 0, err
    for name in ("train.sbatch", "stage.sbatch", "ranks.sh", "env.sh"):
        assert f"/{name}\n" in out
    assert "module load everything" in out
    assert out.count("\nsbatch ") == len(STAGES)
    assert login.jobs() == []
    assert not (login.folder / "runs").exists()


def mem_of(out: str, stage: str) -> list[str]:
    (line,) = [line for line in out.splitlines() if line.startswith("sbatch") and f"--job-name=law-{stage}" in line]
    return [word for word in line.split() if word.startswith(("--mem", "--exclusive"))]


def test_training_asks_for_the_memory_that_it_needs_where_the_clusters_default_is_less(login: Login) -> None:
    """Two ranks of 1 GB and a little: 500 MiB for each of two cores are less, a partition with 900,000 MiB a job has more."""
    code, out, err = login.submit("--dry-run")
    assert code == 0, err
    assert "note: a job of 2 cores has 1000 MiB of a node here" in out
    (asked,) = mem_of(out, "train")
    assert 2 * 10**9 < int(asked.removeprefix("--mem=").removesuffix("M")) * 2**20 < 3 * 10**9
    assert mem_of(out, "corpus") == []
    assert mem_of(login.submit("--dry-run", "cluster.partition=big")[1], "train") == []


def test_memory_that_is_stated_goes_to_every_job_and_whole_nodes_have_all_of_theirs(login: Login) -> None:
    out = login.submit("--dry-run", "cluster.memory_gb=64")[1]
    assert [mem_of(out, stage) for stage in ("corpus", "train")] == [["--mem=61036M"]] * 2  # 64e9 / 2**20 = 61,035.2
    out = login.submit("--dry-run", "cluster.exclusive=true")[1]
    assert [mem_of(out, stage) for stage in ("corpus", "train")] == [[], ["--exclusive", "--mem=0"]]
    code, out, err = login.submit("--dry-run", "cluster.memory_gb=-1")
    assert (code, out, "cluster.memory_gb=-1.0 is not 0 or more" in err) == (2, "", True)
