"""Sample i of step k holds the same tokens for every number of data-parallel ranks and every micro-batch size."""

# ruff: noqa: PLC0415  -- ranks import torch and megatron in their own process, after the backend is chosen
from __future__ import annotations

from pathlib import Path

from launch_ranks import launch_ranks
from tiny_run import make_layout, make_plan, make_run

NUM_STEPS, BATCH = 4, 8
SPLITS = [(1, 1), (1, 8), (2, 4), (2, 1), (4, 2), (8, 1)]  # data-parallel ranks, micro-batch size
POSITIONS = 256  # of the tiny model: sequences of exactly as many tokens are the longest that it may read


def test_the_tokens_of_a_step_do_not_depend_on_how_its_batch_is_split_nor_on_where_a_run_goes_on(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path)
    whole, *others = launch_ranks(read_batches, 1, str(run_dir), SPLITS)[0]
    assert len(whole) == NUM_STEPS * BATCH
    assert len(set(map(tuple, whole))) > NUM_STEPS * BATCH // 2  # the samples are not all the same text
    for split, other in zip(SPLITS[1:], others, strict=True):
        assert other == whole, split


def read_batches(run_dir_text: str, splits: list[tuple[int, int]]) -> list[list[list[int]]]:
    """Return, for each split, the tokens of all samples in the order of step, micro-batch and rank, each through its own dataset.

    Step 3 and 4 are read by an iterator of their own, as a resumed run does.
    """
    from megatron_cpt.backend import choose
    from megatron_cpt.model.parallel import ranks, single_rank_layout
    from megatron_cpt.plan.run_plan import RunPlan
    from megatron_cpt.train.data import TrainingData, build_dataset

    backend, run_dir = choose("cpu"), Path(run_dir_text)
    found = []
    with ranks(single_rank_layout(POSITIONS, dtype="fp32"), backend=backend, seed=0):
        for data, micro in splits:
            layout = make_layout(data=data, micro_batch_size=micro, global_batch_size=BATCH, sequence_length=POSITIONS)
            plan = RunPlan.load(make_plan(run_dir, layout, num_steps=NUM_STEPS))
            dataset = build_dataset(plan, run_dir, run_dir / f"train-{data}-{micro}", barrier=lambda: None)
            samples: list[list[int]] = []
            for begin in (0, 2 * BATCH):
                readers = [
                    TrainingData(dataset, plan=plan, data_rank=rank, device=backend.device).from_sample(begin) for rank in range(data)
                ]
                for _ in range(2):
                    steps = [next(reader) for reader in readers]
                    for number in range(layout.num_microbatches):
                        for step in steps:
                            microbatch = step.microbatches[number]
                            # inputs never exceed the model's positions, though a label follows the last of them
                            assert microbatch.tokens_BS.shape == microbatch.labels_BS.shape == (micro, POSITIONS)
                            assert int(microbatch.position_ids_BS.max()) == POSITIONS - 1
                            assert bool((microbatch.tokens_BS[:, 1:] == microbatch.labels_BS[:, :-1]).all())
                            samples += microbatch.tokens_BS.tolist()
            found.append(samples)
    return found
