"""Plain torch in the place of two CUDA kernels, where megatron-core without them makes passes over memory that a CPU feels.

Shapes: S tokens, B sequences, N heads, D head columns, O and I a weight's rows and columns, T = S x B.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import torch


class _Rotation(torch.autograd.Function):
    """Rotary embedding in three passes over a tensor, without the copies of `cat`; its backward turns the other way."""

    @staticmethod
    def forward(ctx: Any, t_SBND: torch.Tensor, cos_S11D: torch.Tensor, sin_S11D: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos_S11D, sin_S11D)
        return _turn(t_SBND, cos_S11D, sin_S11D, sign=1)

    @staticmethod
    def backward(ctx: Any, grad_SBND: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return _turn(grad_SBND, *ctx.saved_tensors, sign=-1), None, None


def _turn(t: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, sign: int) -> torch.Tensor:
    half = t.shape[-1] // 2
    turned = t * cos
    turned[..., :half].addcmul_(t[..., half:], sin[..., :half], value=-sign)
    turned[..., half:].addcmul_(t[..., :half], sin[..., half:], value=sign)
    return turned


def accumulate_weight_gradient(input_TI: torch.Tensor, grad_output_TO: torch.Tensor, main_grad_OI: torch.Tensor) -> None:
    """Add a linear layer's weight gradient to its fp32 buffer; in fp32 within the matrix product, without a tensor between."""
    if input_TI.dtype == main_grad_OI.dtype:
        main_grad_OI.addmm_(grad_output_TO.t(), input_TI)
    else:
        main_grad_OI.add_(grad_output_TO.t().matmul(input_TI))


def put_into_megatron() -> None:
    """Make megatron's rotary embedding and linear layers use these."""
    from megatron.core.models.common.embeddings import rope_utils  # noqa: PLC0415  # on the CPU only after the shim
    from megatron.core.tensor_parallel import layers  # noqa: PLC0415

    plain = rope_utils._apply_rotary_pos_emb_bshd

    def rotate(
        t: torch.Tensor, freqs: torch.Tensor, rotary_interleaved: bool = False, *args: Any, mscale: float = 1.0, **kwargs: Any
    ) -> Any:
        if rotary_interleaved or any(args) or any(kwargs.values()) or freqs.shape[-1] != t.shape[-1]:
            return plain(t, freqs, rotary_interleaved, *args, mscale=mscale, **kwargs)
        turn: Any = _Rotation.apply
        return turn(t, (torch.cos(freqs) * mscale).to(t.dtype), (torch.sin(freqs) * mscale).to(t.dtype))

    rope_utils._apply_rotary_pos_emb_bshd = rotate
    layers.fused_weight_gradient_mlp_cuda = SimpleNamespace(wgrad_gemm_accum_fp32=accumulate_weight_gradient)


def accumulate_in_place(chunks: Iterable[torch.nn.Module]) -> None:
    """Have the linear layers of chunks that megatron wrapped for data parallelism add their weight gradients to its buffers themselves.

    Not tied rows: their gradient comes from the embedding too, and only autograd sees both.
    """
    for chunk in chunks:
        for module in chunk.modules():
            weight = getattr(module, "weight", None)
            if hasattr(module, "gradient_accumulation_fusion") and weight is not None and not getattr(weight, "zero_out_wgrad", False):
                module.gradient_accumulation_fusion = True  # type: ignore[assignment]  # megatron reads it at each call
