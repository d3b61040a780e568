"""Rows fitted to hidden states of the base: against torch's cross entropy, transformers' outputs and a case with a known answer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from megatron_cpt.backend import choose
from megatron_cpt.errors import DataError
from megatron_cpt.record.manifest import StageResult
from megatron_cpt.record.vocab_layout import VocabLayout
from tests.numerics.tiny_llama import layout_of_ids, save_tiny_llama

BACKEND = choose("cpu")

from megatron_cpt.model.build import build_chunks  # noqa: E402
from megatron_cpt.model.convert import load_hf_into  # noqa: E402
from megatron_cpt.model.fit_rows import Contexts, fit, nats_per_token, num_windows, read_contexts  # noqa: E402
from megatron_cpt.model.hf_folder import HfFolder  # noqa: E402
from megatron_cpt.model.initialise import initialise  # noqa: E402
from megatron_cpt.model.parallel import ranks, single_rank_layout  # noqa: E402
from tests.unit.model.test_initialise import load_back, write_vocab  # noqa: E402

NUM_BASE, NUM_NEW, HIDDEN = 50, 4, 16
PARTS = [[1, 2], [7], [3, 3, 99]]
VOCAB = VocabLayout(100, 103, 128, 0, "0" * 64)


def contexts_of(hidden_PH: torch.Tensor, base_VH: torch.Tensor, ids_P: torch.Tensor) -> Contexts:
    logits_PV = hidden_PH @ base_VH.T
    old_P = ids_P.clamp(max=NUM_BASE - 1)
    return Contexts(hidden_PH, logits_PV.logsumexp(dim=1), logits_PV.gather(1, old_P[:, None])[:, 0], ids_P - NUM_BASE)


def test_the_loss_is_the_cross_entropy_of_the_whole_softmax() -> None:
    generator = torch.Generator().manual_seed(1)
    hidden_PH, base_VH, new_NH = (torch.randn(rows, HIDDEN, generator=generator) for rows in (40, NUM_BASE, NUM_NEW))
    ids_P = torch.randint(0, NUM_BASE + NUM_NEW, (40,), generator=generator)
    ids_P[:4] = torch.arange(NUM_BASE, NUM_BASE + NUM_NEW)
    whole = torch.nn.functional.cross_entropy(hidden_PH @ torch.cat([base_VH, new_NH]).T, ids_P)
    torch.testing.assert_close(nats_per_token(new_NH, contexts_of(hidden_PH, base_VH, ids_P)), whole)


def test_a_piece_that_always_follows_one_state_is_learnt() -> None:
    """Each new piece follows a state of its own, so a fit can only be right by pointing its row there."""
    generator = torch.Generator().manual_seed(2)
    states_NH = 3 * torch.nn.functional.normalize(torch.randn(NUM_NEW, HIDDEN, generator=generator))
    base_VH = 0.1 * torch.randn(NUM_BASE, HIDDEN, generator=generator)
    which_P = torch.randint(0, NUM_NEW, (2000,), generator=generator)
    hidden_PH = states_NH[which_P] + 0.1 * torch.randn(2000, HIDDEN, generator=generator)
    mean_NH = torch.zeros(NUM_NEW, HIDDEN)
    found = fit(mean_NH, contexts_of(hidden_PH, base_VH, NUM_BASE + which_P))
    assert found.held_out_nats_of_mean == pytest.approx(torch.log(torch.tensor(54.0)).item(), abs=0.05)  # all logits about zero
    assert found.held_out_nats < 0.05
    assert (states_NH @ found.rows_NH.T).argmax(dim=1).tolist() == list(range(NUM_NEW))


def test_where_states_tell_nothing_the_rows_stay_near_their_mean() -> None:
    generator = torch.Generator().manual_seed(3)
    hidden_PH = torch.randn(400, HIDDEN, generator=generator)
    base_VH = torch.zeros(NUM_BASE, HIDDEN)
    ids_P = torch.randint(0, NUM_BASE + NUM_NEW, (400,), generator=generator)
    found = fit(torch.zeros(NUM_NEW, HIDDEN), contexts_of(hidden_PH, base_VH, ids_P))
    assert found.held_out_nats <= found.held_out_nats_of_mean
    assert found.rows_NH.norm(dim=1).max() < 0.2


def test_the_number_of_windows_follows_the_number_of_rows() -> None:
    assert num_windows(10) * 256 == 8192
    assert num_windows(512) * 256 == 512 * 32
    assert num_windows(100_000) * 256 == 32_768


def test_contexts_are_what_transformers_computes_on_the_spelt_text(tmp_path: Path) -> None:
    shape = save_tiny_llama(tmp_path / "base")
    own = layout_of_ids(shape)
    windows = [[5, 100, 6, 102, 101], [102, 9]]
    with ranks(single_rank_layout(64, dtype="fp32"), backend=BACKEND, seed=0):
        chunks = build_chunks(shape, own, single_rank_layout(64, dtype="fp32"), backend=BACKEND, initialise_weights=False)
        load_hf_into(chunks, HfFolder.open(tmp_path / "base"), shape, own)
        contexts = read_contexts(chunks[0], windows, PARTS, VOCAB, max_tokens=shape.max_position, device="cpu")
        cut = read_contexts(chunks[0], windows[:1], PARTS, VOCAB, max_tokens=5, device="cpu")
        with pytest.raises(DataError, match="no domain text"):
            read_contexts(chunks[0], [], PARTS, VOCAB, max_tokens=64, device="cpu")
    peer = LlamaForCausalLM.from_pretrained(tmp_path / "base").eval()
    hidden, totals = [], []
    for spelt, begins in (([0, 5, 1, 2, 6, 3, 3, 99, 7], [0, 1, 3, 4, 7]), ([0, 3, 3, 99, 9], [0, 3])):
        with torch.no_grad():
            out = peer(torch.tensor([spelt]), output_hidden_states=True)
        hidden.append(out.hidden_states[-1][0, begins])
        totals.append(out.logits[0, begins].logsumexp(dim=1))
    torch.testing.assert_close(contexts.hidden_PH, torch.cat(hidden), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(contexts.log_total_P, torch.cat(totals), rtol=1e-5, atol=1e-5)
    assert contexts.target_P.tolist() == [-95, 0, -94, 2, 1, 2, -91]
    assert cut.target_P.tolist() == [-95, 0, -94]


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_the_fitted_rule_moves_only_new_output_rows(tmp_path: Path, tied: bool) -> None:
    shape = save_tiny_llama(tmp_path / "base", tied=tied)
    vocab_folder = write_vocab(tmp_path / "vocab", VOCAB, PARTS)
    generator = torch.Generator().manual_seed(4)
    windows = torch.randint(0, 103, (20, 32), generator=generator).tolist()
    for rule, text in (("mean", []), ("fitted", windows)):
        result = StageResult(tmp_path / rule)
        initialise(result, base_folder=tmp_path / "base", vocab_folder=vocab_folder, row_init=rule, backend=BACKEND, domain_windows=text)
    assert result.facts["row_fit"]["positions"] == 20 * 32
    assert result.facts["row_fit"]["held_out_nats_per_token"] <= result.facts["row_fit"]["held_out_nats_per_token_of_mean_rows"]
    (mean, _), (fitted, _) = (load_back(tmp_path / rule / "checkpoint", shape, VOCAB, "fp32") for rule in ("mean", "fitted"))
    output = "model.embed_tokens.weight" if tied else "lm_head.weight"
    for name, tensor in mean.items():
        assert torch.equal(tensor[:100], fitted[name][:100]), name
        assert torch.equal(tensor, fitted[name]) == (name != output), name


def test_the_fitted_rule_without_domain_text_is_refused(tmp_path: Path) -> None:
    save_tiny_llama(tmp_path / "base")
    vocab_folder = write_vocab(tmp_path / "vocab", VOCAB, PARTS)
    with pytest.raises(DataError, match="no domain text"):
        initialise(
            StageResult(tmp_path / "init"), base_folder=tmp_path / "base", vocab_folder=vocab_folder, row_init="fitted", backend=BACKEND
        )
