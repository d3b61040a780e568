"""Energy, carbon, node power, days and money of published runs, and what ZeRO keeps on a GPU."""

from __future__ import annotations

from typing import Any

from estimate_checks import Check, Group, Mean, published
from megatron_cpt.config.files import read_option
from megatron_cpt.config.schema import GpuConfig
from megatron_cpt.plan.money import run_carbon_kg, run_cost_usd, run_energy_kwh
from megatron_cpt.plan.power import node_power
from megatron_cpt.plan.run_plan import Layout, Tariff
from megatron_cpt.plan.throughput import training_seconds
from megatron_cpt.plan.zero import deepspeed_gpu_bytes, documented_zero2_gpu_bytes, zero_states_bytes
from megatron_cpt.record.unknown import Figure, Interval, Unavailable

_UNIT_BYTES = {"GB": 1e9, "GiB": 2.0**30}


def tariff(*, usd: float = 0.0, watts: float = 0.0, pue: float = 1.0, grams: float = 0.0) -> Tariff:
    """Return a tariff of the published rates."""
    return Tariff("published", usd, "", watts, "", pue, "", grams, "")


def known(figure: Figure) -> float:
    """Return a figure that nothing made unavailable."""
    assert not isinstance(figure, Unavailable), figure
    return figure


def carbon_checks() -> list[Check]:
    """Return energy and carbon of every published run from its device hours, watts, PUE and grid factor."""
    checks = []
    for row in published("carbon.csv"):
        rates = tariff(watts=float(row["watts"]), pue=float(row["pue"]), grams=float(row["g_per_kwh"]))
        kwh = run_energy_kwh(float(row["device_hours"]), rates)
        same: dict[str, Any] = {"what": row["what"], "excluded": row["excluded"], "source": row["source"]}
        if row["mwh"]:
            energy = known(kwh) / 1000
            checks.append(
                Check(
                    id=f"{row['id']}, energy",
                    published=float(row["mwh"]),
                    ours=energy,
                    unit="MWh",
                    tolerance=_number(row["tolerance_mwh"]),
                    **same,
                )
            )
        carbon = known(run_carbon_kg(kwh, rates)) / 1000
        tolerance = _number(row["tolerance_tonnes"])
        checks.append(
            Check(
                id=f"{row['id']}, carbon",
                published=float(row["tonnes"]),
                ours=carbon,
                unit="t",
                tolerance=tolerance,
                other=row["other"],
                **same,
            )
        )
    return checks


def power_checks() -> list[Check]:
    """Return the node model of the shipped devices against what nodes were seen to draw."""
    checks = []
    for row in published("node_power.csv"):
        watts = node_power(read_option(GpuConfig, "gpu", row["gpu"]), num_nodes=1).watts
        assert isinstance(watts, Interval), watts
        checks.append(
            Check(
                id=row["id"],
                what=f"{row['quantity']} figure of conf/gpu/{row['gpu']}.yaml x {row['num_gpus']}",
                published=float(row["kw"]),
                ours=getattr(watts, row["quantity"]) * int(row["num_gpus"]) / 1000,
                unit="kW",
                tolerance=_number(row["tolerance"]),
                excluded=row["excluded"],
                source=row["source"],
            )
        )
    return checks


def days_checks() -> list[Check]:
    """Return the days of published runs from their FLOPs and what their chips reached."""
    checks = []
    for row in published("run_days.csv"):
        share = float(row["actual_tflops"]) / float(row["peak_tflops"])
        layout = Layout(1, 1, int(row["chips"]), 1, int(row["chips"]), 1, False, False, "bf16", 1, 1)  # only its ranks count
        seconds = training_seconds(
            total_flops=float(row["flops"]),
            layout=layout,
            dense_tflops=float(row["peak_tflops"]),
            utilization=Interval(share, share, share),
        )
        assert isinstance(seconds, Interval), seconds
        checks.append(
            Check(
                id=f"{row['id']}, days",
                what=f"{row['flops']} FLOP on {row['chips']} chips at {row['actual_tflops']} TFLOP/s",
                published=float(row["days"]),
                ours=seconds.likely / 86400,
                unit="d",
                tolerance=0.01,
                other=row["other"],
                source=row["source"],
            )
        )
    return checks


def money_checks() -> list[Check]:
    """Return published bills from hours and prices."""
    return [
        Check(
            id=row["id"],
            what=row["what"],
            published=float(row["usd"]),
            ours=known(run_cost_usd(float(row["device_hours"]), tariff(usd=float(row["usd_per_device_hour"])))),
            unit="USD",
            tolerance=1e-9,
            source=row["source"],
        )
        for row in published("money.csv")
    ]


def zero_checks() -> list[Check]:
    """Return what one GPU keeps under ZeRO, by the paper's formula and by DeepSpeed's estimators."""
    checks = []
    for row in published("zero.csv"):
        params, gpus, stage = float(row["params"]), int(row["gpus"]), int(row["stage"])
        if row["how"] == "paper":
            size = zero_states_bytes(params, num_gpus=gpus, stage=stage)
        elif row["how"] == "documented":
            size = documented_zero2_gpu_bytes(params, num_gpus=gpus)
        else:
            largest = float(row["largest_module"])
            size = deepspeed_gpu_bytes(params, largest_module=largest, num_gpus=gpus, stage=stage, offload=row["offload"])
        checks.append(
            Check(
                id=row["id"],
                what=f"{params:.4g} parameters, {gpus} GPUs" + ("" if row["offload"] == "none" else f", {row['offload']} offloaded"),
                published=float(row["figure"]),
                ours=size / _UNIT_BYTES[row["unit"]],
                unit=row["unit"],
                tolerance=float(row["tolerance"]),
                absolute=True,
                source=row["source"],
            )
        )
    return checks


def group() -> Group:
    """Return the section."""
    carbon, days = carbon_checks(), days_checks()
    return Group(
        title="Energy, carbon, power and money",
        order=30,
        intro=(
            "Device hours x watts x PUE x grid, as the source states them. Meta's cards print no PUE and no grid factor from Llama 3 on:\n"
            "there one factor per release stands for both, the mean of its rows, so those rows show that a release is consistent and no\n"
            "more. The planner's own watts come from the parts of a node and not from a rating."
        ),
        checks=(*carbon, *days, *power_checks(), *money_checks(), *zero_checks()),
        means=(Mean("Energy and carbon", tuple(carbon), 0.01), Mean("Days", tuple(days), 0.01)),
    )


def _number(text: str) -> float | None:
    return float(text) if text else None
