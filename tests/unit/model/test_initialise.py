"""The init stage on a tiny base model: what it writes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from megatron_cpt.backend import choose
from megatron_cpt.errors import CheckpointError, DataError
from megatron_cpt.plan.model_shape import ModelShape
from megatron_cpt.record.manifest import StageResult
from megatron_cpt.record.typed import to_plain
from megatron_cpt.record.vocab_layout import VocabLayout
from tests.numerics.tiny_llama import layout_of_ids, save_tiny_llama

BACKEND = choose("cpu")

from megatron_cpt.model.added_rows import read_parts  # noqa: E402
from megatron_cpt.model.build import build_chunks  # noqa: E402
from megatron_cpt.model.convert import hf_tensors  # noqa: E402
from megatron_cpt.model.dist_checkpoint import load_model  # noqa: E402
from megatron_cpt.model.hf_folder import HfFolder, write_tensors  # noqa: E402
from megatron_cpt.model.initialise import _check_logits, _Probe, initialise  # noqa: E402
from megatron_cpt.model.names import EMBEDDING, OUTPUT  # noqa: E402
from megatron_cpt.model.parallel import ranks, single_rank_layout  # noqa: E402

PARTS = [[1, 2], [7], [3, 3, 99]]


def write_vocab(folder: Path, vocab: VocabLayout, parts: list[list[int]]) -> Path:
    folder.mkdir()
    (folder / "vocab_layout.json").write_text(json.dumps(to_plain(vocab)))
    lines = [{"id": vocab.num_base_ids + number, "piece": f"p{number}", "base_ids": ids} for number, ids in enumerate(parts)]
    (folder / "new_pieces.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def vocab_folder(tmp_path: Path) -> Path:
    """100 base ids, 3 new ones, 128 rows."""
    return write_vocab(tmp_path / "vocab", VocabLayout(100, 103, 128, 0, "0" * 64), PARTS)


def load_back(checkpoint: Path, shape: ModelShape, vocab: VocabLayout, dtype: str) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    layout = single_rank_layout(8, dtype=dtype)  # type: ignore[arg-type]
    with ranks(layout, backend=BACKEND, seed=3):
        chunks = build_chunks(shape, vocab, layout, backend=BACKEND)
        assert load_model(checkpoint, chunks) == {"stage": "init", "vocab_fingerprint": vocab.fingerprint}
        tensors = {name: tensor.clone() for name, tensor in hf_tensors(chunks, shape, vocab)}
        return tensors, chunks[0].embedding.word_embeddings.weight.detach().clone()


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("base_dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_base_weights_are_kept_bit_by_bit_and_new_rows_are_means(
    tmp_path: Path, vocab_folder: Path, tied: bool, base_dtype: torch.dtype
) -> None:
    shape = save_tiny_llama(tmp_path / "base", tied=tied, dtype=base_dtype)
    result = StageResult(tmp_path / "init")
    initialise(result, base_folder=tmp_path / "base", vocab_folder=vocab_folder, row_init="mean", backend=BACKEND)
    dtype = "fp32" if base_dtype == torch.float32 else "bf16"
    # Embedding of 128 rows of 64 (twice when untied); a layer has 2 norms of 64, q and o of 64 x 64, k and v of 32 x 64,
    # gate, up and down of 96 x 64; the final norm has 64.
    num_params = (1 if tied else 2) * 128 * 64 + 2 * (2 * 64 + 2 * 64 * 64 + 2 * 32 * 64 + 3 * 96 * 64) + 64
    moved = result.facts.pop("probe_max_difference")
    assert result.facts == {
        "num_params": num_params,
        "dtype": dtype,
        "num_new_rows": 3,
        "num_padding_rows": 25,
        "row_init": "mean",
        "row_fit": None,
    }
    assert moved < 1e-5 if dtype == "fp32" else moved < 2e-2

    tensors, all_rows = load_back(tmp_path / "init" / "checkpoint", shape, VocabLayout(100, 103, 128, 0, "0" * 64), dtype)
    base = HfFolder.open(tmp_path / "base")
    assert set(tensors) == set(base.entries)
    for name, tensor in tensors.items():
        old = base.read(name)
        if name not in (EMBEDDING, OUTPUT):
            assert torch.equal(tensor, old), name
            continue
        assert torch.equal(tensor[:100], old)
        by_hand = torch.stack([(old[1].float() + old[2].float()) / 2, old[7].float(), (2 * old[3].float() + old[99].float()) / 3])
        torch.testing.assert_close(tensor[100:].float(), by_hand, rtol=1e-6 if dtype == "fp32" else 5e-3, atol=1e-7)
    torch.testing.assert_close(all_rows[127].float(), base.read(EMBEDDING).float().mean(dim=0), rtol=5e-3, atol=5e-3)


def test_one_bit_of_an_old_logit_is_too_much_and_the_whole_product_has_its_rounding() -> None:
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(1))
    near = logits.clone()
    near[0, 0, 0] = torch.nextafter(near[0, 0, 0], torch.tensor(9.0))
    assert 0 < _check_logits(_Probe(logits, logits), _Probe(near, logits.clone()), dtype="fp32") < 1e-5
    with pytest.raises(CheckpointError, match="not equal"):
        _check_logits(_Probe(logits, logits), _Probe(logits, near), dtype="fp32")
    with pytest.raises(CheckpointError, match="moved logits"):
        _check_logits(_Probe(logits, logits), _Probe(logits + 0.1, logits), dtype="fp32")


def test_a_vocabulary_without_new_pieces_leaves_the_model_as_it_is(tmp_path: Path) -> None:
    shape = save_tiny_llama(tmp_path / "base")
    vocab = layout_of_ids(shape)
    result = StageResult(tmp_path / "init")
    folder = write_vocab(tmp_path / "vocab", vocab, [])
    initialise(result, base_folder=tmp_path / "base", vocab_folder=folder, row_init="mean", backend=BACKEND)
    tensors, _ = load_back(tmp_path / "init" / "checkpoint", shape, vocab, "fp32")
    base = HfFolder.open(tmp_path / "base")
    assert all(torch.equal(tensor, base.read(name)) for name, tensor in tensors.items())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda tensors: tensors[EMBEDDING][[1, 2]].zero_(), None),
        (lambda tensors: tensors[EMBEDDING].__setitem__(slice(1, 3), 0.0), "zero or not finite"),
        (lambda tensors: tensors[EMBEDDING][5].fill_(float("nan")), "zero or not finite"),
        (lambda tensors: tensors.pop("model.norm.weight"), "model.norm.weight is missing"),
        (lambda tensors: tensors.__setitem__("model.extra.weight", torch.ones(1)), "'model.extra.weight' is not known"),
        (lambda tensors: tensors.__setitem__("model.norm.weight", torch.ones(63)), r"has shape \[63\], expected \[64\]"),
        (lambda tensors: tensors.__setitem__(OUTPUT, tensors[EMBEDDING] + 1), "lm_head.weight differs"),
    ],
    ids=["nothing", "parts-are-zero", "a-row-is-nan", "missing", "unknown", "wrong-shape", "tied-but-different"],
)
def test_a_spoilt_base_is_refused_and_no_checkpoint_written(tmp_path: Path, vocab_folder: Path, spoil, message: str | None) -> None:
    save_tiny_llama(tmp_path / "base")
    folder = HfFolder.open(tmp_path / "base")
    tensors = {name: folder.read(name) for name in folder.entries}
    spoil(tensors)
    write_tensors(tmp_path / "base", tensors.items())
    result = StageResult(tmp_path / "init")

    def run() -> None:
        initialise(result, base_folder=tmp_path / "base", vocab_folder=vocab_folder, row_init="mean", backend=BACKEND)

    if message is None:  # indexing by a list makes a copy: the base was not changed, and the stage must pass
        run()
        return
    with pytest.raises(CheckpointError, match=message):
        run()
    assert not (tmp_path / "init" / "checkpoint").exists()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"id": 100, "base_ids": [1]}'], "New ids are missing"),
        (['{"id": 100, "base_ids": [1]}', '{"id": 100, "base_ids": [1]}'], "twice in the list or out of range"),
        (['{"id": 99, "base_ids": [1]}'], "twice in the list or out of range"),
        (['{"id": 100, "base_ids": []}'], "no base ids"),
        (['{"id": 100, "base_ids": [100]}'], "no base ids, or one out of range"),
        (['{"id": 100, "base_ids": ["1"]}'], "not a record"),
        (['{"id": true, "base_ids": [1]}'], "not a record"),
        (["{"], "not a record"),
    ],
)
def test_a_list_of_pieces_that_does_not_fit_the_vocabulary_is_refused(tmp_path: Path, lines: list[str], message: str) -> None:
    path = tmp_path / "new_pieces.jsonl"
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=message):
        read_parts(path, VocabLayout(100, 102, 128, 0, ""))
