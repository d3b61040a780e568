"""Megatron's own parallel layers with torch's normalisation and attention: the layers that need no compiled extension."""

from __future__ import annotations

import contextlib
import importlib
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from megatron_cpt.backend.attention import CausalAttention
from megatron_cpt.backend.norm import LayerNorm, RMSNorm
from megatron_cpt.backend.window import WindowedAttention

# Kernels that exist only in Transformer Engine, apex or megatron's CUDA extensions.
FUSIONS_OFF: dict[str, Any] = {
    "bias_activation_fusion": False,
    "bias_dropout_fusion": False,
    "masked_softmax_fusion": False,
    "apply_rope_fusion": False,
    "gradient_accumulation_fusion": False,
    "persist_layer_norm": False,
    "cross_entropy_loss_fusion": False,
}
# One module for each expert. megatron's exchange of tokens by gathering all of them needs no collective that gloo lacks.
LOCAL_EXPERTS: dict[str, Any] = {"moe_grouped_gemm": False, "moe_token_dispatcher_type": "allgather"}


def local_layer_spec(config: Any) -> Any:
    """Return the block submodules of this pipeline rank, built from megatron's linear layers, torch's norms and CausalAttention."""
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec  # noqa: PLC0415  # only after `choose`
    from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build  # noqa: PLC0415

    norm = RMSNorm if config.normalization == "RMSNorm" else LayerNorm
    layer = get_gpt_layer_local_spec(
        num_experts=config.num_moe_experts, moe_grouped_gemm=False, normalization="RMSNorm", qk_layernorm=config.qk_layernorm
    )
    parts = layer.submodules
    parts.input_layernorm = parts.pre_mlp_layernorm = norm
    attention = parts.self_attention.submodules
    attention.core_attention = CausalAttention if config.window_size is None else WindowedAttention
    if config.qk_layernorm:
        attention.q_layernorm = attention.k_layernorm = norm
    if config.num_moe_experts:
        # Transformer Engine fuses the norm into a dense MLP only: experts' checkpoints name it as it is.
        parts.sharded_state_dict_keys_map.pop("pre_mlp_layernorm.", None)
    if config.layernorm_zero_centered_gamma:
        make_gemma(layer, norm=norm)
    return TransformerBlockSubmodules(layer_specs=[layer] * get_num_layers_to_build(config), layer_norm=norm)


def make_gemma(layer: Any, *, norm: Any) -> None:
    """Give a layer's spec, of megatron's own or of Transformer Engine's layers, what only Gemma has."""
    from megatron_cpt.backend.local_global import LocalGlobalAttention, with_norm_behind  # noqa: PLC0415  # only after `choose`

    attention, mlp = layer.submodules.self_attention, layer.submodules.mlp
    attention.module = LocalGlobalAttention
    attention.submodules.linear_proj = with_norm_behind(attention.submodules.linear_proj, norm)
    parts = mlp.submodules if hasattr(mlp, "submodules") else mlp.keywords["submodules"]  # 0.16 has a spec, 0.19 a partial
    parts.linear_fc2 = with_norm_behind(parts.linear_fc2, norm)


def load_megatron_quietly() -> None:
    """Import megatron's model code without its warnings on missing CUDA packages: `Backend.describe` says what is used instead.

    Its engine for inference, which nothing here uses, would import wandb in every rank: half a second of each start.
    """
    with warnings.catch_warnings(), _without("wandb"):
        warnings.simplefilter("ignore")
        importlib.import_module("megatron.core.models.gpt.gpt_layer_specs")
        importlib.import_module("megatron.core.optimizer")
        routing: Any = importlib.import_module("megatron.core.transformer.moe.moe_utils")
    if not hasattr(routing, "te_general_gemm"):  # 0.16 asks for it by name also where Transformer Engine is missing
        routing.te_general_gemm = None


@contextlib.contextmanager
def _without(package: str) -> Iterator[None]:
    """Let an optional package that is not imported yet look as if it were not installed."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[package]
