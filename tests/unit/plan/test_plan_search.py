"""The layout search: nothing that does not divide or fit, the same as brute force, known answers, and fast enough to ask."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

import pytest
from plan_examples import LLAMA3_8B, LLAMA3_70B, experiment, shape

from megatron_cpt.config.schema import ExperimentConfig, GpuConfig
from megatron_cpt.errors import ConfigError
from megatron_cpt.line.searching import search_layouts
from megatron_cpt.plan.checks import layout_problems
from megatron_cpt.plan.derive import layout_of
from megatron_cpt.plan.machine import Machine
from megatron_cpt.plan.memory import ON_CPU, memory_of_stages
from megatron_cpt.plan.search import SearchResult, layouts, memory_bytes, parallel_of, search, why_slower
from megatron_cpt.plan.search_page import search_page
from megatron_cpt.record.unknown import Unavailable
from megatron_cpt.record.vocab_layout import VocabLayout

H100 = Machine("H100", 698.6, 1278, 989, 3.35, 370, 50, 8, 132)
GPU = GpuConfig(
    name="H100", source="a test", dense_tflops=989, matmul_tflops=698.6, memory_tb_per_second=3.35, link_gb_per_second=370, memory_gb=80
)
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "hidden_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8,
    "num_key_value_heads": 4, "intermediate_size": 2048, "vocab_size": 32000, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "tie_word_embeddings": False,
}  # fmt: skip
LLAMA3_IDS = VocabLayout(128256, 128256, 128256, 0, "0" * 64)
SMALL = shape(hidden=512, layers=4, heads=8, groups=4, ffn=2048, vocabulary=32000)
SMALL_IDS = VocabLayout(32000, 32000, 32000, 0, "0" * 64)


def config_of(*, nodes: int, batch: int, **parallel: object) -> ExperimentConfig:
    config = experiment()
    config.cluster = dataclasses.replace(config.cluster, num_nodes=nodes)
    config.parallel = dataclasses.replace(config.parallel, global_batch_size=batch, **parallel)  # type: ignore[arg-type]
    return config


def found(config: ExperimentConfig, model=LLAMA3_70B, vocab=LLAMA3_IDS, limit: float = 72e9, **other: object) -> SearchResult:  # type: ignore[no-untyped-def]
    own = None if layout_problems(config, model, vocab) else layout_of(config)
    return search(config, shape=model, vocab=vocab, machine=H100, memory_limit_bytes=limit, own=own, **other)  # type: ignore[arg-type]


def test_every_layout_passes_the_checks_of_the_plan_and_uses_every_rank() -> None:
    config = config_of(nodes=1, batch=16)
    every = list(layouts(config, SMALL, SMALL_IDS))
    assert len(every) > 100
    assert len(set(every)) == len(every)
    for layout in every:
        assert layout.num_ranks == 8
        assert layout_problems(dataclasses.replace(config, parallel=parallel_of(layout, config.parallel)), SMALL, SMALL_IDS) == []


def test_counting_memory_only_as_far_as_needed_finds_what_brute_force_finds() -> None:
    config = config_of(nodes=1, batch=16)
    for limit in (1e9, 2e9, 80e9):
        pruned, brute = (found(config, SMALL, SMALL_IDS, limit, prune=prune) for prune in (True, False))
        assert pruned.best == brute.best
        assert all(candidate.memory_bytes <= limit for candidate in pruned.best)


def test_the_first_one_is_the_fastest_of_all_that_fit() -> None:
    config = config_of(nodes=1, batch=16)
    best = found(config, SMALL, SMALL_IDS, 2e9).best[0]
    fits = [layout for layout in layouts(config, SMALL, SMALL_IDS) if memory_bytes(SMALL, layout, num_rows=32000) <= 2e9]
    from megatron_cpt.plan.step_time import step_time  # noqa: PLC0415

    assert best.step.total == min(step_time(SMALL, layout, H100, num_rows=32000).total for layout in fits)


@pytest.mark.filterwarnings("ignore")
def test_1024_gpus_are_searched_in_two_seconds() -> None:
    config = config_of(nodes=128, batch=2048)
    found(config)  # reads the tables of kernels once, as a first call does
    begin = time.process_time()
    assert len(found(config).best) >= 5
    assert time.process_time() - begin < 2


def test_llama3_70b_on_64_gpus_is_split_as_nvidia_does() -> None:
    # 64 H100, 128 sequences of 8,192 tokens, in FP8: tensor 4 and pipeline 4 (NeMo 24.07), tensor 4 and pipeline 8 (Megatron-Bridge 25.09)
    splits = [(candidate.layout.tensor, candidate.layout.pipeline) for candidate in found(config_of(nodes=8, batch=128)).best]
    assert (4, 4) in splits[:3]
    assert (4, 8) in splits


def test_the_own_layout_is_compared_and_its_losses_named() -> None:
    config = config_of(nodes=8, batch=128, tensor=8, pipeline=8, recompute="full")
    result = found(config)
    assert result.own is not None
    reasons = why_slower(result.own.step, result.best[0].step)
    assert reasons[0].startswith("recomputation: +")
    text = search_page(result, num_steps=100, usd_per_device_hour=3.0, device="64 x H100")
    assert "slower than the first one" in text
    assert "recomputation" in text
    assert "unknown" in search_page(result, num_steps=100, usd_per_device_hour=Unavailable("no price"), device="64 x H100")


def test_what_no_layout_changes_is_told_as_such_and_not_as_a_lack_of_memory(tmp_path: Path) -> None:
    config = config_of(nodes=1, batch=16)
    config.eval.window_tokens = 10**6
    assert found(config, SMALL, SMALL_IDS, 80e9).refused == ("eval.window_tokens=1000000 is longer than the model's 8192 positions.",)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    config.model.path, config.gpu = str(tmp_path), GPU
    with pytest.raises(ConfigError, match=r"window_tokens=1000000[\s\S]*no layout can"):
        search_layouts(config)


def test_the_memory_of_a_cpu_is_counted_as_the_plan_counts_it() -> None:
    config = config_of(nodes=1, batch=16)
    config.cluster = dataclasses.replace(config.cluster, backend="cpu")
    for candidate in found(config, SMALL, SMALL_IDS, 80e9).best:
        stages = memory_of_stages(SMALL, candidate.layout, num_rows=32000, build=ON_CPU)
        assert candidate.memory_bytes == max(rank.total for rank in stages)


@pytest.mark.parametrize(("layers", "hidden", "heads", "nodes", "batch"), [(96, 12288, 96, 8, 64), (105, 20480, 128, 35, 280)])
def test_korthikantis_large_models_are_split_as_in_the_paper(layers: int, hidden: int, heads: int, nodes: int, batch: int) -> None:
    # arXiv 2205.05198, table 3: tensor 8, and pipeline 8 with 3 chunks or 35 with 3, on A100 of 80 GB
    model = dataclasses.replace(
        shape(hidden=hidden, layers=layers, heads=heads, groups=heads, ffn=4 * hidden, vocabulary=51200, tied=True, positions=2048),
        family="gpt2",
    )
    config = config_of(nodes=nodes, batch=batch, sequence_length=2048)
    config.eval.window_tokens = 2048
    ids = VocabLayout(51200, 51200, 51200, 0, "0" * 64)
    a100 = Machine("A100", 248.0, None, 312, 2.039, 204, 25, 8, 108)
    best = search(config, shape=model, vocab=ids, machine=a100, memory_limit_bytes=84.9e9, own=None).best[0]
    assert (best.layout.tensor, best.layout.pipeline, best.layout.data) == (8, nodes, 1)


def test_an_own_layout_that_does_not_divide_or_fit_says_so() -> None:
    assert any("does not divide" in problem for problem in found(config_of(nodes=8, batch=128, tensor=3)).own_problems)
    plain = config_of(nodes=1, batch=16, tensor=1, sequence_parallel=False)
    problems = found(plain, LLAMA3_8B, limit=20e9).own_problems
    assert any("GB of 20.0 GB" in problem for problem in problems)
