"""Configs of published models, as their cards have them: what is read, what is refused, and how many parameters that makes."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
from plan_examples import ONE_RANK

from megatron_cpt.errors import CheckpointError
from megatron_cpt.plan.checks import expert_problems
from megatron_cpt.plan.memory import rank_memory
from megatron_cpt.plan.model_shape import ModelShape
from megatron_cpt.plan.parameters import active_matrix_params_per_layer, num_params, rank_params
from megatron_cpt.plan.rotary import RotaryScaling
from megatron_cpt.plan.throughput import flops_per_token

LABELS = {"bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.02, "torch_dtype": "bfloat16", "transformers_version": "4.40.1"}
MISTRAL_7B = {
    "architectures": ["MistralForCausalLM"], "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336,
    "max_position_embeddings": 32768, "model_type": "mistral", "num_attention_heads": 32, "num_hidden_layers": 32,
    "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "sliding_window": 4096, "tie_word_embeddings": False,
    "use_cache": True, "vocab_size": 32000, **LABELS,
}  # fmt: skip
QWEN25_05B = {
    "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "hidden_act": "silu", "hidden_size": 896, "intermediate_size": 4864,
    "max_position_embeddings": 32768, "max_window_layers": 24, "model_type": "qwen2", "num_attention_heads": 14, "num_hidden_layers": 24,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": True,
    "use_cache": True, "use_mrope": False, "use_sliding_window": False, "vocab_size": 151936, **LABELS,
}  # fmt: skip
QWEN3_06B = {
    "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "head_dim": 128, "hidden_act": "silu",
    "hidden_size": 1024, "intermediate_size": 3072, "max_position_embeddings": 40960, "max_window_layers": 28, "model_type": "qwen3",
    "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8, "rms_norm_eps": 1e-6, "rope_scaling": None,
    "rope_theta": 1000000, "sliding_window": None, "tie_word_embeddings": True, "use_cache": True, "use_sliding_window": False,
    "vocab_size": 151936, **LABELS,
}  # fmt: skip
QWEN3_30B_A3B = {
    **QWEN3_06B, "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "decoder_sparse_step": 1, "hidden_size": 2048,
    "intermediate_size": 6144, "max_window_layers": 48, "mlp_only_layers": [], "moe_intermediate_size": 768, "norm_topk_prob": True,
    "num_attention_heads": 32, "num_experts": 128, "num_experts_per_tok": 8, "num_hidden_layers": 48, "num_key_value_heads": 4,
    "output_router_logits": False, "router_aux_loss_coef": 0.001, "tie_word_embeddings": False,
}  # fmt: skip
MIXTRAL_8X7B = {
    **MISTRAL_7B, "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_experts_per_tok": 2, "num_local_experts": 8,
    "output_router_logits": False, "router_aux_loss_coef": 0.02, "rope_theta": 1000000.0, "sliding_window": None,
}  # fmt: skip
GPT2 = {
    "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1, "bos_token_id": 50256, "embd_pdrop": 0.1,
    "eos_token_id": 50256, "initializer_range": 0.02, "layer_norm_epsilon": 1e-5, "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768,
    "n_head": 12, "n_layer": 12, "n_positions": 1024, "resid_pdrop": 0.1, "summary_activation": None, "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True, "summary_type": "cls_index", "summary_use_proj": True,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}}, "vocab_size": 50257,
}  # fmt: skip
GEMMA3_270M = {
    "_sliding_window_pattern": 6, "architectures": ["Gemma3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "attn_logit_softcapping": None, "final_logit_softcapping": None, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 640, "intermediate_size": 2048, "layer_types": [*["sliding_attention"] * 5, "full_attention"] * 3,
    "max_position_embeddings": 32768, "model_type": "gemma3_text", "num_attention_heads": 4, "num_hidden_layers": 18,
    "num_key_value_heads": 1, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-6, "rope_local_base_freq": 10000.0, "rope_scaling": None,
    "rope_theta": 1000000.0, "sliding_window": 512, "use_bidirectional_attention": False, "use_cache": True, "vocab_size": 262144,
    **LABELS,
}  # fmt: skip
LLAMA31_8B = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "hidden_act": "silu", "hidden_size": 4096,
    "intermediate_size": 14336, "max_position_embeddings": 131072, "mlp_bias": False, "model_type": "llama", "num_attention_heads": 32,
    "num_hidden_layers": 32, "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
    "rope_scaling": {
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192, "rope_type": "llama3",
    },
    "tie_word_embeddings": False, "use_cache": True, "vocab_size": 128256, **LABELS,
}  # fmt: skip


def read(config: dict[str, Any]) -> ModelShape:
    return ModelShape.from_hf_config(config, where="config.json")


@pytest.mark.parametrize(
    ("config", "published"),
    [
        (MISTRAL_7B, 7_241_732_096),
        (QWEN25_05B, 494_032_768),
        (QWEN3_06B, 596_049_920),
        (QWEN3_30B_A3B, 30_532_122_624),
        (MIXTRAL_8X7B, 46_702_792_704),
        (GPT2, 124_439_808),
        (LLAMA31_8B, 8_030_261_248),
        (GEMMA3_270M, 268_098_176),
    ],
)
def test_a_published_config_is_read_and_gives_the_published_number_of_parameters(config: dict[str, Any], published: int) -> None:
    shape = read(config)
    assert num_params(shape, num_rows=shape.num_base_ids) == published


def test_the_parts_that_a_family_adds_are_read() -> None:
    assert read(LLAMA31_8B).rotary_scaling == RotaryScaling("llama3", 8.0, 8192, low_freq_factor=1.0, high_freq_factor=4.0)
    assert (read(QWEN3_06B).head_dim, read(QWEN25_05B).head_dim) == (128, 64)
    assert (read(GPT2).ffn_hidden_size, read(GPT2).tied_embeddings, read(GPT2).num_query_groups) == (3072, True, 12)
    moe = read(QWEN3_30B_A3B)
    assert (moe.num_experts, moe.experts_per_token, moe.ffn_hidden_size, moe.renormalise_experts) == (128, 8, 768, True)


def test_a_window_that_is_narrower_than_the_positions_is_kept() -> None:
    assert read(MISTRAL_7B).window == 4096
    assert read({**MISTRAL_7B, "sliding_window": None}).window == 0
    assert read({key: value for key, value in MISTRAL_7B.items() if key != "sliding_window"}).window == 4096  # transformers' default
    assert read({**MISTRAL_7B, "sliding_window": 32768}).window == 0
    assert read(QWEN25_05B).window == 0  # use_sliding_window is false
    gemma = read(GEMMA3_270M)
    assert (gemma.window, gemma.full_every, gemma.window_rotary_base, gemma.rotary_base) == (512, 6, 1e4, 1e6)


def test_a_window_is_known_to_the_flops() -> None:
    """By hand, for 4 tokens and a window of 2: queries see 1, 2, 2, 2 tokens; counted as integrals, 4 x 2 - 2 x 2 / 2 = 6 of 8."""
    shape = dataclasses.replace(read(MISTRAL_7B), window=2, num_layers=1)
    matrices = 6 * active_matrix_params_per_layer(shape)
    windowed = flops_per_token(shape, num_rows=0, sequence_length=4) - matrices
    full = flops_per_token(dataclasses.replace(shape, window=0), num_rows=0, sequence_length=4) - matrices
    assert windowed / full == 6 / 8
    mixed = flops_per_token(dataclasses.replace(shape, full_every=2, num_layers=4), num_rows=0, sequence_length=4) - 4 * matrices
    assert mixed == 2 * full + 2 * windowed


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (QWEN25_05B, {"use_sliding_window": True}, "use_sliding_window is True; only False is supported"),
        (QWEN25_05B, {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types names 'sliding_attention'"),
        (QWEN25_05B, {"num_key_value_heads": None}, "num_key_value_heads is missing"),
        (QWEN25_05B, {"quantization_config": {}}, "quantization_config is not known"),
        (QWEN3_06B, {"attention_bias": True}, "attention_bias is True; only False"),
        (QWEN3_06B, {"head_dim": None}, "head_dim is missing"),
        (QWEN3_30B_A3B, {"mlp_only_layers": [0]}, r"mlp_only_layers is \[0\]; only"),
        (QWEN3_30B_A3B, {"decoder_sparse_step": 2}, "decoder_sparse_step is 2; only 1"),
        (QWEN3_30B_A3B, {"num_experts_per_tok": 1}, "num_experts_per_tok is 1 with renormalised weights"),
        (MIXTRAL_8X7B, {"router_jitter_noise": 0.1}, "router_jitter_noise is 0.1; only 0.0"),
        (MISTRAL_7B, {"sliding_window": "all"}, "sliding_window is 'all'"),
        (MISTRAL_7B, {"hidden_size": -1}, "hidden_size is -1; a number above 0"),
        (MISTRAL_7B, {"num_attention_heads": 33}, "num_attention_heads=33 does not divide hidden_size=4096"),
        (GPT2, {"activation_function": "relu"}, "activation_function is 'relu'; only 'gelu_new'"),
        (GPT2, {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True; only False"),
        (GPT2, {"rope_theta": 10000.0}, "rope_theta is not known"),
        (GEMMA3_270M, {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0; only None"),
        (GEMMA3_270M, {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        (GEMMA3_270M, {"layer_types": ["full_attention"] * 17 + ["sliding_attention"]}, "layer_types is not one full_attention after"),
        (GEMMA3_270M, {"rope_local_base_freq": None}, "of layers with a window: rope_theta is missing"),
        (GPT2, {"architectures": ["OPTForCausalLM"]}, "architectures is .*; only one of LlamaForCausalLM, Mistral"),
    ],
)
def test_what_a_family_cannot_keep_is_refused_by_name(config: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read({**config, **changes})


def test_a_token_meets_the_published_number_of_active_parameters() -> None:
    """Mixtral's card says 12.9 billion of 46.7 are active, Qwen3-30B-A3B's 3.3 of 30.5; rows of the embedding count there."""
    for config, billions in ((MIXTRAL_8X7B, 12.9), (QWEN3_30B_A3B, 3.3)):
        shape = read(config)
        active = shape.num_layers * active_matrix_params_per_layer(shape) + 2 * shape.num_base_ids * shape.hidden_size
        assert active / 1e9 == pytest.approx(billions, abs=0.06)
        without_attention = flops_per_token(shape, num_rows=0, sequence_length=0)
        assert without_attention == 6 * shape.num_layers * active_matrix_params_per_layer(shape)


def test_expert_parallel_ranks_hold_their_part_of_the_experts_and_all_of_the_rest() -> None:
    shape = read(MIXTRAL_8X7B)
    whole, shared = (rank_params(shape, num_rows=32000, tensor=1, pipeline=1, pipeline_rank=0, expert=expert) for expert in (1, 8))
    experts = 32 * 8 * 3 * 4096 * 14336
    assert whole == 46_702_792_704
    assert shared == whole - experts + experts // 8
    layout = dataclasses.replace(ONE_RANK, data=16, global_batch_size=16, distributed_optimizer=True, expert=8)
    memory = rank_memory(shape, layout, num_rows=32000, pipeline_rank=0)
    # 12 bytes of each parameter, over 16 ranks what all hold, over 16 / 8 ranks the eighth of the experts
    assert memory.optimizer == pytest.approx(12 * ((whole - experts) / 16 + experts / 8 / 2))
    assert memory.weights == 2 * shared


@pytest.mark.parametrize(
    ("expert", "tensor", "data", "sequence_parallel", "message"),
    [
        (3, 1, 6, False, r"parallel.expert=3 does not divide the model's experts \(8\).*Use one of: 1, 2\."),
        (8, 1, 4, False, r"and the data-parallel ranks \(4\).*Use one of: 1, 2, 4\."),
        (2, 2, 2, False, "parallel.tensor=2 with experts needs parallel.sequence_parallel=true"),
    ],
)
def test_experts_that_do_not_divide_are_refused(expert: int, tensor: int, data: int, sequence_parallel: bool, message: str) -> None:
    (problem,) = expert_problems(read(MIXTRAL_8X7B), expert=expert, tensor=tensor, data=data, sequence_parallel=sequence_parallel)
    assert re.search(message, problem)


def test_a_dense_model_has_no_experts_to_share() -> None:
    assert expert_problems(read(GPT2), expert=1, tensor=2, data=2, sequence_parallel=False) == []
    (problem,) = expert_problems(read(GPT2), expert=2, tensor=1, data=2, sequence_parallel=False)
    assert problem == "parallel.expert=2 shares experts, and the model has none. Use 1."
