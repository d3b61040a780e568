"""GPU energy through the real nvidia-ml-py, with the driver's library stood in for; and through AMD SMI's published answers."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_cpt.meter.amd import open_amd
from megatron_cpt.meter.energy import NoMeter
from megatron_cpt.meter.gpus import GpuMeter
from megatron_cpt.meter.nvml import open_nvml
from megatron_cpt.record.unknown import Unavailable

pynvml = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")

SUCCESS, NOT_SUPPORTED, IS_LOST = 0, 3, 15  # nvml.h: nvmlReturn_t


@dataclass
class Card:
    uuid: str
    name: str = "NVIDIA H100 80GB HBM3"
    energy_mj: int | None = 5_000_000  # None: no energy counter
    power_mw: int | None = 250_000
    mig: int | None = 0  # None: a model that cannot be cut
    lost: bool = False


@dataclass
class Driver:
    """The functions of libnvidia-ml.so that are asked, with nvml.h's arguments and return codes."""

    cards: list[Card]
    handles: dict[int, Card] = field(default_factory=dict)

    def nvmlInitWithFlags(self, _: Any) -> int:
        return SUCCESS

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:
        count._obj.value = len(self.cards)
        return SUCCESS

    def nvmlDeviceGetHandleByIndex_v2(self, index: Any, device: Any) -> int:
        if self.cards[index.value].lost:
            return IS_LOST
        self.handles[id(device._obj)] = self.cards[index.value]
        return SUCCESS

    def nvmlDeviceGetUUID(self, device: Any, text: Any, _: Any) -> int:
        text.value = self.handles[id(device)].uuid.encode()
        return SUCCESS

    def nvmlDeviceGetName(self, device: Any, text: Any, _: Any) -> int:
        text.value = self.handles[id(device)].name.encode()
        return SUCCESS

    def nvmlDeviceGetTotalEnergyConsumption(self, device: Any, energy: Any) -> int:
        return self._answer(energy, self.handles[id(device)].energy_mj)

    def nvmlDeviceGetPowerUsage(self, device: Any, power: Any) -> int:
        return self._answer(power, self.handles[id(device)].power_mw)

    def nvmlDeviceGetMigMode(self, device: Any, current: Any, _: Any) -> int:
        return self._answer(current, self.handles[id(device)].mig)

    def _answer(self, where: Any, value: int | None) -> int:
        if value is None:
            return NOT_SUPPORTED
        where._obj.value = value
        return SUCCESS


def driver(monkeypatch: pytest.MonkeyPatch, *cards: Card) -> Driver:
    stand_in = Driver(list(cards))
    monkeypatch.setattr(pynvml, "nvmlLib", stand_in)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    return stand_in


def four() -> list[Card]:
    return [Card(f"GPU-{index}8932f937-d72c-4106-c12f-20bd9faed9f6") for index in range(4)]


def opened(environment: dict[str, str], **options: Any) -> GpuMeter:
    meter = open_nvml(environment=environment, sample_seconds=None, **options)
    assert isinstance(meter, GpuMeter), meter
    return meter


@pytest.mark.parametrize(
    ("environment", "joules"),
    [
        ({}, 10.0),
        ({"CUDA_VISIBLE_DEVICES": "1,3"}, 6.0),
        ({"CUDA_VISIBLE_DEVICES": "GPU-28932f937-d72c-4106-c12f-20bd9faed9f6"}, 3.0),
        ({"CUDA_VISIBLE_DEVICES": "GPU-18,GPU-3"}, 6.0),  # CUDA takes the first digits too
        ({"CUDA_VISIBLE_DEVICES": "0,-1,2"}, 1.0),
        ({"CUDA_VISIBLE_DEVICES": "1,1,GPU-1"}, 2.0),  # one board, however often it is named
    ],
)
def test_only_the_visible_gpus_are_counted_in_joules(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], joules: float) -> None:
    cards = driver(monkeypatch, *four()).cards
    meter = opened(environment)
    for index, card in enumerate(cards):
        assert card.energy_mj is not None
        card.energy_mj += 1000 * (index + 1)
    assert meter.read() == joules
    (part,) = meter.parts()
    assert (part.method, part.is_estimate, part.measured) == ("NVML energy counter", False, part.of)


