"""Every family: weights go to core and back bit by bit, also through other layouts, and the model computes what transformers computes.

`docs/reference/models.md` has the table that these tests prove, with what they print.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_cpt.backend import choose
from megatron_cpt.errors import CheckpointError
from megatron_cpt.plan.model_shape import ModelShape
from megatron_cpt.plan.parameters import num_params
from megatron_cpt.plan.run_plan import Layout
from tests.integration.launch_ranks import launch_ranks
from tests.numerics.tiny_families import FAMILIES, VARIANTS, load_tiny, save_tiny
from tests.numerics.tiny_llama import layout_of_ids

BACKEND = choose("cpu")

from megatron.core import parallel_state  # noqa: E402
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed  # noqa: E402

from megatron_cpt.model.build import build_chunks  # noqa: E402
from megatron_cpt.model.convert import hf_tensors, load_hf_into  # noqa: E402
from megatron_cpt.model.dist_checkpoint import load_model, save_model  # noqa: E402
from megatron_cpt.model.hf_folder import HfFolder, write_tensors  # noqa: E402
from megatron_cpt.model.names import row_names  # noqa: E402
from megatron_cpt.model.parallel import ranks, single_rank_layout  # noqa: E402
from tests.numerics.test_ranks_agree import Run, layout  # noqa: E402

LOGIT_TOLERANCE = 1e-4  # fp32, sums in another order
NUM_TOKENS = 256
EARLY, LATE = slice(0, 4), slice(NUM_TOKENS - 4, NUM_TOKENS)


def rows_of(shape: ModelShape, num_rows: int) -> dict[str, torch.Tensor]:
    """Return padding rows so large that they would decide every softmax they took part in."""
    return {name: torch.full((num_rows, shape.hidden_size), 3.0) for name in row_names(shape)}


@pytest.mark.parametrize("name", [*FAMILIES, *VARIANTS])
def test_a_family_computes_what_transformers_computes_and_returns_bit_identical(name: str, tmp_path: Path) -> None:
    shape = save_tiny(name, tmp_path / "base")
    base, reference = HfFolder.open(tmp_path / "base"), load_tiny(tmp_path / "base")
    tokens = torch.randint(0, shape.num_base_ids, (2, NUM_TOKENS), generator=torch.Generator().manual_seed(3))
    positions = torch.arange(NUM_TOKENS).expand(2, -1)
    with torch.no_grad():
        theirs = reference(tokens).logits
    assert num_params(shape, num_rows=shape.num_base_ids) == reference.num_parameters()
    with ranks(single_rank_layout(NUM_TOKENS, dtype="fp32"), backend=BACKEND, seed=1), torch.no_grad():
        for multiple in (1, 128):  # without and with padding rows
            vocab = layout_of_ids(shape, multiple=multiple)
            chunks = build_chunks(shape, vocab, single_rank_layout(NUM_TOKENS, dtype="fp32"), backend=BACKEND)
            load_hf_into(chunks, base, shape, vocab, rows_of(shape, vocab.num_padded_rows - vocab.num_ids) if multiple > 1 else None)
            ours = chunks[0].eval()(tokens, positions, None)
            assert ours.shape[-1] == vocab.num_padded_rows
            for part in (EARLY, LATE):
                difference = float((ours[:, part, : vocab.num_ids] - theirs[:, part]).abs().max() / theirs[:, part].abs().max())
                print(f"{name}, {vocab.num_padded_rows} rows, positions {part.start}..: {difference:.1e} of the largest logit")
                assert difference < LOGIT_TOLERANCE
            write_tensors(tmp_path / f"back-{multiple}", hf_tensors(chunks, shape, vocab))
            assert_same(HfFolder.open(tmp_path / f"back-{multiple}"), base)


def assert_same(back: HfFolder, base: HfFolder) -> None:
    assert set(back.entries) == set(base.entries)
    for name, entry in base.entries.items():
        assert back.entries[name].dtype == entry.dtype, name
        assert torch.equal(back.read(name), base.read(name)), name


@pytest.mark.parametrize("name", ["gpt2", "qwen3-moe"])
def test_bf16_weights_stay_bf16_and_bit_identical(name: str, tmp_path: Path) -> None:
    shape = save_tiny(name, tmp_path / "base", dtype=torch.bfloat16)
    base, vocab = HfFolder.open(tmp_path / "base"), layout_of_ids(shape)
    assert base.dtype == torch.bfloat16
    with ranks(single_rank_layout(8, dtype="bf16"), backend=BACKEND, seed=1):
        chunks = build_chunks(shape, vocab, single_rank_layout(8, dtype="bf16"), backend=BACKEND)
        load_hf_into(chunks, base, shape, vocab)
        write_tensors(tmp_path / "back", hf_tensors(chunks, shape, vocab))
    assert_same(HfFolder.open(tmp_path / "back"), base)


@pytest.mark.parametrize("name", ["qwen2", "mixtral"])
def test_a_tensor_too_many_or_too_few_is_named(name: str, tmp_path: Path) -> None:
    shape = save_tiny(name, tmp_path / "base")
    base, vocab = HfFolder.open(tmp_path / "base"), layout_of_ids(shape)
    missing = "model.layers.1.self_attn.v_proj.weight"
    tensors = {tensor: base.read(tensor) for tensor in base.entries if tensor != missing}
    write_tensors(tmp_path / "other", [*tensors.items(), ("model.layers.1.self_attn.v_proj.scale", torch.ones(1))])
    with ranks(single_rank_layout(8, dtype="fp32"), backend=BACKEND, seed=1):
        chunks = build_chunks(shape, vocab, single_rank_layout(8, dtype="fp32"), backend=BACKEND)
        with pytest.raises(CheckpointError, match=rf"{missing} is missing(.|\n)*v_proj.scale' is not known"):
            load_hf_into(chunks, HfFolder.open(tmp_path / "other"), shape, vocab)


# One family for each way in which tensors are cut; the long tests take all of them.
IMPORTED = {"qwen2": ("tp2",), "gpt2": ("tp2", "pp2"), "qwen3-moe": ("tp2", "ep2"), "gemma3": ("pp2",)}


def layouts_for(shape: ModelShape, num_ranks: int) -> dict[str, Layout]:
    """Return the ways to place a model on so many ranks; experts are trained under tensor parallelism with sequence parallelism only."""
    sequence_parallel = shape.num_experts > 0
    if num_ranks == 2:
        found = {"tp2": layout(2, 1, sequence_parallel=sequence_parallel), "pp2": layout(1, 2)}
        return {**found, "ep2": replace(layout(1, 1, 2), expert=2)} if shape.num_experts else found
    found = {
        "tp4": layout(4, 1, sequence_parallel=sequence_parallel),
        "tp2-pp2": layout(2, 2, sequence_parallel=sequence_parallel),
    }
    more = {"ep4": replace(layout(1, 1, 4), expert=4), "tp2-ep2": replace(layout(2, 1, 2, sequence_parallel=True), expert=2)}
    return {**found, **more} if shape.num_experts else found


def everything(folder: Path, num_ranks: int) -> dict[str, tuple[str, ...]]:
    return {name: tuple(layouts_for(ModelShape.from_hf_folder(folder / name), num_ranks)) for name in FAMILIES}


def import_and_save(folder: Path, wanted: dict[str, tuple[str, ...]], num_ranks: int) -> None:
    """Load families' weights on these ranks in the wanted layouts, and save them as distributed checkpoints."""
    for name, labels in wanted.items():
        shape = ModelShape.from_hf_folder(folder / name)
        vocab = layout_of_ids(shape, multiple=128)
        for label in labels:
            this = layouts_for(shape, num_ranks)[label]
            lay_out(this)
            chunks = build_chunks(shape, vocab, this, backend=BACKEND)
            load_hf_into(chunks, HfFolder.open(folder / name), shape, vocab, rows_of(shape, 28))
            save_model(folder / f"{name}-{label}", chunks, common={})


