"""Money, energy and carbon as intervals, by hand; test_plan_published_cost.py holds them against papers and model cards."""

from __future__ import annotations

import dataclasses

import pytest
from plan_examples import ONE_RANK, experiment, facts

from megatron_cpt.config.schema import AllowanceConfig, GpuConfig, TariffConfig
from megatron_cpt.errors import ConfigError
from megatron_cpt.plan.derive import derive
from megatron_cpt.plan.money import bill_of, run_carbon_kg, run_cost_usd, run_energy_kwh, stored_gb, tariff_of, with_lost_and_allowance
from megatron_cpt.plan.run_plan import Bill, Tariff
from megatron_cpt.record.typed import from_plain, to_plain
from megatron_cpt.record.unknown import Interval, Unavailable, product

META = Tariff(
    name="Meta", usd_per_device_hour=2.0, price_source="DeepSeek-V3 report", watts_per_device=400.0, power_source="A100 TDP", pue=1.1,
    pue_source="LLaMA table 15", grid_g_co2e_per_kwh=385.0, grid_source="LLaMA table 15",
)  # fmt: skip


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


SITE = dataclasses.replace(
    META, usd_per_device_hour_low=1.0, usd_per_device_hour_high=4.0, watts_per_device_low=300.0, watts_per_device_high=500.0, pue_high=1.5,
    grid_g_co2e_per_kwh_low=100.0, market_g_co2e_per_kwh=0.0, market_source="a contract", usd_per_gb_month=0.02, keep_months=3.0,
    embodied_g_co2e_per_device_hour=10.0, embodied_source="a test",
)  # fmt: skip


def test_every_figure_of_a_bill_is_low_likely_and_high_by_hand() -> None:
    bill = bill_of(Interval(50.0, 100.0, 200.0), SITE, stored_gb=500.0, goodput=0.8, allowance=AllowanceConfig(0.1, 0.5, 1.0, "a test"))
    assert bill.usd == Interval(50.0, 200.0, 800.0)  # x 1, 2, 4
    assert bill.storage_usd == Interval(30.0, 30.0, 30.0)  # 500 GB x 0.02 x 3
    assert isinstance(bill.kwh, Interval)
    # 50 h x 300 W x 1.1, 100 x 400 x 1.1, 200 x 500 x 1.5, in kWh
    assert (bill.kwh.low, bill.kwh.likely, bill.kwh.high) == pytest.approx((16.5, 44.0, 150.0))
    assert isinstance(bill.kg_location, Interval)
    assert (bill.kg_location.low, bill.kg_location.likely, bill.kg_location.high) == pytest.approx((1.65, 16.94, 57.75))  # 100, 385, 385 g
    assert bill.kg_market == Interval(0.0, 0.0, 0.0)  # a contract's zero is a figure, and beside the grid's
    assert bill.kg_embodied == Interval(0.5, 1.0, 2.0)
    assert bill.lost_share == pytest.approx(0.25)  # 0.8 of elapsed time trains
    total = with_lost_and_allowance(bill.usd, bill)
    assert isinstance(total, Interval)
    assert (total.low, total.likely, total.high) == pytest.approx((50 * 1.25 * 1.1, 200 * 1.25 * 1.5, 800 * 1.25 * 2))
    assert from_plain(Bill, to_plain(bill), where="a test") == bill


def test_what_is_unknown_stays_unknown_and_takes_nothing_else_with_it() -> None:
    bill = bill_of(Interval(1.0, 1.0, 1.0), META, stored_gb=500.0, goodput=Unavailable("no MTBF"))
    assert isinstance(bill.usd, Interval)
    assert bill.kg_market == Unavailable("not stated in the plan")
    assert isinstance(bill.storage_usd, Unavailable)
    assert bill.allowance == Unavailable("set allowance.likely")
    assert with_lost_and_allowance(bill.usd, bill) == bill.usd
    assert product(bill.usd, bill.kg_market) == bill.kg_market


def test_stored_bytes_are_those_of_checkpoints_weights_and_token_files() -> None:
    bf16 = {"num_params": 10**9, "num_checkpoints": 2, "num_tokens": 10**9}
    assert stored_gb(layout=ONE_RANK, num_ids=50_000, **bf16) == 14 * 2 + 2 * 2 + 2
    assert stored_gb(layout=ONE_RANK, num_ids=128_000, **bf16) == 14 * 2 + 2 * 2 + 4
    assert stored_gb(layout=dataclasses.replace(ONE_RANK, dtype="fp32"), num_ids=50_000, **bf16) == 12 * 2 + 2 * 4 + 2


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("tariff.price_date", "", "price without its date"),
        ("tariff.price_date", "last week", "price without its date"),
        ("tariff.price_date", "2026-13", "price without its date"),
        ("tariff.price_source", " ", "tariff.price_source is empty"),
        ("tariff.pue", -1.2, "tariff.pue=-1.2 is below 1"),
        ("tariff.pue", 0.99, "tariff.pue=0.99 is below 1"),
        ("tariff.pue_low", 0.5, "tariff.pue_low=0.5 is below 1"),
        ("tariff.usd_per_device_hour_high", 1.0, "are not an interval"),
        ("tariff.grid_region", "atlantis", "tariff.grid_region='atlantis' is not in the table"),
        ("tariff.market_g_co2e_per_kwh", 10.0, "tariff.market_source is empty"),
        ("tariff.market_g_co2e_per_kwh", -1.0, "is not 0 or more"),
        ("tariff.usd_per_gb_month", 0.02, "tariff.storage_date='' is not the date"),
        ("tariff.embodied_g_co2e_per_device_hour", 5.0, "tariff.embodied_source is empty"),
        ("allowance.likely", 0.5, "allowance.source is empty"),
        ("allowance.low", 0.5, "are not an interval"),
        ("gpu.rest_of_node_watts", -1.0, "gpu.rest_of_node_watts=-1.0 is not 0 or more"),
        ("gpu.watts_share_likely", 0.5, "gpu.watts_share_low"),
        ("stop.max_tokens", 1000, "stop.max_tokens=1000 is below one step"),
        ("stop.max_tokens", -1, "stop.max_tokens=-1 is not above 0"),
    ],
)
def test_a_figure_that_cannot_be_or_cannot_be_checked_is_refused(key: str, value: object, words: str) -> None:
    config = experiment()
    group, name = key.split(".")
    setattr(getattr(config, group), name, value)
    with pytest.raises(ConfigError) as refused:
        derive(config, **facts())
    assert words in str(refused.value)


def test_the_check_of_prices_does_not_hide_that_the_run_does_not_fit() -> None:
    config = experiment()
    config.gpu.memory_gb, config.tariff.price_date, config.stop.max_usd, config.eval.texts = 10.0, "", 0.01, ["law", "news", "none"]
    with pytest.raises(ConfigError) as refused:
        derive(config, **facts())
    for words in ("eval.texts names 'none'", "tariff.price_date", "and has 10.00 GB", "stop.max_usd is 0.01"):
        assert words in str(refused.value)
