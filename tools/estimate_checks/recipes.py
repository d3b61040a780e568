"""Step times of published recipes, by the step model: what is left, and nothing that was fitted to it."""

from __future__ import annotations

import dataclasses

from estimate_checks import Check, Group, Mean, published
from estimate_checks.throughput import MACHINES, MODELS
from megatron_cpt.plan.machine import Machine
from megatron_cpt.plan.run_plan import Layout
from megatron_cpt.plan.step_time import step_time

# As in conf/gpu/. torchtitan's own H100 has slower memory (HBM2e, 2.4 TB/s) and a limit of 500 W, for which nobody published how fast
# products are.
_MACHINES = MACHINES | {
    "B200": Machine("B200", 1426.4, 2806, 2250, 8.0, 738, 50, 8, 148),
    "H200": Machine("H200", 698.6, 1278, 989, 4.8, 370, 50, 8, 132),
    "H100-500W": dataclasses.replace(MACHINES["H100"], memory_tb_per_second=2.4),
}


CLOSING = """What is left, and what it may be:

- Dense recipes of NVIDIA: the newest are a little faster than the model, the oldest (2024) slower.
- Experts beyond a node are predicted too slow: these recipes send a token to a node once and not once an expert, hide the exchange behind
  another micro-batch, and leave experts whole over the tensor ranks. This project does none of these, and the model describes this project.
- Experts within a node are predicted too fast. Sorting, casting and launching small products is what software gets better at: one such
  recipe (Qwen3 30B on 8 B200) went from 9,299 to 26,695 tokens/s between two releases, which no count of bytes and products tells.
- torchtitan: the H100 are limited to 500 W and are counted with the products of one at 700 W; part of its activations are recomputed
  ("selective" there is every second product), and nothing is fused but by the compiler, which table 1 leaves out.
"""


def predicted_seconds(row: dict[str, str]) -> float:
    """Predict the step of a recipe. Layers that do not divide by the stages are given to the first ones."""
    number = {key: int(value) for key, value in row.items() if value.isdigit()}
    shape = MODELS[row["model"]]
    data = number["gpus"] // (number["tensor"] * number["pipeline"] * number["context"])
    overlaps = not shape.num_experts and row["fsdp"] == "false"
    layout = Layout(
        tensor=number["tensor"],
        pipeline=number["pipeline"],
        data=data,
        micro_batch_size=number["micro_batch"],
        global_batch_size=number["global_batch"],
        sequence_length=number["sequence"],
        sequence_parallel=number["tensor"] > 1,
        distributed_optimizer=True,
        dtype="bf16",
        num_nodes=max(number["gpus"] // 8, 1),
        threads_per_rank=1,
        virtual_pipeline=number["chunks"],
        recompute="full" if row["recompute"] == "full" else "none",
        context=number["context"],
        overlap_grad_reduce=overlaps,
        overlap_param_gather=overlaps,
        fp8="hybrid" if row["precision"] == "fp8" else "none",
        expert=number["expert"],
        fsdp=row["fsdp"] == "true",
    )
    return step_time(shape, layout, _MACHINES[row["gpu"]], num_rows=shape.num_base_ids).total


def _words(row: dict[str, str]) -> str:
    sizes = {"tp": "tensor", "pp": "pipeline", "cp": "context", "chunks": "chunks", "ep": "expert"}
    split = "".join(f", {short} {row[key]}" for short, key in sizes.items() if row[key] != "1")
    sharded = ", fully sharded" if row["fsdp"] == "true" else ""
    return f"a step of {row['model']} on {row['gpus']} {row['gpu']}, {row['precision']}{split}{sharded}"


def checks() -> list[Check]:
    found = []
    for row in published("recipes.csv"):
        tokens = int(row["global_batch"]) * int(row["sequence"]) / int(row["gpus"])
        seconds = tokens / float(row["tokens_s_gpu"])
        found.append(Check(row["id"], _words(row), seconds, predicted_seconds(row), "s", row["source"]))
    return found


def group() -> Group:
    rows = checks()
    mixtures = tuple(row for row in rows if "Qwen3" in row.id or "DeepSeek" in row.id or "OSS" in row.id)
    titan = tuple(row for row in rows if row.id.startswith("torchtitan"))
    dense = tuple(row for row in rows if row not in mixtures and row not in titan)
    return Group(
        title="Step times of recipes",
        order=26,
        intro="The step model on recipes of NVIDIA (Megatron-Bridge, NeMo) and of torchtitan, with the tokens a second that they print. No"
        " row has a tolerance, and none was looked at while the model was made. What a recipe does not print, such as recomputation, is"
        " taken as if it were not there.",
        checks=tuple(rows),
        means=(
            Mean("step time, dense recipes of NVIDIA", dense),
            Mean("step time, recipes of NVIDIA with experts", mixtures),
            Mean("step time, torchtitan", titan),
        ),
        closing=CLOSING,
    )
