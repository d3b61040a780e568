"""Packages: whether what is installed lies within the stated bounds, and what torch and megatron-core say in a process of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any

from packaging.requirements import Requirement

from megatron_cpt.doctor.finding import Finding
from megatron_cpt.doctor.host import PACKAGE

PROBE_SECONDS = 180  # a cold import of torch from a network disk takes a minute
TESTED_CORES = ("0.16.1", "0.19.2")
OPTIONAL = {
    "transformer_engine": ("pip install 'megatron-cpt[gpu]' --no-build-isolation", "FP8 and megatron's fused layers need it"),
    "apex": ("pip install --no-build-isolation git+https://github.com/NVIDIA/apex", "its fused Adam is one of three that will do"),
    "flash_attn": ("pip install flash-attn --no-build-isolation", "Transformer Engine's own attention, or torch's, will do"),
}


def package_findings(probe: Mapping[str, Any] | str, *, needs_cuda: bool) -> Iterator[Finding]:
    """Judge the installed packages and the answer of `ask_probe`."""
    yield bounds_finding()
    if isinstance(probe, str):
        yield Finding("torch", "bad", probe, "nothing can be trained without torch and megatron-core", "make setup, or pip install torch")
        return
    yield torch_finding(probe, needs_cuda=needs_cuda)
    yield nccl_finding(probe, needs_cuda=needs_cuda)
    yield core_finding(probe)
    yield from optional_findings(probe, needs_cuda=needs_cuda)


def bounds_finding() -> Finding:
    """Compare each required package with the bounds that this package states."""
    try:
        stated = requires(PACKAGE) or []
    except PackageNotFoundError:
        return Finding(
            "packages", "warning", f"{PACKAGE} is not installed, so its bounds are not known", "it may be run from a checkout alone",
            "pip install --editable .",
        )  # fmt: skip
    wrong, count = [], 0
    for requirement in map(Requirement, stated):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        count += 1
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            wrong.append((requirement, "missing"))
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            wrong.append((requirement, found))
    if not wrong:
        return Finding("packages", "good", f"all {count} required packages lie within their bounds")
    named = "; ".join(f"{requirement.name} {found}, wanted {requirement.specifier}" for requirement, found in wrong)
    state = "bad" if any(found == "missing" for _, found in wrong) else "warning"
    mend = "pip install " + " ".join(f"'{requirement.name}{requirement.specifier}'" for requirement, _ in wrong)
    return Finding("packages", state, named, "outside of the bounds nothing was tested", mend)  # type: ignore[arg-type]


def ask_probe(backend: str | None) -> dict[str, Any] | str:
    """Load torch and megatron-core in a child and return what they say, or why they do not; a crash of theirs ends the child alone.

    Args:
        backend: the backend of the planned run; None prepares the one that torch can use.
    """
    command = [sys.executable, "-m", "megatron_cpt.doctor.probe", backend or "any"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"torch did not load within {PROBE_SECONDS} s"
    last = answer.stdout.strip().rpartition("\n")[2]
    if answer.returncode == 0 and last.startswith("{"):
        return dict(json.loads(last))
    complaint = answer.stderr.strip().rpartition("\n")[2] or f"its process ended with {answer.returncode}"
    return f"does not load: {complaint[:300]}"


def torch_finding(probe: Mapping[str, Any], *, needs_cuda: bool) -> Finding:
    """Judge torch's build by the backend of the run."""
    torch = probe["torch"]
    build = f"CUDA {torch['cuda_build']}, cuDNN {torch['cudnn']}" if torch["cuda_build"] else "a build without CUDA"
    found = f"{torch['version']}, {build}; {torch['threads']} threads, CPU kernels {torch['cpu_capability']}"
    if needs_cuda and not torch["cuda_build"]:
        return Finding(
            "torch", "bad", found, "cluster.backend=cuda needs a CUDA build", "pip install --force-reinstall torch",
        )  # fmt: skip
    if needs_cuda and not torch["cuda_usable"]:
        return Finding(
            "torch", "bad", f"{found}; {torch['cuda_problem'] or 'no CUDA device is usable'}",
            "the driver is missing or too old for this build, or no device is visible", "nvidia-smi; echo $CUDA_VISIBLE_DEVICES",
        )  # fmt: skip
    return Finding("torch", "good", found)


def nccl_finding(probe: Mapping[str, Any], *, needs_cuda: bool) -> Finding:
    """Say which NCCL torch was built with: it carries every exchange between GPUs."""
    found = probe["torch"]["nccl"]
    if found:
        return Finding("NCCL", "good", f"{found}, as torch was built with; `export NCCL_DEBUG=INFO` shows what it does")
    if not needs_cuda:
        return Finding("NCCL", "note", "not in this torch; ranks on CPUs exchange data by gloo")
    return Finding("NCCL", "bad", "not in this torch", "ranks on GPUs cannot exchange data", "pip install --force-reinstall torch")


def core_finding(probe: Mapping[str, Any]) -> Finding:
    """Judge megatron-core: whether it loads, and whether its version is one that the tests run on."""
    core = probe["megatron_core"]
    if core["problem"]:
        return Finding(
            "megatron-core",
            "bad",
            f"{core['version']}: {core['problem']}",
            "the model cannot be built",
            "pip install 'megatron-core==0.16.1'",
        )
    if core["version"] in TESTED_CORES:
        return Finding("megatron-core", "good", f"{core['version']}, tested; its layers load on the {core['backend']} backend")
    return Finding(
        "megatron-core", "warning", f"{core['version']} loads on the {core['backend']} backend",
        f"the tests run on {' and '.join(TESTED_CORES)} alone", f"pip install 'megatron-core=={TESTED_CORES[-1]}' (0.16.1 for Python 3.11)",
    )  # fmt: skip


def optional_findings(probe: Mapping[str, Any], *, needs_cuda: bool) -> Iterator[Finding]:
    """Say of each optional CUDA package what is in use, or what is used instead."""
    for name, in_use in probe["optional"].items():
        shown = name.replace("transformer_engine", "Transformer Engine").replace("flash_attn", "flash attention")
        present = probe["found"][name] is not None
        mend, means = OPTIONAL[name]
        if present or not needs_cuda:
            state = "good" if present else "note"
            yield Finding(shown, state, in_use if needs_cuda or present else "not installed; a run on CPUs does not use it")  # type: ignore[arg-type]
        else:
            yield Finding(shown, "warning" if name == "transformer_engine" else "note", in_use, means, mend)
