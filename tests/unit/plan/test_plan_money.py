"""Money, energy and carbon against the totals that papers and model cards print."""

from __future__ import annotations

import dataclasses

import pytest

from megatron_cpt.config.schema import GpuConfig, TariffConfig
from megatron_cpt.plan.money import run_carbon_kg, run_cost_usd, run_energy_kwh, tariff_of
from megatron_cpt.plan.run_plan import Tariff
from megatron_cpt.record.unknown import Unavailable

META = Tariff(
    name="Meta", usd_per_device_hour=2.0, price_source="DeepSeek-V3 report", watts_per_device=400.0, power_source="A100 TDP", pue=1.1,
    pue_source="LLaMA table 15", grid_g_co2e_per_kwh=385.0, grid_source="LLaMA table 15",
)  # fmt: skip


@pytest.mark.parametrize(("gpu_hours", "tonnes"), [(184_320, 31.22), (368_640, 62.44), (1_720_320, 291.42)])
def test_llama_2s_carbon_follows_from_its_gpu_hours(gpu_hours: float, tonnes: float) -> None:
    kwh = run_energy_kwh(gpu_hours, META)
    found = run_carbon_kg(kwh, META)
    assert not isinstance(found, Unavailable)
    assert found / 1000 == pytest.approx(tonnes, rel=1e-3)


@pytest.mark.parametrize(
    ("chips", "watts", "days", "pue", "grams", "mwh", "tonnes"),
    [(512, 310, 20.0, 1.12, 545, 85.7, 46.7), (10_000, 330, 14.8, 1.10, 429, 1287, 552.1)],  # Patterson et al. 2021, table 4: T5, GPT-3
)
def test_pattersons_table_is_reproduced(
    *, chips: int, watts: float, days: float, pue: float, grams: float, mwh: float, tonnes: float
) -> None:
    tariff = dataclasses.replace(META, watts_per_device=watts, pue=pue, grid_g_co2e_per_kwh=grams)
    kwh = run_energy_kwh(chips * days * 24.0, tariff)
    carbon = run_carbon_kg(kwh, tariff)
    assert not isinstance(kwh, Unavailable)
    assert not isinstance(carbon, Unavailable)
    assert kwh / 1000 == pytest.approx(mwh, rel=1e-2)
    assert carbon / 1000 == pytest.approx(tonnes, rel=1e-2)


def test_deepseek_v3s_bill_is_its_hours_times_two_dollars() -> None:
    assert run_cost_usd(2_788_000.0, META) == 5_576_000


def test_an_unknown_rate_names_the_key_that_sets_it_and_spreads_to_what_needs_it_only() -> None:
    tariff = tariff_of(
        TariffConfig(name="x", usd_per_device_hour=2.0, price_source="a", price_date="2026-01-01", pue=1.2, pue_source="b"),
        GpuConfig(name="y", node_watts_per_device=1000.0, source="c"),
    )
    assert run_cost_usd(3.0, tariff) == 6.0
    kwh = run_energy_kwh(3.0, tariff)
    assert kwh == pytest.approx(3.6)
    carbon = run_carbon_kg(kwh, tariff)
    assert isinstance(carbon, Unavailable)
    assert "tariff.grid_g_co2e_per_kwh" in carbon.reason
