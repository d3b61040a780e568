"""Small random models of every supported family, made by transformers: the reference that this project's model is compared with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from megatron_cpt.plan.model_shape import ModelShape

NUM_IDS = 100
EPSILON = 1e-3  # so large that another one would show in the logits
SIZES: dict[str, Any] = {
    "vocab_size": NUM_IDS, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 12, "max_position_embeddings": 512, "rms_norm_eps": EPSILON, "tie_word_embeddings": False,
    "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None,
}  # fmt: skip
ROTARY = {"rope_type": "default", "rope_theta": 5000.0}
EXPERTS = {"num_experts_per_tok": 2, "router_aux_loss_coef": 0.0}


def _stretched(**block: Any) -> PreTrainedConfig:
    return LlamaConfig(**SIZES, rope_parameters={"rope_theta": 5000.0, **block})


def _qwen3_moe(**changes: Any) -> PreTrainedConfig:
    return Qwen3MoeConfig(**SIZES, **EXPERTS, num_experts=8, moe_intermediate_size=48, rope_parameters=ROTARY, **changes)


def _gemma3(**changes: Any) -> PreTrainedConfig:
    sizes = {**SIZES, "tie_word_embeddings": True}
    return Gemma3TextConfig(**sizes, query_pre_attn_scalar=20, layer_types=["sliding_attention", "full_attention"], **changes)


FAMILIES: dict[str, Callable[[], PreTrainedConfig]] = {
    "mistral": lambda: MistralConfig(**SIZES, sliding_window=None, rope_parameters=ROTARY),
    "qwen2": lambda: Qwen2Config(**{**SIZES, "head_dim": 8, "tie_word_embeddings": True}, rope_parameters=ROTARY),
    "qwen3": lambda: Qwen3Config(**{**SIZES, "tie_word_embeddings": True}, rope_parameters=ROTARY),
    "qwen3-moe": lambda: _qwen3_moe(norm_topk_prob=True),
    "mixtral": lambda: MixtralConfig(**SIZES, **EXPERTS, num_local_experts=4, rope_parameters=ROTARY),
    "gpt2": lambda: GPT2Config(
        vocab_size=NUM_IDS, n_positions=512, n_embd=64, n_layer=2, n_head=8, n_inner=96, layer_norm_epsilon=EPSILON, bos_token_id=0,
        eos_token_id=0,
    ),
    "gemma3": lambda: _gemma3(sliding_window=40),
}  # fmt: skip
# Other forms of a family, which change what it computes and not how it is cut.
VARIANTS: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama-linear": lambda: _stretched(rope_type="linear", factor=4.0),
    "llama-llama3": lambda: _stretched(
        rope_type="llama3", factor=8.0, low_freq_factor=1.5, high_freq_factor=5.0, original_max_position_embeddings=64
    ),
    "llama-yarn": lambda: _stretched(rope_type="yarn", factor=4.0, original_max_position_embeddings=64),
    "llama-yarn-with-factors": lambda: _stretched(
        rope_type="yarn", factor=8.0, original_max_position_embeddings=64, beta_fast=16.0, beta_slow=2.0, mscale=0.7, mscale_all_dim=1.3,
        truncate=False,
    ),
    "mistral-with-a-window": lambda: MistralConfig(**SIZES, sliding_window=40, rope_parameters=ROTARY),
    "gemma3-stretched": lambda: _gemma3(
        sliding_window=512,  # all positions
        rope_parameters={
            "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    ),
    "qwen3-multi-query": lambda: Qwen3Config(**{**SIZES, "num_key_value_heads": 1}, rope_parameters=ROTARY),
    "qwen2-multi-head": lambda: Qwen2Config(**{**SIZES, "head_dim": 8, "num_key_value_heads": 8}, rope_parameters=ROTARY),
    "qwen3-moe-without-renormalisation": lambda: _qwen3_moe(norm_topk_prob=False),
    "gpt2-untied": lambda: GPT2Config(
        vocab_size=NUM_IDS, n_positions=512, n_embd=64, n_layer=2, n_head=4, tie_word_embeddings=False, bos_token_id=0, eos_token_id=0
    ),
}  # fmt: skip


def save_tiny(name: str, folder: Path, *, dtype: torch.dtype = torch.float32) -> ModelShape:
    """Write a model with every weight random, norms and biases included, wide enough that attention, MLP and router matter."""
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(({**FAMILIES, **VARIANTS})[name]())
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.dim() == 1 and parameter_name.endswith("weight"):
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(0.0, 0.15 if parameter.dim() > 1 else 0.3)
    model.to(dtype).save_pretrained(folder)
    return ModelShape.from_hf_folder(folder)


def load_tiny(folder: Path) -> Any:
    """Return transformers' model with eager attention, in evaluation mode."""
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
