"""Counters read from a folder laid out as the kernel lays out powercap, and from an NVML that answers as NVIDIA's does."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from megatron_cpt.meter.energy import NoMeter, NvmlMeter, RaplMeter, open_meter, open_nvml, open_rapl
from megatron_cpt.record.unknown import Unavailable

RANGE = 262_143_328_850  # microjoules: the range of a common server package


def zone(root: Path, name: str, label: str, energy: int) -> None:
    (root / name).mkdir(parents=True)
    for file, value in (("name", label), ("max_energy_range_uj", RANGE), ("energy_uj", energy)):
        (root / name / file).write_text(f"{value}\n", encoding="ascii")


def set_energy(root: Path, name: str, energy: int) -> None:
    (root / name / "energy_uj").write_text(f"{energy}\n", encoding="ascii")


def test_packages_and_dram_are_added_and_the_parts_of_a_package_are_not_counted_again(tmp_path: Path) -> None:
    for name, label in (("intel-rapl:0", "package-0"), ("intel-rapl:0:0", "core"), ("intel-rapl:0:1", "dram"), ("intel-rapl:1", "psys")):
        zone(tmp_path, name, label, 1_000_000)
    meter = open_rapl(tmp_path)
    for name in ("intel-rapl:0", "intel-rapl:0:0", "intel-rapl:0:1", "intel-rapl:1"):
        set_energy(tmp_path, name, 6_000_000)
    assert meter.read() == 10.0  # 5 J of the package and 5 J of its memory
    assert meter.scope.startswith("2 RAPL zones")


def test_a_counter_that_wraps_goes_on_counting(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", RANGE - 2_000_000)
    meter = open_rapl(tmp_path)
    set_energy(tmp_path, "intel-rapl:0", 3_000_000 - 1)
    assert meter.read() == pytest.approx(5.0)
    set_energy(tmp_path, "intel-rapl:0", 4_000_000 - 1)
    assert meter.read() == pytest.approx(6.0)


def test_a_counter_that_may_have_wrapped_twice_is_unknown_from_then_on(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 0)
    now = [0.0]
    meter = open_rapl(tmp_path, clock=lambda: now[0])
    now[0] = 300.0  # 262 kJ pass in 262 s at 1 kW
    assert isinstance(meter.read(), Unavailable)
    now[0] = 301.0
    assert isinstance(meter.read(), Unavailable)


def test_a_machine_without_counters_says_so(tmp_path: Path) -> None:
    found = open_rapl(tmp_path / "absent").read()
    assert isinstance(found, Unavailable)
    assert "no RAPL counter" in found.reason


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up the right to read")
def test_a_counter_that_only_root_may_read_says_so(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 0)
    (tmp_path / "intel-rapl:0/energy_uj").chmod(0o400)
    tmp_path.chmod(0o755)
    for parent in list(tmp_path.parents)[:3]:
        parent.chmod(parent.stat().st_mode | 0o055)
    os.seteuid(65534)
    try:
        found = open_rapl(tmp_path)
    finally:
        os.seteuid(0)
    assert isinstance(found, NoMeter)
    assert "root only" in found.reason


def test_a_counter_that_vanishes_is_unknown_and_not_what_was_counted_before(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 0)
    meter = open_rapl(tmp_path)
    (tmp_path / "intel-rapl:0/energy_uj").unlink()
    assert isinstance(meter.read(), Unavailable)


class NVMLError(Exception):
    pass


class Nvml:
    """Answers NVML's calls for a node of cards; energy in millijoules since the driver was loaded."""

    NVMLError = NVMLError

    def __init__(self, *names: str) -> None:
        self.names = names
        self.energy = [1_000_000 * (index + 1) for index in range(len(names))]
        self.supported = True

    def nvmlInit(self) -> None: ...

    def nvmlDeviceGetCount(self) -> int:
        return len(self.names)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:
        index = int(uuid.removeprefix("GPU-"))
        if index >= len(self.names):
            raise NVMLError("Not Found")
        return index

    def nvmlDeviceGetName(self, handle: int) -> str:
        return self.names[handle]

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:
        if not self.supported:
            raise NVMLError("Not Supported")
        return self.energy[handle]


H100 = ("NVIDIA H100 80GB HBM3",) * 4


@pytest.mark.parametrize(
    ("environment", "joules"),
    [
        ({}, 10.0),
        ({"CUDA_VISIBLE_DEVICES": "1,3"}, 6.0),
        ({"CUDA_VISIBLE_DEVICES": "GPU-2"}, 3.0),
        ({"CUDA_VISIBLE_DEVICES": "0,-1,2"}, 1.0),
    ],
)
def test_only_the_visible_gpus_are_counted_in_joules(environment: dict[str, str], joules: float) -> None:
    nvml = Nvml(*H100)
    meter = open_nvml(nvml=nvml, environment=environment)
    assert isinstance(meter, NvmlMeter)
    nvml.energy = [value + 1000 * (index + 1) for index, value in enumerate(nvml.energy)]
    assert meter.read() == joules


def no_support(nvml: Nvml) -> None:
    nvml.supported = False


@pytest.mark.parametrize(
    ("names", "environment", "prepare", "reason"),
    [
        (H100, {"CUDA_VISIBLE_DEVICES": "MIG-1a2b"}, None, "MIG"),
        (H100, {"CUDA_VISIBLE_DEVICES": ""}, None, "no GPU is visible"),
        (H100, {"CUDA_VISIBLE_DEVICES": "GPU-9"}, None, "Not Found"),
        (H100, {}, no_support, "Not Supported"),
        (("A100", "T4"), {"CUDA_VISIBLE_DEVICES": "0"}, None, "CUDA_DEVICE_ORDER"),
    ],
)
def test_what_nvml_cannot_tell_is_unknown_with_its_reason(
    names: tuple[str, ...], environment: dict[str, str], prepare: Any, reason: str
) -> None:
    nvml = Nvml(*names)
    if prepare:
        prepare(nvml)
    found = open_nvml(nvml=nvml, environment=environment)
    assert isinstance(found, NoMeter)
    assert reason in found.reason


def test_a_reloaded_driver_makes_the_energy_unknown_and_never_negative() -> None:
    nvml = Nvml(*H100)
    meter = open_nvml(nvml=nvml, environment={})
    nvml.energy[2] = 5
    assert isinstance(meter.read(), Unavailable)


def test_the_meter_of_this_machine_gives_a_figure_or_a_reason() -> None:
    for backend in ("cpu", "cuda"):
        found = open_meter(backend).read()
        assert (isinstance(found, Unavailable) and found.reason) or (isinstance(found, float | int) and found >= 0)
    assert isinstance(open_meter("cpu"), RaplMeter | NoMeter)
