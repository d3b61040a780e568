"""The sbatch lines by recorded expectation, and a submission against a Slurm that answers, refuses or is absent."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from megatron_cpt.config.compose import as_yaml, compose, load_composed
from megatron_cpt.config.schema import ClusterConfig
from megatron_cpt.errors import ConfigError, CptError
from megatron_cpt.line.inputs import plan_settings, with_recorded_queue
from megatron_cpt.record.manifest import write_manifest
from megatron_cpt.record.unknown import Unavailable
from megatron_cpt.submit.array import Shares, array_spec, numbers_in, with_arrays
from megatron_cpt.submit.record import newest_submitted, write_submitted
from megatron_cpt.submit.slurm import STAGES, Place, line_of_jobs, requeue_problem, signal_lead_seconds, time_limit_seconds
from megatron_cpt.submit.submit import call_slurm, submit_line

ROOT = Path(__file__).parents[3]
H100 = ClusterConfig(
    backend="cuda",
    num_nodes=4,
    ranks_per_node=8,
    threads_per_rank=8,
    partition="gpu",
    account="law",
    qos="long",
    time_limit="24:00:00",
    env_file="env.sh",
)
ODD = ['tokenizer.document_separator="#end, 文=1"', 'model.path="/data/epoch=9-step=1.ckpt"', 'model.provenance="$(touch x);y"']


def jobs(
    run_dir: Path, *, cluster: ClusterConfig = H100, stages: Sequence[str] = STAGES, shares: Mapping[str, Shares] | None = None
) -> list:
    place = Place(run_dir=run_dir, frozen=run_dir / "slurm" / "submission-1", work_dir=Path("/home/me"))
    line = line_of_jobs(cluster=cluster, run_name="r", place=place, lead_seconds=90, stages=stages)
    return with_arrays(line, shares or {}, cluster=cluster, run_name="r", place=place)


def test_the_train_job_asks_for_one_launcher_a_node_all_gpus_and_a_warning_to_the_batch_shell() -> None:
    (job,) = jobs(Path("/runs/r"), stages=["train"])
    frozen = "/runs/r/slurm/submission-1"
    assert list(job.argv) == [
        "sbatch", "--parsable", "--job-name=r-train", "--chdir=/home/me", "--nodes=4", "--ntasks-per-node=1", "--cpus-per-task=64",
        "--output=/runs/r/slurm/train-%j.out", "--open-mode=append", "--requeue", "--gpus-per-node=8", "--partition=gpu", "--account=law",
        "--qos=long", "--time=24:00:00", "--signal=B:USR1@90", f"{frozen}/slurm/train.sbatch", frozen, "/runs/r", "20",
    ]  # fmt: skip


def test_a_stage_without_ranks_asks_for_the_cores_of_one_node_and_no_gpu() -> None:
    (job,) = jobs(Path("/runs/r"), stages=["corpus"])
    assert not [part for part in job.argv if "gpus" in part]
    assert {"--nodes=1", "--cpus-per-task=64"} <= set(job.argv)
    frozen = "/runs/r/slurm/submission-1"
    assert list(job.argv[-3:]) == [f"{frozen}/slurm/stage.sbatch", frozen, "corpus"]


def test_a_cpu_cluster_without_partition_or_environment_names_none() -> None:
    (job,) = jobs(Path("/runs/r"), cluster=ClusterConfig(backend="cpu", num_nodes=2, ranks_per_node=2), stages=["eval"])
    assert not [part for part in job.argv if part.startswith(("--gpus", "--partition", "--account", "--time", "--qos"))]
    assert job.argv[-3].endswith("ranks.sbatch")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30", 1800), ("2:30", 150), ("24:00:00", 86400), ("2-12", 216000), ("1-0:30", 88200), ("1-2:03:04", 93784), ("UNLIMITED", None)],
)
def test_a_time_limit_is_read_in_every_form_of_sbatch(text: str, seconds: int | None) -> None:
    assert time_limit_seconds(text) == seconds


@pytest.mark.parametrize("text", ["soon", "1:2:3:4", "", "-5"])
def test_another_time_limit_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="Not a time limit"):
        time_limit_seconds(text)


def test_the_warning_comes_two_steps_and_two_saves_before_the_limit() -> None:
    cluster = ClusterConfig(backend="cuda", num_nodes=1, ranks_per_node=8, checkpoint_seconds=45.0, time_limit="1:00:00")
    assert signal_lead_seconds(cluster, 20.0) == 10 + 40 + 90
    assert signal_lead_seconds(cluster, Unavailable("no peak")) == 300
    with pytest.raises(ConfigError, match="warned of its end before it begins"):
        signal_lead_seconds(ClusterConfig(backend="cuda", checkpoint_seconds=45.0, time_limit="2"), 20.0)


def test_values_that_shells_and_grammars_trip_over_reach_the_jobs_as_they_are(tmp_path: Path) -> None:
    config = compose(["experiment=tiny", *ODD])
    frozen = tmp_path / "config.yaml"
    frozen.write_text(as_yaml(config), encoding="utf-8")
    again = load_composed(frozen)
    assert again == config
    assert (again.tokenizer.document_separator, again.model.path) == ("#end, 文=1", "/data/epoch=9-step=1.ckpt")
    assert again.model.provenance == "$(touch x);y"


def test_a_plan_that_was_made_lets_a_run_move_to_another_partition_and_to_nothing_else(tmp_path: Path) -> None:
    made, moved = compose(["experiment=tiny"]), compose(["experiment=tiny", "cluster.partition=low", "cluster.qos=long"])
    write_manifest(tmp_path, "plan", {"settings": plan_settings(made)}, {})
    assert with_recorded_queue(plan_settings(moved), tmp_path) == plan_settings(made)
    assert with_recorded_queue(plan_settings(moved), tmp_path / "absent")["cluster"]["partition"] == "low"
    larger = compose(["experiment=tiny", "cluster.num_nodes=2"])
    assert with_recorded_queue(plan_settings(larger), tmp_path)["cluster"]["num_nodes"] == 2


@pytest.mark.parametrize("text", ["run_name: [", "no_such_key: 1\n", "- a\n"])
def test_what_is_no_composed_configuration_is_refused_with_its_place(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        load_composed(tmp_path / "config.yaml")


def test_an_array_asks_for_its_pending_elements_alone_of_a_rank_s_cores_and_starts_each_again_by_itself() -> None:
    array, own = jobs(Path("/runs/r"), stages=["index"], shares={"index": Shares(8, (0, 1, 2, 5))})
    frozen = "/runs/r/slurm/submission-1"
    assert list(array.argv) == [
        "sbatch", "--parsable", "--job-name=r-index-tasks", "--chdir=/home/me", "--array=0-2,5", "--nodes=1", "--ntasks=1",
        "--cpus-per-task=8", "--output=/runs/r/slurm/index-tasks-%A_%a.out", "--open-mode=append", "--requeue", "--partition=gpu",
        "--account=law", "--qos=long", "--time=24:00:00", f"{frozen}/slurm/element.sbatch", frozen, "index", "8",
    ]  # fmt: skip
    assert own.argv == jobs(Path("/runs/r"), stages=["index"])[0].argv
    (corpus, _) = jobs(Path("/runs/r"), stages=["corpus"], shares={"corpus": Shares(2, (0, 1))})
    assert "--cpus-per-task=1" in corpus.argv


@pytest.mark.parametrize(("numbers", "spec"), [((0,), "0"), ((0, 1), "0-1"), ((3, 4, 5, 9, 11, 12), "3-5,9,11-12")])
def test_numbers_of_elements_are_written_as_ranges_and_read_back(numbers: tuple[int, ...], spec: str) -> None:
    assert array_spec(numbers) == spec
    assert numbers_in(f"[{spec}%2]") == numbers_in(spec) == list(numbers)


def test_what_slurm_prints_of_elements_that_wait_is_read_in_each_of_its_forms() -> None:
    assert numbers_in("[0-6:2]") == [0, 2, 4, 6]
    assert numbers_in("[1,3,...]") == [1, 3]  # cut off by Slurm


def test_a_stage_waits_for_what_its_array_waits_for_and_for_the_arrays_end_good_or_bad(tmp_path: Path) -> None:
    slurm = Slurm()
    listed = jobs(tmp_path, stages=["corpus", "vocab", "index"], shares={"corpus": Shares(2, (0, 1)), "index": Shares(3, (0, 1, 2))})
    found = submit_line(listed, dry_run=False, call=slurm)
    assert found.job_ids == {"corpus-tasks": "101", "corpus": "102", "vocab": "103", "index-tasks": "104", "index": "105"}
    waits = [next((part for part in argv if part.startswith("--dependency")), None) for argv in slurm.calls[:5]]
    assert waits == [
        None, "--dependency=afterany:101", "--dependency=afterok:102", "--dependency=afterok:103", "--dependency=afterok:103,afterany:104",
    ]  # fmt: skip
    assert slurm.calls[5] == ["scontrol", "release", "101"]
    frozen = tmp_path / "slurm" / "submission-1"
    frozen.mkdir()
    write_submitted(frozen, listed, found.job_ids, commit="abc")
    newest = newest_submitted(tmp_path)
    assert newest is not None
    assert [(job.name, job.job_id, job.after, job.elements, job.after_any) for job in newest[1].jobs[-2:]] == [
        ("index-tasks", "104", ("103",), (0, 1, 2), ()),
        ("index", "105", ("103",), (), ("104",)),
    ]
    dry = submit_line(listed, dry_run=True, call=slurm)
    assert "--dependency=afterok:<vocab>,afterany:<index-tasks>" in shlex.split(dry.lines[-1])


def test_a_stage_whose_shares_are_all_done_has_no_array() -> None:
    assert [job.name for job in jobs(Path("/runs/r"), stages=["index"], shares={"index": Shares(3, ())})] == ["index"]


class Slurm:
    """Answers sbatch with rising ids, as `--parsable` does on a federated cluster, until it is told to refuse."""

    def __init__(self, *, refuse_at: int | None = None) -> None:
        self.calls: list[list[str]] = []
        self.refuse_at = refuse_at

    def __call__(self, argv: Sequence[str]) -> str:
        self.calls.append(list(argv))
        if argv[0] in ("scancel", "scontrol", "squeue"):
            return ""
        if len(self.calls) == self.refuse_at:
            raise ConfigError("sbatch refused a job.", value="QOSMaxWallDurationPerJobLimit")
        return f"{100 + len(self.calls)};cluster\n"


def test_each_job_waits_for_the_one_before_it_and_the_report_for_the_end_good_or_bad(tmp_path: Path) -> None:
    slurm = Slurm()
    found = submit_line(jobs(tmp_path), dry_run=False, call=slurm)
    *lines, release = slurm.calls
    waits = [next((part for part in argv if part.startswith("--dependency")), None) for argv in lines]
    assert waits == [None, *(f"--dependency=afterok:{100 + number}" for number in range(1, 10)), "--dependency=afterany:110"]
    assert found.job_ids == {stage: str(101 + number) for number, stage in enumerate(STAGES)}
    assert ["--hold" in argv for argv in lines] == [True] + [False] * 10  # nothing begins before all are in
    assert release == ["scontrol", "release", "101"]
    assert (tmp_path / "slurm").is_dir()


def test_a_dry_run_shows_lines_that_a_shell_reads_back_and_calls_nothing(tmp_path: Path) -> None:
    slurm = Slurm()
    found = submit_line(jobs(tmp_path), dry_run=True, call=slurm)
    assert slurm.calls == []
    assert found.job_ids == {}
    assert list(tmp_path.iterdir()) == []
    assert shlex.split(found.lines[0])[-1] == "corpus"
    assert "--dependency=afterok:<corpus>" in shlex.split(found.lines[1])


def test_a_line_that_slurm_refuses_half_way_is_taken_back(tmp_path: Path) -> None:
    slurm = Slurm(refuse_at=4)
    with pytest.raises(ConfigError, match="QOSMaxWallDurationPerJobLimit"):
        submit_line(jobs(tmp_path), dry_run=False, call=slurm)
    assert slurm.calls[-1] == ["scancel", "101", "102", "103"]
    assert [argv[0] for argv in slurm.calls[4:]] == ["squeue", "scancel"]


def test_an_answer_without_an_id_takes_the_line_back(tmp_path: Path) -> None:
    calls = []

    def odd(argv: Sequence[str]) -> str:
        calls.append(list(argv))
        return "101" if len(calls) == 1 else "Submitted something"

    with pytest.raises(CptError, match="no job id"):
        submit_line(jobs(tmp_path), dry_run=False, call=odd)
    assert calls[-1] == ["scancel", "101"]


def test_a_machine_without_slurm_is_told_what_to_do() -> None:
    with pytest.raises(ConfigError, match="There is no sbatch-that-is-absent here") as caught:
        call_slurm(["sbatch-that-is-absent"])
    assert "--dry-run" in str(caught.value)


def test_slurms_own_reason_is_shown(tmp_path: Path) -> None:
    script = tmp_path / "sbatch"
    script.write_text("#!/bin/sh\necho 'sbatch: error: invalid partition specified: gpu' >&2\nexit 1\n", encoding="utf-8")
    script.chmod(0o755)
    with pytest.raises(ConfigError, match="invalid partition specified: gpu"):
        call_slurm([str(script)])


def test_an_unknown_stage_is_refused() -> None:
    with pytest.raises(ConfigError, match="trian"):
        jobs(Path("/runs/r"), stages=["trian"])


@pytest.mark.parametrize(
    "path", sorted([*ROOT.glob("slurm/*.sbatch"), *ROOT.glob("slurm/**/*.sh"), *ROOT.glob("launch/*.sh")]), ids=lambda path: path.name
)
def test_every_shell_file_parses_and_stops_at_the_first_failure(path: Path) -> None:
    subprocess.run(["bash", "-n", str(path)], check=True)
    if path.parent.name != "env" and path.name != "setup.sh":
        assert "set -euo pipefail" in path.read_text(encoding="utf-8")


def test_a_limit_on_requeues_below_the_failures_to_be_expected_is_told_with_one_that_suffices() -> None:
    # 8,192 GPUs for 54 days at 45,566 h each: 54 x 24 x 8192 / 45566 = 233.0 failures, and 27 time limits of 48 h
    large = ClusterConfig(backend="cuda", num_nodes=1024, ranks_per_node=8, time_limit="2-00:00:00")
    problem = requeue_problem(large, elapsed_seconds=54 * 86_400.0, device_mtbf_hours=45_566.0)
    assert problem is not None
    assert "start 260 times" in problem
    assert "cluster.max_requeues=520" in problem
    assert requeue_problem(H100, elapsed_seconds=5 * 86_400.0, device_mtbf_hours=45_566.0) is None
    assert requeue_problem(large, elapsed_seconds=Unavailable("no rates"), device_mtbf_hours=None) is None