def lay_out(this: Layout) -> None:
    """Divide the ranks that are there anew: starting others would cost more than all the rest."""
    parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(this.tensor, this.pipeline, expert_model_parallel_size=this.expert)
    model_parallel_cuda_manual_seed(11)


# Biases, norms of queries and keys, learned positions: what Llama has not. A whole run with experts is in test_train_experts.py.
TRAINED = ("qwen2", "qwen3", "gpt2", "gemma3")
LABELS = ("tensor-parallel", "sequence-parallel")
EXPERTS = replace(layout(1, 1, 2), expert=2)
Steps = list[tuple[float, float]]  # loss and gradient norm


def train(folder: Path, this: Layout, num_steps: int) -> Steps:
    lay_out(this)
    run = Run(folder, this)
    return [(run.step(), run.norm) for _ in range(num_steps)]


def move_experts(folder: Path) -> dict[str, Steps]:
    """Train a mixture of experts for two steps with its experts shared and not, and go on for one step the other way."""
    found = {}
    for label, first, second in (("shared to whole", EXPERTS, layout(1, 1, 2)), ("whole to shared", layout(1, 1, 2), EXPERTS)):
        lay_out(first)
        run = Run(folder / "qwen3-moe", first)
        steps = [(run.step(), run.norm) for _ in range(2)]
        checkpoint = folder / f"moved-{first.expert}"
        save_model(checkpoint, run.chunks, optimizer=run.optimizer, common={})
        lay_out(second)
        run = Run(folder / "qwen3-moe", second)
        load_model(checkpoint, run.chunks, optimizer=run.optimizer)
        found[label] = [*steps, (run.step(), run.norm)]
    return found


