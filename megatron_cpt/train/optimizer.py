"""Wraps the model for data parallelism and builds megatron-core's optimizer; sets and checks the learning rate."""

from __future__ import annotations

import math
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.transformer.module import Float16Module

from megatron_cpt.plan.run_plan import RunPlan


def wrap_and_optimize(chunks: list[Any], plan: RunPlan) -> tuple[list[Any], Any]:
    """Return the chunks ready for `forward_backward` and the optimizer over them.

    Gradients are summed over the data-parallel ranks and divided by the global batch's token count, because the
    model's config has `calculate_per_token_loss`.
    """
    bf16 = plan.layout.dtype == "bf16"
    ddp = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        use_distributed_optimizer=plan.layout.distributed_optimizer,
        overlap_grad_reduce=False,
        check_for_nan_in_grad=False,  # it would stop one rank alone; step.py looks at figures that all ranks share
    )
    config = chunks[0].config
    assert config.calculate_per_token_loss, "set when the model is built, or DDP scales gradients a second time"
    if bf16:
        chunks = [Float16Module(config, chunk) for chunk in chunks]
    wrapped = [DistributedDataParallel(config, ddp, chunk) for chunk in chunks]
    optimizer = get_megatron_optimizer(optimizer_config(plan), wrapped)
    config.finalize_model_grads_func = finalize_model_grads
    config.grad_scale_func = optimizer.scale_loss if bf16 else None
    return wrapped, optimizer


def optimizer_config(plan: RunPlan) -> OptimizerConfig:
    """Return megatron's optimizer configuration; a clip of 0 (none) becomes infinite, so that the norm is still known."""
    wanted = plan.optimizer
    return OptimizerConfig(
        optimizer="adam",
        lr=plan.schedule.peak_lr,
        min_lr=plan.schedule.min_lr,
        weight_decay=wanted.weight_decay,
        adam_beta1=wanted.beta1,
        adam_beta2=wanted.beta2,
        adam_eps=wanted.epsilon,
        clip_grad=wanted.clip_grad_norm or math.inf,
        bf16=plan.layout.dtype == "bf16",
        params_dtype=torch.bfloat16 if plan.layout.dtype == "bf16" else torch.float32,
        use_distributed_optimizer=plan.layout.distributed_optimizer,
    )


def parameter_groups(optimizer: Any) -> list[dict[str, Any]]:
    """Return the groups of the innermost optimizers, which hold the values that an update really uses."""
    parts = getattr(optimizer, "chained_optimizers", [optimizer])
    return [group for part in parts if not getattr(part, "is_stub_optimizer", False) for group in part.optimizer.param_groups]


def set_rate(optimizer: Any, *, rate: float, weight_decay: float) -> None:
    """Put rate and decay in force in every group; a loaded checkpoint's values never survive."""
    for group in optimizer.param_groups:
        group["lr"] = rate
        group["weight_decay"] = weight_decay * group["wd_mult"]
    in_force = {group["lr"] for group in parameter_groups(optimizer)}
    assert in_force <= {rate}, f"the rate in force is {in_force}, the schedule says {rate}"
