"""Carbon intensity of electricity by region, from the table that comes with the package: each row with its year and source."""

from __future__ import annotations

import csv
import difflib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from megatron_cpt.errors import printable
from megatron_cpt.record.unknown import Interval

_TABLE = Path(__file__).with_name("grid_intensity.csv")


@dataclass(frozen=True)
class GridRegion:
    """A country by its ISO 3166 code of three letters, or a cloud provider's region (`gcp:us-west1`); g CO2e per kWh, location-based."""

    region: str
    name: str
    country: str
    g_co2e_per_kwh: float
    year: str
    source: str

    @property
    def in_words(self) -> str:
        """Name, year and source."""
        return f"{self.name} {self.year}: {self.source}" if self.year else f"{self.name}, year not stated: {self.source}"


@lru_cache(maxsize=1)
def grid_regions() -> dict[str, GridRegion]:
    """Read the table, by region code."""
    with _TABLE.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {row["region"]: GridRegion(**{**row, "g_co2e_per_kwh": float(row["g_co2e_per_kwh"])}) for row in rows}  # type: ignore[arg-type]


def grid_region(code: str) -> GridRegion | None:
    """Return a region by its code in any case, None for one that the table does not hold."""
    known = {region.lower(): found for region, found in grid_regions().items()}
    return known.get(code.strip().lower())


def grid_interval(found: GridRegion) -> Interval:
    """Return a region's figure, and for a country the spread of the regions in it: one site is not its country's average."""
    if found.country != found.region:
        return Interval(found.g_co2e_per_kwh, found.g_co2e_per_kwh, found.g_co2e_per_kwh)
    inside = [each.g_co2e_per_kwh for each in grid_regions().values() if each.country == found.country]
    return Interval(min(inside), found.g_co2e_per_kwh, max(inside))


def region_problem(code: str) -> str | None:
    """Say that a region is not in the table, with the nearest ones by code and by name; None when it is."""
    if grid_region(code) is not None:
        return None
    regions = grid_regions()
    asked = code.strip().lower()
    near = [region for region, found in regions.items() if asked and (asked in found.name.lower() or region.lower().startswith(asked))]
    near += difflib.get_close_matches(asked, [region.lower() for region in regions], n=3, cutoff=0.5)
    names = [found for found in (grid_region(each) for each in dict.fromkeys(each.lower() for each in near)) if found is not None][:4]
    nearest = ", ".join(f"{found.region} ({found.name})" for found in names)
    return (
        f"tariff.grid_region={printable(code)!r} is not in the table of regions."
        + (f" Nearest: {nearest}." if nearest else "")
        + " Countries have ISO codes of three letters; or set tariff.grid_g_co2e_per_kwh and tariff.grid_source, and grid_region=null."
    )
