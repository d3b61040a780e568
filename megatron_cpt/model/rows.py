"""Rules that give the first values of new embedding rows, from the base rows of the pieces they replace.

Shapes: V base rows, N new rows, H hidden columns. A new rule is one function and one line in `ROW_RULES`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from megatron_cpt.errors import ConfigError
from megatron_cpt.record.vocab_layout import FITTED_ROWS

# (base rows (V, H) in any type, base ids of each new id) -> new rows (N, H) in fp32
RowRule = Callable[[torch.Tensor, Sequence[Sequence[int]]], torch.Tensor]


def mean_rows(base_VH: torch.Tensor, parts: Sequence[Sequence[int]]) -> torch.Tensor:
    """Return for each new id the mean of the rows of the base ids that spelt it (Gee et al. 2022, arXiv 2210.16117)."""
    return torch.stack([base_VH[list(ids)].float().mean(dim=0) for ids in parts])


def mean_norm_rows(base_VH: torch.Tensor, parts: Sequence[Sequence[int]]) -> torch.Tensor:
    """Return the mean rows rescaled to the mean norm of their parts: a mean of differing rows is shorter than each of them."""
    mean_NH = mean_rows(base_VH, parts)
    norm_N = torch.stack([base_VH[list(ids)].float().norm(dim=1).mean() for ids in parts])
    scale_N: torch.Tensor = norm_N / mean_NH.norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
    return mean_NH * scale_N[:, None]


# The output rows are fitted to hidden states of the base (fit_rows.py), which takes domain text; untied input rows are the mean.
ROW_RULES: dict[str, RowRule] = {"mean": mean_rows, "mean_norm": mean_norm_rows, FITTED_ROWS: mean_rows}


def row_rule(name: str) -> RowRule:
    """Return a rule by its name.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in ROW_RULES:
        raise ConfigError(
            "The rule for new rows is not known.", where="tokenizer.row_init", value=name, rule=f"one of {', '.join(ROW_RULES)}"
        )
    return ROW_RULES[name]


def new_rows(base_VH: torch.Tensor, parts: Sequence[Sequence[int]], *, rule: str, num_padding: int) -> torch.Tensor:
    """Return the rows behind the base ids, in fp32: the new ids' by the rule, then `num_padding` times the mean base row."""
    rows = [row_rule(rule)(base_VH, parts)] if parts else []
    if num_padding:
        sums = [some.sum(dim=0, dtype=torch.float64) for some in torch.split(base_VH, 4096)]  # no second copy of the largest tensor
        rows.append((torch.stack(sums).sum(dim=0) / len(base_VH)).float().expand(num_padding, -1))
    return torch.cat(rows) if rows else base_VH.new_empty((0, base_VH.shape[1]), dtype=torch.float32)
