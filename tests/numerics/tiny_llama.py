"""Small random Llama folders, made by transformers: the reference that this project's model is compared with."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from megatron_cpt.plan.model_shape import ModelShape
from megatron_cpt.record.vocab_layout import VocabLayout, padded_rows


def save_tiny_llama(
    folder: Path, *, num_heads: int = 4, num_groups: int = 2, head_dim: int = 16, tied: bool = True, num_ids: int = 100,
    num_layers: int = 2, epsilon: float = 1e-3, dtype: torch.dtype = torch.float32, seed: int = 7,
) -> ModelShape:  # fmt: skip
    """Write a Llama with every weight random, norms included, wide enough that attention and MLP matter."""
    config = LlamaConfig(
        hidden_size=64, num_hidden_layers=num_layers, num_attention_heads=num_heads, num_key_value_heads=num_groups, head_dim=head_dim,
        intermediate_size=96, vocab_size=num_ids, max_position_embeddings=512, rms_norm_eps=epsilon, tie_word_embeddings=tied,
        rope_theta=5000.0,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, param in model.named_parameters():
            if name.endswith("norm.weight"):
                param.uniform_(0.5, 1.5)
            else:
                param.normal_(0.0, 0.15)
    model.to(dtype).save_pretrained(folder)
    return ModelShape.from_hf_folder(folder)


def load_reference(folder: Path) -> LlamaForCausalLM:
    """Return transformers' model with eager attention, in evaluation mode."""
    return LlamaForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def layout_of_ids(shape: ModelShape, *, num_new: int = 0, multiple: int = 1) -> VocabLayout:
    """Return a vocabulary with `num_new` added ids, padded to a multiple."""
    num_ids = shape.num_base_ids + num_new
    return VocabLayout(
        shape.num_base_ids, num_ids, padded_rows(num_ids, multiple=multiple), end_of_document_id=0, tokenizer_sha256="0" * 64
    )
