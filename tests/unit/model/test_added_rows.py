"""Rows by id, whatever the base's file holds at their places; what they do to old text; and that nothing changes them again."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from megatron_cpt.backend import choose
from megatron_cpt.errors import ConfigError, DataError
from megatron_cpt.plan.model_shape import ModelShape
from megatron_cpt.plan.row_rules import ROW_RULES, row_pair
from megatron_cpt.record.manifest import StageResult
from megatron_cpt.record.vocab_layout import VocabLayout
from tests.numerics.tiny_llama import save_tiny_llama

BACKEND = choose("cpu")

from megatron_cpt.export.folder import export_folder  # noqa: E402
from megatron_cpt.model.added_rows import count_base_ids, make_rows  # noqa: E402
from megatron_cpt.model.build import build_chunks  # noqa: E402
from megatron_cpt.model.convert import load_hf_into  # noqa: E402
from megatron_cpt.model.hf_folder import HfFolder  # noqa: E402
from megatron_cpt.model.initialise import base_model, initialise  # noqa: E402
from megatron_cpt.model.names import EMBEDDING, OUTPUT  # noqa: E402
from megatron_cpt.model.parallel import ranks, single_rank_layout  # noqa: E402
from tests.unit.model.test_initialise import load_back, write_vocab  # noqa: E402

PARTS = [[1, 2], [7], [3, 3, 80]]
LAYOUT = single_rank_layout(64, dtype="fp32")
DOMAIN = torch.randint(0, 93, (20, 32), generator=torch.Generator().manual_seed(4)).tolist()


def digest(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix == ".distcp")
    assert files
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(("num_base", "num_rows"), [(90, 96), (90, 128), (100, 128)], ids=["within", "across", "behind"])
def test_new_rows_are_made_by_id_where_the_base_has_rows_already(tmp_path: Path, tied: bool, num_base: int, num_rows: int) -> None:
    """A base of 100 rows: new ids on rows that it has, whether the matrix shrinks or grows, or behind them all."""
    shape = save_tiny_llama(tmp_path / "base", tied=tied)
    vocab = VocabLayout(num_base, num_base + 3, num_rows, 0, "0" * 64)
    folder = write_vocab(tmp_path / "vocab", vocab, PARTS)
    initialise(StageResult(tmp_path / "init"), base_folder=tmp_path / "base", vocab_folder=folder, row_init="mean", backend=BACKEND)
    tensors, all_rows = load_back(tmp_path / "init" / "checkpoint", shape, vocab, "fp32")
    base = HfFolder.open(tmp_path / "base")
    for name in (EMBEDDING,) if tied else (EMBEDDING, OUTPUT):
        old = base.read(name)
        by_hand = torch.stack([(old[1] + old[2]) / 2, old[7], (2 * old[3] + old[80]) / 3])
        assert torch.equal(tensors[name][:num_base], old[:num_base])
        torch.testing.assert_close(tensors[name][num_base:], by_hand, rtol=1e-6, atol=1e-7)
        assert tensors[name].shape[0] == num_base + 3
    mean = base.read(EMBEDDING)[:num_base].mean(dim=0)
    torch.testing.assert_close(all_rows[num_base + 3 :], mean.expand(num_rows - num_base - 3, -1), rtol=1e-5, atol=1e-6)


def test_input_and_output_rows_follow_a_rule_each(tmp_path: Path) -> None:
    shape = save_tiny_llama(tmp_path / "base", tied=False)
    vocab = VocabLayout(90, 93, 128, 0, "0" * 64)
    folder = write_vocab(tmp_path / "vocab", vocab, PARTS)
    made = {}
    for rule in ("mean", "noise", "gaussian", "mean/noise", "gaussian/mean"):
        result = StageResult(tmp_path / rule.replace("/", "-"))
        initialise(result, base_folder=tmp_path / "base", vocab_folder=folder, row_init=rule, backend=BACKEND, seed=5)
        assert result.facts["row_init"] == rule
        made[rule], _ = load_back(result.folder / "checkpoint", shape, vocab, "fp32")
    for rule in ("mean/noise", "gaussian/mean"):
        first, second = rule.split("/")
        assert torch.equal(made[rule][EMBEDDING], made[first][EMBEDDING])
        assert torch.equal(made[rule][OUTPUT], made[second][OUTPUT])
    assert not torch.equal(made["noise"][EMBEDDING][90:] - made["mean"][EMBEDDING][90:], made["noise"][OUTPUT][90:])


def test_a_tied_model_with_two_rules_is_refused_and_nothing_written(tmp_path: Path) -> None:
    save_tiny_llama(tmp_path / "base")
    folder = write_vocab(tmp_path / "vocab", VocabLayout(90, 93, 128, 0, "0" * 64), PARTS)
    with pytest.raises(ConfigError, match="same rows"):
        initialise(
            StageResult(tmp_path / "init"), base_folder=tmp_path / "base", vocab_folder=folder, row_init="mean/noise", backend=BACKEND
        )
    assert not (tmp_path / "init").exists()


@pytest.mark.parametrize("rule", ["weighted", "fitted"])
def test_a_rule_that_reads_domain_text_is_refused_without_any(tmp_path: Path, rule: str) -> None:
    save_tiny_llama(tmp_path / "base")
    folder = write_vocab(tmp_path / "vocab", VocabLayout(90, 93, 128, 0, "0" * 64), PARTS)
    with pytest.raises(DataError, match="no domain text"):
        initialise(StageResult(tmp_path / "init"), base_folder=tmp_path / "base", vocab_folder=folder, row_init=rule, backend=BACKEND)


def test_uses_are_counted_in_base_ids() -> None:
    vocab = VocabLayout(90, 93, 128, 0, "")
    counts = count_base_ids([[1, 90, 92], [92, 5]], PARTS, vocab)
    assert len(counts) == 90
    # 1 itself and in 90; 92 twice holds 3 twice and 80 once
    assert {number: int(counts[number]) for number in counts.nonzero()[0]} == {1: 2, 2: 1, 3: 4, 5: 1, 80: 2}


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_after_the_extension_a_model_is_what_it_was_and_stays_so(tmp_path: Path, tied: bool) -> None:
    """Initialised twice it has the same bytes; exported, its config says how many rows it has, and old rows are the base's."""
    shape = save_tiny_llama(tmp_path / "base", tied=tied)
    vocab = VocabLayout(90, 93, 128, 0, "0" * 64)
    folder = write_vocab(tmp_path / "vocab", vocab, PARTS)
    for name in ("once", "again"):
        initialise(
            StageResult(tmp_path / name), base_folder=tmp_path / "base", vocab_folder=folder, row_init="noise", backend=BACKEND, seed=5
        )
    assert digest(tmp_path / "once") == digest(tmp_path / "again")
    (folder / "tokenizer.json").write_text("{}")  # the export copies it, and does not read it here
    export_folder(
        tmp_path / "hf", checkpoint=tmp_path / "once" / "checkpoint", base_folder=tmp_path / "base", tokenizer_folder=folder, shape=shape,
        vocab=vocab, backend=BACKEND, check=False,
    )  # fmt: skip
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    saved, base = HfFolder.open(tmp_path / "hf"), HfFolder.open(tmp_path / "base")
    names = (EMBEDDING,) if tied else (EMBEDDING, OUTPUT)
    assert (OUTPUT in saved.entries) == (not tied)
    for name in names:
        assert saved.entries[name].shape[0] == config["vocab_size"] == 93
        assert torch.equal(saved.read(name)[:90], base.read(name)[:90])
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    rows, output = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert (rows.data_ptr() == output.data_ptr()) == tied
    assert torch.equal(output.detach()[:90], base.read(names[-1])[:90])
    # The exported model as a base, with nothing to add: the stage passes every weight on, the once new rows too.
    empty = write_vocab(tmp_path / "as-it-is", VocabLayout(93, 93, 128, 0, "0" * 64), [])
    initialise(StageResult(tmp_path / "third"), base_folder=tmp_path / "hf", vocab_folder=empty, row_init="noise", backend=BACKEND, seed=5)
    shape = ModelShape.from_hf_folder(tmp_path / "hf")
    tensors, _ = load_back(tmp_path / "third" / "checkpoint", shape, VocabLayout(93, 93, 128, 0, "0" * 64), "fp32")
    assert all(torch.equal(tensor, saved.read(name)) for name, tensor in tensors.items())


