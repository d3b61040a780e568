"""The parts of the step model by hand arithmetic: products, collectives, the schedule, and what hides what."""

from __future__ import annotations

import dataclasses

import pytest
from plan_examples import DEEPSEEK_V3, LLAMA3_8B, ONE_RANK

from megatron_cpt.config.schema import ClusterConfig, GpuConfig
from megatron_cpt.plan.communication import all_reduce_seconds, all_to_all_seconds, gather_seconds
from megatron_cpt.plan.kernels import matmul_seconds
from megatron_cpt.plan.machine import Machine, machine_of
from megatron_cpt.plan.step_time import step_time
from megatron_cpt.record.unknown import Unavailable

# 100 TFLOP/s on 10 multiprocessors; 1 TB/s of which 0.9; links 100 GB/s; a card 10 GB/s of which 0.9
MACHINE = Machine("test", 100.0, 200.0, 120.0, 1.0, 100.0, 10.0, 8, 10)
EIGHT = dataclasses.replace(ONE_RANK, data=8, global_batch_size=64, distributed_optimizer=True, sequence_length=4096)


def test_a_product_of_whole_waves_takes_its_flops_and_the_time_to_write_it() -> None:
    # 10 tiles of 256 x 128 are one wave of 10 units: 2 x 2560 x 128 x 65536 / 100e12 s, and 2 bytes x 2560 x 128 at 0.9 TB/s
    found = matmul_seconds(MACHINE, 2560, 128, 65536)
    assert found == pytest.approx(2 * 2560 * 128 * 65536 / 100e12 + 2 * 2560 * 128 / 0.9e12)


def test_eleven_tiles_on_ten_units_take_longer_than_their_share() -> None:
    whole, more = (matmul_seconds(MACHINE, rows, 128, 65536) for rows in (2560, 2816))
    assert more / whole > 1.1 + 0.05  # cut in four, 44 pieces are five waves: 1.25 of one


def test_a_thin_product_waits_for_memory() -> None:
    # one row against 8192 x 8192 weights: 2 bytes each at 0.9 TB/s, and the row
    assert matmul_seconds(MACHINE, 1, 8192, 8192) >= 2 * 8192 * 8192 / 0.9e12


def test_fp8_products_run_at_their_own_rate() -> None:
    wide = matmul_seconds(MACHINE, 2560, 1280, 65536), matmul_seconds(MACHINE, 2560, 1280, 65536, fp8=True)
    assert wide[0] / wide[1] == pytest.approx(2.0, rel=0.01)


def test_a_ring_within_a_node_passes_seven_eighths() -> None:
    assert gather_seconds(MACHINE, 8e9, group=8) == pytest.approx(7 * (1e9 / 100e9 + 2e-6))
    assert all_reduce_seconds(MACHINE, 8e9, group=8) == pytest.approx(2 * gather_seconds(MACHINE, 8e9, group=8))
    assert gather_seconds(MACHINE, 8e9, group=1) == 0


def test_a_ring_over_nodes_has_a_card_for_each_member_in_a_node() -> None:
    # 16 ranks, stride 1: 8 members a node, 8 x 9 GB/s; stride 8: one member, 9 GB/s
    assert MACHINE.bus_bytes_per_second(group=16, stride=1) == pytest.approx(72e9)
    assert MACHINE.bus_bytes_per_second(group=16, stride=8) == pytest.approx(9e9)
    assert MACHINE.bus_bytes_per_second(group=8, stride=1) == pytest.approx(100e9)


def test_an_exchange_over_two_nodes_waits_for_the_half_that_leaves() -> None:
    assert all_to_all_seconds(MACHINE, 16e9, group=16) == pytest.approx(8e9 / 9e9 + 2e-6)


def test_full_recomputation_costs_one_forward_pass_of_the_layers() -> None:
    plain = step_time(LLAMA3_8B, EIGHT, MACHINE, num_rows=128256)
    again = step_time(LLAMA3_8B, dataclasses.replace(EIGHT, recompute="full"), MACHINE, num_rows=128256)
    forward = again.compute.recompute
    assert again.total == pytest.approx(plain.total + forward)
    assert 0.28 < forward / plain.compute.total < 0.38  # a third of forward and backward, but for what only one of them does


