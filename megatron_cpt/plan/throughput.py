"""FLOPs per token and the time that they take, as an interval. An unknown device has no time, never a default one."""

from __future__ import annotations

from megatron_cpt.errors import ConfigError
from megatron_cpt.plan.model_shape import ModelShape
from megatron_cpt.plan.parameters import active_matrix_params, mlp_params, shared_params
from megatron_cpt.plan.run_plan import Layout
from megatron_cpt.record.unknown import Figure, Interval, Unavailable

FLOPS_CONVENTION = "model FLOPs, forward + backward, causal attention (half the square), output layer counted, recompute not counted"


def flops_per_token(shape: ModelShape, *, num_rows: int, sequence_length: int, causal: bool = True) -> float:
    """Count the model FLOPs of one token, forward and backward.

    Two FLOPs per weight of every matrix that the token meets (of experts those that it is sent to) and of the output layer, plus the
    two products of queries, keys and values (4 s d_h a per layer, halved when `causal`); three times that for forward and backward.
    Latent attention has heads of two widths (DeepSeek-V2, arXiv 2405.04434, section 2.1), and a layer of multi-token prediction an
    output layer of its own. It is the count that Megatron-LM prints as its model FLOPs. The same run reads about 12 % higher (8B,
    8,192 tokens) without `causal`, so a figure always names its convention.
    """
    seen = tokens_seen(shape, sequence_length=sequence_length, causal=causal)
    seen += shape.num_mtp_layers * sequence_length * (0.5 if causal else 1.0)
    attention = 2 * head_columns(shape) * shape.num_attention_heads * seen
    layers = 2 * active_matrix_params(shape) + attention
    return 3 * (layers + 2 * shape.hidden_size * num_rows * (1 + shape.num_mtp_layers))


def head_columns(shape: ModelShape) -> int:
    """Count the columns of a head that its two products multiply: those of a key and those of a value."""
    return shape.latent.query_dim + shape.latent.value_dim if shape.latent else 2 * shape.head_dim


def tokens_seen(shape: ModelShape, *, sequence_length: int, causal: bool) -> float:
    """Return how many tokens a query attends to, summed over the layers: s, on average half of it when `causal`.

    With a window of w < s, w - w^2 / (2 s) in its layers: the first w tokens of a sequence see less.
    """
    everything = sequence_length * (0.5 if causal else 1.0)
    num_full = shape.num_layers // shape.full_every if shape.full_every else 0
    if not 0 < shape.window < sequence_length:
        return shape.num_layers * everything
    in_window = shape.window - shape.window**2 / (2 * sequence_length)
    return num_full * everything + (shape.num_layers - num_full) * in_window


def model_flops_utilization(*, flops: float, seconds: float, num_devices: int, dense_tflops: float) -> float:
    """Return the share of the devices' dense peak that was used.

    Raises:
        ConfigError: the share is over 1, so the peak, the convention or the time is wrong.
    """
    utilization = flops / (seconds * num_devices * dense_tflops * 1e12)
    if utilization > 1:
        raise ConfigError(
            f"Model FLOPs utilization is {utilization:.0%}.",
            value=f"{flops:.4g} FLOP in {seconds:.4g} s on {num_devices} x {dense_tflops} TFLOP/s",
            rule="no device computes faster than its dense peak",
            next_step="Correct gpu.dense_tflops: the dense figure of this device, not the one for sparse matrices.",
        )
    return utilization


def recomputed_flops_per_token(shape: ModelShape, *, sequence_length: int, recompute: str) -> float:
    """Count the FLOPs that the backward pass repeats for one token: one forward pass of each layer, or of each layer's MLP.

    Model FLOPs leave them out (FLOPS_CONVENTION), so they lengthen a step at an equal share of the peak (Korthikanti et al.
    2022, appendix A: hardware against model FLOPs).
    """
    if recompute == "none":
        return 0.0
    if recompute == "selective":
        of_experts = shape.num_layers + shape.num_mtp_layers - shape.num_dense_layers
        count = of_experts * ((shape.experts_per_token or 1) * mlp_params(shape) + shared_params(shape))
        if shape.num_dense_layers:
            count += shape.num_dense_layers * mlp_params(shape, ffn_hidden_size=shape.dense_ffn_hidden_size)
        return 2.0 * count
    return flops_per_token(shape, num_rows=0, sequence_length=sequence_length) / 3


def bubble_fraction(layout: Layout) -> float:
    """Return the idle share of a step, in units of the step's work: (p - 1) / (v m) (Narayanan et al. 2021, section 2.2)."""
    return (layout.pipeline - 1) / (layout.virtual_pipeline * layout.num_microbatches)


def training_seconds(
    *, total_flops: float, layout: Layout, dense_tflops: Figure, utilization: Interval | Unavailable
) -> Interval | Unavailable:
    """Estimate the seconds of all steps. `utilization.high` gives the low end and `utilization.low` the high end.

    Args:
        total_flops: of all ranks and steps, those that are computed twice counted twice.
    """
    if isinstance(dense_tflops, Unavailable):
        return dense_tflops
    if isinstance(utilization, Unavailable):
        return utilization
    busy = total_flops / (layout.num_ranks * dense_tflops * 1e12)
    whole = busy * (1 + bubble_fraction(layout))
    return Interval(low=whole / utilization.high, likely=whole / utilization.likely, high=whole / utilization.low)
