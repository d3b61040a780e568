"""Parameter counts of a decoder of any family, whole and per rank, by formulas that can be checked by hand."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_cpt.plan.model_shape import ModelShape


@dataclass(frozen=True)
class LayerParams:
    """Parameters of one layer, or of several, by how ranks share them.

    Attributes:
        split: cut over tensor-parallel ranks.
        whole: held by every tensor-parallel rank.
        experts: cut over expert-parallel ranks, and over those tensor-parallel ranks that share an expert.
    """

    split: int
    whole: int
    experts: int

    @property
    def total(self) -> int:
        return self.split + self.whole + self.experts

    def on_rank(self, *, tensor: int, expert: int, expert_tensor: int | None = None) -> int:
        return self.split // tensor + self.whole + self.experts // ((expert_tensor or tensor) * expert)


def attention_params(shape: ModelShape) -> int:
    """Count the weights of the matrices of one layer's attention. No biases, no norms.

    Query, key, value and output; with latent attention the matrices down to the ranks and up from them, in their place.
    """
    hidden, heads, latent = shape.hidden_size, shape.num_attention_heads, shape.latent
    if latent is None:
        return 2 * hidden * (heads + shape.num_query_groups) * shape.head_dim
    return latent_down_params(shape) + latent_up_params(shape) + heads * latent.value_dim * hidden


def latent_down_params(shape: ModelShape) -> int:
    """Count the matrices down to the ranks of latent attention, which every tensor-parallel rank holds whole."""
    latent = shape.latent
    return shape.hidden_size * (latent.query_rank + latent.key_value_rank + latent.rotary_dim) if latent else 0


def latent_up_params(shape: ModelShape) -> int:
    """Count the matrices up from the ranks of latent attention to the heads."""
    latent = shape.latent
    if latent is None:
        return 0
    from_queries = latent.query_rank or shape.hidden_size
    return shape.num_attention_heads * (from_queries * latent.query_dim + latent.key_value_rank * (latent.plain_dim + latent.value_dim))


def mlp_params(shape: ModelShape, *, ffn_hidden_size: int | None = None) -> int:
    """Count the weights of one MLP, or of one expert: three matrices when it is gated, else two. No biases."""
    return (3 if shape.traits.gated else 2) * shape.hidden_size * (ffn_hidden_size or shape.ffn_hidden_size)


def shared_params(shape: ModelShape) -> int:
    """Count the weights of the expert that every token is sent to."""
    return mlp_params(shape, ffn_hidden_size=shape.shared_ffn_hidden_size) if shape.shared_ffn_hidden_size else 0


def router_params(shape: ModelShape) -> int:
    return shape.num_experts * shape.hidden_size


def matrix_params_per_layer(shape: ModelShape, *, expert: int = 1) -> int:
    """Count the weights of one layer's matrices on a rank that holds 1/`expert` of the experts. No biases."""
    mlps = shape.num_experts // expert if shape.num_experts else 1
    return attention_params(shape) + router_params(shape) + shared_params(shape) + mlps * mlp_params(shape)


def active_matrix_params_per_layer(shape: ModelShape, *, dense: bool = False) -> int:
    """Count the weights of one layer that a token is multiplied with: of its experts only those that it is sent to.

    `dense` is one of the first layers of a mixture of experts that have none.
    """
    if dense:
        return attention_params(shape) + mlp_params(shape, ffn_hidden_size=shape.dense_ffn_hidden_size)
    return attention_params(shape) + router_params(shape) + shared_params(shape) + (shape.experts_per_token or 1) * mlp_params(shape)


def active_matrix_params(shape: ModelShape) -> int:
    """Count the weights of all layers that a token is multiplied with; multi-token prediction adds layers and a joining matrix each."""
    usual = active_matrix_params_per_layer(shape)
    count = (shape.num_layers - shape.num_dense_layers) * usual
    if shape.num_dense_layers:
        count += shape.num_dense_layers * active_matrix_params_per_layer(shape, dense=True)
    return count + shape.num_mtp_layers * (usual + 2 * shape.hidden_size * shape.hidden_size)


def norm_params(shape: ModelShape) -> int:
    """Count one norm over the hidden size: a scale, and for a layer norm a bias."""
    return shape.hidden_size * (2 if shape.traits.norm == "layer" else 1)


