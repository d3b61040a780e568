"""CPU counters read from a folder laid out as the kernel lays out powercap, and how the meters of a node and of nodes add up."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from megatron_cpt.meter.cpu_estimate import estimated_joules
from megatron_cpt.meter.energy import NodeMeter, NoMeter, Part, expecting, joules_of, merged, open_meter
from megatron_cpt.meter.rapl import RaplMeter, open_rapl
from megatron_cpt.record.unknown import Figure, Unavailable

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


def test_the_meter_of_this_machine_gives_a_figure_or_a_reason() -> None:
    for backend in ("cpu", "cuda"):
        found = open_meter(backend).read()
        assert (isinstance(found, Unavailable) and found.reason) or (isinstance(found, float | int) and found >= 0)
    assert isinstance(open_meter("cpu"), RaplMeter | NoMeter)


class OneGpu:
    """A meter of a GPU whose CPU part is another meter's."""

    scope = "a GPU"

    def __init__(self, measured: int) -> None:
        self.measured = measured

    def parts(self) -> tuple[Part, ...]:
        return (Part("gpu", 100.0 * self.measured, self.measured, 1, "counter", reasons=() if self.measured else ("no counter",)),)

    def read(self) -> Figure:
        return joules_of(self.parts(), kind="gpu")


def test_a_node_adds_its_cpu_to_its_gpus_and_a_cpu_alone_does_not_pass_for_them(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 0)
    rapl = open_rapl(tmp_path)
    set_energy(tmp_path, "intel-rapl:0", 7_000_000)
    assert NodeMeter([OneGpu(1), rapl]).read() == 107.0
    assert NodeMeter([OneGpu(1), NoMeter("root only")]).read() == 100.0  # as its scope says
    assert "no CPU (root only)" in NodeMeter([OneGpu(1), NoMeter("root only")]).scope
    assert NodeMeter([OneGpu(0), rapl]).read() == Unavailable("no counter")


def test_two_nodes_add_up_and_a_silent_third_stays_visible() -> None:
    nodes = [Part("gpu", 40.0, 8, 8, "NVML"), Part("gpu", 30.0, 6, 8, "NVML", reasons=("GPU is lost",)), Part("cpu", 5.0, 1, 1, "RAPL")]
    gpu, cpu = expecting(merged(nodes), kind="gpu", num_devices=24)
    assert (gpu.joules, gpu.measured, gpu.of, gpu.reasons) == (70.0, 14, 24, ("GPU is lost", "no meter spoke for 8 GPUs"))
    assert (cpu.joules, cpu.measured, cpu.of) == (5.0, 1, 1)


def test_the_cpu_estimate_follows_its_stated_watts() -> None:
    # 2 threads for 100 s, busy for 150 s of CPU time together: 2 x 100 x 0.74 + 150 x (3.5 - 0.74) = 148 + 414 J
    assert estimated_joules(seconds=100.0, busy_seconds=150.0, threads=2) == pytest.approx(562.0)
    # fully busy: 2 x 100 x 3.5
    assert estimated_joules(seconds=100.0, busy_seconds=200.0, threads=2) == pytest.approx(700.0)
