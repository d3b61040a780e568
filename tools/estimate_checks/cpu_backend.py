"""What the CPU backend's layers keep for the backward pass, as torch's own hooks count it, against the planner's list of tensors.

`tests/unit/model/test_kept_tensors.py` measures the table's figures anew on every run.
"""

from __future__ import annotations

from collections.abc import Iterator

from estimate_checks import Check, published
from estimate_checks.golden_cases import layout, model
from megatron_cpt.plan.memory import ON_CPU, kept_bytes_per_layer

_MORE = {
    "gemma3": {"window": 16, "full_every": 2, "window_rotary_base": 1e4, "query_scalar": 8.0},
    "mixtral": {"num_experts": 4, "experts_per_token": 4},
}


def cpu_checks() -> Iterator[Check]:
    """Yield one row per family, dtype and recomputation: the bytes of one layer for one micro-batch."""
    for row in published("cpu_backend_kept.csv"):
        length, hidden = int(row["sequence_length"]), int(row["hidden_size"])
        shape = model(
            row["family"], hidden=hidden, layers=2, heads=int(row["num_attention_heads"]), groups=int(row["num_query_groups"]),
            ffn=int(row["ffn_hidden_size"]), positions=length, head_dim=int(row["head_dim"]), tied_embeddings=True,
            **_MORE.get(row["family"], {}),
        )  # fmt: skip
        size = int(row["micro_batch_size"])
        sizes = layout(
            tensor=1, pipeline=1, gpus=1, micro=size, batch=size, sequence=length, dtype=row["dtype"], recompute=row["recompute"]
        )  # fmt: skip
        ours, _ = kept_bytes_per_layer(shape, sizes, build=ON_CPU)
        what = f"a layer of {row['family']}, {hidden} hidden sizes, {row['dtype']}, recompute {row['recompute']}, {size} x {length} tokens"
        source = "measured: tests/unit/model/test_kept_tensors.py"
        yield Check("cpu", what, float(row["bytes_of_one_layer"]) / 1e6, ours / 1e6, "MB", source, 0.05 if hidden == 32 else 0.005)
