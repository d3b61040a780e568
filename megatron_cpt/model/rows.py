"""Rules that give the first values of new embedding rows, from the base rows of the pieces they replace.

Every rule computes in float64 and in an order that no library chooses, and draws from numpy's PCG64: equal inputs give equal bytes
on every machine, whatever its vector units and thread count. A new rule is one function and one line in `RULES`.

Shapes: V base rows, N new rows, H hidden columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from megatron_cpt.plan.row_rules import FITTED, ROW_RULES
from megatron_cpt.record.hashing import sha256_plain

Matrix = npt.NDArray[np.float64]
# Scale of the drawn covariance. Hewitt's note (2021, "Initializing New Word Embeddings for Pretrained Language Models") draws with
# 1e-5. transformers draws with 1e-9 since 4.46, which in bf16 rounds to one row for all pieces: a deviation of 3e-5 of the rows'
# own is below bf16's step of 4e-3.
GAUSSIAN_SCALE = 1e-5
ROWS_AT_ONCE = 4096
DRAW_STEP = 2.0**-10  # grid of the draws of `gaussian`, and bits of a base row beside its sign: their products add up exactly
ROW_BITS = 21


@dataclass(frozen=True)
class RowInputs:
    """What a rule may look at.

    Attributes:
        base_VH: rows of the base ids, in any type.
        parts: base ids of each new id, in the order of its bytes.
        seed: of the rules that draw.
        counts_V: how often domain text uses each base id; for the rule `weighted` alone.
    """

    base_VH: torch.Tensor
    parts: Sequence[Sequence[int]]
    seed: int = 0
    counts_V: npt.NDArray[np.int64] | None = None

    def part_rows(self) -> Iterator[Matrix]:
        """Yield the base rows of each new id's parts in float64, (parts, H)."""
        for ids in self.parts:
            yield self.base_VH[list(ids)].double().numpy()


RowRule = Callable[[RowInputs], Matrix]


def seed_of(vocab_fingerprint: str, *, seed: int, side: str) -> int:
    """Return the seed of one matrix' rows: a function of the vocabulary, the run's seed and the side, and of nothing else."""
    return int(sha256_plain(["new rows", vocab_fingerprint, seed, side])[:16], 16)


def mean_rows(inputs: RowInputs) -> Matrix:
    """Return for each new id the mean of the rows of the base ids that spelt it (Gee et al. 2022, arXiv 2210.16117)."""
    return _stacked([_weighted(rows, [1.0] * len(rows)) for rows in inputs.part_rows()], inputs)


def mean_norm_rows(inputs: RowInputs) -> Matrix:
    """Return the mean rows rescaled to the mean norm of their parts: a mean of differing rows is shorter than each of them."""
    made = []
    for rows, mean_H in zip(inputs.part_rows(), mean_rows(inputs), strict=True):
        made.append(mean_H * (_mean_norm(rows) / max(_norm(mean_H), float(np.finfo(np.float32).tiny))))
    return _stacked(made, inputs)


def noise_rows(inputs: RowInputs) -> Matrix:
    """Return the mean rows with noise at right angles to them that makes up for the length that averaging lost.

    The noise is isotropic, and a row is then as long as its parts are on average. So pieces that the same parts spell in another
    order start apart, and a piece keeps its dot product with everything along the mean, unlike under `mean_norm`.
    """
    generator, made = np.random.default_rng(inputs.seed), []
    for rows, mean_H in zip(inputs.part_rows(), mean_rows(inputs), strict=True):
        drawn_H = generator.standard_normal(len(mean_H))
        if square := _dot(mean_H, mean_H):
            drawn_H = drawn_H - mean_H * (_dot(drawn_H, mean_H) / square)
        missing = math.sqrt(max(_mean_norm(rows) ** 2 - square, 0.0))
        made.append(mean_H + drawn_H * (missing / max(_norm(drawn_H), float(np.finfo(np.float32).tiny))))
    return _stacked(made, inputs)


