"""The DeepSpeed run nearest to a plan: keys that DeepSpeed has, a batch that multiplies, a stage that fits, and what it cannot do."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import yaml
from plan_examples import experiment, facts

from megatron_cpt.errors import ConfigError
from megatron_cpt.plan.deepspeed import choose, data_parallel_layout, ds_config, not_expressed, scheduler, write_deepspeed, zero_choices
from megatron_cpt.plan.derive import derive
from megatron_cpt.plan.run_plan import RunPlan, SchedulePlan
from megatron_cpt.plan.zero import FULL_ADAM, deepspeed_host_bytes, zero_states_bytes

# Keys of docs/_pages/config-json.md of deepspeedai/DeepSpeed, release 0.19, as far as they are written here.
KEYS = {
    "": {
        "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping", "steps_per_print",
        "optimizer", "scheduler", "zero_optimization", "bf16", "activation_checkpointing",
    },
    "zero_optimization": {
        "stage", "overlap_comm", "contiguous_gradients", "stage3_gather_16bit_weights_on_model_save", "offload_optimizer", "offload_param",
    },
    "activation_checkpointing": {"partition_activations", "cpu_checkpointing"},
    "bf16": {"enabled"},
}  # fmt: skip


def planned(*, memory_gb: float = 80.0, **parallel: object) -> RunPlan:
    config = experiment()
    config.gpu.memory_gb = 80.0
    for key, value in parallel.items():
        setattr(config.parallel, key, value)
    plan = derive(config, **facts())
    return dataclasses.replace(plan, estimate=dataclasses.replace(plan.estimate, memory_limit_bytes=memory_gb * 1e9))


def test_the_batch_multiplies_and_every_key_is_one_of_deepspeeds() -> None:
    plan = planned(recompute="full")
    config = ds_config(plan, choose(plan, zero_choices(plan)))
    assert config["train_batch_size"] == config["train_micro_batch_size_per_gpu"] * config["gradient_accumulation_steps"] * 8 == 128
    assert set(config) <= KEYS[""]
    for part, keys in KEYS.items():
        assert set(config.get(part, {}) if part else ()) <= keys
    assert config["optimizer"]["params"] == {"lr": 1e-5, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1}
    assert config["bf16"] == {"enabled": True}
    assert "activation_checkpointing" in config


@pytest.mark.parametrize(
    ("memory_gb", "stage", "offload"),
    [(1000.0, 1, "none"), (80.0, 2, "none"), (72.0, 3, "none"), (58.0, 3, "optimizer"), (10.0, 3, "optimizer and weights")],
)
def test_the_stage_is_the_lowest_that_fits_from_the_plans_own_sharding_on(memory_gb: float, stage: int, offload: str) -> None:
    plan = planned(memory_gb=memory_gb)
    (activations,) = {round(choice.other_bytes) for choice in zero_choices(plan)}
    memory = {1: 44.2, 2: 34.1, 3: 20.2, 4: 4.2}  # GB of 8.03 G parameters on 8 GPUs: 4 P + 12 P / 8; DeepSpeed's 2 P + 18 P / 8, ...
    limits = {1000.0: 1e12, 80.0: memory[2] + 0.5, 72.0: memory[3] + 0.5, 58.0: memory[4] + 0.5, 10.0: 1.0}
    limit = (activations + limits[memory_gb] * 1e9) * 1.05  # the plan's allowance for fragmentation
    plan = dataclasses.replace(plan, estimate=dataclasses.replace(plan.estimate, memory_limit_bytes=limit))
    found = choose(plan, zero_choices(plan))
    assert (found.stage, found.offload) == (stage, offload)
    assert found.fits == (memory_gb != 10.0)


def test_a_fully_sharded_plan_is_stage_3_though_less_would_fit() -> None:
    plan = planned(memory_gb=1000.0, fsdp=True, tensor=1, sequence_parallel=False)
    assert choose(plan, zero_choices(plan)).stage == 3


def test_states_in_full_precision_are_16_bytes_of_which_8_are_the_optimizers() -> None:
    assert zero_states_bytes(1e9, num_gpus=8, stage=0, states=FULL_ADAM) == 16e9
    assert zero_states_bytes(1e9, num_gpus=8, stage=1, states=FULL_ADAM) == 9e9


def test_the_hosts_memory_is_deepspeeds_own_figure() -> None:
    # estimate_zero3_model_states_mem_needs(2851e6, 32e6, 8, 1, True, ...) and estimate_zero2_... of release 0.19.8, run by hand
    t5 = {"largest_module": 32e6, "gpus_per_node": 8, "num_nodes": 1}
    assert deepspeed_host_bytes(2851e6, stage=3, offload="optimizer", **t5) == 68_424_000_000
    assert deepspeed_host_bytes(2851e6, stage=3, offload="optimizer and weights", **t5) == 76_977_000_000
    assert deepspeed_host_bytes(2851e6, stage=3, offload="none", **t5) == 1_536_000_000
    assert deepspeed_host_bytes(2851e6, stage=2, offload="none", **t5) == 136_848_000_000


def test_schedules_are_deepspeeds_nearest_and_the_difference_is_said() -> None:
    cosine, notes = scheduler(SchedulePlan("cosine", 2e-4, 2e-5, 1280, 12800), samples_per_step=128)
    assert cosine == {
        "type": "WarmupCosineLR",
        "params": {"total_num_steps": 100, "warmup_num_steps": 10, "warmup_min_ratio": 0.0, "cos_min_ratio": 0.1, "warmup_type": "linear"},
    }
    assert notes == []
    linear, notes = scheduler(SchedulePlan("linear", 2e-4, 2e-5, 1280, 12800), samples_per_step=128)
    assert linear["type"] == "WarmupDecayLR"
    assert linear["params"]["total_num_steps"] == 100
    assert "ends at 0" in notes[0]
    wsd, notes = scheduler(SchedulePlan("wsd", 2e-4, 2e-5, 0, 12800, anneal_samples=1280), samples_per_step=128)
    assert wsd["type"] == "WarmupLR"
    assert any("at least 2 steps" in note for note in notes)
    assert any("last phase has no key" in note for note in notes)
    _, notes = scheduler(SchedulePlan("constant", 2e-4, 2e-4, 1280, 12800, new_rows_samples=128, new_rows_lr=1e-3), samples_per_step=128)
    assert any("rows of new ids" in note for note in notes)


def test_what_has_no_key_is_said() -> None:
    plan = planned(recompute="selective")
    said = " ".join(not_expressed(plan))
    assert "the plan splits the model (tensor 4)" in said
    assert "selective recomputation has no key" in said


def test_three_files_are_written_and_the_page_of_them_fits(tmp_path: Path) -> None:
    text = write_deepspeed(planned(), tmp_path / "ds")
    assert max(map(len, text.splitlines())) <= 80
    config = json.loads((tmp_path / "ds" / "ds_config.json").read_text())
    launcher = yaml.safe_load((tmp_path / "ds" / "accelerate.yaml").read_text())
    assert launcher["deepspeed_config"] == {
        "deepspeed_config_file": "ds_config.json",
        "zero3_init_flag": config["zero_optimization"]["stage"] == 3,
    }
    assert (launcher["num_processes"], launcher["num_machines"]) == (8, 1)
    assert "mixed_precision" not in launcher  # accelerate refuses what is in ds_config.json too
    assert (tmp_path / "ds" / "launch.sh").read_text().splitlines()[1] == "accelerate launch --config_file accelerate.yaml train.py"


def test_a_batch_that_data_parallelism_cannot_have_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    plan = planned()
    plan = dataclasses.replace(plan, layout=dataclasses.replace(plan.layout, global_batch_size=12))
    with pytest.raises(ConfigError, match="data parallelism alone"):
        write_deepspeed(plan, tmp_path / "ds")
    with pytest.raises(ConfigError, match="for GPUs"):
        write_deepspeed(dataclasses.replace(planned(), backend="cpu"), tmp_path / "ds")
    assert not (tmp_path / "ds").exists()
    assert data_parallel_layout(planned().layout).num_ranks == 8
