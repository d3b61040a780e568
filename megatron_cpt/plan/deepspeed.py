"""The nearest DeepSpeed run to a plan, for those who train the same model there: ds_config.json, accelerate.yaml and the launch line.

Keys are those of DeepSpeed's configuration (docs/_pages/config-json.md, release 0.19) and of `accelerate launch`. What DeepSpeed
cannot do is said, never dropped in silence. This project does not run DeepSpeed.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from megatron_cpt.errors import ConfigError
from megatron_cpt.plan.memory import FRAGMENTATION, TORCH_ON_CUDA, memory_of_stages
from megatron_cpt.plan.page_text import field, show_bytes
from megatron_cpt.plan.run_plan import Layout, RunPlan, SchedulePlan
from megatron_cpt.plan.zero import (
    FULL_ADAM,
    MIXED_ADAM,
    Offload,
    Stage,
    deepspeed_gpu_bytes,
    deepspeed_host_bytes,
    zero_states_bytes,
)
from megatron_cpt.record.store import write_json, write_text
from megatron_cpt.record.unknown import Unavailable

DS_CONFIG_NAME = "ds_config.json"
ACCELERATE_NAME = "accelerate.yaml"
LAUNCH_NAME = "launch.sh"
_CHOICES: tuple[tuple[Stage, Offload], ...] = (
    (1, "none"), (2, "none"), (3, "none"), (3, "optimizer"), (3, "optimizer and weights"),
)  # fmt: skip


@dataclass(frozen=True)
class ZeroChoice:
    """A stage and what is offloaded, with the bytes of one GPU: model states, and activations with logits.

    It fits where what DeepSpeed's estimator says of the states does, which is more than the paper's formula, with the plan's allowance
    for fragmentation.
    """

    stage: Stage
    offload: Offload
    states_bytes: float
    other_bytes: float
    fits: bool

    @property
    def total_bytes(self) -> float:
        return (self.states_bytes + self.other_bytes) * (1 + FRAGMENTATION)


def data_parallel_layout(layout: Layout) -> Layout:
    """Return the layout without what DeepSpeed's configuration does not split by: every rank is data-parallel.

    Raises:
        ConfigError: the global batch does not divide by the ranks.
    """
    num_ranks = layout.num_ranks
    if layout.global_batch_size % num_ranks:
        raise ConfigError(
            "The batch of the plan cannot be had from data parallelism alone.",
            value=f"parallel.global_batch_size={layout.global_batch_size} over {num_ranks} ranks",
            rule="train_batch_size = micro-batch x accumulation x GPUs (DeepSpeed's ZeRO splits nothing else)",
            next_step=f"Use a global batch that divides by {num_ranks}, or fewer GPUs, for the DeepSpeed run.",
        )
    return dataclasses.replace(
        layout,
        tensor=1,
        pipeline=1,
        virtual_pipeline=1,
        context=1,
        expert=1,
        data=num_ranks,
        sequence_parallel=False,
        micro_batch_size=math.gcd(layout.micro_batch_size, layout.global_batch_size // num_ranks),
        recompute="none" if layout.recompute == "none" else "full",
        fp8="none",
        fsdp=False,
    )


def zero_choices(plan: RunPlan) -> list[ZeroChoice]:
    """Return what each stage needs of a GPU, and whether it fits; a limit that is unknown is not exceeded."""
    layout, num_params = data_parallel_layout(plan.layout), plan.estimate.num_params
    (whole,) = memory_of_stages(plan.shape, layout, num_rows=plan.vocab.num_padded_rows, build=TORCH_ON_CUDA)
    other = whole.activations + whole.logits + whole.communication + whole.workspaces
    limit = plan.estimate.memory_limit_bytes
    states = MIXED_ADAM if layout.dtype == "bf16" else FULL_ADAM
    choices = []
    for stage, offload in _CHOICES:
        size = zero_states_bytes(num_params, num_gpus=layout.data, stage=stage, states=states)
        taken = size
        if stage >= 2 and layout.dtype == "bf16":
            taken = deepspeed_gpu_bytes(num_params, largest_module=largest_module(plan), num_gpus=layout.data, stage=stage, offload=offload)
            size = size if offload == "none" else taken
        needed = (max(size, taken) + other) * (1 + FRAGMENTATION)
        choices.append(ZeroChoice(stage, offload, size, other, fits=isinstance(limit, Unavailable) or needed <= limit))
    return choices


def largest_module(plan: RunPlan) -> int:
    """Return the parameters of the largest single module, which stage 3 gathers whole: the embedding, or a matrix of the MLP."""
    return plan.shape.hidden_size * max(plan.vocab.num_padded_rows, plan.shape.ffn_hidden_size)


def choose(plan: RunPlan, choices: list[ZeroChoice]) -> ZeroChoice:
    """Return the equivalent of the plan's own sharding, or the first one above it that fits; the last where none does."""
    least = 3 if plan.layout.fsdp else 1  # a sharded optimizer is stage 1; stage 0 keeps no fp32 copy of bf16 weights
    enough = [choice for choice in choices if choice.stage >= least and choice.fits]
    return enough[0] if enough else choices[-1]


