"""Bytes that a layer reads and writes outside its matrix products and its attention, for one micro-batch on one rank."""

from __future__ import annotations

from megatron_cpt.plan.kernels import Kernels
from megatron_cpt.plan.layer_key import LayerKey
from megatron_cpt.plan.model_shape import ModelShape


def moved_forward(shape: ModelShape, key: LayerKey, kernels: Kernels, *, is_attention: bool) -> float:
    """Count the bytes that attention or MLP reads and writes outside its products, forward.

    Norm: its input and output. Residual: output, input and sum, and a mask of one byte with dropout. Positions turn queries and keys
    in place. The activation reads the middle (twice as wide when gated) and writes it.
    """
    held, hidden, width = key.num_held_tokens, shape.hidden_size, key.element_bytes
    moved = held * hidden * (2 * width + 3 * width + (1 if kernels.dropout else 0))
    if shape.traits.gemma:
        moved += held * hidden * 2 * width
    if is_attention:
        moved += width * _positions_moved(shape, key)
    else:
        moved += _mlp_middle_moved(shape, key, 3 if shape.traits.gated else 2)
    return float(moved + _cast_moved(shape, key, is_attention=is_attention))


def moved_backward(shape: ModelShape, key: LayerKey, kernels: Kernels, *, is_attention: bool) -> float:
    """Count the bytes that attention or MLP reads and writes outside its products, backward.

    Norm: input, gradient and result. Residual: the gradient is read and written, masked with dropout, and added to the other branch's
    (three more). Biases read the gradients that they sum. The activation reads input and gradient and writes a gradient.
    """
    tokens, hidden, width = key.num_tokens, shape.hidden_size, key.element_bytes
    held = key.num_held_tokens
    moved = held * hidden * (3 * width + 3 * width + ((2 * width + 1) if kernels.dropout else 0))
    if shape.traits.gemma:
        moved += held * hidden * 3 * width
    if shape.traits.bias:
        moved += width * tokens * (hidden + (0 if is_attention else shape.ffn_hidden_size // key.tensor))
    if is_attention:
        moved += width * _positions_moved(shape, key)
    else:
        moved += _mlp_middle_moved(shape, key, 5 if shape.traits.gated else 3)
    return float(moved + 2 * _cast_moved(shape, key, is_attention=is_attention))


def _positions_moved(shape: ModelShape, key: LayerKey) -> int:
    """Count the numbers that positions, and norms of queries and keys, read and write; each way the same.

    Latent attention norms the squeezed vectors, turns some columns, and joins them with the others in queries and keys.
    """
    latent, heads = shape.latent, shape.num_attention_heads // key.tensor
    if latent is not None:
        squeezed = latent.query_rank + latent.key_value_rank
        return 2 * key.num_held_tokens * squeezed + 2 * key.num_tokens * heads * (latent.rotary_dim + 2 * latent.query_dim)
    turned = (shape.num_attention_heads + shape.num_query_groups) * shape.head_dim // key.tensor
    return 2 * key.num_tokens * turned * ((shape.traits.positions != "learned") + shape.traits.qk_norm)


def _mlp_middle_moved(shape: ModelShape, key: LayerKey, steps: int) -> int:
    """Count `steps` readings or writings of the middle; tokens of experts are also sorted by expert and back, both ways."""
    copies = max(shape.experts_per_token, 1)
    moved = steps * key.element_bytes * key.num_tokens * copies * shape.ffn_hidden_size // key.tensor
    if shape.num_experts:
        moved += steps * key.element_bytes * key.num_tokens * shape.shared_ffn_hidden_size // key.tensor
        moved += 8 * key.element_bytes * key.num_held_tokens * copies * shape.hidden_size
    return moved


def _cast_moved(shape: ModelShape, key: LayerKey, *, is_attention: bool) -> int:
    """Count what FP8 adds: the input of each product is read and written twice at one byte, straight and transposed."""
    if not key.fp8:
        return 0
    if is_attention:
        middle = shape.num_attention_heads * (shape.latent.value_dim if shape.latent else shape.head_dim)
        return 4 * key.num_tokens * (shape.hidden_size + middle // key.tensor)
    copies = max(shape.experts_per_token, 1)
    moved = 4 * key.num_tokens * copies * (shape.hidden_size + shape.ffn_hidden_size // key.tensor)
    return moved + 4 * key.num_tokens * shape.shared_ffn_hidden_size // key.tensor
