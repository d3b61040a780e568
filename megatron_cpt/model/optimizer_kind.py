"""Lets a run change between the distributed and the replicated optimizer when it resumes.

Saved `fully_reshardable`, both kinds keep Adam's moments under the same names and in the shapes of the weights. They differ in the main
weights (the distributed optimizer always saves its own; the replicated one has some beside bf16 weights only, under another name)
and in where the parameter groups lie. So the moments are read as they are, and this module mends the rest.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values

from megatron_cpt.errors import CheckpointError

logger = logging.getLogger(__name__)

OPTIMIZER_PREFIX = "optimizer."
_DISTRIBUTED_MAIN, _REPLICATED_MAIN = "optimizer.state.param.", "optimizer.state.fp32_param."


class ChangeOfKind:
    """What has to be mended in the state of an optimizer whose checkpoint is another kind's."""

    def __init__(self, wanted: dict[str, Any], optimizer: Any, *, needs_main_weights: bool) -> None:
        self._sharding_type = wanted.get("param_state_sharding_type")  # the distributed optimizer's alone
        self._optimizer, self._needs_main_weights = optimizer, needs_main_weights

    def expects_left_over(self, key: str) -> bool:
        """Say whether a key of the checkpoint is rightly read by nobody: fp32 main weights, which equal the weights themselves."""
        return key.startswith(_DISTRIBUTED_MAIN)

    def mend(self, loaded: dict[str, Any], *, where: object) -> None:
        """Give a loaded state the form of its new optimizer. The model's weights must be loaded before the optimizer takes it.

        Raises:
            CheckpointError: the parameter groups of the checkpoint cannot be those of this rank.
        """
        if self._sharding_type is None:
            self._mend_replicated(loaded, where=where)
        else:
            self._mend_distributed(loaded, where=where)

    def _mend_replicated(self, loaded: dict[str, Any], *, where: object) -> None:
        for key in [key for key in loaded if key.startswith("param_state")]:
            del loaded[key]
        mine = loaded.get("param_groups")
        if mine is None:  # bf16: both kinds keep their groups in the same place
            _require_step_count(loaded["optimizer"]["param_groups"], where=where)
            return
        groups = loaded.pop("optimizer")["param_groups"]
        _require_step_count(groups, where=where)
        if len(mine) > len(groups):
            raise refusal(where, f"{len(mine)} parameter groups here, {len(groups)} in the checkpoint")
        # megatron pairs groups by their settings and keeps the order of the parameters: each list belongs to its place, not to its group
        params = [group["params"] for group in mine] + [[]] * (len(groups) - len(mine))
        loaded["param_groups"] = [{**group, "params": own} for group, own in zip(groups, params, strict=True)]

    def _mend_distributed(self, loaded: dict[str, Any], *, where: object) -> None:
        groups = loaded.get("param_groups") or loaded["optimizer"]["param_groups"]
        _require_step_count(groups, where=where)
        plain = [{key: value for key, value in group.items() if key != "params"} for group in groups]
        loaded["optimizer"] = {"param_groups": plain}
        loaded["param_state_sharding_type"] = self._sharding_type
        if self._needs_main_weights:
            # in the order in which megatron numbers the state: by buffer, and in each by its index of parameters
            parameters = chain.from_iterable(buffer.param_index_map for buffer in self._optimizer.buffers)
            for number, parameter in enumerate(parameters):
                loaded["param_state"][number]["param"] = parameter.detach()


def change_of_kind(
    wanted: dict[str, Any] | None,
    saved: Mapping[str, Any],
    optimizer: Any,
    *,
    is_fully_sharded: bool,
    num_saved_optimizers: Callable[[], int],
    where: object,
) -> ChangeOfKind | None:
    """Have the wanted sharded state ask for the tensors that another kind of optimizer saved; None when it is the same kind.

    Args:
        wanted: the optimizer's sharded state for loading, changed in place.
        saved: the checkpoint's tensors by key.
        is_fully_sharded: the optimizer is Megatron-FSDP's, which reads the distributed kind's checkpoints and no other's.
        num_saved_optimizers: how many optimizers the checkpoint was written by; with expert-parallel ranks there is a second one.

    Raises:
        CheckpointError: this change cannot be made.
    """
    parts = [part for part in nested_values(wanted or {}) if isinstance(getattr(part, "key", None), str)]
    if not parts or not any(key.startswith(OPTIMIZER_PREFIX) for key in saved):
        return None
    here, there = (_main_weights(keys) for keys in ([part.key for part in parts], saved))
    if here == there:
        return None
    assert wanted is not None
    if is_fully_sharded:
        raise refusal(where, "weights in shards (parallel.fsdp) and a replicated optimizer's checkpoint")
    inner = getattr(optimizer, "chained_optimizers", [optimizer])
    if num_saved_optimizers() != len(inner):
        raise CheckpointError(
            "The kind of optimizer (distributed or replicated) and the number of expert-parallel ranks cannot change in one resume.",
            where=where,
            value=f"written by {num_saved_optimizers()} optimizers, and this run has {len(inner)}: a second one is for the experts",
            rule="the experts' state follows a distributed optimizer only, and a change of kind one optimizer only",
            next_step="Set parallel.distributed_optimizer to what it was, and parallel.expert too unless the optimizer is distributed.",
        )
    if len(inner) != 1:
        raise refusal(where, f"{len(inner)} optimizers in a chain")
    if isinstance(inner[0].optimizer, torch.optim.Adam):  # it counts steps by parameter, and the kinds save that in different places
        raise refusal(where, "torch's Adam, which counts the steps of every parameter")
    is_distributed = "param_state" in wanted
    needs_main_weights = False
    if here is not None and there is not None:
        for part in parts:
            part.key = part.key.replace(here, there, 1) if part.key.startswith(here) else part.key
    elif here is not None and is_distributed:
        needs_main_weights = True
        for tensors in wanted["param_state"].values():
            del tensors["param"]
    elif here is not None:
        raise refusal(where, "bf16 weights with fp32 ones beside them, and the checkpoint has none")
    logger.info(
        "The checkpoint was written with a %s optimizer; its moments are taken over.", "replicated" if is_distributed else "distributed"
    )
    return ChangeOfKind(wanted, inner[0], needs_main_weights=needs_main_weights)


def refusal(where: object, value: str) -> CheckpointError:
    return CheckpointError(
        "The checkpoint was written with another kind of optimizer (distributed or replicated), which cannot be taken over here.",
        where=where,
        value=value,
        rule="one optimizer of Transformer Engine's, apex's or this project's Adam",
        next_step="Set parallel.distributed_optimizer to what it was; tensor, pipeline and data parallelism may change.",
    )


def _main_weights(keys: Any) -> str | None:
    prefixes = [prefix for prefix in (_DISTRIBUTED_MAIN, _REPLICATED_MAIN) if any(key.startswith(prefix) for key in keys)]
    return prefixes[0] if prefixes else None


def _require_step_count(groups: list[dict[str, Any]], *, where: object) -> None:
    if not all("step" in group for group in groups):
        raise refusal(where, "parameter groups without a count of steps")