def ds_config(plan: RunPlan, choice: ZeroChoice) -> dict[str, Any]:
    """Return the configuration of DeepSpeed."""
    layout, optimizer = data_parallel_layout(plan.layout), plan.optimizer
    zero: dict[str, Any] = {"stage": choice.stage, "overlap_comm": True, "contiguous_gradients": True}
    if choice.stage == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    if choice.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if choice.offload == "optimizer and weights":
        zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    config: dict[str, Any] = {
        "train_batch_size": layout.global_batch_size,
        "train_micro_batch_size_per_gpu": layout.micro_batch_size,
        "gradient_accumulation_steps": layout.num_microbatches,
        "gradient_clipping": optimizer.clip_grad_norm,
        "steps_per_print": plan.log_every_steps,
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": plan.schedule.peak_lr,
                "betas": [optimizer.beta1, optimizer.beta2],
                "eps": optimizer.epsilon,
                "weight_decay": optimizer.weight_decay,
            },
        },
        "scheduler": scheduler(plan.schedule, samples_per_step=layout.global_batch_size)[0],
        "zero_optimization": zero,
        "bf16": {"enabled": layout.dtype == "bf16"},
    }
    if layout.recompute != "none":
        config["activation_checkpointing"] = {"partition_activations": False, "cpu_checkpointing": False}
    return config


def scheduler(schedule: SchedulePlan, *, samples_per_step: int) -> tuple[dict[str, Any], list[str]]:
    """Return DeepSpeed's nearest scheduler, and in words where it is another curve. Its warm-up has at least 2 steps."""
    warmup = max(2, math.ceil(schedule.warmup_samples / samples_per_step))
    total = max(warmup + 1, math.ceil(schedule.decay_samples / samples_per_step))
    peak = schedule.peak_lr
    notes = []
    if schedule.warmup_samples < 2 * samples_per_step:
        notes.append("DeepSpeed's warm-up has at least 2 steps")
    if schedule.new_rows_samples:
        notes.append("the first stage, which trains the rows of new ids alone, has no key: run it in your own loop")
    if schedule.kind == "cosine":
        params = {
            "total_num_steps": total,
            "warmup_num_steps": warmup,
            "warmup_min_ratio": schedule.warmup_from_lr / peak,
            "cos_min_ratio": schedule.min_lr / peak,
            "warmup_type": "linear",
        }
        return {"type": "WarmupCosineLR", "params": params}, notes
    params = {"warmup_min_lr": schedule.warmup_from_lr, "warmup_max_lr": peak, "warmup_num_steps": warmup, "warmup_type": "linear"}
    if schedule.kind == "linear":
        if schedule.min_lr:
            notes.append(f"the linear schedule ends at {schedule.min_lr:g}; DeepSpeed's WarmupDecayLR ends at 0")
        return {"type": "WarmupDecayLR", "params": {"total_num_steps": total, **params}}, notes
    if schedule.kind in ("wsd", "infinite"):
        notes.append(
            f"the {schedule.kind} schedule is written as warm-up and a constant rate: its last phase has no key, lower the rate yourself"
        )
    return {"type": "WarmupLR", "params": params}, notes


def not_expressed(plan: RunPlan) -> list[str]:
    """Return what of the plan DeepSpeed's configuration has no key for."""
    layout = plan.layout
    notes = [
        "gradients are summed in the weights' dtype; this plan's are summed in fp32",
        "data order, blend and tokenizer are your script's: train on the same index for the same samples",
        "in-loop evaluation, gate, rollback and stop conditions stay here",
    ]
    split = {"tensor": layout.tensor, "pipeline": layout.pipeline, "context": layout.context, "expert": layout.expert}
    if any(size > 1 for size in split.values()):
        names = ", ".join(f"{name} {size}" for name, size in split.items() if size > 1)
        notes.append(f"the plan splits the model ({names}); ZeRO shards states over {layout.num_ranks} data-parallel GPUs instead")
    if layout.recompute != "none":
        notes.append("activation checkpointing is turned on in the model too (gradient_checkpointing_enable()), whole layers")
    if layout.recompute == "selective":
        notes.append("selective recomputation has no key: whole layers are recomputed")
    if layout.fp8 != "none":
        notes.append("FP8 has no key: bf16 is written")
    if plan.optimizer.embedding_lr_scale != 1:
        notes.append(
            f"rows of the embedding learn at {plan.optimizer.embedding_lr_scale:g} times the rate: make parameter groups in your script"
        )
    if plan.shape.num_experts:
        notes.append("the router's balancing loss is your model's; DeepSpeed's own experts need deepspeed.moe layers")
    return notes + scheduler(plan.schedule, samples_per_step=layout.global_batch_size)[1]


