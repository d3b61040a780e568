"""The break-even by hand arithmetic: at it, training with and without the extension costs the same FLOPs."""

from __future__ import annotations

import pytest

from megatron_cpt.config.schema import BlendConfig, BlendStageConfig, SourceConfig
from megatron_cpt.line.economy import Prospect, domain_share
from megatron_cpt.plan.break_even import Tokens, Training, break_even
from megatron_cpt.plan.model_shape import ModelShape
from megatron_cpt.plan.throughput import flops_per_token
from megatron_cpt.record.unknown import Unavailable

TRAINING = Training(
    flops_before=1000.0, flops_after=1010.0, planned_tokens=5e8, domain_share=1.0, usd_per_flop=1e-9, relearn_tokens=1e7
)  # fmt: skip


def test_the_break_even_of_a_domain_alone():
    # 20 % fewer tokens, each 1 % dearer: 1000 - 0.8 * 1010 = 192 FLOPs saved a token, and 1e7 * 1010 to win back
    found = break_even(Tokens(num_new_rows=500, domain_ratio=0.8), TRAINING)
    assert found.break_even_tokens == pytest.approx(1e7 * 1010 / 192)
    assert found.step_saving == pytest.approx(0.2)
    assert found.compute_saving == pytest.approx(0.192)
    assert found.planned_tokens == pytest.approx(5e8 / 0.8)
    assert found.pays is True
    assert found.usd_saved == pytest.approx((6.25e8 * 192 - 1e7 * 1010) * 1e-9)


def test_at_the_break_even_both_trainings_cost_the_same():
    training = Training(flops_before=800.0, flops_after=830.0, planned_tokens=1.0, domain_share=0.7, usd_per_flop=1.0, relearn_tokens=2e6)
    tokens = Tokens(num_new_rows=9, domain_ratio=0.6, general_ratio=1.0)
    found = break_even(tokens, training)
    text = found.break_even_tokens  # in the base's tokens, of which a share is domain
    extended = text * found.domain_share * 0.6 + text * (1 - found.domain_share)
    assert pytest.approx(text * found.domain_share * 0.6 / extended) == 0.7  # the blend's share counts the extended tokens
    assert text * 800 == pytest.approx((extended + 2e6) * 830)


def test_rows_that_cost_more_than_the_text_saves_never_pay():
    found = break_even(Tokens(num_new_rows=9, domain_ratio=0.995), TRAINING)
    assert isinstance(found.break_even_tokens, Unavailable)
    assert found.pays is False
    assert found.usd_saved < 0


def test_without_a_measure_the_published_figure_is_scaled_by_the_rows_and_named():
    stated = Training(1000.0, 1010.0, Unavailable("set blend.num_tokens"), 1.0, Unavailable("no price"))
    found = break_even(Tokens(num_new_rows=896, domain_ratio=0.8), stated)
    assert found.relearn_tokens == pytest.approx(2e8)  # a tenth of the 8,960 rows that took 2e9 tokens
    assert "2402.14714" in found.relearn_source
    assert found.pays is None
    assert isinstance(found.usd_saved, Unavailable)


def test_the_wider_output_layer_is_in_the_cost_of_a_token():
    shape = ModelShape.from_hf_config(
        {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama",
            "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "intermediate_size": 128, "vocab_size": 600, "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
            "tie_word_embeddings": True, "hidden_act": "silu",
        },
        where="test",
    )  # fmt: skip
    prospect = Prospect(shape, sequence_length=128, planned_tokens=1e6, domain_share=1.0, usd_per_flop=Unavailable("no price"))
    found = prospect(num_new_rows=128, num_base_rows=640, num_padded_rows=768, domain_ratio=0.5, general_ratio=1.0)
    assert found["flops_before"] == flops_per_token(shape, num_rows=640, sequence_length=128)
    assert found["flops_after"] - found["flops_before"] == 3 * 2 * 64 * 128  # three passes, two FLOPs a weight
    assert found["usd_saved"] == {"unavailable": "no price"}


def test_the_domain_share_is_weighted_over_the_stages():
    sources = {"law": SourceConfig(role="domain"), "english": SourceConfig(role="general")}
    blend = BlendConfig(shares={"law": 3, "english": 1}, num_tokens=1000, stages=[BlendStageConfig(600, {"law": 1, "english": 1})])
    assert domain_share(blend, sources) == pytest.approx((600 * 0.75 + 400 * 0.5) / 1000)
    assert domain_share(BlendConfig(), sources) == 1.0
