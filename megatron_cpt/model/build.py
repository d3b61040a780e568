"""Builds megatron's GPTModel for a shape; the only importer of megatron's model classes.

Imported after a backend was chosen. Shape letters: S tokens, B sequences, V rows of the (local) vocabulary.
"""

from __future__ import annotations

import copy
import logging
import math
import warnings
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.transformer.transformer_config import TransformerConfig
from torch.nn import functional

from megatron_cpt.backend import Backend
from megatron_cpt.backend.local_global import TwoRotaries
from megatron_cpt.errors import ConfigError, raise_all
from megatron_cpt.model.frequencies import rotary_frequencies
from megatron_cpt.plan.checks import batch_problems, context_problems, expert_problems, stage_problems
from megatron_cpt.plan.model_shape import ModelShape
from megatron_cpt.plan.run_plan import Layout
from megatron_cpt.record.vocab_layout import VocabLayout

PARAMS_DTYPE = {"fp32": torch.float32, "bf16": torch.bfloat16}
# What the backward pass computes anew. `selective` is the MLP or all experts, whose middle is most of what a layer keeps. It is not the
# core attention, as in Korthikanti et al. 2022: attention here keeps no score matrix, so that would cost time and free next to nothing.
RECOMPUTE: dict[str, dict[str, Any]] = {
    "none": {},
    "selective": {"recompute_granularity": "selective", "recompute_modules": ["mlp"]},
    "full": {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1},
}