def accelerate_config(plan: RunPlan, choice: ZeroChoice) -> dict[str, Any]:
    """Return the configuration of `accelerate launch`. Precision and batch are DeepSpeed's: accelerate refuses them in both files."""
    layout = plan.layout
    return {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "DEEPSPEED",
        "deepspeed_config": {
            "deepspeed_config_file": DS_CONFIG_NAME,
            "zero3_init_flag": choice.stage == 3,
            **({"deepspeed_multinode_launcher": "standard"} if layout.num_nodes > 1 else {}),
        },
        "machine_rank": 0,
        "main_training_function": "main",
        "num_machines": layout.num_nodes,
        "num_processes": layout.num_ranks,
        "rdzv_backend": "static",
        "same_network": True,
        "use_cpu": False,
    }


def launch_line(plan: RunPlan) -> str:
    """Return the command for one node, or for each of several with its own number and the first one's address in the environment."""
    where = ' --machine_rank "$NODE_RANK" --main_process_ip "$HEAD_NODE" --main_process_port 29500' if plan.layout.num_nodes > 1 else ""
    return f"accelerate launch --config_file {ACCELERATE_NAME}{where} train.py"


def write_deepspeed(plan: RunPlan, folder: Path) -> str:
    """Write the three files and return what they hold, what each stage needs and what could not be expressed.

    Raises:
        ConfigError: the plan is for CPUs, or its batch does not divide by its GPUs.
    """
    if plan.backend != "cuda":
        raise ConfigError(
            "DeepSpeed's configuration is written for GPUs.",
            value=f"cluster.backend={plan.backend}",
            next_step="Choose a cluster with GPUs, e.g. cluster=h100_8 gpu=h100_sxm.",
        )
    choices = zero_choices(plan)
    choice = choose(plan, choices)
    config, launcher = ds_config(plan, choice), accelerate_config(plan, choice)
    write_json(folder / DS_CONFIG_NAME, config)
    write_text(folder / ACCELERATE_NAME, yaml.safe_dump(launcher, sort_keys=False))
    write_text(folder / LAUNCH_NAME, f"#!/usr/bin/env bash\n{launch_line(plan)}\n")
    return "\n" + "\n".join(_lines(plan, choices, choice, folder)) + "\n"


def _lines(plan: RunPlan, choices: list[ZeroChoice], choice: ZeroChoice, folder: Path) -> list[str]:
    layout, limit = data_parallel_layout(plan.layout), plan.estimate.memory_limit_bytes
    of = "" if isinstance(limit, Unavailable) else f" of {show_bytes(limit)}"
    lines = field("DEEPSPEED", f"{DS_CONFIG_NAME}, {ACCELERATE_NAME} and {LAUNCH_NAME} in {folder}")
    chosen = f"ZeRO stage {choice.stage}" + ("" if choice.offload == "none" else f", {choice.offload} in the host's memory")
    lines += field(
        "uses", f"{chosen}: {show_bytes(choice.total_bytes)}{of} a GPU" + ("" if choice.fits else ". It does NOT fit: use more GPUs")
    )
    for each in choices:
        kind = f"ZeRO-{each.stage}" + ("" if each.offload == "none" else f", {each.offload} offloaded")
        estimator = ""
        if each.stage >= 2 and layout.dtype == "bf16":
            given: dict[str, Any] = {"largest_module": largest_module(plan), "stage": each.stage, "offload": each.offload}
            gpu = deepspeed_gpu_bytes(plan.estimate.num_params, num_gpus=layout.data, **given)
            per_node = layout.data // layout.num_nodes
            host = deepspeed_host_bytes(plan.estimate.num_params, gpus_per_node=per_node, num_nodes=layout.num_nodes, **given)
            estimator = f"; DeepSpeed's estimator: {show_bytes(gpu)}, host {show_bytes(host)} a node"
        lines += field(
            "a GPU" if each is choices[0] else "",
            f"- {kind}: states {show_bytes(each.states_bytes)} + activations and logits {show_bytes(each.other_bytes)}"
            f"{'' if each.fits else ' (does not fit)'}{estimator}",
        )
    lines += field("launch", launch_line(plan))
    for number, note in enumerate(not_expressed(plan)):
        lines += field("" if number else "not in it", f"- {note}")
    return lines