def test_a_pipeline_waits_as_its_schedule_says_and_less_with_chunks() -> None:
    piped = dataclasses.replace(EIGHT, data=1, pipeline=8, global_batch_size=16)
    one, two = (step_time(LLAMA3_8B, dataclasses.replace(piped, virtual_pipeline=chunks), MACHINE, num_rows=128256) for chunks in (1, 2))
    assert one.bubble == pytest.approx(one.compute.total * 7 / 16)  # (p - 1) / m, Narayanan et al. 2021
    assert two.bubble == pytest.approx(one.bubble / 2)


def test_overlap_hides_gradients_and_never_makes_a_step_longer() -> None:
    whole = step_time(LLAMA3_8B, EIGHT, MACHINE, num_rows=128256)
    hidden = step_time(LLAMA3_8B, dataclasses.replace(EIGHT, overlap_grad_reduce=True, overlap_param_gather=True), MACHINE, num_rows=128256)
    assert 0 < hidden.data < whole.data
    assert hidden.compute == whole.compute


def test_a_context_ring_that_computing_covers_costs_nothing_and_a_slow_one_does() -> None:
    ring = dataclasses.replace(EIGHT, data=1, context=8, sequence_length=32768, global_batch_size=1)
    assert step_time(LLAMA3_8B, ring, MACHINE, num_rows=128256).compute.context == 0
    slow = dataclasses.replace(MACHINE, link_gb_per_second=0.5)
    assert step_time(LLAMA3_8B, ring, slow, num_rows=128256).compute.context > 0


def test_latent_attention_and_a_shared_expert_take_the_time_of_their_products() -> None:
    layout = dataclasses.replace(EIGHT, pipeline=1, expert=8)
    usual = step_time(DEEPSEEK_V3, layout, MACHINE, num_rows=129280)
    plain = step_time(dataclasses.replace(DEEPSEEK_V3, shared_ffn_hidden_size=0), layout, MACHINE, num_rows=129280)
    # at the rate of large products, six FLOPs a weight and token: 58 layers x 3 x 7168 x 2048, 8 micro-batches of 4,096 tokens, and the
    # writing of what they make
    least = 8 * 4096 * 6 * 58 * 3 * 7168 * 2048 / 100e12
    assert least < usual.compute.matmul - plain.compute.matmul < 1.3 * least
    # 2.5 + 1 forward passes of fused attention, at the shares of the peak that kernels.py names
    flops = 2 * 4096 * 2048 * 128 * (192 + 128) * 61 * 8
    assert usual.compute.attention == pytest.approx(flops / (0.6 * 120e12) + 2.5 * flops / (0.5 * 120e12))


def test_the_slowest_stage_of_unlike_layers_sets_the_pace() -> None:
    shallow = dataclasses.replace(DEEPSEEK_V3, num_layers=8, num_dense_layers=4)
    layout = dataclasses.replace(EIGHT, pipeline=2, data=4, expert=4)
    step = step_time(shallow, layout, MACHINE, num_rows=129280)
    one_stage = dataclasses.replace(layout, pipeline=1)
    experts, dense = (dataclasses.replace(shallow, num_layers=4, num_dense_layers=count) for count in (0, 4))
    # the second stage's four layers of experts are slower; its 16 micro-batches wait once for the first stage's four dense layers
    assert step.compute == step_time(experts, one_stage, MACHINE, num_rows=129280).compute
    assert step.bubble == pytest.approx(step_time(dense, one_stage, MACHINE, num_rows=129280).compute.total / 16)
    more = step_time(dataclasses.replace(shallow, num_mtp_layers=1), layout, MACHINE, num_rows=129280)
    assert more.output == 2 * step.output
    assert more.compute.total > 1.25 * step.compute.total


def test_items_add_up_to_the_total() -> None:
    step = step_time(LLAMA3_8B, dataclasses.replace(EIGHT, tensor=2, data=4, sequence_parallel=True), MACHINE, num_rows=128256)
    assert sum(step.items().values()) == pytest.approx(step.total)


def test_a_device_without_rates_is_refused_by_key_and_nothing_is_assumed() -> None:
    gpu = GpuConfig(name="new", source="a test", dense_tflops=100.0)
    found = machine_of(gpu, ClusterConfig(backend="cuda", num_nodes=2, ranks_per_node=8))
    assert isinstance(found, Unavailable)
    for key in ("gpu.matmul_tflops", "gpu.memory_tb_per_second", "gpu.link_gb_per_second", "gpu.network_gb_per_second"):
        assert key in found.reason
