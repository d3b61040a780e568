"""Parameter counts of a Llama-family decoder, whole and per rank, by formulas that can be checked by hand."""

from __future__ import annotations

from megatron_cpt.plan.model_shape import ModelShape


def matrix_params_per_layer(shape: ModelShape) -> int:
    """Count the weights of one layer's matrices: query, key, value, output, and the three of the gated MLP. No biases."""
    query_and_output = 2 * shape.hidden_size * shape.num_attention_heads * shape.head_dim
    key_and_value = 2 * shape.hidden_size * shape.num_query_groups * shape.head_dim
    gated_mlp = 3 * shape.hidden_size * shape.ffn_hidden_size
    return query_and_output + key_and_value + gated_mlp


def norm_params_per_layer(shape: ModelShape) -> int:
    """Count the two RMSNorm scales of one layer; every tensor rank holds them whole."""
    return 2 * shape.hidden_size


def num_params(shape: ModelShape, *, num_rows: int) -> int:
    """Count every parameter of the model once, with `num_rows` rows of embedding; tied embeddings count once."""
    layers = shape.num_layers * (matrix_params_per_layer(shape) + norm_params_per_layer(shape))
    embeddings = num_rows * shape.hidden_size * (1 if shape.tied_embeddings else 2)
    return layers + embeddings + shape.hidden_size  # the last term is the final norm


def rank_params(shape: ModelShape, *, num_rows: int, tensor: int, pipeline: int, pipeline_rank: int) -> int:
    """Count the parameters that one rank of a pipeline stage holds.

    The first stage holds the embedding and the last one the output matrix; when they are tied and the stages differ, the last
    stage holds its own copy. Layers must divide by `pipeline`, and every split size by `tensor`.
    """
    is_first, is_last = pipeline_rank == 0, pipeline_rank == pipeline - 1
    count = shape.num_layers // pipeline * (matrix_params_per_layer(shape) // tensor + norm_params_per_layer(shape))
    shard = num_rows * shape.hidden_size // tensor
    if is_first:
        count += shard
    if is_last:
        holds_it_already = is_first and shape.tied_embeddings
        count += shape.hidden_size + (0 if holds_it_already else shard)
    return count
