"""Parameter counts of a decoder of any supported family, whole and per rank, by formulas that can be checked by hand."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_cpt.plan.model_shape import ModelShape


@dataclass(frozen=True)
class LayerParams:
    """Parameters of one layer, by how ranks share them.

    Attributes:
        split: cut over tensor-parallel ranks.
        whole: held by every tensor-parallel rank.
        experts: cut over tensor- and expert-parallel ranks.
    """

    split: int
    whole: int
    experts: int

    @property
    def total(self) -> int:
        return self.split + self.whole + self.experts

    def on_rank(self, *, tensor: int, expert: int) -> int:
        return self.split // tensor + self.whole + self.experts // (tensor * expert)


def attention_params(shape: ModelShape) -> int:
    """Count the weights of the query, key, value and output matrices of one layer. No biases."""
    return 2 * shape.hidden_size * (shape.num_attention_heads + shape.num_query_groups) * shape.head_dim


def mlp_params(shape: ModelShape) -> int:
    """Count the weights of one MLP, or of one expert: three matrices when it is gated, else two. No biases."""
    return (3 if shape.traits.gated else 2) * shape.hidden_size * shape.ffn_hidden_size


def router_params(shape: ModelShape) -> int:
    return shape.num_experts * shape.hidden_size


def matrix_params_per_layer(shape: ModelShape, *, expert: int = 1) -> int:
    """Count the weights of one layer's matrices on a rank that holds 1/`expert` of the experts. No biases."""
    mlps = shape.num_experts // expert if shape.num_experts else 1
    return attention_params(shape) + router_params(shape) + mlps * mlp_params(shape)


def active_matrix_params_per_layer(shape: ModelShape) -> int:
    """Count the weights of one layer that a token is multiplied with: of its experts only those that it is sent to."""
    return attention_params(shape) + router_params(shape) + (shape.experts_per_token or 1) * mlp_params(shape)


def norm_params(shape: ModelShape) -> int:
    """Count one norm over the hidden size: a scale, and for a layer norm a bias."""
    return shape.hidden_size * (2 if shape.traits.norm == "layer" else 1)


def layer_params(shape: ModelShape) -> LayerParams:
    """Count one layer: matrices, biases, its norms (with Gemma also behind attention and MLP), and those of queries and keys."""
    traits = shape.traits
    split = attention_params(shape) + (0 if shape.num_experts else mlp_params(shape))
    split += (shape.num_attention_heads + 2 * shape.num_query_groups) * shape.head_dim if traits.qkv_bias else 0
    split += shape.ffn_hidden_size if traits.bias else 0
    whole = (4 if traits.gemma else 2) * norm_params(shape) + router_params(shape)
    whole += 2 * shape.hidden_size if traits.bias else 0
    whole += 2 * shape.head_dim if traits.qk_norm else 0
    return LayerParams(split=split, whole=whole, experts=shape.num_experts * mlp_params(shape))


def position_params(shape: ModelShape) -> int:
    """Count the table of learned positions."""
    return shape.max_position * shape.hidden_size if shape.traits.positions == "learned" else 0


def num_params(shape: ModelShape, *, num_rows: int) -> int:
    """Count every parameter of the model once, with `num_rows` rows of embedding; tied embeddings count once."""
    embeddings = num_rows * shape.hidden_size * (1 if shape.tied_embeddings else 2)
    return shape.num_layers * layer_params(shape).total + embeddings + position_params(shape) + norm_params(shape)


def rank_params(shape: ModelShape, *, num_rows: int, tensor: int, pipeline: int, pipeline_rank: int, expert: int = 1) -> int:
    """Count the parameters that one rank of a pipeline stage holds.

    The first stage holds the embedding and the positions, and the last one the output matrix; when they are tied and the stages
    differ, the last stage holds its own copy. Layers must divide by `pipeline`, every split size by `tensor`, experts by `expert`.
    """
    is_first, is_last = pipeline_rank == 0, pipeline_rank == pipeline - 1
    count = shape.num_layers // pipeline * layer_params(shape).on_rank(tensor=tensor, expert=expert)
    shard = num_rows * shape.hidden_size // tensor
    if is_first:
        count += shard + position_params(shape)
    if is_last:
        holds_it_already = is_first and shape.tied_embeddings
        count += norm_params(shape) + (0 if holds_it_already else shard)
    return count


def rank_expert_params(shape: ModelShape, *, tensor: int, pipeline: int, expert: int) -> int:
    """Count those of `rank_params` that belong to experts: fewer data-parallel ranks share their optimizer state."""
    return shape.num_layers // pipeline * layer_params(shape).experts // (tensor * expert)