class CptModel(GPTModel):  # type: ignore[misc]  # megatron has no types for mypy
    """GPTModel whose padding rows take no part in the softmax.

    The embedding has more rows than there are ids, so that it divides over tensor-parallel ranks. Left alone, the
    padding rows add to the softmax's sum, and a loss would depend on how many there are.
    """

    def __init__(self, *args: Any, vocab: VocabLayout, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.vocab = vocab

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Return per-token losses (B, S) when labels are given, otherwise logits (B, S, V) with padding columns at -inf.

        On a pipeline rank that is not the last, the hidden states for the next one.
        """
        output: torch.Tensor = super().forward(input_ids, position_ids, attention_mask, labels=labels, **kwargs)
        if self.post_process and labels is None:
            mask_padding(output, num_ids=self.vocab.num_ids, num_padded_rows=self.vocab.num_padded_rows)
        return output

    def compute_language_model_loss(self, labels: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Return the cross entropy of each token over the real ids, shape (B, S); logits are (S, B, V), changed in place."""
        mask_padding(logits, num_ids=self.vocab.num_ids, num_padded_rows=self.vocab.num_padded_rows)
        loss: torch.Tensor = super().compute_language_model_loss(labels, logits)
        return loss


def mask_padding(logits_V: torch.Tensor, *, num_ids: int, num_padded_rows: int) -> None:
    """Set the columns of ids >= num_ids to -inf in place, where this rank holds any of them.

    Outside autograd on purpose: the cross entropy's gradient in these columns is exp(-inf) = 0 already, and a recorded
    in-place write would cost a copy of the whole gradient of the logits.
    """
    num_columns = logits_V.shape[-1]
    first_id = 0 if num_columns == num_padded_rows else parallel_state.get_tensor_model_parallel_rank() * num_columns
    first_padding = max(num_ids - first_id, 0)
    if first_padding < num_columns:
        logits_V.detach()[..., first_padding:].fill_(float("-inf"))


def check_layout(shape: ModelShape, vocab: VocabLayout, layout: Layout) -> None:
    """Refuse a model or a batch that does not divide over the layout's ranks, and a sequence longer than the model's positions.

    The plan has made the same checks; a plan that was edited by hand meets them here.

    Raises:
        ConfigError: listing every size that does not divide.
    """
    by_tensor = {
        "num_attention_heads": shape.num_attention_heads,
        "num_query_groups": shape.num_query_groups,
        "ffn_hidden_size": shape.ffn_hidden_size,
        "num_padded_rows": vocab.num_padded_rows,
    }
    problems = [
        f"parallel.tensor={layout.tensor} does not divide {name}={size}" for name, size in by_tensor.items() if size % layout.tensor
    ]
    problems += expert_problems(
        shape, expert=layout.expert, tensor=layout.tensor, data=layout.data, sequence_parallel=layout.sequence_parallel
    )
    problems += shape.training_problems()
    problems += stage_problems(shape.num_layers, pipeline=layout.pipeline, virtual_pipeline=layout.virtual_pipeline)
    problems += batch_problems(
        layout.global_batch_size,
        micro_batch_size=layout.micro_batch_size,
        data=layout.data,
        pipeline=layout.pipeline,
        virtual_pipeline=layout.virtual_pipeline,
    )
    if layout.sequence_length > shape.max_position:
        problems.append(f"parallel.sequence_length={layout.sequence_length} is longer than the model's {shape.max_position} positions")
    if layout.sequence_parallel and layout.sequence_length % layout.tensor:
        problems.append(f"parallel.tensor={layout.tensor} does not divide sequence_length={layout.sequence_length} (sequence_parallel)")
    problems += context_problems(
        layout.sequence_length,
        context=layout.context,
        tensor=layout.tensor,
        sequence_parallel=layout.sequence_parallel and layout.tensor > 1,
    )
    if not vocab.num_base_ids <= vocab.num_ids <= vocab.num_padded_rows:
        problems.append(f"vocabulary sizes do not grow: {vocab.num_base_ids} base ids, {vocab.num_ids} ids, {vocab.num_padded_rows} rows")
    raise_all(ConfigError, problems, where="parallel", next_step="Choose degrees that divide the model (conf/parallel/).")


def transformer_config(shape: ModelShape, layout: Layout, *, backend: Backend, **overrides: Any) -> TransformerConfig:
    """Return megatron's configuration of a model.

    `calculate_per_token_loss` is set here because DDP reads it when it is built; set later, gradients are scaled twice.
    """
    params_dtype, traits = PARAMS_DTYPE[layout.dtype], shape.traits
    fields: dict[str, Any] = {
        "num_layers": shape.num_layers,
        "hidden_size": shape.hidden_size,
        "num_attention_heads": shape.num_attention_heads,
        "num_query_groups": shape.num_query_groups,
        "kv_channels": shape.head_dim,
        "ffn_hidden_size": shape.ffn_hidden_size,
        "normalization": "RMSNorm" if traits.norm == "rms" else "LayerNorm",
        "layernorm_epsilon": shape.norm_epsilon,
        "gated_linear_unit": traits.gated,
        "activation_func": functional.silu if traits.activation == "silu" else gelu_tanh,
        "layernorm_zero_centered_gamma": traits.gemma,
        "add_bias_linear": traits.bias,
        "add_qkv_bias": traits.qkv_bias,
        "qk_layernorm": traits.qk_norm,  # megatron then sums the gradients of these norms, which are of other heads on each tensor rank
        "softmax_scale": softmax_scale(shape),
        "window_size": (shape.window - 1, 0) if shape.window else None,  # tokens to the left and right of the own one
        "window_attn_skip_freq": shape.full_every or None,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "tensor_model_parallel_size": layout.tensor,
        "pipeline_model_parallel_size": layout.pipeline,
        "virtual_pipeline_model_parallel_size": layout.virtual_pipeline if layout.virtual_pipeline > 1 else None,
        # Interleaved stages send in both directions at once. In one batch, two ranks cannot tell what belongs to which direction, and with
        # two stages they took a gradient for an activation, without a word. Sent apart, the directions use groups of their own.
        "overlap_p2p_comm": layout.virtual_pipeline > 1,
        "batch_p2p_comm": layout.virtual_pipeline == 1,
        "sequence_parallel": layout.sequence_parallel and layout.tensor > 1,
        "context_parallel_size": layout.context,
        # Transformer Engine's: keys and values go round the ranks beside the products. CausalAttention gathers them at once.
        "cp_comm_type": "p2p" if layout.context > 1 else None,
        "params_dtype": params_dtype,
        "pipeline_dtype": params_dtype,
        "bf16": layout.dtype == "bf16",
        "calculate_per_token_loss": True,
        **RECOMPUTE[layout.recompute],
        **(_expert_fields(shape, layout) if shape.num_experts else {}),
        **({"fp8": layout.fp8, "fp8_recipe": layout.fp8_recipe} if layout.fp8 != "none" else {}),
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="full scope is deprecated")  # a default of megatron's own, about CUDA graphs
        return TransformerConfig(**{**fields, **backend.config_overrides(has_experts=shape.num_experts > 0), **overrides})


def _expert_fields(shape: ModelShape, layout: Layout) -> dict[str, Any]:
    """Return what a mixture of experts adds.

    Softmax over the chosen experts' logits is the softmax over all of them, renormalised over the chosen.
    """
    return {
        "num_moe_experts": shape.num_experts,
        "moe_ffn_hidden_size": shape.ffn_hidden_size,
        "moe_router_topk": shape.experts_per_token,
        "moe_router_pre_softmax": not shape.renormalise_experts,
        "moe_router_load_balancing_type": "none",
        "expert_model_parallel_size": layout.expert,
        "expert_tensor_parallel_size": layout.tensor,
        **({"recompute_modules": ["moe"]} if layout.recompute == "selective" else {}),
    }


def gelu_tanh(hidden: torch.Tensor) -> torch.Tensor:
    """Return GELU by its tanh formula (Hendrycks and Gimpel 2016, arXiv 1606.08415), which GPT-2 was trained with."""
    return functional.gelu(hidden, approximate="tanh")


def softmax_scale(shape: ModelShape) -> float | None:
    """Return the scale of attention logits, None for the usual one.

    Yarn multiplies the cosines and sines of queries and keys by a factor: their products by its square.
    """
    factor = 1.0 if shape.rotary_scaling is None else shape.rotary_scaling.attention_factor
    if factor == 1.0 and not shape.query_scalar:
        return None
    return factor**2 / math.sqrt(shape.query_scalar or shape.head_dim)


def build_chunks(
    shape: ModelShape,
    vocab: VocabLayout,
    layout: Layout,
    *,
    backend: Backend,
    initialise_weights: bool = True,
    router_aux_loss: float = 0.0,
) -> list[CptModel]:
    """Build this rank's part of the model: `layout.virtual_pipeline` chunks, in the order of their layers.

    With 8 layers, 2 pipeline ranks and 2 chunks a rank, rank 0 holds layers 0, 1 and 4, 5, and rank 1 holds 2, 3 and 6, 7. All
    chunks share one configuration, because megatron reads and sets its functions on the first chunk's.

    Args:
        initialise_weights: False leaves parameters unset, for a caller that loads every one of them.
        router_aux_loss: weight of the routers' load-balancing loss; it acts on gradients and never enters the loss that is returned.

    Raises:
        ConfigError: the model does not divide over the layout.
    """
    check_layout(shape, vocab, layout)
    raise_all(ConfigError, backend.problems_of(layout), where="parallel", next_step="Change the named keys, or the environment.")
    balancing = {"moe_router_load_balancing_type": "aux_loss", "moe_aux_loss_coeff": router_aux_loss} if router_aux_loss else {}
    config = transformer_config(shape, layout, backend=backend, perform_initialization=initialise_weights, **balancing)
    logging.getLogger("megatron.core.models.gpt.gpt_model").addFilter(_not_the_deprecation)
    spec = backend.layer_spec(config)  # the same for every chunk: layers divide evenly
    chunks = [
        CptModel(
            config=config,
            transformer_layer_spec=spec,
            vocab_size=vocab.num_padded_rows,
            max_sequence_length=shape.max_position,
            pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=vp_stage),
            post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=vp_stage),
            parallel_output=True,
            share_embeddings_and_output_weights=shape.tied_embeddings,
            position_embedding_type="rope" if shape.traits.positions == "rotary" else "learned_absolute",
            rotary_base=shape.rotary_base,
            vp_stage=vp_stage,
            vocab=vocab,
        )
        for vp_stage in (range(layout.virtual_pipeline) if layout.virtual_pipeline > 1 else [None])
    ]
    for chunk in chunks:
        _set_rotary(chunk, shape)
        if shape.traits.positions == "learned" and chunk.pre_process:
            chunk.embedding.position_embeddings.to(config.params_dtype)  # megatron makes this table in fp32, whatever the others are
        if shape.traits.gemma and chunk.pre_process:
            chunk.embedding.register_forward_hook(_scale_embedding)
    return [chunk.to(backend.device) for chunk in chunks]