# Each of the 100 base ids is a part of one of 50 new ids. A row that is a mean has at most the mean of its parts' exponentials (Jensen),
# so that 50 of them add at most half of the base's sum: ln 1.5 nats. With weights, a part's share is at most 1: ln 2. A draw about the
# mean of all rows adds at most as much as 50 mean rows and a little for its spread. Rows as long as their parts have no such bound: the
# limit is what 50 more rows like the base's would take, with a third to spare. A fitted row takes what the text gives it.
LIMITS = {
    "mean": math.log(1.5), "weighted": math.log(2.0), "gaussian": math.log(1.5) + 0.01, "mean_norm": 0.54, "noise": 0.54, "fitted": 0.54,
}  # fmt: skip


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_loss_on_text_without_new_tokens_moves_less_than_the_rule_allows(tmp_path: Path, tied: bool) -> None:
    shape = save_tiny_llama(tmp_path / "base", tied=tied)
    base = HfFolder.open(tmp_path / "base")
    vocab, parts = VocabLayout(100, 150, 256, 0, "0" * 64), [[2 * number, 2 * number + 1] for number in range(50)]
    generator = torch.Generator().manual_seed(8)
    tokens = torch.randint(0, 100, (8, 65), generator=generator)
    domain = torch.randint(0, 150, (40, 32), generator=generator).tolist()
    assert set(LIMITS) == set(ROW_RULES)

    def loss(model: torch.nn.Module) -> float:
        positions = torch.arange(64).expand(8, -1)
        with torch.no_grad():
            return float(model(tokens[:, :-1], positions, None, labels=tokens[:, 1:].contiguous()).double().mean())

    with ranks(LAYOUT, backend=BACKEND, seed=0):
        (old,) = base_model(shape, base, LAYOUT, BACKEND)
        before = loss(old)
        moved = {}
        for rule in (*ROW_RULES, "wild"):
            added = make_rows(
                row_pair("mean" if rule == "wild" else rule, tied=tied), base=base, base_model=old, shape=shape, vocab=vocab, parts=parts,
                seed=1, domain_windows=domain, device=BACKEND.device,
            ).by_tensor  # fmt: skip
            if rule == "wild":  # a control: rows that nobody fitted into the model's scale
                added = {name: torch.randn(rows.shape, generator=generator) for name, rows in added.items()}
            model = build_chunks(shape, vocab, LAYOUT, backend=BACKEND, initialise_weights=False)
            load_hf_into(model, base, shape, vocab, added)
            moved[rule] = loss(model[0]) - before
    print({rule: round(nats, 4) for rule, nats in moved.items()}, round(before, 3))
    assert all(0 < moved[rule] <= limit for rule, limit in LIMITS.items()), moved
    assert moved["wild"] > 2 * max(LIMITS.values())
