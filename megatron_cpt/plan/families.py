"""The model families: what the models of one Hugging Face architecture have in common, and which config fields say the rest.

A field of a `config.json` is read, required to have one of a few values, or left alone for a reason that stands here. Any other
field is an error that names it: a field that nobody looked at may change what the model computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

# Fields that say nothing about what the model computes; export copies them from the base config.
_LABELS = {
    "_name_or_path", "_model_name_or_path", "model_type", "transformers_version", "transformers.js_config", "torch_dtype", "dtype",
    "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "id2label", "label2id", "problem_type", "task_specific_params",
}  # fmt: skip
# Settings of transformers' own code: what it returns, caches, or draws for a model from nothing.
_RUNTIME = {
    "use_cache", "return_dict", "output_attentions", "output_hidden_states", "chunk_size_feed_forward", "is_encoder_decoder",
    "initializer_range", "is_llama_config", "output_router_logits", "gradient_checkpointing",
}  # fmt: skip
# Fields of the rotary block, read by `rotary.py`.
ROTARY_FIELDS = frozenset({"rope_theta", "rope_parameters", "rope_scaling"})


@dataclass(frozen=True)
class Family:
    """One architecture.

    Attributes:
        architecture: the only entry of `architectures` in its config.
        sizes: for each field of ModelShape, the names that its config key has had; the first one that is there is read.
        optional: fields of ModelShape that may be missing or null, because the architecture derives them from others.
        required: config fields that must have one of these values; the first one is what a missing field means.
        ignored: config fields that change nothing here, beside those of every family.
        norm: `rms` scales by the root mean square; `layer` also centres and has a bias.
        positions: `rotary` turns queries and keys; `learned` adds a row of a table to the embedding.
        qkv_bias: query, key and value have a bias.
        bias: every other matrix of a layer has one too.
        qk_norm: each head's query and key are normalised, with one scale for all heads.
        gated: the MLP multiplies an activated projection with another one, instead of activating one.
        activation: of the MLP; `gelu_tanh` is GELU by its tanh formula.
        experts: the MLP is a mixture of experts.
        has_window: attention may be bounded by `sliding_window`; `window_by_default` is what a missing field means, 0 for none.
        gemma: norms scale by 1 + weight and stand behind attention and MLP too, the embedding is scaled by the root of the hidden
            size, and layers with a window have rotary frequencies of their own.
    """

    architecture: str
    sizes: Mapping[str, tuple[str, ...]]
    optional: frozenset[str]
    required: Mapping[str, tuple[Any, ...]]
    ignored: frozenset[str] = frozenset()
    norm: Literal["rms", "layer"] = "rms"
    positions: Literal["rotary", "learned"] = "rotary"
    qkv_bias: bool = False
    bias: bool = False
    qk_norm: bool = False
    gated: bool = True
    activation: Literal["silu", "gelu_tanh", "relu_squared"] = "silu"
    experts: bool = False
    has_window: bool = False
    window_by_default: int = 0
    gemma: bool = False
    tied_by_default: bool = False
    fields: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        known = {key for keys in self.sizes.values() for key in keys} | set(self.required) | self.ignored | _LABELS | _RUNTIME
        known |= {"architectures", "tie_word_embeddings"}
        known |= ROTARY_FIELDS if self.positions == "rotary" else set()
        known |= {"sliding_window"} if self.has_window else set()
        object.__setattr__(self, "fields", frozenset(known))


def _planned(**traits: Any) -> Family:
    """Return a family that no `config.json` is read for."""
    return Family(architecture="", sizes={}, optional=frozenset(), required={}, **traits)


_SIZES: dict[str, tuple[str, ...]] = {
    "hidden_size": ("hidden_size",),
    "num_layers": ("num_hidden_layers",),
    "num_attention_heads": ("num_attention_heads",),
    "num_query_groups": ("num_key_value_heads",),
    "head_dim": ("head_dim",),
    "ffn_hidden_size": ("intermediate_size",),
    "num_base_ids": ("vocab_size",),
    "max_position": ("max_position_embeddings",),
    "norm_epsilon": ("rms_norm_eps",),
}
_EXPERT_SIZES = {"num_experts": ("num_experts", "num_local_experts"), "experts_per_token": ("num_experts_per_tok",)}
_REQUIRED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "attention_dropout": (0.0,),
    "rope_interleaved": (False,),  # the rotary halves lie one behind the other, not interleaved
}
_NO_WINDOW: dict[str, tuple[Any, ...]] = {"use_sliding_window": (False,)}
# With use_sliding_window false these say nothing.
_UNUSED_WINDOW = frozenset({"sliding_window", "max_window_layers"})
_HEAD_DIM = frozenset({"head_dim"})
GEMMA_PATTERN = 6  # of Gemma3TextConfig: every sixth layer sees everything

FAMILIES: dict[str, Family] = {
    "llama": Family(
        architecture="LlamaForCausalLM",
        sizes=_SIZES,
        optional=frozenset({"num_query_groups", "head_dim"}),
        required={**_REQUIRED, "mlp_bias": (False,), "pretraining_tp": (1,)},
    ),
    "mistral": Family(
        architecture="MistralForCausalLM",
        sizes=_SIZES,
        optional=_HEAD_DIM,
        required=_REQUIRED,
        has_window=True,
        window_by_default=4096,  # of MistralConfig, for configs that leave the field out
    ),
    "qwen2": Family(
        architecture="Qwen2ForCausalLM",
        sizes=_SIZES,
        optional=_HEAD_DIM,
        # the architecture has the bias whatever attention_bias says; a config that denies it is not one of these
        required={**_REQUIRED, **_NO_WINDOW, "attention_bias": (True,), "use_mrope": (False,)},
        ignored=_UNUSED_WINDOW,
        qkv_bias=True,
    ),
    "qwen3": Family(
        architecture="Qwen3ForCausalLM",
        sizes=_SIZES,
        optional=frozenset(),
        required={**_REQUIRED, **_NO_WINDOW},
        ignored=_UNUSED_WINDOW,
        qk_norm=True,
    ),
    "qwen3_moe": Family(
        architecture="Qwen3MoeForCausalLM",
        sizes={**_SIZES, **_EXPERT_SIZES, "ffn_hidden_size": ("moe_intermediate_size",), "renormalise_experts": ("norm_topk_prob",)},
        optional=_HEAD_DIM,
        required={**_REQUIRED, **_NO_WINDOW, "decoder_sparse_step": (1,), "mlp_only_layers": ((), None)},
        # intermediate_size is of dense layers, and there are none; router_aux_loss_coef is a setting of training (optim.router_aux_loss)
        ignored=_UNUSED_WINDOW | {"intermediate_size", "router_aux_loss_coef"},
        qk_norm=True,
        experts=True,
    ),
    "mixtral": Family(
        architecture="MixtralForCausalLM",
        sizes={**_SIZES, **_EXPERT_SIZES},
        optional=_HEAD_DIM,
        required={**_REQUIRED, "router_jitter_noise": (0.0,)},
        ignored=frozenset({"router_aux_loss_coef"}),
        experts=True,
        has_window=True,
    ),
    "gpt2": Family(
        architecture="GPT2LMHeadModel",
        sizes={
            "hidden_size": ("n_embd", "hidden_size"),
            "num_layers": ("n_layer", "num_hidden_layers"),
            "num_attention_heads": ("n_head", "num_attention_heads"),
            "ffn_hidden_size": ("n_inner",),
            "num_base_ids": ("vocab_size",),
            "max_position": ("n_positions", "max_position_embeddings"),
            "norm_epsilon": ("layer_norm_epsilon",),
        },
        optional=frozenset({"ffn_hidden_size"}),
        required={
            "activation_function": ("gelu_new", "gelu_pytorch_tanh"),  # two names of one formula
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
            "reorder_and_upcast_attn": (False,),
            "add_cross_attention": (False,),
        },
        # Dropout is a setting of training, and training here is without. The summary fields are of another head. n_ctx repeats n_positions.
        ignored=frozenset(
            {
                "resid_pdrop", "embd_pdrop", "attn_pdrop", "n_ctx", "summary_activation", "summary_first_dropout",
                "summary_proj_to_labels", "summary_type", "summary_use_proj",
            }
        ),
        norm="layer",
        positions="learned",
        qkv_bias=True,
        bias=True,
        gated=False,
        activation="gelu_tanh",
        tied_by_default=True,
    ),
    "gemma3": Family(
        architecture="Gemma3ForCausalLM",
        sizes={**_SIZES, "query_scalar": ("query_pre_attn_scalar",), "window": ("sliding_window",)},
        optional=frozenset(),
        required={
            "hidden_activation": ("gelu_pytorch_tanh",),
            "attention_bias": (False,),
            "attention_dropout": (0.0,),
            "attn_logit_softcapping": (None,),
            "final_logit_softcapping": (None,),
            "use_bidirectional_attention": (False, None),
        },
        # layer_types says the same as these, and is read in their place where it is there
        ignored=frozenset({"rope_local_base_freq", "sliding_window_pattern", "_sliding_window_pattern"}),
        qk_norm=True,
        activation="gelu_tanh",
        gemma=True,
        tied_by_default=True,
    ),
}  # fmt: skip

# Layers that are counted and not built: a shape of one of these can be planned for, and `ModelShape.training_problems` refuses the rest.
PLANNED_FAMILIES: dict[str, Family] = {
    # NVIDIA's Nemotron-4 15B and its kin: layer norm, no bias, rotary, a squared ReLU (arXiv 2402.16819, section 2)
    "nemotron": _planned(norm="layer", gated=False, activation="relu_squared"),
    # DeepSeek-V3: RMS norm, no bias, gated experts (arXiv 2412.19437, section 2)
    "deepseek": _planned(experts=True),
    # GPT-3's layer without biases, with experts in the MLP's place
    "gpt_moe": _planned(norm="layer", positions="learned", gated=False, activation="gelu_tanh", experts=True),
}


def family_of(architectures: object) -> str | None:
    """Return the name of the family whose architecture is the only one in the list, or None."""
    found = [name for name, family in FAMILIES.items() if architectures == [family.architecture]]
    return found[0] if found else None