def refusal_of_replicated(folder: Path) -> str:
    """Return what is said to moments of a replicated optimizer when the experts are shared by other ranks."""
    first, second = (replace(this, distributed_optimizer=False) for this in (layout(1, 1, 2), EXPERTS))
    lay_out(first)
    run = Run(folder / "qwen3-moe", first)
    run.step()
    save_model(folder / "replicated", run.chunks, optimizer=run.optimizer, common={})
    lay_out(second)
    run = Run(folder / "qwen3-moe", second)
    with pytest.raises(CheckpointError) as caught:
        load_model(folder / "replicated", run.chunks, optimizer=run.optimizer)
    return str(caught.value)


def work_of_two_ranks(folder: Path) -> dict[str, Any]:
    """Do everything that takes two ranks in one start of them."""
    with ranks(replace(layout(1, 1), data=2), backend=BACKEND, seed=11):
        import_and_save(folder, IMPORTED, 2)
        trained = {
            f"{name}-{label}": train(folder / name, layout(2, 1, sequence_parallel=label == "sequence-parallel"), 2)
            for name in TRAINED
            for label in LABELS
        }
        return {"trained": trained, "moved": move_experts(folder), "refusal": refusal_of_replicated(folder)}


def import_everything(folder: Path, num_ranks: int) -> None:
    with ranks(replace(layout(1, 1), data=num_ranks), backend=BACKEND, seed=11):
        import_and_save(folder, everything(folder, num_ranks), num_ranks)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every family's model, each in a folder of its name."""
    made = tmp_path_factory.mktemp("families")
    for name in FAMILIES:
        save_tiny(name, made / name)
    return made


@pytest.fixture(scope="module")
def two_ranks(folder: Path) -> dict[str, Any]:
    return launch_ranks(work_of_two_ranks, 2, folder)[-1]


def steps_of_one_rank(folder: Path, num_steps: int) -> Steps:
    with ranks(layout(1, 1), backend=BACKEND, seed=11):
        return train(folder, layout(1, 1), num_steps)


def check_exports(folder: Path, wanted: dict[str, tuple[str, ...]], out: Path) -> None:
    """Load on one rank what was saved on several, and compare the export with the source."""
    with ranks(single_rank_layout(8, dtype="fp32"), backend=BACKEND, seed=1):
        for name, labels in wanted.items():
            shape = ModelShape.from_hf_folder(folder / name)
            vocab = layout_of_ids(shape, multiple=128)
            for label in labels:
                chunks = build_chunks(shape, vocab, single_rank_layout(8, dtype="fp32"), backend=BACKEND, initialise_weights=False)
                load_model(folder / f"{name}-{label}", chunks)
                write_tensors(out / f"{name}-{label}", hf_tensors(chunks, shape, vocab))
                assert_same(HfFolder.open(out / f"{name}-{label}"), HfFolder.open(folder / name))


@pytest.mark.usefixtures("two_ranks")
def test_weights_that_were_imported_on_two_ranks_are_exported_bit_identical(folder: Path, tmp_path: Path) -> None:
    """From Hugging Face to core by tensor, pipeline and expert parallelism, saved, loaded on one rank, and back."""
    check_exports(folder, IMPORTED, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("num_ranks", [2, 4])
def test_weights_of_every_family_come_back_from_every_layout(num_ranks: int, folder: Path, tmp_path: Path) -> None:
    """The same for all families, and for 4 tensor-parallel ranks, 2 x 2 tensor and pipeline, 4 expert and 2 x 2 tensor and expert."""
    launch_ranks(import_everything, num_ranks, folder, num_ranks)
    check_exports(folder, everything(folder, num_ranks), tmp_path)


@pytest.mark.parametrize("name", TRAINED)
def test_a_family_trains_alike_on_one_rank_and_on_two(name: str, folder: Path, two_ranks: dict[str, Any]) -> None:
    """A gradient that a rank forgot to sum would show in the norm of the first step, and in the loss of the second."""
    one = steps_of_one_rank(folder / name, 2)
    for label in LABELS:
        assert_alike(one, two_ranks["trained"][f"{name}-{label}"])


def test_shared_experts_train_as_whole_ones_and_go_on_from_each_others_checkpoints(folder: Path, two_ranks: dict[str, Any]) -> None:
    """The third step is made after weights and moments moved between 2 expert-parallel ranks and 1."""
    one = steps_of_one_rank(folder / "qwen3-moe", 3)
    for label, steps in two_ranks["moved"].items():
        print(label, steps, one)
        assert_alike(one, steps)
    assert "parallel.expert" in two_ranks["refusal"]


def assert_alike(one: Steps, other: Steps) -> None:
    assert len(one) == len(other)
    for (loss, norm), (other_loss, other_norm) in zip(one, other, strict=True):
        assert other_loss == pytest.approx(loss, rel=1e-5)
        assert other_norm == pytest.approx(norm, rel=1e-5)