def layer_params(shape: ModelShape, *, dense: bool = False) -> LayerParams:
    """Count one layer: matrices, biases, its norms (with Gemma also behind attention and MLP), and those of queries and keys.

    `dense` is one of the first layers of a mixture of experts that have none.
    """
    traits, latent = shape.traits, shape.latent
    has_experts = shape.num_experts > 0 and not dense
    split = attention_params(shape) - latent_down_params(shape)
    whole = (4 if traits.gemma else 2) * norm_params(shape) + latent_down_params(shape)
    if has_experts:
        split += shared_params(shape)
        whole += router_params(shape)
    else:
        split += mlp_params(shape, ffn_hidden_size=shape.dense_ffn_hidden_size if shape.num_experts else None)
    if traits.qkv_bias:
        split += (shape.num_attention_heads + 2 * shape.num_query_groups) * shape.head_dim
    if traits.bias:
        split += shape.ffn_hidden_size
        whole += 2 * shape.hidden_size
    if latent is not None:
        whole += (latent.query_rank + latent.key_value_rank) * (2 if traits.norm == "layer" else 1)
    elif traits.qk_norm:
        whole += 2 * shape.head_dim
    return LayerParams(split=split, whole=whole, experts=shape.num_experts * mlp_params(shape) if has_experts else 0)


def prediction_params(shape: ModelShape) -> LayerParams:
    """Count one layer of multi-token prediction: a layer, the matrix that joins embedding and hidden state, and its three norms."""
    layer = layer_params(shape)
    joined = 2 * shape.hidden_size * shape.hidden_size
    return LayerParams(split=layer.split + joined, whole=layer.whole + 3 * norm_params(shape), experts=layer.experts)


def position_params(shape: ModelShape) -> int:
    """Count the table of learned positions."""
    return shape.max_position * shape.hidden_size if shape.traits.positions == "learned" else 0


def layers_params(shape: ModelShape, *, num_layers: int, num_dense: int = 0, num_predicting: int = 0) -> LayerParams:
    """Count so many layers together, `num_dense` of them without experts, and so many of multi-token prediction beside them."""
    counts = [(layer_params(shape), num_layers - num_dense)]
    counts += [(layer_params(shape, dense=True), num_dense)] if num_dense else []
    counts += [(prediction_params(shape), num_predicting)] if num_predicting else []
    return LayerParams(
        split=sum(layer.split * count for layer, count in counts),
        whole=sum(layer.whole * count for layer, count in counts),
        experts=sum(layer.experts * count for layer, count in counts),
    )


def num_params(shape: ModelShape, *, num_rows: int) -> int:
    """Count every parameter of the model once, with `num_rows` rows of embedding; tied embeddings count once."""
    embeddings = num_rows * shape.hidden_size * (1 if shape.tied_embeddings else 2)
    layers = layers_params(
        shape, num_layers=shape.num_layers, num_dense=shape.num_dense_layers, num_predicting=shape.num_mtp_layers
    )  # fmt: skip
    return layers.total + embeddings + position_params(shape) + norm_params(shape)


def stage_layers(
    shape: ModelShape, *, pipeline: int, pipeline_rank: int, layers: int | None = None, first: int | None = None
) -> LayerParams:
    """Count the layers of one stage: an equal part of all, or so many as are given, of which the `first` ones of the model are dense."""
    num_layers = shape.num_layers // pipeline if layers is None else layers
    first_layer = pipeline_rank * num_layers if first is None else first
    num_dense = max(0, min(shape.num_dense_layers - first_layer, num_layers))
    is_last = pipeline_rank == pipeline - 1
    return layers_params(shape, num_layers=num_layers, num_dense=num_dense, num_predicting=shape.num_mtp_layers if is_last else 0)


def outer_params(shape: ModelShape, *, num_rows: int, tensor: int, pipeline: int, pipeline_rank: int) -> int:
    """Count what a stage's rank holds beside layers: the embedding and positions first, the final norm and output matrix last.

    Tied rows are held twice where the first and the last stage differ. Multi-token prediction embeds on the last stage too.
    """
    is_first, is_last = pipeline_rank == 0, pipeline_rank == pipeline - 1
    shard = num_rows * shape.hidden_size // tensor
    embeds = is_first or (is_last and (shape.tied_embeddings or shape.num_mtp_layers > 0))
    count = shard if embeds else 0
    count += position_params(shape) if is_first else 0
    count += shard if is_last and not shape.tied_embeddings else 0
    return count + (norm_params(shape) if is_last else 0)


def rank_params(
    shape: ModelShape, *, num_rows: int, tensor: int, pipeline: int, pipeline_rank: int, expert: int = 1, expert_tensor: int | None = None
) -> int:
    """Count the parameters that one rank of a pipeline stage holds.

    Layers must divide by `pipeline`, every split size by `tensor`, experts by `expert`.
    """
    layers = stage_layers(shape, pipeline=pipeline, pipeline_rank=pipeline_rank)
    outer = outer_params(shape, num_rows=num_rows, tensor=tensor, pipeline=pipeline, pipeline_rank=pipeline_rank)
    return layers.on_rank(tensor=tensor, expert=expert, expert_tensor=expert_tensor) + outer
