"""Makes the rows that an extended vocabulary adds to a base model, and reads which base ids spelt each new piece."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from megatron_cpt.errors import DataError
from megatron_cpt.model import fit_rows, rows
from megatron_cpt.model.hf_folder import HfFolder
from megatron_cpt.model.names import row_names
from megatron_cpt.plan.model_shape import ModelShape
from megatron_cpt.plan.row_rules import FITTED, RowPair
from megatron_cpt.record.vocab_layout import VocabLayout


@dataclass(frozen=True)
class AddedRows:
    """Rows `num_base_ids .. num_padded_rows` of each row tensor in fp32, and what the rule `fitted` saw where it made some."""

    by_tensor: dict[str, torch.Tensor]
    fit: dict[str, Any] | None


def make_rows(
    pair: RowPair,
    *,
    base: HfFolder,
    base_model: Any,
    shape: ModelShape,
    vocab: VocabLayout,
    parts: Sequence[Sequence[int]],
    seed: int,
    domain_windows: Sequence[Sequence[int]],
    device: torch.device,
) -> AddedRows:
    """Return the rows of new ids and of padding, by id: whatever the base's file holds at their places is not looked at.

    Args:
        base_model: the base's GPTModel, whole on this rank, for the rule `fitted`.
        parts: base ids of each new id.
        seed: the run's, for rules that draw.
        domain_windows: ids of the extended vocabulary, domain text for the rules that read it.

    Raises:
        DataError: a rule needs domain text and there is none.
    """
    if pair.reads_domain_text and parts and not domain_windows:
        raise DataError(
            "There is no domain text to make new rows from.",
            where="tokenizer.row_init",
            value=pair.name,
            rule="the rules weighted and fitted read the indexed domain sources",
        )
    counts = count_base_ids(domain_windows, parts, vocab) if pair.reads_domain_text else None
    added = {}
    for name, rule, side in zip(row_names(shape), (pair.input, pair.output), ("input", "output"), strict=False):  # tied: the first alone
        inputs = rows.RowInputs(base.read(name)[: vocab.num_base_ids], parts, rows.seed_of(vocab.fingerprint, seed=seed, side=side), counts)
        added[name] = rows.new_rows(inputs, rule=rule, num_padding=vocab.num_padded_rows - vocab.num_ids)
    fit = None
    if pair.output == FITTED and parts:
        contexts = fit_rows.read_contexts(base_model, domain_windows, parts, vocab, max_tokens=shape.max_position, device=device)
        fit = _fit_output_rows(added[row_names(shape)[-1]], contexts, num_new=len(parts))
    return AddedRows(added, fit)


def count_base_ids(windows: Sequence[Sequence[int]], parts: Sequence[Sequence[int]], vocab: VocabLayout) -> npt.NDArray[np.int64]:
    """Return how often each base id stands in windows of extended ids that are spelt in base ids."""
    whole = np.concatenate([np.asarray(window, dtype=np.int64) for window in windows]) if windows else np.zeros(0, dtype=np.int64)
    uses = np.bincount(whole, minlength=vocab.num_ids)
    counts = uses[: vocab.num_base_ids].astype(np.int64)
    for new_id, ids in enumerate(parts, vocab.num_base_ids):
        np.add.at(counts, list(ids), uses[new_id])
    return counts


def _fit_output_rows(rows_of_output: torch.Tensor, contexts: fit_rows.Contexts, *, num_new: int) -> dict[str, Any]:
    """Replace the new ids' rows of the output matrix by fitted ones and return what the fit saw."""
    fit = fit_rows.fit(rows_of_output[:num_new], contexts)
    rows_of_output[:num_new] = fit.rows_NH
    return {
        "positions": fit.num_positions,
        "ridge": fit.ridge if math.isfinite(fit.ridge) else None,
        "held_out_nats_per_token_of_mean_rows": fit.held_out_nats_of_mean,
        "held_out_nats_per_token": fit.held_out_nats,
    }


def read_parts(path: Path, vocab: VocabLayout) -> list[list[int]]:
    """Return the base ids of each new id, in the order of the new ids.

    Raises:
        DataError: a line is not a record, an id is missing, twice or out of range, or a piece has no base ids.
    """
    parts: dict[int, list[int]] = {}
    try:
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]  # every line is closed; splitlines would also break at U+2028
    except (FileNotFoundError, UnicodeDecodeError) as error:
        raise DataError("The list of new pieces cannot be read.", where=path, value=str(error)) from None
    for number, line in enumerate(lines, 1):
        record = _record(line)
        if record is None:
            raise DataError("A line is not a record of a new piece.", where=f"{path}:{number}", rule='{"id": 7, "base_ids": [1, 2]}')
        new_id, base_ids = record
        if new_id in parts or not vocab.num_base_ids <= new_id < vocab.num_ids:
            raise DataError(
                "A new id is twice in the list or out of range.",
                where=f"{path}:{number}",
                value=new_id,
                rule=f"each of {vocab.num_base_ids} .. {vocab.num_ids - 1} once",
            )
        if not base_ids or not all(0 <= base_id < vocab.num_base_ids for base_id in base_ids):
            raise DataError(
                "A new piece has no base ids, or one out of range.",
                where=f"{path}:{number}",
                value=base_ids,
                rule=f"ids below {vocab.num_base_ids}",
            )
        parts[new_id] = base_ids
    wanted = range(vocab.num_base_ids, vocab.num_ids)
    if len(parts) != len(wanted):
        raise DataError("New ids are missing from the list.", where=path, value=f"{len(parts)} records", rule=f"{len(wanted)} new ids")
    return [parts[new_id] for new_id in wanted]


def _record(line: str) -> tuple[int, list[int]] | None:
    try:
        data: Any = json.loads(line)
        new_id, base_ids = data["id"], data["base_ids"]
    except (ValueError, KeyError, TypeError):
        return None
    if type(new_id) is not int or not isinstance(base_ids, list) or not all(type(base_id) is int for base_id in base_ids):
        return None
    return new_id, base_ids
