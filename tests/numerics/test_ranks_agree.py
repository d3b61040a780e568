"""Splitting the model over ranks changes no loss and no checkpoint.

Several promises share a launch, because starting ranks is the cost.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from megatron_cpt.backend import choose
from megatron_cpt.plan.model_shape import ModelShape
from megatron_cpt.plan.run_plan import Layout
from tests.integration.launch_ranks import launch_ranks
from tests.numerics.tiny_llama import layout_of_ids, load_reference, save_tiny_llama

BACKEND = choose("cpu")

from megatron.core import parallel_state  # noqa: E402
from megatron.core.dist_checkpointing import load_plain_tensors  # noqa: E402
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads  # noqa: E402
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer  # noqa: E402
from megatron.core.pipeline_parallel import get_forward_backward_func  # noqa: E402
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed  # noqa: E402

from megatron_cpt.model.build import build_chunks  # noqa: E402
from megatron_cpt.model.convert import load_hf_into  # noqa: E402
from megatron_cpt.model.dist_checkpoint import load_model, save_model  # noqa: E402
from megatron_cpt.model.hf_folder import HfFolder  # noqa: E402
from megatron_cpt.model.names import row_names  # noqa: E402
from megatron_cpt.model.parallel import ranks  # noqa: E402

NUM_TOKENS = 32
NUM_MICROBATCHES = 4
NUM_PADDING = 156  # 100 ids in 256 rows: with two tensor-parallel ranks the second one holds padding only


def layout(tensor: int, pipeline: int, data: int = 1, *, sequence_parallel: bool = False, dtype: str = "fp32") -> Layout:
    return Layout(
        tensor=tensor, pipeline=pipeline, data=data, micro_batch_size=1, global_batch_size=NUM_MICROBATCHES, sequence_length=NUM_TOKENS,
        sequence_parallel=sequence_parallel, distributed_optimizer=True, dtype=dtype, num_nodes=1, threads_per_rank=1,
    )  # type: ignore[arg-type]  # fmt: skip


def all_tokens(num_ids: int) -> torch.Tensor:
    return torch.randint(0, num_ids, (NUM_MICROBATCHES, NUM_TOKENS + 1), generator=torch.Generator().manual_seed(5))


class Run:
    """A model on this rank with megatron's schedule, DDP and optimizer around it."""

    def __init__(self, folder: Path, this: Layout) -> None:
        self.layout = this
        self.shape = ModelShape.from_hf_folder(folder)
        self.vocab = layout_of_ids(self.shape, multiple=256)
        chunks = build_chunks(self.shape, self.vocab, this, backend=BACKEND)
        rows = {name: torch.full((NUM_PADDING, self.shape.hidden_size), 3.0) for name in row_names(self.shape)}
        load_hf_into(chunks, HfFolder.open(folder), self.shape, self.vocab, rows)
        config = chunks[0].config
        config.finalize_model_grads_func = finalize_model_grads
        ddp = DistributedDataParallelConfig(use_distributed_optimizer=this.distributed_optimizer, grad_reduce_in_fp32=True)
        self.chunks = [DistributedDataParallel(config, ddp, chunk) for chunk in chunks]
        optimizer = OptimizerConfig(
            optimizer="adam", lr=1e-2, weight_decay=0.1, clip_grad=1.0, use_distributed_optimizer=this.distributed_optimizer,
            bf16=this.dtype == "bf16",
        )  # fmt: skip
        self.optimizer = get_megatron_optimizer(optimizer, self.chunks)

    def step(self) -> float:
        """Make one optimizer step on all tokens and return the mean loss before it, on the last pipeline rank (elsewhere 0)."""
        share = NUM_MICROBATCHES // self.layout.data
        first = parallel_state.get_data_parallel_rank() * share
        rows = all_tokens(self.vocab.num_ids)[first : first + share]
        losses: list[float] = []

        def forward(mine: Any, model: Any) -> Any:
            tokens = next(mine)[None]
            out = model(tokens[:, :-1], torch.arange(NUM_TOKENS)[None], None, labels=tokens[:, 1:].contiguous())

            def loss_of(loss: torch.Tensor) -> Any:
                losses.append(float(loss.detach().sum()))
                return loss.sum(), torch.tensor(loss.numel(), dtype=torch.int), {}

            return out, loss_of

        for chunk in self.chunks:
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        get_forward_backward_func()(
            forward_step_func=forward, data_iterator=[iter(rows) for _ in self.chunks], model=self.chunks,
            num_microbatches=share, seq_length=NUM_TOKENS, micro_batch_size=1, forward_only=False,
        )  # fmt: skip
        done, self.norm, _ = self.optimizer.step()
        assert done
        total = torch.tensor(sum(losses))
        torch.distributed.all_reduce(total, group=parallel_state.get_data_parallel_group())
        return float(total) / (NUM_MICROBATCHES * NUM_TOKENS)


