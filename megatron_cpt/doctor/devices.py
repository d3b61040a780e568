"""GPUs, the links between them and to other nodes, and the meters of energy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from megatron_cpt.config.schema import ExperimentConfig
from megatron_cpt.doctor.finding import Finding, State
from megatron_cpt.meter.energy import open_meter
from megatron_cpt.record.unknown import Unavailable

MEMORY_SHARE = 0.9  # of the card's rated memory: drivers and ECC keep a few percent from every program


def device_findings(probe: Mapping[str, Any] | str, config: ExperimentConfig | None) -> Iterator[Finding]:
    """Look at devices, links and meters; `config` is the planned run, None where none is planned."""
    devices = [] if isinstance(probe, str) else probe["torch"]["devices"]
    needs_cuda = config is not None and config.cluster.backend == "cuda"
    yield gpu_finding(devices, config if needs_cuda else None)
    if devices:
        yield peer_finding(devices)
    yield fabric_finding(fabric_ports(), num_nodes=config.cluster.num_nodes if config is not None else 1)
    yield meter_finding("cuda" if devices else "cpu")


def gpu_finding(devices: list[dict[str, Any]], config: ExperimentConfig | None) -> Finding:
    """Compare the devices that torch sees with those that the run's cluster and gpu groups state; `config` None: none are needed."""
    if not devices and config is None:
        return Finding("GPUs", "note", "none; runs on CPUs need none")
    names = sorted({device["name"] for device in devices})
    found = f"{len(devices)} x {', '.join(names)}, " if devices else "none"
    least = min((device["memory_bytes"] for device in devices), default=0)
    if devices:
        found += f"{least / 1e9:.0f} GB, compute capability {devices[0]['capability']}"
    state: State = "good"
    means, mend = "", ""
    if config is not None:
        wanted, stated = config.cluster.ranks_per_node, config.gpu.memory_gb
        if not devices:
            state, means, mend = "bad", f"gpu={config.gpu.name!r} was asked for", "cluster=laptop gpu=cpu_host, or a node with GPUs"
        elif len(devices) < wanted:
            state, means, mend = "bad", f"cluster.ranks_per_node={wanted} needs as many", f"cluster.ranks_per_node={len(devices)}"
        elif stated is not None and least < MEMORY_SHARE * stated * 1e9:
            state, means = "bad", f"the gpu group states {stated:g} GB, so the plan counts on more than there is"
            mend = "gpu= the group of this card (conf/gpu/)"
        elif len(names) > 1:
            state, means, mend = "warning", "every step waits for the slowest of unlike devices", "export CUDA_VISIBLE_DEVICES=..."
    return Finding("GPUs", state, found, means, mend)


def peer_finding(devices: list[dict[str, Any]]) -> Finding:
    """Say whether the devices of this node read each other's memory."""
    others = len(devices) - 1
    if others == 0:
        return Finding("links", "note", "one device: no link inside this node")
    if all(device["peers"] == others for device in devices):
        return Finding("links", "good", f"each device reaches the {others} others directly")
    apart = sum(device["peers"] < others for device in devices)
    return Finding(
        "links", "warning", f"{apart} of {len(devices)} devices do not reach all others directly",
        "their traffic goes through host memory; tensor parallelism is slow there", "nvidia-smi topo -m; parallel.tensor=1",
    )  # fmt: skip


def fabric_ports(root: Path = Path("/sys/class/infiniband")) -> list[tuple[str, str, str]]:
    """Return device, state and rate of each port of InfiniBand or RoCE, as the kernel tells them."""
    ports = []
    for port in sorted(root.glob("*/ports/*")):
        try:
            state, rate = ((port / name).read_text(encoding="ascii").strip() for name in ("state", "rate"))
        except OSError:
            continue
        ports.append((port.parent.parent.name, state, rate))
    return ports


def fabric_finding(ports: list[tuple[str, str, str]], *, num_nodes: int) -> Finding:
    """Judge the ports to other nodes by how many nodes the run has."""
    up = [f"{device} {rate}" for device, state, rate in ports if "ACTIVE" in state]
    down = [device for device, state, _ in ports if "ACTIVE" not in state]
    if not ports:
        if num_nodes == 1:
            return Finding("fabric", "note", "no InfiniBand or RoCE port; one node needs none")
        return Finding(
            "fabric", "warning", "no InfiniBand or RoCE port", f"{num_nodes} nodes exchange gradients by TCP",
            "export NCCL_SOCKET_IFNAME=<interface> in cluster.env_file",
        )  # fmt: skip
    found = f"{len(up)} of {len(ports)} ports are up: {', '.join(up) or 'none'}"
    if down:
        return Finding(
            "fabric", "warning", found, f"{', '.join(down)} carries nothing", f"export NCCL_IB_HCA=^{','.join(down)}, or mend it"
        )
    return Finding("fabric", "good", found)


def meter_finding(backend: str) -> Finding:
    """Read the meters once and say what a bill will hold."""
    meter = open_meter(backend)
    reading = meter.read()
    if isinstance(reading, Unavailable):
        return Finding(
            "energy meter", "note", f"none: {reading.reason}", "the bill shows an estimate, and says so",
            "sudo chmod a+r /sys/class/powercap/intel-rapl*/energy_uj" if "ermission" in reading.reason else "",
        )  # fmt: skip
    return Finding("energy meter", "good", getattr(meter, "scope", "read"))
