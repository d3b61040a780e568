"""The position limit is the base config's own: a block that stretches it is kept or refused by name, and a sequence may be as long."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from plan_examples import LLAMA3_8B, experiment, facts

from megatron_cpt.errors import CheckpointError, ConfigError
from megatron_cpt.plan.derive import derive
from megatron_cpt.plan.model_shape import ModelShape

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96,
    "vocab_size": 100, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "rope_scaling.rope_type is 'dynamic'; only 'default', 'linear', 'llama3'"),
        ({"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0]}}, "rope_scaling.rope_type is 'longrope'"),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
            r"high_freq_factor is missing(.|\n)*original_max_position_em",
        ),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "beta_fast": 32}}, "rope_scaling.beta_fast is not known for 'linear'"),
        ({"rope_scaling": {"rope_type": "linear", "factor": "2"}}, "rope_scaling.factor is '2'; a number above 0"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}}, "original_max_position_embeddings is missing"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5; only 1.0"),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0}, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
            "rope_parameters and rope_scaling say different things",
        ),
        ({"original_max_position_embeddings": 64}, "original_max_position_embeddings is not known"),
        ({"rope_interleaved": True}, "rope_interleaved is True; only False is supported"),
    ],
)
def test_a_rotary_block_that_cannot_be_kept_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    assert ModelShape.from_hf_config(LLAMA, where="x").max_position == 64
    with pytest.raises(CheckpointError, match=message):
        ModelShape.from_hf_config({**LLAMA, **changes}, where="x")


@pytest.mark.parametrize("key", ["parallel.sequence_length", "eval.window_tokens"])
def test_a_sequence_may_be_as_long_as_the_models_positions_and_one_token_more_is_refused(key: str) -> None:
    def plan_for(length: int) -> None:
        config = experiment()
        config.parallel.tensor, config.parallel.sequence_parallel, config.parallel.pipeline = 1, False, 4
        group, name = key.split(".")
        setattr(getattr(config, group), name, length)
        derive(config, **{**facts(), "shape": dataclasses.replace(LLAMA3_8B, max_position=8192)})

    plan_for(8192)
    with pytest.raises(ConfigError, match=rf"{key}=8193 is longer than the model's 8192 positions"):
        plan_for(8193)
