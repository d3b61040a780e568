"""Megatron's own parallel layers with torch's normalisation and attention: the layers that need no compiled extension."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

from megatron_cpt.backend.attention import CausalAttention
from megatron_cpt.backend.norm import RMSNorm

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


def local_layer_spec(config: Any) -> Any:
    """Return the block submodules of this pipeline rank, built from megatron's linear layers, RMSNorm and CausalAttention."""
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec  # noqa: PLC0415  # only after `choose`
    from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build  # noqa: PLC0415

    layer = get_gpt_layer_local_spec(normalization="RMSNorm")
    layer.submodules.input_layernorm = RMSNorm
    layer.submodules.pre_mlp_layernorm = RMSNorm
    layer.submodules.self_attention.submodules.core_attention = CausalAttention
    return TransformerBlockSubmodules(layer_specs=[layer] * get_num_layers_to_build(config), layer_norm=RMSNorm)


def load_megatron_quietly() -> None:
    """Import megatron's model code without its warnings on missing CUDA packages: `Backend.describe` says what is used instead."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module("megatron.core.models.gpt.gpt_layer_specs")
        importlib.import_module("megatron.core.optimizer")
