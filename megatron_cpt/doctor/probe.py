"""Loads torch and megatron-core and prints one JSON line on them; a process of its own, because a broken build can end it."""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import version
from typing import Any


def torch_facts() -> dict[str, Any]:
    import torch  # noqa: PLC0415

    facts: dict[str, Any] = {
        "version": torch.__version__,
        "cuda_build": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "nccl": None,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cuda_usable": False,
        "cuda_problem": None,
        "devices": [],
    }
    if torch.version.cuda:
        facts["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
        try:
            facts["cuda_usable"] = torch.cuda.is_available()
            for number in range(torch.cuda.device_count()):
                properties = torch.cuda.get_device_properties(number)
                peers = [other for other in range(torch.cuda.device_count()) if other != number]
                facts["devices"].append(
                    {
                        "name": properties.name,
                        "memory_bytes": properties.total_memory,
                        "capability": f"{properties.major}.{properties.minor}",
                        "peers": sum(torch.cuda.can_device_access_peer(number, other) for other in peers),
                    }
                )
        except RuntimeError as error:  # a driver too old for this build
            facts["cuda_problem"] = str(error).splitlines()[0]
    return facts


def core_facts(backend: str) -> dict[str, Any]:
    """Prepare the backend, which loads megatron's layers; say why it cannot be."""
    from megatron_cpt.backend import choose  # noqa: PLC0415

    facts: dict[str, Any] = {"version": version("megatron-core"), "backend": backend, "problem": None}
    try:
        choose(backend)  # type: ignore[arg-type]
        from megatron_cpt.backend import layers  # noqa: F401, PLC0415
    except Exception as error:  # whatever a foreign package raises while it is loaded is the answer
        facts["problem"] = str(error).splitlines()[0] if str(error) else type(error).__name__
    return facts


def main(asked: str) -> None:
    torch = torch_facts()
    backend = ("cuda" if torch["cuda_usable"] else "cpu") if asked == "any" else asked
    core = {"version": version("megatron-core"), "backend": backend, "problem": None}
    if backend == "cpu" or torch["cuda_usable"]:  # without a device the finding on torch says it
        core = core_facts(backend)
    from megatron_cpt.backend.cuda import in_use, installed_versions  # noqa: PLC0415

    found = installed_versions()
    print(json.dumps({"torch": torch, "megatron_core": core, "found": found, "optional": in_use(found)}))


if __name__ == "__main__":
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    main(sys.argv[1])
