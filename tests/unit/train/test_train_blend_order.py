"""A blend whose shares change: exact counts, spread evenly, every source read on from where it stood."""

from __future__ import annotations

import random

import numpy as np
import pytest

from megatron_cpt.train.blend_order import Continued, StagedBlend, interleave, staged_order


def test_three_to_one_comes_three_to_one() -> None:
    assert interleave([6, 2]).tolist() == [0, 0, 1, 0, 0, 0, 1, 0]  # due: 2/3, 2, 10/3, 14/3, 6, 22/3 against 2, 6


def test_a_source_without_samples_never_comes() -> None:
    assert interleave([0, 3, 0]).tolist() == [1, 1, 1]


@pytest.mark.parametrize("seed", range(20))
def test_counts_are_exact_and_no_prefix_is_far_from_its_shares(seed: int) -> None:
    rng = random.Random(seed)
    counts = [int(10 ** rng.uniform(0, 4)) for _ in range(rng.randint(1, 8))]
    order = interleave(counts)
    assert np.bincount(order, minlength=len(counts)).tolist() == counts
    for source, count in enumerate(counts):
        drawn = np.cumsum(order == source)
        fair = (np.arange(len(order)) + 1) * count / len(order)
        assert abs(drawn - fair).max() <= 1 + len(counts) / 2  # each source's rounding to whole samples moves a prefix by 1/2 at most


def test_a_later_stage_reads_on_where_the_earlier_one_stood() -> None:
    source, number = staged_order([(3, 1), (1, 3)])
    assert [(int(a), int(b)) for a, b in zip(source, number, strict=True)] == [
        (0, 0), (0, 1), (1, 0), (0, 2),  # due in stage 1: 2/3, 2, 10/3 against 2; source 0 wins a tie
        (1, 1), (0, 3), (1, 2), (1, 3),
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(20))
def test_no_sample_of_any_source_is_read_twice_or_skipped(seed: int) -> None:
    rng = random.Random(100 + seed)
    stages = [[rng.choice([0, 1, 7, 300]) for _ in range(4)] for _ in range(rng.randint(1, 5))]
    stages[0][0] += 1
    source, number = staged_order(stages)
    for entry in range(4):
        assert number[source == entry].tolist() == list(range(sum(stage[entry] for stage in stages)))
    begin = 0
    for stage in stages:  # a stage's samples lie between its bounds, so that the shares change exactly there
        end = begin + sum(stage)
        assert np.bincount(source[begin:end], minlength=4).tolist() == stage
        begin = end


def test_a_sample_names_its_source() -> None:
    blend = StagedBlend([[{"text": "a0"}, {"text": "a1"}], [{"text": "b0"}]], [(1, 0), (1, 1)])
    assert [blend[number] for number in range(len(blend))] == [
        {"dataset_id": 0, "text": "a0"}, {"dataset_id": 0, "text": "a1"}, {"dataset_id": 1, "text": "b0"},
    ]  # fmt: skip


class Shuffled:
    """Whole epochs of a source of 10 samples for a number of samples, in an order of the round's own."""

    def __init__(self, num_samples: int, number: int) -> None:
        rng = random.Random(number)
        epochs = [rng.sample(range(10), 10) for _ in range(-(-num_samples // 10))]
        self._samples = [sample for epoch in epochs for sample in epoch]

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, number: int) -> int:
        return self._samples[number]


def test_a_later_round_reads_an_epoch_to_its_end_before_it_begins_another() -> None:
    first = [Continued.build(Shuffled, wanted=(13,))[number] for number in range(13)]
    second = Continued.build(Shuffled, wanted=(13, 27))
    read = [second[number] for number in range(27)]
    assert read[:13] == first
    for begin in (0, 10):  # two epochs were made for 13 samples, and the second is gone on with
        assert sorted(read[begin : begin + 10]) == list(range(10))
    third = Continued.build(Shuffled, wanted=(13, 27, 44))
    then = [third[number] for number in range(44)]
    assert then[:27] == read
    assert sorted(then[20:30]) == sorted(then[30:40]) == list(range(10))
    assert len(third) == 50


def test_a_source_that_its_first_round_has_room_for_is_that_rounds() -> None:
    assert isinstance(Continued.build(Shuffled, wanted=(13, 19)), Shuffled)
