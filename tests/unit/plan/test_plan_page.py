"""The page of a plan as a whole, held against a committed one; and the page before any stage has run, from the shell."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from plan_examples import LLAMA3_8B, experiment, facts

from megatron_cpt.config.schema import AllowanceConfig, StopScoreConfig
from megatron_cpt.errors import ConfigError
from megatron_cpt.line.expecting import expected_plan
from megatron_cpt.plan.derive import derive
from megatron_cpt.plan.page import page
from megatron_cpt.plan.page_money import money_lines
from megatron_cpt.plan.page_text import show_bytes, show_duration
from megatron_cpt.plan.run_plan import RankMemory, RunPlan, StopConditions, StopScore
from megatron_cpt.record.unknown import Unavailable

ROOT = Path(__file__).resolve().parents[3]
GOLDEN = Path(__file__).with_name("plan_page.txt")
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0, "hidden_act": "silu", "tie_word_embeddings": False,
}  # fmt: skip


def example() -> RunPlan:
    """Return a plan whose every line of the page says something; its estimates of memory and time are fixed."""
    config = experiment()
    tariff = config.tariff
    tariff.usd_per_device_hour_low, tariff.usd_per_device_hour_high = 2.0, 5.0
    tariff.grid_g_co2e_per_kwh, tariff.grid_region = None, "USA"
    tariff.market_g_co2e_per_kwh, tariff.market_source = 20.0, "a contract, 2026"
    tariff.usd_per_gb_month, tariff.storage_date, tariff.storage_source, tariff.keep_months = 0.02, "2026-01", "a test", 3.0
    tariff.embodied_g_co2e_per_device_hour, tariff.embodied_source = 10.0, "a test"
    config.allowance = AllowanceConfig(0.3, 0.5, 4.6, "OLMo, arXiv 2503.05804; Olmo 3")
    config.gpu.mtbf_hours, config.checkpoint.every_steps = 45566, 200
    config.stop.max_hours, config.stop.max_usd, config.stop.max_kwh = 48.0, 5000.0, 900.0
    config.blend.num_tokens, config.blend.max_epochs = 2000 * 2**20, 1000.0
    plan = derive(config, **facts())
    memory = tuple(RankMemory(stage, 10**9, 4.1e9, 8.2e9, 12.3e9, 30e9 - stage * 2e9, 1.0e9 * (stage == 1)) for stage in range(2))
    stop = dataclasses.replace(plan.stop, max_tokens=10**9, scores=(StopScore("law", "bits_per_byte", at_most=0.8),))
    return dataclasses.replace(plan, stop=stop, estimate=dataclasses.replace(plan.estimate, memory=memory, basis=("a test",)))


def test_the_page_is_the_committed_one() -> None:
    """Look at the difference, and when it is meant, write the new page: MEGATRON_CPT_WRITE_GOLDEN=1 pytest <this file>."""
    text = page(example())
    if os.environ.get("MEGATRON_CPT_WRITE_GOLDEN") == "1":
        GOLDEN.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text(encoding="utf-8")
    assert max(map(len, text.splitlines())) <= 80
    assert len(text.splitlines()) <= 75  # one page


def test_a_run_within_its_limits_that_may_be_slower_is_warned_of() -> None:
    plan = example()
    text = " ".join(" ".join(money_lines(plan)).split())
    assert "NOTE" not in text
    low = dataclasses.replace(plan, stop=StopConditions(None, plan.estimate.usd * 1.01, None))  # type: ignore[operator]
    assert "NOTE: at the high end the limit comes before the last token: USD" in " ".join(" ".join(money_lines(low)).split())


def test_a_plan_from_before_bills_still_has_its_page() -> None:
    plan = example()
    older = dataclasses.replace(plan, estimate=dataclasses.replace(plan.estimate, bill=None))
    assert "from before this figure was counted" in " ".join(page(older).split())


def test_a_plan_with_a_bill_is_read_back_as_it_was(tmp_path: Path) -> None:
    plan = example()
    assert RunPlan.load(plan.save(tmp_path)) == plan


def test_of_many_stages_the_fullest_is_itemised_and_all_are_summed() -> None:
    plan = example()
    memory = tuple(RankMemory(stage, 10**9, 1e9, 1e9, 1e9, 1e9 + stage * 1e9, 0.0) for stage in range(8))
    text = " ".join(page(dataclasses.replace(plan, estimate=dataclasses.replace(plan.estimate, memory=memory))).split())
    assert "stage 7: 11 GB of 80 GB" in text
    assert "all stages: 4 GB, 5 GB, 6 GB, 7 GB, 8 GB, 9 GB, 10 GB, 11 GB" in text


def base(folder: Path) -> Path:
    """Write a base model's config.json alone."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def test_what_is_expected_before_data_is_what_is_planned_with_them(tmp_path: Path) -> None:
    config = experiment()
    config.model.path = str(base(tmp_path / "base"))
    expected, planned = expected_plan(config), derive(config, **facts())
    assert expected.shape.num_layers == LLAMA3_8B.num_layers
    for name in ("memory", "seconds", "usd", "kwh", "kg_co2e", "tokens", "num_params"):
        assert getattr(expected.estimate, name) == getattr(planned.estimate, name)
    assert "times its" not in page(expected, is_expected=True)  # nobody has counted the sources yet