def train_and_save(folder: Path, this: Layout, num_steps: int, checkpoint: Path | None) -> list[float]:
    with ranks(this, backend=BACKEND, seed=11):
        run = Run(folder, this)
        losses = [run.step() for _ in range(num_steps)]
        if checkpoint is not None:
            save_model(checkpoint, run.chunks, optimizer=run.optimizer, common={"step": num_steps})
    return losses


def load_and_go_on(folder: Path, this: Layout, checkpoint: Path, num_steps: int) -> list[float]:
    with ranks(this, backend=BACKEND, seed=12):
        run = Run(folder, this)
        assert load_model(checkpoint, run.chunks, optimizer=run.optimizer) == {"step": 2}
        return [run.step() for _ in range(num_steps)]


def last_stage(losses_by_rank: list[list[float]]) -> list[float]:
    return losses_by_rank[-1]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    save_tiny_llama(folder, num_layers=4)
    return folder


@pytest.fixture(scope="module")
def one_rank(base: Path) -> list[float]:
    """Losses of 4 steps on one rank."""
    return last_stage(launch_ranks(train_and_save, 1, base, layout(1, 1), 4, None))


def test_the_first_loss_is_that_of_transformers(base: Path, one_rank: list[float]) -> None:
    tokens = all_tokens(100)
    with torch.no_grad():
        logits = load_reference(base)(tokens[:, :-1]).logits
    assert one_rank[0] == pytest.approx(float(functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())), rel=1e-5)
    assert one_rank[3] < one_rank[0] - 0.1


# fp32 sums in another order on each layout: 1e-5 after four steps of Adam.
@pytest.mark.parametrize(
    "this",
    [
        pytest.param(layout(2, 1, sequence_parallel=True), id="tp2-sequence-parallel"),
        pytest.param(replace(layout(1, 2), virtual_pipeline=2), id="pp2-vpp2"),
        pytest.param(layout(1, 2), id="pp2", marks=pytest.mark.long),
        pytest.param(layout(2, 2), id="tp2-pp2", marks=pytest.mark.long),
    ],
)
def test_a_layout_trains_like_one_rank_and_goes_on_from_its_checkpoint_on_another(
    base: Path, one_rank: list[float], this: Layout, tmp_path: Path
) -> None:
    losses = last_stage(launch_ranks(train_and_save, this.num_ranks, base, this, 2, tmp_path / "checkpoint"))
    assert losses == pytest.approx(one_rank[:2], rel=1e-5)
    other = layout(1, 1) if this.pipeline == 2 else replace(layout(1, 1), data=2)
    resumed = last_stage(launch_ranks(load_and_go_on, other.num_ranks, base, other, tmp_path / "checkpoint", 2))
    assert resumed == pytest.approx(one_rank[2:], rel=1e-5)


MOVES = {
    "tp2": layout(2, 1),
    "tp2-sequence-parallel": layout(2, 1, sequence_parallel=True),
    "pp2": layout(1, 2),
    "dp2": layout(1, 1, 2),
}
REPLICATED = replace(layout(1, 1, 2), distributed_optimizer=False)
KINDS = {  # between the distributed and the replicated optimizer, and with it to another layout
    "dp2 to replicated": (MOVES["dp2"], REPLICATED),
    "replicated to dp2": (REPLICATED, MOVES["dp2"]),
    "tp2 to replicated dp2": (MOVES["tp2"], REPLICATED),
    "replicated pp2 to dp2": (replace(MOVES["pp2"], distributed_optimizer=False), MOVES["dp2"]),
    "bf16 dp2 to replicated": (replace(MOVES["dp2"], dtype="bf16"), replace(REPLICATED, dtype="bf16")),
    "bf16 replicated to dp2": (replace(REPLICATED, dtype="bf16"), replace(MOVES["dp2"], dtype="bf16")),
}


