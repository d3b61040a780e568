"""A plan by hand for SmolLM2-135M's shape on one rank, for the benchmarks that need no run: only what training needs is decided here."""

from __future__ import annotations

from typing import Any


def make_plan(sequence: int) -> Any:
    """Return the plan of one sequence of so many tokens a step, in fp32 on two threads."""
    from megatron_cpt.model.parallel import single_rank_layout  # noqa: PLC0415
    from megatron_cpt.plan.bare_plan import bare_plan  # noqa: PLC0415
    from megatron_cpt.plan.model_shape import ModelShape  # noqa: PLC0415
    from megatron_cpt.plan.run_plan import EvalPlan, OptimizerPlan, SchedulePlan  # noqa: PLC0415
    from megatron_cpt.record.vocab_layout import VocabLayout  # noqa: PLC0415

    shape = ModelShape(
        hidden_size=576, num_layers=30, num_attention_heads=9, num_query_groups=3, head_dim=64, ffn_hidden_size=1536, num_base_ids=49152,
        max_position=2048, norm_epsilon=1e-5, rotary_base=100_000.0, tied_embeddings=True,
    )  # fmt: skip
    return bare_plan(
        shape, VocabLayout(49152, 49152, 49152, 0, ""), single_rank_layout(sequence, dtype="fp32", threads=2), name="benchmark", seed=1,
        backend="cpu", num_steps=1000, optimizer=OptimizerPlan(0.9, 0.95, 1e-8, 0.1, 1.0),
        schedule=SchedulePlan("cosine", 1e-5, 1e-6, 10, 1000), eval_plan=EvalPlan((), sequence, 1),
    )  # fmt: skip
