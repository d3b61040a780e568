"""Wraps the model for data parallelism and builds megatron-core's optimizer; sets and checks the learning rate."""

from __future__ import annotations

import math
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.distributed.fsdp.mcore_fsdp_adapter import FullyShardedDataParallel
from megatron.core.optimizer import OptimizerConfig, ParamKey, get_megatron_optimizer, get_standard_config_overrides
from megatron.core.transformer.module import Float16Module

from megatron_cpt.backend.kernels import accumulate_in_place
from megatron_cpt.model.fsdp import Called, params_by_layer
from megatron_cpt.plan.run_plan import Layout, RunPlan


def wrap_and_optimize(chunks: list[Any], plan: RunPlan) -> tuple[list[Any], Any]:
    """Return the chunks ready for `forward_backward` and the optimizer over them.

    Gradients are summed over the data-parallel ranks and divided by the global batch's token count, because the
    model's config has `calculate_per_token_loss`.
    """
    bf16 = plan.layout.dtype == "bf16"
    ddp = ddp_config(plan.layout)
    config = chunks[0].config
    assert config.calculate_per_token_loss, "set when the model is built, or DDP scales gradients a second time"
    if bf16:
        chunks = [Float16Module(config, chunk) for chunk in chunks]
    if plan.layout.fsdp:
        # the layer at work and the next one; megatron's own number is half a billion weights, gathered ahead of their use
        ddp.suggested_communication_unit_size = 2 * max(params_by_layer(chunk) for chunk in chunks)
        called = chunks if bf16 else [Called(chunk) for chunk in chunks]
        wrapped = [FullyShardedDataParallel(config, ddp, chunk, device=next(chunk.parameters()).device) for chunk in called]
    else:
        # Only the first chunk's gradients come so late that smaller buckets help; megatron's own loop bundles the others' likewise.
        wrapped = [DistributedDataParallel(config, ddp, chunk, disable_bucketing=number > 0) for number, chunk in enumerate(chunks)]
        if plan.backend == "cpu":
            accumulate_in_place(wrapped)
    set_overlap(config, wrapped, plan.layout)
    wanted = optimizer_config(plan)
    optimizer = get_megatron_optimizer(wanted, wrapped, config_overrides=group_overrides(wanted, plan))
    config.finalize_model_grads_func = finalize_model_grads
    config.grad_scale_func = optimizer.scale_loss if bf16 else None
    return wrapped, optimizer


def ddp_config(layout: Layout) -> DistributedDataParallelConfig:
    """Return megatron's configuration of data parallelism; ranks that share a sequence sum their gradients as those that do not."""
    if layout.fsdp:
        return DistributedDataParallelConfig(
            grad_reduce_in_fp32=True,
            use_distributed_optimizer=True,
            use_megatron_fsdp=True,
            data_parallel_sharding_strategy="optim_grads_params",
            overlap_grad_reduce=True,  # a layer's gradients leave when they are there, and its weights come when they are wanted:
            overlap_param_gather=True,  # with weights in shards there is no other way
            check_for_nan_in_grad=False,
        )
    return DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        use_distributed_optimizer=layout.distributed_optimizer,
        overlap_grad_reduce=layout.overlap_grad_reduce,
        overlap_param_gather=layout.overlap_param_gather,
        align_param_gather=_aligns_gathers(layout),
        bucket_size=layout.bucket_size,
        check_for_nan_in_grad=False,  # it would stop one rank alone; step.py looks at figures that all ranks share
    )


def set_overlap(config: Any, wrapped: list[Any], layout: Layout) -> None:
    """Give the schedules what they call so that gradients are sent in a step's last micro-batch only, and weights ahead of their use.

    With weights in shards megatron's own hooks do both, for every micro-batch.
    """
    if layout.fsdp:
        return
    if layout.overlap_grad_reduce:
        config.no_sync_func = _each_or_one([chunk.no_sync for chunk in wrapped])
        config.grad_sync_func = _each_or_one([chunk.start_grad_sync for chunk in wrapped])
    if _aligns_gathers(layout):
        config.param_sync_func = [chunk.start_param_sync for chunk in wrapped]


def _aligns_gathers(layout: Layout) -> bool:
    # of the schedules only the interleaved one starts the gathers; otherwise a module's own gather starts when the one before is used
    return layout.overlap_param_gather and layout.virtual_pipeline > 1


