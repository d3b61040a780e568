"""The one place where CPU and CUDA differ. `choose` is called before anything else imports `megatron.core`."""

from __future__ import annotations

from typing import Literal

from megatron_cpt.backend.base import Backend
from megatron_cpt.errors import ConfigError

__all__ = ["Backend", "choose"]

_chosen: list[Backend] = []


def choose(kind: Literal["cpu", "cuda"]) -> Backend:
    """Prepare this process for one kind of device and return what differs on it; a second call returns the same object.

    On `cpu` megatron's fixed calls to CUDA are redirected in this process; nothing is changed before this call.

    Raises:
        ConfigError: the kind is not known, another kind was chosen in this process, or no CUDA device is usable.
    """
    if _chosen:
        if _chosen[0].kind != kind:
            raise ConfigError(
                f"The backend {kind!r} was asked for after {_chosen[0].kind!r}.",
                where="cluster.backend",
                rule="a process uses one backend",
                next_step="Start a new process.",
            )
        return _chosen[0]
    backend: Backend
    if kind == "cpu":
        from megatron_cpt.backend.cpu import CpuBackend  # noqa: PLC0415  # torch and megatron load only for the kind that is chosen

        backend = CpuBackend()
    elif kind == "cuda":
        from megatron_cpt.backend.cuda import CudaBackend  # noqa: PLC0415

        backend = CudaBackend()
    else:
        raise ConfigError("The backend is not known.", where="cluster.backend", value=kind, rule="cpu or cuda")
    _chosen.append(backend)
    return backend
