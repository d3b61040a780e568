"""Plain-torch kernels against complex numbers and autograd."""

from __future__ import annotations

import pytest
import torch

from megatron_cpt.backend.kernels import _Rotation, accumulate_in_place, accumulate_weight_gradient


def test_a_rotation_is_a_product_of_complex_numbers_and_so_is_its_gradient() -> None:
    torch.manual_seed(1)
    tokens, heads, columns = 5, 3, 8
    t = torch.randn(tokens, 1, heads, columns, dtype=torch.float64, requires_grad=True)
    angles = torch.randn(tokens, 1, 1, columns // 2, dtype=torch.float64)
    twice = torch.cat((angles, angles), dim=-1)
    turned = _Rotation.apply(t, twice.cos(), twice.sin())

    as_complex = torch.complex(*t.detach().chunk(2, dim=-1)) * torch.polar(torch.ones_like(angles), angles)
    torch.testing.assert_close(turned, torch.cat((as_complex.real, as_complex.imag), dim=-1))
    assert torch.autograd.gradcheck(lambda x: _Rotation.apply(x, twice.cos(), twice.sin()), (t,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_gradient_is_added_to_what_the_buffer_holds(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    inputs, grads, before = torch.randn(7, 4, dtype=dtype), torch.randn(7, 3, dtype=dtype), torch.randn(3, 4)
    weight = torch.zeros(3, 4, dtype=dtype, requires_grad=True)
    torch.nn.functional.linear(inputs, weight).backward(grads)
    buffer = before.clone()
    accumulate_weight_gradient(inputs, grads, buffer)
    torch.testing.assert_close(buffer, before + weight.grad.float())


def test_tied_rows_keep_autograds_sum() -> None:
    plain, tied, borrowed = (torch.nn.Linear(2, 2, bias=False) for _ in range(3))
    for module in (plain, tied, borrowed):
        module.gradient_accumulation_fusion = False
    tied.weight.zero_out_wgrad = True
    borrowed.weight = None  # the output layer of a tied model is given the embedding's rows at each call
    accumulate_in_place([torch.nn.ModuleList([plain, tied, borrowed])])
    assert [module.gradient_accumulation_fusion for module in (plain, tied, borrowed)] == [True, False, False]