def weighted_rows(inputs: RowInputs) -> Matrix:
    """Return the mean of the parts' rows, each weighted by one more than the number of times that domain text uses its base id.

    The text is counted in base ids. A part that the base reads often there counts most; one more, so that unseen parts have a mean.
    """
    assert inputs.counts_V is not None, "the rule reads domain text"
    counts = inputs.counts_V
    pairs = zip(inputs.part_rows(), inputs.parts, strict=True)
    return _stacked([_weighted(rows, [1.0 + float(counts[number]) for number in ids]) for rows, ids in pairs], inputs)


def gaussian_rows(inputs: RowInputs) -> Matrix:
    """Return draws from the normal distribution with the base rows' mean and `GAUSSIAN_SCALE` times their covariance (Hewitt 2021).

    A sum of the centred rows with independent normal weights over the root of V has exactly that covariance. It needs no
    factorisation, so it also draws where fewer rows than columns make the covariance singular. Rows and weights are rounded to grids on
    which their products add up without an error in any order: 2^18 rows of 22 bits times weights of 14 bits fit float64's 53.
    """
    base_VH, num_new = inputs.base_VH, len(inputs.parts)
    generator = np.random.default_rng(inputs.seed)
    unit = max(float(base_VH.abs().max()), float(np.finfo(np.float32).tiny))
    step = 2.0 ** (math.frexp(unit)[1] - ROW_BITS)
    sum_H, drawn_NH, total_N = np.zeros(base_VH.shape[1]), np.zeros((num_new, base_VH.shape[1])), np.zeros(num_new)
    for some_VH in torch.split(base_VH, ROWS_AT_ONCE):
        whole_VH = np.rint(some_VH.double().numpy() / step)
        weights_NV = np.rint(generator.standard_normal((num_new, len(whole_VH))) / DRAW_STEP)
        sum_H += whole_VH.sum(axis=0)
        drawn_NH += weights_NV @ whole_VH
        total_N += weights_NV.sum(axis=1)
    mean_H = sum_H / len(base_VH)
    centred_NH = (drawn_NH - total_N[:, None] * mean_H) * (DRAW_STEP / math.sqrt(len(base_VH)))
    return (mean_H + math.sqrt(GAUSSIAN_SCALE) * centred_NH) * step


# `fitted` starts from the mean rows; fit_rows.py moves them where there is domain text and a model to read it.
RULES: dict[str, RowRule] = {
    "mean": mean_rows,
    "mean_norm": mean_norm_rows,
    "noise": noise_rows,
    "weighted": weighted_rows,
    "gaussian": gaussian_rows,
    FITTED: mean_rows,
}
assert tuple(RULES) == ROW_RULES


def new_rows(inputs: RowInputs, *, rule: str, num_padding: int) -> torch.Tensor:
    """Return the rows behind the base ids, in fp32: the new ids' by the rule, then `num_padding` times the mean base row."""
    base_VH = inputs.base_VH
    rows = [torch.from_numpy(RULES[rule](inputs)).float()] if inputs.parts else []
    if num_padding:
        sums = [some.sum(dim=0, dtype=torch.float64) for some in torch.split(base_VH, ROWS_AT_ONCE)]  # no second copy of the largest tensor
        rows.append((torch.stack(sums).sum(dim=0) / len(base_VH)).float().expand(num_padding, -1))
    return torch.cat(rows) if rows else base_VH.new_empty((0, base_VH.shape[1]), dtype=torch.float32)


def _weighted(rows: Matrix, weights: Sequence[float]) -> Matrix:
    sum_H = np.zeros(rows.shape[1])
    for weight, row in zip(weights, rows, strict=True):  # one after the other: a library's sum may take another order elsewhere
        sum_H = sum_H + weight * row
    return sum_H / sum(weights)


def _dot(left: Matrix, right: Matrix) -> float:
    return math.fsum((left * right).tolist())  # rounded once, so that the order of the terms does not matter


def _norm(row: Matrix) -> float:
    return math.sqrt(_dot(row, row))


def _mean_norm(rows: Matrix) -> float:
    return math.fsum(_norm(row) for row in rows) / len(rows)


def _stacked(rows: Sequence[Matrix], inputs: RowInputs) -> Matrix:
    return np.stack(rows) if rows else np.zeros((0, inputs.base_VH.shape[1]))
