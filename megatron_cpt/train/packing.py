"""What a token sees of the documents that are packed before its own. Shapes: B micro-batch, S sequence, D rotary columns.

A document ends with its end mark, which belongs to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from megatron_cpt.errors import ConfigError
from megatron_cpt.plan.run_plan import PackingPlan


def document_mask(tokens_BS: torch.Tensor, *, end: int) -> torch.Tensor:
    """Return a mask (B, 1, S, S) that is True where a query must not see a key: a later token, or one of another document."""
    ends_BS = (tokens_BS == end).int()
    document_BS = ends_BS.cumsum(dim=1) - ends_BS
    other_BSS = document_BS[:, :, None] != document_BS[:, None, :]
    length = tokens_BS.shape[1]
    later_SS = torch.ones(length, length, dtype=torch.bool, device=tokens_BS.device).triu(diagonal=1)
    return (other_BSS | later_SS)[:, None]


class PlacedRotary(torch.nn.Module):
    """Megatron's rotary embedding at given positions: alone it numbers the tokens of a sequence from 0, whatever their positions."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self._positions_BS: torch.Tensor | None = None

    @contextmanager
    def at(self, positions_BS: torch.Tensor) -> Iterator[None]:
        self._positions_BS = positions_BS
        try:
            yield
        finally:
            self._positions_BS = None

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return angles of shape (S, 1, 1, D), or (S, B, 1, D) inside `at`."""
        if self._positions_BS is None:
            angles_S11D: torch.Tensor = self.inner(*args, **kwargs)
            return angles_S11D
        # those of every position of a sequence: a context-parallel rank holds only some, which its positions name
        angles_T11D: torch.Tensor = self.inner.get_emb(*args)  # type: ignore[operator]
        return angles_T11D[:, 0, 0][self._positions_BS.T][:, :, None]

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)


def prepare(chunks: Sequence[Any], packing: PackingPlan) -> None:
    """Make this rank's bare chunks (before any wrapper) follow the plan's packing.

    Raises:
        ConfigError: attention must stay within documents, and the attention kernel in use reads no mask.
    """
    from megatron_cpt.backend.attention import CausalAttention  # noqa: PLC0415

    for chunk in chunks:
        if packing.reset_positions and hasattr(chunk, "rotary_pos_emb"):  # learned positions go by the ids that they are given
            chunk.rotary_pos_emb = PlacedRotary(chunk.rotary_pos_emb)
        if packing.cross_document_attention:
            continue
        kernels = {type(layer.self_attention.core_attention) for layer in chunk.decoder.layers}
        if not all(issubclass(kernel, CausalAttention) for kernel in kernels):
            raise ConfigError(
                "The attention kernel in use cannot keep documents apart.",
                where="blend.cross_document_attention",
                value="false with " + ", ".join(sorted(kernel.__name__ for kernel in kernels)),
                rule="torch's scaled_dot_product_attention, which is used where Transformer Engine is not installed",
                next_step="Set blend.cross_document_attention=true, or train in an environment without Transformer Engine.",
            )


@contextmanager
def positions_in_force(model: Any, positions_BS: torch.Tensor) -> Iterator[None]:
    """Turn the queries and keys of one forward pass by these positions, if the plan resets them."""
    rotary = getattr(model, "rotary_pos_emb", None)
    if not isinstance(rotary, PlacedRotary):
        yield
        return
    with rotary.at(positions_BS):
        yield