def test_a_gpu_without_an_energy_counter_is_an_estimate_from_its_power(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """250 W for an hour are 0.25 kWh, said to be an estimate, with one warning (never 0 for the whole run)."""
    driver(monkeypatch, Card("GPU-a", energy_mj=None, power_mw=250_000), Card("GPU-b", energy_mj=None, power_mw=250_000))
    now = [0.0]
    with caplog.at_level(logging.WARNING):
        meter = opened({"CUDA_VISIBLE_DEVICES": "0"}, clock=lambda: now[0])
    meter.read()
    for second in range(1, 3601):
        now[0] = float(second)
        joules = meter.read()
    assert joules == pytest.approx(250 * 3600)  # joules
    (part,) = meter.parts()
    assert part.is_estimate
    assert "estimate" in part.method
    assert len(caplog.records) == 1


def test_power_that_rises_is_joined_by_straight_lines_and_a_long_silence_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    card = driver(monkeypatch, Card("GPU-a", energy_mj=None, power_mw=100_000)).cards[0]
    now = [0.0]
    meter = opened({}, clock=lambda: now[0])
    meter.read()
    now[0], card.power_mw = 2.0, 300_000
    assert meter.read() == 400.0  # 2 s at a mean of 200 W
    now[0] = 60.0
    assert meter.read() == Unavailable("the power of a GPU was not sampled for 58 s")


def test_one_lost_gpu_does_not_hide_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    cards = driver(monkeypatch, *four()).cards
    cards[2].lost = True
    meter = opened({})
    assert cards[0].energy_mj is not None
    cards[0].energy_mj += 2000
    (part,) = meter.parts()
    assert (part.joules, part.measured, part.of, part.reasons) == (2.0, 3, 4, ("NVML: GPU 2: GPU is lost",))


@pytest.mark.parametrize(
    ("cards", "environment", "reason"),
    [
        (four(), {"CUDA_VISIBLE_DEVICES": "MIG-1a2b3c4d-aaaa-bbbb-cccc-1234567890ab"}, "MIG slice"),
        (four(), {"CUDA_VISIBLE_DEVICES": "MIG-GPU-08932f937-d72c-4106-c12f-20bd9faed9f6/1/0"}, "MIG slice"),
        ([Card("GPU-a", mig=1)], {"CUDA_VISIBLE_DEVICES": "0"}, "MIG slice"),
        ([Card("GPU-a", energy_mj=None, power_mw=None, mig=None)], {}, "Not Supported (energy), NVML: Not Supported (power)"),
        (four(), {"CUDA_VISIBLE_DEVICES": ""}, "no GPU is visible"),
        (four(), {"CUDA_VISIBLE_DEVICES": "GPU-9"}, "0 GPUs of this node have that id"),
        ([Card("GPU-a", "A100"), Card("GPU-b", "T4")], {"CUDA_VISIBLE_DEVICES": "0"}, "CUDA_DEVICE_ORDER"),
    ],
)
def test_what_nvml_cannot_tell_is_unknown_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, cards: list[Card], environment: dict[str, str], reason: str
) -> None:
    driver(monkeypatch, *cards)
    found = open_nvml(environment=environment, sample_seconds=None)
    assert isinstance(found, NoMeter)
    assert reason in found.reason
    assert isinstance(found.read(), Unavailable)


def test_a_reloaded_driver_makes_the_energy_unknown_and_never_negative(monkeypatch: pytest.MonkeyPatch) -> None:
    card = driver(monkeypatch, Card("GPU-a")).cards[0]
    meter = opened({})
    card.energy_mj = 5
    assert isinstance(meter.read(), Unavailable)