def move_and_go_on(folder: Path, work: Path) -> tuple[dict[str, tuple[list[str], float]], dict[str, tuple[list[str], float, float]]]:
    """Save after two steps in each layout, load each checkpoint in the next one and save it anew; then make a step there.

    Returns:
        By move: the tensors that are not bit for bit what they were, and the loss of the third step (0 before the last stage).
        Then by change of the optimizer's kind: the same, and the loss of a third step where the checkpoint was made.
    """
    names, found = list(MOVES), {}
    with ranks(MOVES[names[0]], backend=BACKEND, seed=11):
        for name, this in MOVES.items():
            lay_out(this)
            run = Run(folder, this)
            run.step()
            run.step()
            save_model(work / name, run.chunks, optimizer=run.optimizer, common={"step": 2})
        for source, target in zip(names, names[1:] + names[:1], strict=True):
            lay_out(MOVES[target])
            run = Run(folder, MOVES[target])
            load_model(work / source, run.chunks, optimizer=run.optimizer)
            again = work / f"{source}-to-{target}"
            save_model(again, run.chunks, optimizer=run.optimizer, common={"step": 2})
            before, after = (tensors_of(each) for each in (work / source, again))
            assert before.keys() == after.keys()
            moments = [key for key in before if "exp_avg" in key]
            assert len(moments) >= 2 * len([key for key in before if not key.startswith("optimizer.")])  # none was dropped
            changed = [key for key in before if not torch.equal(before[key], after[key])]
            found[f"{source} to {target}"] = (changed, run.step())
        return found, {name: change_kind(folder, work / name, *pair) for name, pair in KINDS.items()}


def change_kind(folder: Path, work: Path, source: Layout, target: Layout) -> tuple[list[str], float, float]:
    """Save after two steps with one kind of optimizer and load it into the other, and save that too."""
    lay_out(source)
    run = Run(folder, source)
    run.step()
    run.step()
    work.mkdir(exist_ok=True)
    save_model(work / "before", run.chunks, optimizer=run.optimizer, common={})
    third = run.step()
    lay_out(target)
    run = Run(folder, target)
    load_model(work / "before", run.chunks, optimizer=run.optimizer)
    save_model(work / "after", run.chunks, optimizer=run.optimizer, common={})
    before, after = ({key: value for key, value in tensors_of(work / name).items() if not_main(key)} for name in ("before", "after"))
    assert before.keys() == after.keys()
    mains = [
        {key.split("param.", 1)[1]: value for key, value in tensors_of(work / name).items() if not not_main(key)}
        for name in ("before", "after")
    ]
    changed = [key for key in before if not torch.equal(before[key], after[key])]
    if mains[0] and mains[1]:  # bf16: the fp32 weights have another name, and must be the same
        assert mains[0].keys() == mains[1].keys()
        changed += [key for key, value in mains[0].items() if not torch.equal(value, mains[1][key])]
    for main in mains:
        changed += [key for key, value in main.items() if not torch.equal(value.to(before[key].dtype), before[key])]
    assert len([key for key in before if "exp_avg" in key]) == 2 * len([key for key in before if not key.startswith("optimizer.")])
    return changed, run.step(), third


def not_main(key: str) -> bool:
    return not key.startswith(("optimizer.state.param.", "optimizer.state.fp32_param."))


def lay_out(this: Layout) -> None:
    """Divide the ranks that are there anew: starting others would cost more than all the rest."""
    parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(this.tensor, this.pipeline)
    model_parallel_cuda_manual_seed(11)


def tensors_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    plain = load_plain_tensors(str(checkpoint))
    return {key: value for key, value in plain.items() if isinstance(value, torch.Tensor)}


def test_weights_and_moments_move_between_layouts_bit_for_bit_and_training_goes_on(
    base: Path, one_rank: list[float], tmp_path: Path
) -> None:
    """The embedding has 16,384 numbers and a norm 64: sizes as uneven as a real model's, for the distributed optimizer to split."""
    moved, kinds = launch_ranks(move_and_go_on, 2, base, tmp_path)[-1]
    assert len(moved) == len(MOVES)
    for name, (changed, loss) in moved.items():
        print(f"{name}: relative difference of the next loss {abs(loss / one_rank[2] - 1):.1e}")
        assert changed == [], name
        assert loss == pytest.approx(one_rank[2], rel=1e-5), name
    assert len(kinds) == len(KINDS)
    for name, (changed, loss, third) in kinds.items():
        print(f"{name}: relative difference of the next loss {abs(loss / third - 1):.1e}")
        assert changed == [], name
        assert loss == pytest.approx(third, rel=1e-5), name