def _set_rotary(chunk: CptModel, shape: ModelShape) -> None:
    """Put stretched frequencies in the place of megatron's, and beside them those of layers with a window."""
    if shape.traits.positions != "rotary":
        return
    far = chunk.rotary_pos_emb
    if shape.window_rotary_base:
        near = copy.copy(far)  # shares its process group, which cannot be copied
        periods = shape.window_rotary_base ** (torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim)
        near.inv_freq = (1.0 / periods).to(far.inv_freq.device)
        chunk.rotary_pos_emb = TwoRotaries(far, near)
    if shape.rotary_scaling is not None:
        frequencies = rotary_frequencies(shape.rotary_scaling, base=shape.rotary_base, head_dim=shape.head_dim)
        assert far.inv_freq.shape == frequencies.shape, "one frequency for each pair of columns"
        far.inv_freq = frequencies.to(far.inv_freq.device)


def _scale_embedding(_: Any, __: Any, embedded: torch.Tensor) -> torch.Tensor:
    """Multiply by the root of the hidden size, rounded to the weights' type as in Gemma's own code."""
    return embedded * torch.tensor(math.sqrt(embedded.shape[-1]), dtype=embedded.dtype)


def _not_the_deprecation(record: logging.LogRecord) -> bool:
    # Newer megatron-core announces GPTModel's successor at every build; this module is where it will be taken up.
    return "GPTModel IS DEPRECATED" not in record.getMessage()


def inner_model(chunk: torch.nn.Module) -> CptModel:
    """Return the model inside megatron's wrappers (DDP, Float16Module)."""
    while not isinstance(chunk, CptModel):
        chunk = chunk.module  # type: ignore[assignment]
    return chunk