def test_a_counter_that_stands_still_is_unknown_and_not_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some drivers answer with one number for ever; an idle board draws tens of watts, so that no time costs nothing."""
    now = [0.0]
    cards = driver(monkeypatch, Card("GPU-a"), Card("GPU-b")).cards
    meter = opened({}, clock=lambda: now[0])
    now[0] = 1.0
    assert meter.read() == 0  # not read anew yet
    now[0], cards[1].energy_mj = 60.0, 5_003_000
    (part,) = meter.parts()
    assert (part.joules, part.measured, part.of) == (3.0, 1, 2)
    assert part.reasons == ("a GPU's energy counter has stood still for 60 s",)
    ticks = [7, 7]
    stuck = open_amd(smi=amd(ticks=ticks), environment={}, clock=lambda: now[0], sample_seconds=None)
    now[0] = 120.0
    assert stuck.read() == Unavailable("a GPU's energy counter has stood still for 60 s")


def test_a_machine_without_the_driver_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class Absent:
        def nvmlInitWithFlags(self, _: Any) -> int:
            return 9  # NVML_ERROR_DRIVER_NOT_LOADED

    monkeypatch.setattr(pynvml, "nvmlLib", Absent())
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    found = open_nvml(environment={})
    assert isinstance(found, NoMeter)
    assert found.reason == "NVML: Driver Not Loaded"


class AmdSmiException(Exception):
    pass


def amd(*, key: str = "energy_accumulator", ticks: list[int] | None = None, power: dict[str, Any] | None = None) -> Any:
    """AMD SMI's answers by its documentation: an accumulator in ticks of `counter_resolution` microjoules."""
    counts = ticks if ticks is not None else []

    def energy(handle: int) -> dict[str, Any]:
        if ticks is None:
            raise AmdSmiException("AMDSMI_STATUS_NOT_SUPPORTED")
        return {key: counts[handle], "counter_resolution": 15.3, "timestamp": 1}

    return SimpleNamespace(
        AmdSmiException=AmdSmiException,
        amdsmi_init=lambda: None,
        amdsmi_get_processor_handles=lambda: range(max(len(counts), 2)),
        amdsmi_get_energy_count=energy,
        amdsmi_get_power_info=lambda _: power or {},
    )


@pytest.mark.parametrize("key", ["energy_accumulator", "power"])
def test_amd_counts_ticks_of_15_microjoules_under_both_names(key: str) -> None:
    ticks = [10**9, 10**9]
    meter = open_amd(smi=amd(key=key, ticks=ticks), environment={"HIP_VISIBLE_DEVICES": "1"}, sample_seconds=None)
    ticks[0] += 5_000_000
    ticks[1] += 1_000_000
    assert meter.read() == pytest.approx(15.3)  # a million ticks of 15.3 uJ; the hidden GPU is not counted


def test_amd_without_a_counter_is_measured_by_power_and_without_either_unknown() -> None:
    now = [0.0]
    power = {"socket_power": "N/A", "current_socket_power": 500, "average_socket_power": "N/A"}
    meter = open_amd(smi=amd(power=power), environment={}, clock=lambda: now[0], sample_seconds=None)
    meter.read()
    now[0] = 4.0
    assert meter.read() == 4000.0  # two GPUs at 500 W for 4 s
    assert meter.parts()[0].is_estimate
    found = open_amd(smi=amd(), environment={}, sample_seconds=None)
    assert isinstance(found, NoMeter)
    assert "no power reading" in found.reason
    by_id = open_amd(smi=amd(ticks=[1, 1]), environment={"ROCR_VISIBLE_DEVICES": "GPU-7bff"}, sample_seconds=None)
    assert isinstance(by_id, NoMeter)
    assert "name them by number" in by_id.reason