def _each_or_one(functions: list[Any]) -> Any:
    return functions[0] if len(functions) == 1 else functions


def gather_weights(chunks: list[Any]) -> None:
    """Bring the weights that other ranks updated to this one, before anything but the next step reads them. Collective.

    Weights in shards are gathered by every forward pass, for its time only, so that nothing is brought before.
    With `overlap_param_gather` they come in the next forward pass; one that only some ranks make, in an evaluation, would wait for
    the others for ever. Without it they are here already.
    """
    for chunk in chunks:
        if chunk.ddp_config.overlap_param_gather and not chunk.ddp_config.use_megatron_fsdp:
            with torch.no_grad():
                chunk.start_param_sync(force_sync=True)


def optimizer_config(plan: RunPlan) -> OptimizerConfig:
    """Return megatron's optimizer configuration; a clip of 0 (none) becomes infinite, so that the norm is still known.

    The rate is the same for every plan: `set_rate` puts the schedule's into every group at every step, and nothing reads megatron's
    bounds but its pairing of a checkpoint's groups with the optimizer's (since 0.19), which a plan with other rates would fail.
    """
    wanted = plan.optimizer
    return OptimizerConfig(
        optimizer="adam",
        lr=1.0,
        min_lr=0.0,
        weight_decay=wanted.weight_decay,
        adam_beta1=wanted.beta1,
        adam_beta2=wanted.beta2,
        adam_eps=wanted.epsilon,
        clip_grad=wanted.clip_grad_norm or math.inf,
        bf16=plan.layout.dtype == "bf16",
        params_dtype=torch.bfloat16 if plan.layout.dtype == "bf16" else torch.float32,
        use_distributed_optimizer=plan.layout.distributed_optimizer,
        overlap_param_gather=plan.layout.overlap_param_gather,
    )


def group_overrides(config: OptimizerConfig, plan: RunPlan) -> dict[ParamKey, Any]:
    """Return megatron's own exceptions (no decay of vectors), and one for embedding and output rows where they have another rate.

    The exception is `lr_mult`, not megatron's `decoupled_lr`: that one sets bounds that only megatron's scheduler reads,
    and 0.16 does not look at them when it pairs a checkpoint's groups with the optimizer's, so that two groups fall into one.
    """
    overrides: dict[ParamKey, Any] = dict(get_standard_config_overrides(config))
    if plan.optimizer.embedding_lr_scale != 1.0:
        overrides[ParamKey(attr="is_embedding_or_output_parameter")] = {"lr_mult": plan.optimizer.embedding_lr_scale}
    return overrides


def parameter_groups(optimizer: Any) -> list[dict[str, Any]]:
    """Return the groups of the innermost optimizers, which hold the values that an update really uses."""
    parts = getattr(optimizer, "chained_optimizers", [optimizer])
    return [group for part in parts if not getattr(part, "is_stub_optimizer", False) for group in part.optimizer.param_groups]


def rate_in_force(optimizer: Any) -> float:
    """Return the rate of the next update if nobody sets another: a loaded checkpoint's own. NaN on a rank without parameters."""
    return next((group["lr"] for group in parameter_groups(optimizer) if group["lr_mult"] == 1.0), math.nan)


def set_rate(optimizer: Any, *, rate: float, weight_decay: float, embedding_scale: float = 1.0) -> None:
    """Put rate and decay in force in every group; a loaded checkpoint's values never survive.

    Args:
        embedding_scale: multiplies the rate of embedding and output rows. The decay of a step is decay x rate
            (decoupled), so it is scaled with it.
    """
    wanted = {False: rate, True: rate * embedding_scale}  # by whether a group has a rate of its own
    for group in optimizer.param_groups:
        group["lr"] = wanted[group["lr_mult"] != 1.0]
        group["weight_decay"] = weight_decay * group["wd_mult"]
    in_force = {(group["lr_mult"] != 1.0, group["lr"]) for group in parameter_groups(optimizer)}
    assert in_force <= set(wanted.items()), f"the rates in force are {in_force}, the schedule says {wanted}"


def forget_moments(optimizer: Any) -> None:
    """Make the optimizer as new: no moments, no steps counted. Weights stay."""
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        if getattr(part, "is_stub_optimizer", False):
            continue
        for group in part.optimizer.param_groups:
            if "step" in group:
                group["step"] = 0
        for state in part.optimizer.state.values():
            for name in ("exp_avg", "exp_avg_sq"):
                state[name].zero_()