def shell(tmp_path: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """Run `megatron-cpt plan` where nothing but the base's config.json exists, and say which of the heavy packages were imported."""
    code = (
        "import sys, time\nfrom megatron_cpt.cli import main\ncode = main(sys.argv[1:])\n"
        "heavy = [name for name in ('torch', 'transformers', 'megatron', 'numpy') if name in sys.modules]\n"
        "print('HEAVY', heavy, 'CPU', time.process_time(), file=sys.stderr)\nsys.exit(code)"
    )
    command = [
        sys.executable, "-c", code, "plan", "experiment=quickstart", "cluster=h100_8", "gpu=h100_sxm", "tariff=market_h100",
        f"model.path={tmp_path / 'base'}", f"runs_dir={tmp_path / 'runs'}", "parallel.dtype=bf16", "parallel.global_batch_size=128",
        "parallel.sequence_length=8192", "eval.window_tokens=8192", "parallel.tensor=8", "blend.num_tokens=10000000000", *overrides,
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_a_login_node_without_data_or_torch_gets_the_page_at_once_and_nothing_is_written(tmp_path: Path) -> None:
    base(tmp_path / "base")
    done = shell(tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("EXPECTED    quickstart\nin short    8 GPUs for ")
    assert "nothing is frozen or written" in " ".join(done.stdout.split())
    assert not (tmp_path / "runs").exists()
    heavy, cpu = done.stderr.strip().splitlines()[-1].removeprefix("HEAVY ").split(" CPU ")
    assert heavy == "[]"
    assert float(cpu) < 1.5  # of this process: a busy machine is not a slow plan


def test_what_is_over_budget_and_what_is_wrong_are_all_listed_and_it_exits_2(tmp_path: Path) -> None:
    base(tmp_path / "base")
    done = shell(tmp_path, "stop.max_usd=1", "stop.max_kwh=1", "gpu.memory_gb=10", "tariff.pue=0.5", "eval.texts=[china_law,nothing]")
    assert done.returncode == 2
    assert done.stdout == ""
    for words in ("and has 10.00 GB", "stop.max_usd is 1", "tariff.pue=0.5 is below 1", "eval.texts names 'nothing'"):
        assert words in done.stderr


@pytest.mark.parametrize(
    ("scores", "every", "words"),
    [
        ([("law", 0.8, None)], 0, "monitor.eval_every_steps=0 never scores it"),
        ([("web", 0.8, None)], 5, "stop.scores[0].of='web' is not one of eval.texts and eval.tasks (law, news)"),
        ([("law", 0.8, 0.9)], 5, "needs one of at_most and at_least"),
        ([("law", None, None)], 5, "needs one of at_most and at_least"),
        ([("law", float("nan"), None)], 5, "needs one of at_most and at_least"),
    ],
)
def test_a_score_that_nothing_measures_is_refused_as_a_stop(
    scores: list[tuple[str, float | None, float | None]], every: int, words: str
) -> None:
    config = experiment()
    config.monitor.eval_every_steps = every
    config.stop.scores = [StopScoreConfig(*score) for score in scores]
    with pytest.raises(ConfigError) as refused:
        derive(config, **facts())
    assert words in str(refused.value)
    config.monitor.eval_every_steps, config.stop.scores = 5, [StopScoreConfig("law", at_most=0.8)]
    assert derive(config, **facts()).stop.scores == (StopScore("law", "bits_per_byte", at_most=0.8),)


def test_an_unknown_price_is_said_and_not_guessed() -> None:
    config = experiment()
    config.tariff.usd_per_device_hour = None
    plan = derive(config, **facts())
    assert isinstance(plan.estimate.usd, Unavailable)
    assert "; unknown: cost. It fits" in " ".join(page(plan).split())


def test_what_a_checkpoint_takes_of_a_nodes_memory_is_on_the_page_and_on_the_quote() -> None:
    plan = derive(experiment(), **facts())
    (rank,) = plan.estimate.memory
    text = " ".join(page(plan).split())
    assert f"host {show_bytes(8 * rank.host_checkpoint)} of a node's memory" in text
    assert "CUDA and NCCL 1.2 GB" in text


def test_an_unknown_time_gives_its_reason_once() -> None:
    config = experiment()
    config.gpu.mfu_low = config.gpu.mfu_likely = config.gpu.mfu_high = None
    config.gpu.name = "one that nobody has trained on"
    text = " ".join(page(derive(config, **facts())).split())
    assert text.count("no published run on this device") == 2  # as the time, and in the basis
    assert "cost unknown without the time" in text


def test_a_gpu_is_not_timed_in_fp32_by_its_bf16_rates() -> None:
    config = experiment()
    config.parallel.dtype = "fp32"
    estimate = derive(config, **facts()).estimate
    assert isinstance(estimate.seconds, Unavailable)
    assert "parallel.dtype=bf16" in str(estimate.seconds)


def test_interruptions_that_lengthen_a_run_are_in_its_first_sentence() -> None:
    config = experiment()
    config.gpu.mtbf_hours = 24.0  # of one device: 8 are interrupted every three hours
    config.checkpoint.every_steps = 10
    plan = derive(config, **facts())
    assert isinstance(plan.estimate.elapsed_seconds, float)
    assert plan.estimate.bill is not None
    assert isinstance(plan.estimate.bill.lost_share, float)
    assert plan.estimate.bill.lost_share > 0.1
    assert f"With checkpoints and interruptions it lasts {show_duration(plan.estimate.elapsed_seconds)}." in " ".join(page(plan).split())
