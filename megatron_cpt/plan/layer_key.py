"""What of a layout the time of one layer depends on."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_cpt.plan.run_plan import Layout


@dataclass(frozen=True)
class LayerKey:
    """The part of a layout that a layer sees; layouts that differ elsewhere share a layer's time."""

    tensor: int
    context: int
    expert: int
    micro_batch_size: int
    sequence_length: int
    sequence_parallel: bool
    element_bytes: int
    fp8: bool
    recompute: str

    @property
    def num_tokens(self) -> int:
        """Tokens of a micro-batch on one context rank."""
        return self.sequence_length * self.micro_batch_size // self.context

    @property
    def num_held_tokens(self) -> int:
        """Those of which a rank holds the hidden states: sequence parallelism cuts them over the tensor ranks."""
        return self.num_tokens // (self.tensor if self.sequence_parallel else 1)


def key_of(layout: Layout) -> LayerKey:
    return LayerKey(
        tensor=layout.tensor,
        context=layout.context,
        expert=layout.expert,
        micro_batch_size=layout.micro_batch_size,
        sequence_length=layout.sequence_length,
        sequence_parallel=layout.sequence_parallel,
        element_bytes=4 if layout.dtype == "fp32" else 2,
        fp8=layout.fp8 != "none",
        recompute=layout.recompute,
    )
