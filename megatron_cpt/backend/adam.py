"""AdamW with the interface of apex's FusedAdam, over torch's own fused kernel.

megatron's `fully_reshardable` checkpoints expect that interface: the step count in the parameter group, and `exp_avg`
and `exp_avg_sq` as the only state. With torch.optim.AdamW their load fails on the per-parameter `step`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch


class FusedAdam(torch.optim.Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101, algorithm 2), bias-corrected."""

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        adam_w_mode: bool = True,
        bias_correction: bool = True,
        capturable: bool = False,
    ) -> None:
        assert adam_w_mode, "only decoupled weight decay is implemented"
        assert bias_correction, "only bias-corrected moments are implemented"
        assert not capturable, "CUDA graphs need the optimizer of Transformer Engine or apex"
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "bias_correction": bias_correction})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient, and count the step in each group that holds any parameter."""
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            if not group["params"]:
                continue
            group["step"] = group.get("step", 0) + 1
            self._update(group)
        return loss

    def _update(self, group: dict[str, Any]) -> None:
        pairs = [(param, param.grad) for param in group["params"] if param.grad is not None]
        if not pairs:
            return
        params, grads = map(list, zip(*pairs, strict=True))
        for param in params:
            state = self.state[param]
            if not state:
                state["exp_avg"] = torch.zeros_like(param)
                state["exp_avg_sq"] = torch.zeros_like(param)
        beta1, beta2 = group["betas"]
        torch._fused_adamw_(
            params,
            grads,
            [self.state[param]["exp_avg"] for param in params],
            [self.state[param]["exp_avg_sq"] for param in params],
            [],
            [torch.tensor(float(group["step"]), device=param.device) for param in params],
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )


def put_into_megatron() -> None:
    """Make megatron's optimizer build this Adam and treat its state as apex's."""
    from megatron.core import optimizer  # noqa: PLC0415  # on the CPU only after the shim
    from megatron.core.optimizer import distrib_optimizer  # noqa: PLC0415

    optimizer.Adam = distrib_optimizer.Adam = FusedAdam
    optimizer.USING_PYTORCH_OPTIMIZER = False
    distrib_optimizer.HAVE_APEX_OR_TE = True
    distrib_optimizer.USING_APEX_OPTIMIZER = True
