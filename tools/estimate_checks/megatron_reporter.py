"""Megatron-LM's own estimate of a rank's memory (megatron/training/theoretical_memory_usage.py), as its formulas stand there.

It is here to be compared with: its rank is the first stage's, it knows neither grouped queries nor experts nor a score matrix among the
activations, and counts without sequence parallelism unless recomputation is selective.
"""

from __future__ import annotations

from estimate_checks.golden_cases import Case
from megatron_cpt.plan.parameters import layers_params, norm_params


def reported_bytes(case: Case) -> float:
    """Return weights, gradients, optimizer state and activations as Megatron-LM's reporter prints them."""
    shape, layout = case.shape, case.layout
    layers = layers_params(shape, num_layers=shape.num_layers, num_dense=shape.num_dense_layers)
    biases = (3 * shape.hidden_size + shape.ffn_hidden_size) * shape.num_layers if shape.traits.bias else 0  # which it leaves out
    rows = case.num_rows * shape.hidden_size
    per_rank = (layers.total - biases + norm_params(shape)) / layout.pipeline + rows * (
        1 if shape.tied_embeddings or layout.pipeline > 1 else 2
    )
    per_param = 6 + 12 / layout.data if layout.distributed_optimizer else 18
    return per_rank / layout.tensor * per_param + (_with_sequence_parallel(case) if _takes_that_branch(case) else _without(case))


def _takes_that_branch(case: Case) -> bool:
    return case.layout.sequence_parallel and case.layout.recompute == "selective"


def _penalty(case: Case) -> float:
    layout = case.layout
    if layout.virtual_pipeline > 1:
        return 1 + (layout.pipeline - 1) / (layout.pipeline * layout.virtual_pipeline)
    return min(1.0, layout.num_microbatches / layout.pipeline)


def _tokens_times_hidden(case: Case) -> float:
    return case.layout.sequence_length * case.layout.micro_batch_size * case.shape.hidden_size


def _embedding(case: Case) -> float:
    tokens = case.layout.sequence_length * case.layout.micro_batch_size
    return (8 * tokens + _tokens_times_hidden(case)) * case.layout.pipeline


def _with_sequence_parallel(case: Case) -> float:
    shape, size = case.shape, _tokens_times_hidden(case)
    total = (size * (18 + 4 * shape.ffn_hidden_size / shape.hidden_size) * shape.num_layers + _embedding(case)) * _penalty(case)
    if case.layout.pipeline == 1:
        total += 4 * size * (1 + case.num_rows / shape.hidden_size)
    return total / case.layout.tensor


def _without(case: Case) -> float:
    size, tensor = _tokens_times_hidden(case), case.layout.tensor
    total = (size * (10 + 24 / tensor) * case.shape.num_layers + _embedding(case)) * _penalty(case)
    if case.layout.pipeline == 1:
        total += 2 * (size / case.shape.hidden_size * case.num_rows / tensor + size)
    return 1.05 * total
