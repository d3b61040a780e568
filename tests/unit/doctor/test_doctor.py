"""The doctor's findings on what machines say, and the command as a user runs it."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from megatron_cpt.config.schema import ClusterConfig, ExperimentConfig, GpuConfig
from megatron_cpt.doctor import devices, host, packages, planned, scheduler
from megatron_cpt.doctor.finding import Finding, as_json, as_page, can_start
from megatron_cpt.doctor.planned import monitor_finding

H100 = {"name": "NVIDIA H100 80GB HBM3", "memory_bytes": 84_929_216_512, "capability": "9.0", "peers": 7}


def run_on(cluster: ClusterConfig, *, memory_gb: float = 80.0) -> ExperimentConfig:
    config = ExperimentConfig()
    config.cluster, config.gpu = cluster, GpuConfig(name="H100 80GB SXM5", memory_gb=memory_gb)
    return config


EIGHT = ClusterConfig(backend="cuda", num_nodes=1, ranks_per_node=8)


def probe_of(*, cuda: bool, version: str = "0.19.2", problem: str | None = None) -> dict[str, Any]:
    return {
        "torch": {
            "version": "2.13.0", "cuda_build": "13.0" if cuda else None, "cudnn": 91002 if cuda else None,
            "nccl": "2.28.3" if cuda else None,
            "threads": 8, "cpu_capability": "AVX512", "cuda_usable": cuda, "cuda_problem": None, "devices": [H100] * 8 if cuda else [],
        },
        "megatron_core": {"version": version, "backend": "cuda" if cuda else "cpu", "problem": problem},
        "found": {"transformer_engine": None, "apex": None, "flash_attn": None},
        "optional": {"transformer_engine": "not found: a", "apex": "not found: b", "flash_attn": "not found: c"},
    }  # fmt: skip


def test_eight_cards_as_the_gpu_group_states_them_are_good() -> None:
    assert devices.gpu_finding([H100] * 8, run_on(EIGHT)).state == "good"
    assert devices.peer_finding([H100] * 8).state == "good"


@pytest.mark.parametrize(
    ("seen", "memory_gb", "mend"),
    [
        ([], 80.0, "cluster=laptop"),
        ([H100] * 4, 80.0, "cluster.ranks_per_node=4"),
        ([H100] * 8, 141.0, "conf/gpu"),
    ],
)
def test_devices_that_the_plan_does_not_count_on_forbid_the_run_and_name_the_key(seen: list[Any], memory_gb: float, mend: str) -> None:
    finding = devices.gpu_finding(seen, run_on(EIGHT, memory_gb=memory_gb))
    assert finding.state == "bad"
    assert mend in finding.mend


def test_unlike_cards_and_cards_that_do_not_reach_each_other_are_warnings() -> None:
    other = {**H100, "name": "NVIDIA A100-SXM4-80GB"}
    assert devices.gpu_finding([H100] * 7 + [other], run_on(EIGHT)).state == "warning"
    assert devices.peer_finding([{**H100, "peers": 3}] * 8).state == "warning"


def test_ports_of_a_fabric_are_read_as_the_kernel_writes_them(tmp_path: Path) -> None:
    for device, state in (("mlx5_0", "4: ACTIVE\n"), ("mlx5_1", "1: DOWN\n")):
        port = tmp_path / device / "ports" / "1"
        port.mkdir(parents=True)
        (port / "state").write_text(state)
        (port / "rate").write_text("400 Gb/sec (4X NDR)\n")
    finding = devices.fabric_finding(devices.fabric_ports(tmp_path), num_nodes=4)
    assert (finding.state, finding.mend) == ("warning", "export NCCL_IB_HCA=^mlx5_1, or mend it")
    assert "mlx5_0 400 Gb/sec (4X NDR)" in finding.found
    assert devices.fabric_finding([], num_nodes=4).state == "warning"
    assert devices.fabric_finding([], num_nodes=1).state == "note"


def test_a_torch_without_cuda_forbids_a_run_on_gpus_and_not_one_on_cpus() -> None:
    assert packages.torch_finding(probe_of(cuda=False), needs_cuda=True).state == "bad"
    assert packages.torch_finding(probe_of(cuda=False), needs_cuda=False).state == "good"


def test_a_torch_without_nccl_forbids_a_run_on_gpus_and_not_one_on_cpus() -> None:
    assert packages.nccl_finding(probe_of(cuda=True), needs_cuda=True).found.startswith("2.28.3")
    assert packages.nccl_finding(probe_of(cuda=False), needs_cuda=False).state == "note"
    missing = packages.nccl_finding(probe_of(cuda=False), needs_cuda=True)
    assert (missing.state, bool(missing.means), bool(missing.mend)) == ("bad", True, True)


def test_without_wandb_a_run_starts_and_the_doctor_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planned, "find_spec", lambda name: None)
    finding = planned.monitor_finding("offline")
    assert (finding.state, finding.mend) == ("note", "pip install 'megatron-cpt[wandb]', or monitor.wandb_mode=disabled")
    assert planned.monitor_finding("disabled").state == "good"


def test_a_driver_too_old_for_torch_is_told_in_its_own_words() -> None:
    probe = probe_of(cuda=True)
    probe["torch"] |= {"cuda_usable": False, "cuda_problem": "The NVIDIA driver on your system is too old"}
    finding = packages.torch_finding(probe, needs_cuda=True)
    assert finding.state == "bad"
    assert "too old" in finding.found


def test_an_untested_or_broken_megatron_core_is_not_good() -> None:
    assert packages.core_finding(probe_of(cuda=False)).state == "good"
    assert packages.core_finding(probe_of(cuda=False, version="0.17.0")).state == "warning"
    assert packages.core_finding(probe_of(cuda=False, problem="No module named 'einops'")).state == "bad"


def test_a_torch_that_does_not_load_forbids_every_run() -> None:
    found = list(packages.package_findings("does not load: libcudart.so.12: cannot open shared object file", needs_cuda=False))
    assert not can_start(found)


def answers(partitions: str | OSError) -> Any:
    return lambda argv: "slurm 25.11.1" if "--version" in argv else partitions


ON_SLURM = ClusterConfig(backend="cuda", num_nodes=4, ranks_per_node=8, partition="gpu")


@pytest.mark.parametrize(
    ("partitions", "state", "mend"),
    [
        ("gpu|up|16|2-00:00:00", "good", ""),
        ("debug|up|2|30:00", "bad", "cluster.partition=debug"),
        ("gpu|up|2|1-00:00:00", "bad", "cluster.num_nodes=2"),
        ("gpu|drain|16|1-00:00:00", "warning", ""),
    ],
)
def test_the_partition_of_the_run_is_looked_up(partitions: str, state: str, mend: str) -> None:
    found = list(scheduler.scheduler_findings(ON_SLURM, which=lambda name: f"/usr/bin/{name}", call=answers(partitions)))
    assert (found[-1].check, found[-1].state, found[-1].mend) == ("partition", state, mend)


def test_a_controller_that_does_not_answer_forbids_only_a_run_that_needs_slurm() -> None:
    call = answers(OSError("Unable to contact slurm controller"))
    (needed,) = scheduler.scheduler_findings(ON_SLURM, which=lambda name: name, call=call)
    (unneeded,) = scheduler.scheduler_findings(EIGHT, which=lambda name: name, call=call)
    assert (needed.state, unneeded.state) == ("bad", "note")
    assert "Unable to contact slurm controller" in needed.found


def test_python_outside_of_the_range_is_refused_and_the_range_is_named() -> None:
    assert host.python_finding("3.12.4").state == "good"
    finding = host.python_finding("3.10.12")
    assert finding.state == "bad"
    assert ">=3.11" in finding.means


def test_few_open_files_are_a_warning_and_no_limit_is_good() -> None:
    assert host.open_files_finding(1024, 524288).state == "warning"
    assert host.open_files_finding(resource.RLIM_INFINITY, resource.RLIM_INFINITY).state == "good"


def test_a_disk_that_the_checkpoints_do_not_fit_on_forbids_the_run(tmp_path: Path) -> None:
    assert host.disk_finding(tmp_path / "runs", needed_bytes=1e6).state == "good"
    assert host.disk_finding(tmp_path / "runs", needed_bytes=1e18).state == "bad"


@pytest.mark.parametrize(("state", "wanted"), [(0, "good"), (5, "note"), (None, "note")])
def test_the_kernels_word_on_the_clock_is_told(state: int | None, wanted: str) -> None:
    assert host.clock_finding(state).state == wanted


def test_a_wandb_key_is_looked_for_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef0123456789abcdef01234567")
    finding = monitor_finding("online")
    assert finding.state == "good"
    assert "0123456789abcdef" not in as_json([finding])


def test_the_page_says_the_mend_and_escapes_what_strangers_named() -> None:
    page = as_page([Finding("disk", "bad", "full\x1b[2J", "no room", "rm -r old")], asked_for="Run 'x'")
    assert "\x1b" not in page
    assert "FAIL disk" in page
    assert "mend: rm -r old" in page
    assert "Run 'x' cannot start here: 1 of 1" in page


def doctor(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "megatron_cpt", "doctor", *arguments], capture_output=True, text=True, check=False)


def test_the_command_judges_this_machine_and_ends_with_2_when_the_planned_run_cannot_start() -> None:
    answer = doctor("--json")
    told = json.loads(answer.stdout)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert {"python", "packages", "torch", "NCCL", "megatron-core", "GPUs", "Slurm", "disk", "clock"} <= {
        each["check"] for each in told["findings"]
    }
    assert next(each for each in told["findings"] if each["check"] == "megatron-core")["state"] == "good"

    answer = doctor("--json", "experiment=tiny", "model.path=/no/such/model")
    told = json.loads(answer.stdout)
    assert (answer.returncode, told["can_start"]) == (2, False)
    bad = {each["check"]: each for each in told["findings"] if each["state"] == "bad"}
    assert "base model" in bad
    assert all(each["mend"] for each in bad.values())
