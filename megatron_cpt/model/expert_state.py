"""The optimizer's state in a checkpoint when the number of expert-parallel ranks has changed.

With one such rank megatron-core has one optimizer; with more, a second one for the experts, which fewer data-parallel ranks share.
Moments are named by their parameters and move by themselves. What remains are the settings of the parameter groups, which are the
same but for a mark that a group is of experts.
"""

from __future__ import annotations

from typing import Any

from megatron_cpt.errors import CheckpointError

_EXPERTS = "is_expert_parallel"


def state_for(optimizer: Any, loaded: dict[Any, Any], *, where: object) -> dict[Any, Any]:
    """Return a loaded state in the form of this run's optimizer: one part, or one for each of its chained ones.

    Raises:
        CheckpointError: the number of expert-parallel ranks has changed and the optimizer is replicated: its state lies by number.
    """
    num_parts = len(getattr(optimizer, "chained_optimizers", [optimizer]))
    common = {key: value for key, value in loaded.items() if not isinstance(key, int)}
    parts = {key: value for key, value in loaded.items() if isinstance(key, int)}
    if bool(common) and num_parts > 1:  # saved by one optimizer
        changed = {number: {**_marked(common, experts=number > 0), **parts.get(number, {})} for number in range(num_parts)}
    elif parts and num_parts == 1:  # saved by one for each kind of parameter
        changed = {**parts[0], **common}
    else:
        return loaded
    if any("param_state" not in part for part in (changed.values() if num_parts > 1 else [changed])):
        raise CheckpointError(
            "The replicated optimizer's state cannot follow another number of expert-parallel ranks.",
            where=where,
            next_step="Set parallel.expert to what it was, or train with parallel.distributed_optimizer=true from the start.",
        )
    return changed


def _marked(state: dict[Any, Any], *, experts: bool) -> dict[Any, Any]:
    if "optimizer" not in state:
        return state
    groups = [{**group, _EXPERTS: experts} for group in state["optimizer"]["param_groups"]]
    return {**state, "optimizer": {**state["optimizer"], "param_groups": groups}}
