"""The normalisation and the attention of the local layers, against transformers and against a hand-written softmax."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from megatron_cpt.backend import choose

choose("cpu")

from megatron_cpt.backend.attention import CausalAttention  # noqa: E402
from megatron_cpt.backend.norm import RMSNorm  # noqa: E402


def config(*, sequence_parallel: bool = False, dtype: torch.dtype = torch.float32) -> SimpleNamespace:
    return SimpleNamespace(
        params_dtype=dtype,
        sequence_parallel=sequence_parallel,
        attention_dropout=0.0,
        context_parallel_size=1,
        layernorm_zero_centered_gamma=False,
        apply_query_key_layer_scaling=False,
    )


def test_rms_norm_of_3_and_4_by_hand() -> None:
    norm = RMSNorm(config(), 2, eps=0.0)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2.0]))
    # root mean square of (3, 4) is sqrt(25 / 2) = 3.535534
    torch.testing.assert_close(norm(torch.tensor([[3.0, 4.0]])), torch.tensor([[0.848528, 2.262742]]))


@pytest.mark.parametrize("epsilon", [1e-6, 1e-3])
def test_rms_norm_and_its_gradients_are_those_of_transformers(epsilon: float) -> None:
    ours, theirs = RMSNorm(config(), 64, eps=epsilon), LlamaRMSNorm(64, eps=epsilon)
    weight = torch.rand(64) + 0.5
    outputs, gradients = [], []
    hidden = torch.randn(8, 2, 64) * 0.01
    for norm in (ours, theirs):
        with torch.no_grad():
            norm.weight.copy_(weight)
        leaf = hidden.clone().requires_grad_()
        out = norm(leaf)
        out.square().sum().backward()
        outputs.append(out)
        gradients.append((leaf.grad, norm.weight.grad))
    torch.testing.assert_close(outputs[0], outputs[1])
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("sequence_parallel", [True, False])
def test_the_norm_tells_megatron_whether_its_gradient_must_be_summed_over_ranks(sequence_parallel: bool) -> None:
    norm = RMSNorm(config(sequence_parallel=sequence_parallel, dtype=torch.bfloat16), 4)
    assert norm.weight.sequence_parallel is sequence_parallel
    assert norm.weight.dtype == torch.bfloat16


def softmax_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Attend token by token, head by head, with nothing but a softmax."""
    num_tokens, num_sequences, num_heads, head_dim = query.shape
    per_group = num_heads // key.shape[2]
    out = torch.zeros(num_tokens, num_sequences, num_heads, head_dim, dtype=query.dtype)
    for token in range(num_tokens):
        for sequence in range(num_sequences):
            for head in range(num_heads):
                group = head // per_group
                scores = key[: token + 1, sequence, group] @ query[token, sequence, head] / head_dim**0.5
                out[token, sequence, head] = scores.softmax(dim=0) @ value[: token + 1, sequence, group]
    return out.reshape(num_tokens, num_sequences, -1)


@pytest.mark.parametrize("num_groups", [4, 2, 1], ids=["multi-head", "grouped-query", "multi-query"])
def test_attention_is_a_causal_softmax_over_the_group_of_each_head(num_groups: int) -> None:
    query = torch.randn(7, 2, 4, 8, dtype=torch.float64)
    key, value = torch.randn(2, 7, 2, num_groups, 8, dtype=torch.float64)
    attention = CausalAttention(config(), layer_number=3)
    torch.testing.assert_close(attention(query, key, value), softmax_attention(query, key, value))


def test_a_later_token_does_not_reach_an_earlier_one() -> None:
    query, key, value = torch.randn(3, 6, 1, 2, 4)
    attention = CausalAttention(config(), layer_number=1)
    before = attention(query, key, value)
    key[4:], value[4:] = 100.0, -100.0
    after = attention(query, key, value)
    assert torch.equal(before[:4], after[:4])
    assert not torch.allclose(before[4:], after[4:])


def test_a_given_softmax_scale_is_used() -> None:
    query, key, value = torch.randn(3, 5, 1, 2, 4, dtype=torch.float64)
    attention = CausalAttention(config(), layer_number=1, softmax_scale=1.0)
    torch.testing.assert_close(attention(query, key, value), softmax_attention(query * 2.0, key, value))
