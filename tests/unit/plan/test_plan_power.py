"""What a device draws, and the grid that its energy comes from: from parts, from a table, and never from nothing."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

import megatron_cpt
from megatron_cpt.config.schema import GpuConfig, TariffConfig
from megatron_cpt.plan.grid import grid_interval, grid_region, grid_regions, region_problem
from megatron_cpt.plan.money import grid_range, tariff_of
from megatron_cpt.plan.power import node_power
from megatron_cpt.record.unknown import Interval, Unavailable

PARTS = {"device_watts": 700.0, "watts_share_low": 0.5, "watts_share_likely": 0.8, "watts_share_high": 1.0, "rest_of_node_watts": 300.0}


def gpu(**changes: float | None) -> GpuConfig:
    return GpuConfig(name="x", source="a test", **{**PARTS, **changes})  # type: ignore[arg-type]


def test_a_node_is_the_sum_of_its_parts() -> None:
    power = node_power(gpu(), num_nodes=1)
    assert power.watts == Interval(650.0, 860.0, 1000.0)  # 700 x (0.5, 0.8, 1) + 300
    assert power.parts == "700 W rated x 0.8 (0.5 to 1) in training + 300 W for the rest of the node"


def test_switches_count_for_several_nodes_only_and_where_unknown_it_is_said() -> None:
    assert node_power(gpu(network_watts=40.0), num_nodes=1).watts == Interval(650.0, 860.0, 1000.0)
    assert node_power(gpu(network_watts=40.0), num_nodes=2).watts == Interval(690.0, 900.0, 1040.0)
    assert "network switches are not counted" in node_power(gpu(), num_nodes=2).parts


def test_a_measured_node_goes_before_its_parts_with_the_published_spread() -> None:
    found = node_power(gpu(node_watts_per_device=1000.0), num_nodes=1).watts
    assert isinstance(found, Interval)
    assert (found.low, found.likely, found.high) == pytest.approx((886, 1000, 1114))  # 11.4 % each way


@pytest.mark.parametrize("part", list(PARTS))
def test_a_missing_part_is_no_power_and_never_the_rating_alone(part: str) -> None:
    found = node_power(gpu(**{part: None}), num_nodes=1).watts
    assert isinstance(found, Unavailable)
    assert "gpu.node_watts_per_device" in found.reason


def test_every_region_has_a_source_and_every_country_its_year() -> None:
    regions = grid_regions()
    with (Path(megatron_cpt.__file__).parent / "plan" / "grid_intensity.csv").open(encoding="utf-8") as file:
        assert len(regions) == sum(1 for _ in csv.DictReader(file))  # no code twice
    assert {"USA", "FRA", "DEU", "WORLD", "gcp:us-west1"} <= set(regions)
    for found in regions.values():
        assert found.source
        assert 0 < found.g_co2e_per_kwh < 1100  # above it is no fuel's
        assert found.year or found.region.startswith("gcp:")


def test_a_country_spreads_over_its_regions_and_a_region_is_itself() -> None:
    usa, west = grid_region("usa"), grid_region("GCP:us-west1")
    assert usa is not None
    assert west is not None
    assert grid_interval(usa) == Interval(94.0, 369.473, 588.0)  # us-west1, the country, us-west3
    assert grid_interval(west) == Interval(94.0, 94.0, 94.0)


@pytest.mark.parametrize(
    ("code", "near"),
    [("us", "USA (United States)"), ("Germany", "DEU (Germany)"), ("FRANCE", "FRA (France)"), ("gcp:us-wst1", "gcp:us-west1")],
)
def test_an_unknown_region_is_refused_with_near_ones(code: str, near: str) -> None:
    said = region_problem(code)
    assert said is not None
    assert near in said


def test_a_figure_of_ones_own_goes_before_the_table() -> None:
    own = TariffConfig(name="t", grid_region="USA", grid_g_co2e_per_kwh=20.0, grid_source="our hydro plant, 2026")
    tariff = tariff_of(own, gpu())
    assert grid_range(tariff) == Interval(20.0, 20.0, 20.0)
    assert tariff.grid_source == "our hydro plant, 2026"
    table = tariff_of(TariffConfig(name="t", grid_region="USA"), gpu())
    assert table.grid_source.startswith("United States 2023: Our World in Data")
