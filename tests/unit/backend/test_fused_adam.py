"""The Adam that megatron is given, against torch's AdamW and against a step by hand."""

from __future__ import annotations

import pytest
import torch

from megatron_cpt.backend.adam import FusedAdam, put_into_megatron


def test_the_first_step_by_hand() -> None:
    param = torch.nn.Parameter(torch.tensor([1.0]))
    adam = FusedAdam([param], lr=0.1, betas=(0.9, 0.95), eps=0.0, weight_decay=0.5)
    param.grad = torch.tensor([3.0])
    adam.step()
    # Decay: 1 - 0.1 * 0.5 = 0.95. Both bias-corrected moments give 3 / sqrt(9) = 1: minus 0.1.
    assert float(param) == pytest.approx(0.85)
    assert adam.param_groups[0]["step"] == 1


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_twenty_steps_are_those_of_torch(weight_decay: float) -> None:
    torch.manual_seed(1)
    start = [torch.randn(5, 3), torch.randn(7)]
    settings = {"lr": 0.01, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": weight_decay}
    results = []
    for kind in (FusedAdam, torch.optim.AdamW):
        params = [torch.nn.Parameter(tensor.clone()) for tensor in start]
        optimizer = kind(params, **settings)
        generator = torch.Generator().manual_seed(2)
        for _ in range(20):
            for param in params:
                param.grad = torch.randn(param.shape, generator=generator)
            optimizer.step()
        results.append([param.detach() for param in params])
    torch.testing.assert_close(results[0], results[1])


def test_state_has_the_form_that_megatron_reshards() -> None:
    used, unused = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    adam = FusedAdam([{"params": [used, unused]}, {"params": []}], lr=0.1)
    used.grad = torch.ones(2)
    adam.step()
    adam.step()
    assert set(adam.state[used]) == {"exp_avg", "exp_avg_sq"}
    assert unused not in adam.state
    assert [group.get("step") for group in adam.param_groups] == [2, None]


def test_a_reloaded_state_goes_on_as_if_never_stopped() -> None:
    def steps(optimizer: FusedAdam, param: torch.nn.Parameter, numbers: range) -> None:
        for number in numbers:
            param.grad = torch.tensor([float(number), -1.0])
            optimizer.step()

    whole = torch.nn.Parameter(torch.zeros(2))
    steps(FusedAdam([whole], lr=0.1), whole, range(1, 7))
    first = torch.nn.Parameter(torch.zeros(2))
    before = FusedAdam([first], lr=0.1)
    steps(before, first, range(1, 4))
    second = torch.nn.Parameter(first.detach().clone())
    after = FusedAdam([second], lr=0.1)
    after.load_state_dict(before.state_dict())
    steps(after, second, range(4, 7))
    assert torch.equal(second, whole)


def test_megatron_builds_this_adam() -> None:
    from megatron_cpt.backend import choose  # noqa: PLC0415

    choose("cpu")
    put_into_megatron()
    from megatron.core import optimizer  # noqa: PLC0415
    from megatron.core.optimizer import distrib_optimizer  # noqa: PLC0415

    assert optimizer.Adam is FusedAdam
    assert distrib_optimizer.Adam is FusedAdam
    assert optimizer.USING_PYTORCH_OPTIMIZER is False
