"""What the CPU backend redirects, and what it leaves alone. Run in processes of their own: a choice lasts for a process."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest


def run_python(code: str) -> str:
    """Run code in a fresh interpreter and return what it printed."""
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_changes_nothing_in_torch() -> None:
    run_python("""
        import torch
        watched = [(torch.cuda, "current_device"), (torch.cuda, "synchronize"), (torch.cuda, "manual_seed"), (torch.cuda, "Stream"),
                   (torch.Tensor, "cuda"), (torch.Tensor, "type")]
        before = [getattr(owner, name) for owner, name in watched]
        import megatron_cpt.backend, megatron_cpt.backend.shim, megatron_cpt.backend.adam, megatron_cpt.backend.layers
        assert [getattr(owner, name) for owner, name in watched] == before
        import sys
        assert "megatron.core" not in sys.modules
    """)


def test_the_choice_imports_no_compiler_and_no_tracker_and_leaves_both_as_they_were() -> None:
    run_python("""
        import sys, torch
        compiled = torch.compile
        from megatron_cpt.backend import choose
        choose("cpu")
        import megatron_cpt.train.run, megatron_cpt.model.build
        from megatron.core.fusions.fused_bias_swiglu import swiglu
        assert torch.compile is compiled
        assert swiglu(torch.ones(2)).tolist() == [torch.sigmoid(torch.ones(1)).item()]
        assert {"torch._inductor.compile_fx", "torch._dynamo", "wandb"} & set(sys.modules) == set()
        import wandb
        assert wandb.__version__
    """)


def test_after_the_choice_megatron_finds_its_cuda_calls_on_the_cpu_and_others_find_the_truth() -> None:
    run_python("""
        import torch
        available, count = torch.cuda.is_available(), torch.cuda.device_count()
        from megatron_cpt.backend import choose
        backend = choose("cpu")
        assert choose("cpu") is backend and backend.kind == "cpu" and backend.dist_backend == "gloo"
        assert torch.cuda.is_available() == available and torch.cuda.device_count() == count
        assert torch.zeros(2).type() == "torch.FloatTensor"
        assert torch.zeros(2).type(torch.float64).dtype == torch.float64

        assert torch.device(torch.cuda.current_device()).type == "cpu"
        for device in ("cuda", "cuda:0", torch.device("cuda")):
            assert torch.zeros(2, device=device).device.type == "cpu"
            assert torch.tensor([1.0], device=device).device.type == "cpu"
            assert torch.empty_like(torch.zeros(1), device=device).device.type == "cpu"
            assert torch.zeros(2).to(device=device).device.type == "cpu"
        assert torch.zeros(1, device="meta").device.type == "meta"
        tensor = torch.arange(3.0)
        assert tensor.cuda() is tensor
        torch.cuda.synchronize(); torch.cuda.empty_cache()
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.cuda.current_stream().wait_stream(torch.cuda.Stream())
        torch.cuda.Event().record()
        with torch.cuda.nvtx.range("x"):
            torch.cuda.nvtx.range_push("y"); torch.cuda.nvtx.range_pop()

        scope = {"__name__": "megatron.core.optimizer.distrib_optimizer", "torch": torch}
        exec("names = [torch.zeros(1, dtype=d).type() for d in (torch.float32, torch.bfloat16, torch.int64)]", scope)
        assert scope["names"] == ["torch.cuda.FloatTensor", "torch.cuda.BFloat16Tensor", "torch.LongTensor"], scope["names"]
    """)


def test_generator_states_of_the_tracker_are_those_of_the_cpu_generator() -> None:
    run_python("""
        import torch
        from megatron_cpt.backend import choose
        choose("cpu")
        from megatron.core.tensor_parallel.random import CudaRNGStatesTracker
        torch.manual_seed(42); expected = torch.rand(3)
        tracker = CudaRNGStatesTracker()
        torch.manual_seed(7); before = torch.get_rng_state()
        tracker.add("model-parallel-rng", 42)
        assert torch.equal(torch.get_rng_state(), before)
        with tracker.fork():
            first = torch.rand(3)
        assert torch.equal(first, expected)
        assert torch.equal(torch.get_rng_state(), before)
        with tracker.fork():
            second = torch.rand(3)
        assert not torch.equal(first, second)
        state = torch.cuda.get_rng_state(); torch.rand(5); torch.cuda.set_rng_state(state)
        assert torch.equal(torch.get_rng_state(), before)
    """)


def test_a_process_cannot_change_its_backend() -> None:
    out = run_python("""
        from megatron_cpt.backend import choose
        from megatron_cpt.errors import ConfigError
        choose("cpu")
        try:
            choose("cuda")
        except ConfigError as error:
            print(error)
    """)
    assert "'cuda' was asked for after 'cpu'" in out


@pytest.mark.parametrize("kind", ["tpu", ""])
def test_an_unknown_backend_is_refused_by_name(kind: str) -> None:
    out = run_python(f"""
        from megatron_cpt.backend import choose
        from megatron_cpt.errors import ConfigError
        try:
            choose({kind!r})
        except ConfigError as error:
            print(error, error.exit_code)
    """)
    assert "cpu or cuda" in out
    assert out.strip().endswith("2")


def test_cuda_is_refused_where_torch_sees_no_device() -> None:
    out = run_python("""
        import os
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        from megatron_cpt.backend import choose
        from megatron_cpt.errors import ConfigError
        try:
            choose("cuda")
        except ConfigError as error:
            print(error)
    """)
    assert "No CUDA device can be used here." in out
    assert "cluster.backend=cpu" in out
