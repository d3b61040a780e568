"""The derived plan by hand arithmetic, and every way in which a configuration can be impossible, all at once."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from plan_examples import LLAMA3_8B, SMOLLM2_135M, experiment, facts

from megatron_cpt.config.schema import ClusterConfig, ExperimentConfig, GpuConfig, TariffConfig
from megatron_cpt.errors import ConfigError
from megatron_cpt.plan.blend import epochs_per_source, largest_num_tokens, samples_per_source
from megatron_cpt.plan.calibrate import HostFacts, measure_matrix_tflops
from megatron_cpt.plan.checks import device_problems
from megatron_cpt.plan.derive import derive
from megatron_cpt.plan.page import page
from megatron_cpt.plan.run_plan import RunPlan
from megatron_cpt.record.typed import from_plain
from megatron_cpt.record.unknown import Unavailable
from megatron_cpt.record.vocab_layout import VocabLayout

CONF = Path(__file__).parents[3] / "conf"


def test_steps_samples_and_epochs_follow_from_tokens_and_shares() -> None:
    plan = derive(experiment(), **facts())
    assert plan.num_steps == 10
    assert plan.layout.data == 2
    assert plan.layout.num_microbatches == 64
    assert [(entry.source, entry.num_samples, entry.prefix) for entry in plan.blend] == [
        ("law", 960, "index/law.train"),
        ("web", 320, "index/web.train"),
    ]
    assert [entry.share for entry in plan.blend] == [0.75, 0.25]
    assert plan.blend[0].num_epochs == pytest.approx(960 * 8192 / 4e6)
    assert (plan.schedule.warmup_samples, plan.schedule.decay_samples) == (128, 1280)
    assert [text.path for text in plan.eval.texts] == ["corpus/law.test.jsonl", "corpus/news.test.jsonl"]
    assert [text.watch_path for text in plan.eval.texts] == [None, None]


def test_a_source_with_validation_documents_is_watched_on_them() -> None:
    given = facts()
    given["corpus_facts"]["sources"]["law"]["valid_documents"] = 3
    assert [text.watch_path for text in derive(experiment(), **given).eval.texts] == ["corpus/law.valid.jsonl", None]


def test_a_step_that_is_only_begun_counts_whole() -> None:
    config = experiment()
    config.blend.num_tokens = 10 * 2**20 + 1
    assert derive(config, **facts()).num_steps == 11


def test_time_money_energy_and_carbon_by_hand() -> None:
    estimate = derive(experiment(), **facts()).estimate
    seconds = 10 * 2**20 * 51.47e9 / (8 * 989e12 * 0.4)  # 51.47 GFLOP a token: Megatron-Bridge's table
    assert not isinstance(estimate.seconds, Unavailable)
    assert estimate.seconds == pytest.approx(seconds, rel=3e-3)
    assert estimate.seconds_low == pytest.approx(seconds * 0.4 / 0.5, rel=3e-3)
    assert estimate.seconds_high == pytest.approx(seconds * 0.4 / 0.33, rel=3e-3)
    hours = 8 * seconds / 3600
    assert estimate.usd == pytest.approx(hours * 3, rel=3e-3)
    assert estimate.kwh == pytest.approx(hours * 0.970 * 1.2, rel=3e-3)
    assert estimate.kg_co2e == pytest.approx(hours * 0.970 * 1.2 * 0.4, rel=3e-3)
    assert estimate.num_params == 8_030_261_248


def test_a_plan_file_reads_back_as_the_same_plan(tmp_path: Path) -> None:
    plan = derive(experiment(), **facts())
    assert RunPlan.load(plan.save(tmp_path)) == plan


Change = Callable[[ExperimentConfig], None]


def change(path: str, value: object) -> Change:
    def apply(config: ExperimentConfig) -> None:
        *groups, key = path.split(".")
        target: object = config
        for group in groups:
            target = getattr(target, group)
        setattr(target, key, value)

    return apply


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("parallel.tensor", 3, r"parallel.tensor=3 does not divide the model's key/value heads \(8\). Use one of: 1, 2, 4, 8"),
        ("parallel.tensor", 16, r"parallel.tensor=16 does not divide the model's key/value heads \(8\). Use one of: 1, 2, 4, 8"),
        ("parallel.pipeline", 5, r"parallel.pipeline=5 does not divide the model's layers \(32\). Use one of: 1, 2, 4, 8, 16, 32"),
        ("cluster.ranks_per_node", 6, r"cluster has 6 ranks"),
        ("parallel.global_batch_size", 127, r"127 does not divide .* = 2. Nearest legal: 126 or 128"),
        ("parallel.sequence_length", 8196, r"longer than the model's 8192 positions"),
        ("eval.window_tokens", 9000, r"longer than the model's 8192 positions"),
        ("parallel.tensor", 1, r"sequence_parallel needs parallel.tensor above 1"),
        ("parallel.tensor", 0, r"parallel.tensor=0 is below 1"),
        ("parallel.dtype", "fp8", r"parallel.dtype='fp8' is not one of fp32, bf16"),
        ("parallel.recompute", "some", r"parallel.recompute='some' is not one of none, selective, full"),
        ("parallel.virtual_pipeline", 0, r"parallel.virtual_pipeline=0 is below 1"),
        ("parallel.virtual_pipeline", 2, r"virtual_pipeline=2 needs parallel.pipeline above 1"),
        ("cluster.backend", "tpu", r"cluster.backend='tpu'"),
        ("schedule.kind", "cosin", r"schedule.kind='cosin' is not one of cosine, linear, constant, wsd, infinite"),
        ("monitor.wandb_mode", "of", r"monitor.wandb_mode='of'"),
        ("schedule.peak_lr", 1e-7, r"peak_lr >= min_lr > 0"),
        ("schedule.min_lr", 0.0, r"peak_lr >= min_lr > 0"),
        ("schedule.peak_lr", float("nan"), r"peak_lr >= min_lr > 0"),
        ("schedule.warmup_fraction", 1.0, r"warmup_fraction=1.0"),
        ("blend.shares", {"lex": 1.0}, r"blend.shares.lex names no source. Sources: law, news, web"),
        ("blend.shares", {"law": -1.0, "web": 1.0}, r"blend.shares.law=-1.0 is not a share"),
        ("blend.shares", {"law": 1.0, "news": 1.0}, r"no training tokens"),
        ("blend.shares", {"law": 0.0}, r"sum to 0"),
        ("blend.shares", {}, r"blend.shares is empty"),
        ("blend.shares", {"law": 1.0, "web": 1e-9}, r"blend.shares.web is so small"),
        ("blend.max_epochs", 1.5, r"reads law 1.97 times; blend.max_epochs is 1.5. The largest blend.num_tokens allowed is 7340032"),
        ("eval.texts", ["law", "web", "news"], r"'web', but the corpus kept no test documents"),
        ("eval.texts", ["law", "nws", "news"], r"names 'nws', which is no source"),
        ("eval.texts", ["law"], r"gate.rules\[1\].of='news' is not one of eval.texts"),
        ("gate.rules", [], r"gate.rules is empty"),
        ("gate.confidence", 95.0, r"gate.confidence=95.0"),
        ("gpu.mfu_high", 1.2, r"0 < low <= likely <= high <= 1"),
        ("gpu.dense_tflops", -1.0, r"gpu.dense_tflops=-1.0"),
        ("tariff.pue", 0.9, r"tariff.pue=0.9 is below 1"),
        ("tariff.price_source", "", r"tariff.price_source is empty"),
        ("tariff.usd_per_device_hour", float("nan"), r"usd_per_device_hour=nan"),
        ("gpu.memory_gb", 20.0, r"needs .* GB and has 20.00 GB"),
        ("stop.max_hours", 1e-6, r"stop.max_hours is 1e-06"),
        ("stop.max_usd", 0.1, r"estimated at .* USD; stop.max_usd is 0.1"),
        ("stop.max_kwh", 0.01, r"estimated at .* kWh; stop.max_kwh is 0.01"),
        ("stop.max_usd", -5.0, r"stop.max_usd=-5.0 is not above 0"),
    ],
)
def test_an_impossible_configuration_is_refused_by_name(path: str, value: object, message: str) -> None:
    config = experiment()
    change(path, value)(config)
    with pytest.raises(ConfigError, match=message) as caught:
        derive(config, **facts())
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("data", "micro", "batch", "message"),
    [
        (2, 4, 10, r"global_batch_size=10 .* = 4 x 2 = 8. Nearest legal: 8 or 16"),
        (2, 4, 7, r"global_batch_size=7 .* = 8. Nearest legal: 8\."),  # 0 is no batch
        (8, 1, 12, r"global_batch_size=12 .* = 1 x 8 = 8. Nearest legal: 8 or 16"),
    ],
)
def test_a_batch_that_does_not_divide_names_the_nearest_that_do(data: int, micro: int, batch: int, message: str) -> None:
    config = experiment()
    config.parallel.tensor, config.parallel.sequence_parallel, config.cluster.ranks_per_node = 1, False, data
    config.parallel.micro_batch_size, config.parallel.global_batch_size = micro, batch
    with pytest.raises(ConfigError, match=message):
        derive(config, **facts())


def interleaved(*, pipeline: int, virtual: int, batch: int) -> ExperimentConfig:
    config = experiment()
    config.parallel.tensor, config.parallel.sequence_parallel = 1, False
    config.parallel.pipeline, config.parallel.virtual_pipeline, config.parallel.global_batch_size = pipeline, virtual, batch
    return config


def test_the_layers_of_a_stage_divide_over_its_chunks() -> None:
    plan = derive(interleaved(pipeline=4, virtual=4, batch=128), **facts())
    assert plan.layout.virtual_pipeline == 4  # 32 layers: 16 chunks of 2
    assert "x pipeline 4 x data 2, 4 chunks a rank" in " ".join(page(plan).split())
    with pytest.raises(ConfigError, match=r"virtual_pipeline=3 does not divide .*\(32 / 4 = 8\). Use one of: 1, 2, 4, 8"):
        derive(interleaved(pipeline=4, virtual=3, batch=128), **facts())


def test_an_interleaved_pipeline_needs_whole_groups_of_micro_batches() -> None:
    # 4 stages x 2 data-parallel ranks x 1 sequence: a step of 4 sequences is 2 micro-batches a rank, and a group is 4
    assert derive(interleaved(pipeline=4, virtual=1, batch=4), **facts()).layout.num_microbatches == 2
    with pytest.raises(ConfigError, match=r"global_batch_size=12 .* = 1 x 2 x 4 = 8. Nearest legal: 8 or 16"):
        derive(interleaved(pipeline=4, virtual=2, batch=12), **facts())


def test_recomputation_is_in_the_time_and_not_in_the_model_flops() -> None:
    plans = {}
    for recompute in ("none", "selective", "full"):
        config = experiment()
        config.parallel.recompute = recompute
        plans[recompute] = derive(config, **facts()).estimate
    assert len({estimate.flops_per_token for estimate in plans.values()}) == 1
    # Llama 3 8B at 8,192 tokens by hand: a layer's matrices are 218,103,808 weights, its MLP's 176,160,768; attention 2 s d_h a
    layer, mlp, output = 2 * 218_103_808 + 2 * 8192 * 4096, 2 * 176_160_768, 2 * 4096 * 128_256
    model = 3 * (32 * layer + output)
    assert plans["full"].seconds == pytest.approx(plans["none"].seconds * (model + 32 * layer) / model)  # type: ignore[operator]
    assert plans["selective"].seconds == pytest.approx(plans["none"].seconds * (model + 32 * mlp) / model)  # type: ignore[operator]


def test_a_plan_of_an_earlier_version_means_no_virtual_pipeline_and_no_recomputation(tmp_path: Path) -> None:
    path = derive(experiment(), **facts()).save(tmp_path)
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    del data["layout"]["virtual_pipeline"], data["layout"]["recompute"]
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    assert (RunPlan.load(path).layout.virtual_pipeline, RunPlan.load(path).layout.recompute) == (1, "none")


def test_all_problems_are_listed_at_once() -> None:
    config = experiment()
    for path, value in (
        ("parallel.tensor", 3),
        ("schedule.min_lr", 0.0),
        ("eval.texts", []),
        ("tariff.pue", 0.5),
        ("blend.shares", {"x": 1.0}),
    ):
        change(path, value)(config)
    with pytest.raises(ConfigError) as caught:
        derive(config, **facts())
    for expected in ("parallel.tensor=3", "min_lr", "eval.texts is empty", "tariff.pue", "blend.shares.x"):
        assert expected in str(caught.value)


def test_a_money_limit_without_a_price_is_refused_because_nobody_could_keep_it() -> None:
    config = experiment()
    config.tariff.usd_per_device_hour = None
    assert isinstance(derive(config, **facts()).estimate.usd, Unavailable)
    config.stop.max_usd = 100.0
    with pytest.raises(ConfigError, match=r"stop.max_usd=100 cannot be kept.*set tariff.usd_per_device_hour"):
        derive(config, **facts())


def test_an_unknown_gpu_has_no_time_rather_than_the_time_of_another() -> None:
    config = experiment()
    config.gpu = GpuConfig(name="new", memory_gb=80, source="a test")
    estimate = derive(config, **facts()).estimate
    assert estimate.seconds == Unavailable("set gpu.dense_tflops")
    assert estimate.usd == Unavailable("set gpu.dense_tflops")


def test_a_model_of_another_size_than_the_init_stage_made_is_refused() -> None:
    with pytest.raises(ConfigError, match="init stage made a model of 7 parameters"):
        derive(experiment(), **{**facts(), "init_facts": {"num_params": 7}})


def on_cpu() -> tuple[ExperimentConfig, dict[str, object]]:
    config = experiment()
    config.cluster = ClusterConfig(backend="cpu", num_nodes=1, ranks_per_node=2)
    config.parallel.tensor, config.parallel.sequence_parallel, config.parallel.dtype = 1, False, "fp32"
    config.parallel.sequence_length, config.parallel.global_batch_size = 512, 16
    config.eval.window_tokens = 512
    config.gpu = GpuConfig(name="cpu", mfu_low=0.4, mfu_likely=0.5, mfu_high=0.6, source="measured")
    config.tariff = TariffConfig(name="own machine", price_source="no price is known")
    config.blend.num_tokens = 16 * 512 * 10
    host = HostFacts(matrix_tflops=0.05, memory_available_bytes=16e9)
    return config, {**facts(), "shape": SMOLLM2_135M, "vocab": VocabLayout(49152, 49152, 49152, 0, "0" * 64), "host": host}


def test_on_a_cpu_the_peak_is_the_hosts_and_a_rank_has_its_part_of_the_free_memory() -> None:
    config, given_facts = on_cpu()
    estimate = derive(config, **given_facts).estimate  # type: ignore[arg-type]
    assert estimate.memory_limit_bytes == 8e9
    # SmolLM2-135M at 512 tokens by hand: 3 x (30 x (2 x 3,538,944 + 2 x 512 x 576) + 2 x 576 x 49,152) FLOP a token
    flops = 3 * (30 * (2 * 3_538_944 + 2 * 512 * 576) + 2 * 576 * 49_152)
    assert estimate.seconds == pytest.approx(81_920 * flops / (2 * 0.05e12 * 0.5))
    assert estimate.usd == Unavailable("no price is known; set tariff.usd_per_device_hour")


def test_on_a_cpu_with_too_little_free_memory_the_plan_is_refused() -> None:
    config, given_facts = on_cpu()
    given_facts["host"] = HostFacts(matrix_tflops=0.05, memory_available_bytes=3e9)
    with pytest.raises(ConfigError, match=r"has 1.50 GB"):
        derive(config, **given_facts)  # type: ignore[arg-type]


@pytest.mark.parametrize("plan", [derive(experiment(), **facts()), derive(on_cpu()[0], **on_cpu()[1])])  # type: ignore[arg-type]
def test_the_page_fits_eighty_columns_and_says_what_a_manager_asks(plan: RunPlan) -> None:
    text = page(plan)
    assert max(map(len, text.splitlines())) <= 80
    assert len(text.splitlines()) <= 60
    for wanted in ("time", "cost", "energy", "carbon", "stops at", "blend", "promoted if", "rolled back", "law", "times its"):
        assert wanted in text


@given(
    st.dictionaries(st.text("abc", min_size=1, max_size=3), st.floats(1e-3, 1e3), min_size=1, max_size=6),
    st.integers(1, 10_000),
)
def test_samples_add_up_and_stay_within_one_of_the_share(shares: dict[str, float], num_samples: int) -> None:
    samples = samples_per_source(shares, num_samples=num_samples)
    assert sum(samples.values()) == num_samples
    total = sum(shares.values())
    assert all(abs(count - num_samples * shares[name] / total) < 1 + 1e-6 for name, count in samples.items())


@given(st.floats(0.01, 10), st.integers(1, 5000), st.integers(1, 5000), st.floats(0.2, 8), st.integers(1, 16))
def test_the_largest_number_of_tokens_named_is_allowed_and_the_next_step_is_over(
    share: float, first_samples: int, second_samples: int, max_epochs: float, batch: int
) -> None:
    length = 64
    shares, tokens = {"a": share, "b": 1.0}, {"a": first_samples * length, "b": second_samples * length}
    allowed = largest_num_tokens(shares, tokens=tokens, max_epochs=max_epochs, global_batch_size=batch, sequence_length=length)
    steps, rest = divmod(allowed, batch * length)
    assert rest == 0

    def most_epochs(num_steps: int) -> float:
        samples = samples_per_source(shares, num_samples=num_steps * batch)
        return max(epochs_per_source(samples, tokens=tokens, sequence_length=length).values())

    assert steps == 0 or most_epochs(steps) <= max_epochs
    # one step more is over the limit, but for the one sample that rounding may move between sources
    more = (steps + 1) * batch
    exact = {name: more * value / sum(shares.values()) for name, value in shares.items()}
    assert max((exact[name] + 1) * length / tokens[name] for name in shares) > max_epochs


@pytest.mark.parametrize(
    "path", sorted([*CONF.glob("gpu/*.yaml"), *CONF.glob("tariff/*.yaml"), *CONF.glob("cluster/*.yaml")]), ids=lambda path: path.stem
)
def test_every_shipped_device_tariff_and_cluster_is_one_and_is_sound(path: Path) -> None:
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    group = {"gpu": GpuConfig, "tariff": TariffConfig, "cluster": ClusterConfig}[path.parent.name]
    loaded = from_plain(group, data, where=path)  # type: ignore[type-var]
    config = experiment()
    setattr(config, path.parent.name, loaded)
    assert set(data) >= {field.name for field in dataclasses.fields(group) if field.default == "???"}
    assert device_problems(config) == []


def test_a_short_product_measures_a_plausible_matrix_rate() -> None:
    rate = measure_matrix_tflops(1, seconds=0.1)
    assert not isinstance(rate, Unavailable)
    assert 1e-4 < rate < 100


def test_planning_loads_neither_torch_nor_hydra_nor_transformers() -> None:
    loaded = "sorted({'torch', 'hydra', 'transformers', 'megatron'} & set(sys.modules))"
    code = f"import sys, megatron_cpt.plan.derive, megatron_cpt.plan.page; print({loaded})"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_llama_3_8b_without_parallelism_does_not_fit_80_gb() -> None:
    # 18 bytes x 8.03e9 = 144.5 GB of state alone (Megatron-core's table)
    config = experiment()
    config.parallel.tensor, config.parallel.sequence_parallel, config.parallel.distributed_optimizer = 1, False, False
    with pytest.raises(ConfigError, match=r"has 80.00 GB"):
        derive(config, **{**facts(), "shape": LLAMA3_8B})


def test_keeping_the_best_checkpoints_needs_a_score_of_each_on_a_domain_text() -> None:
    config = experiment()
    config.checkpoint.keep_best = 2
    with pytest.raises(ConfigError, match=r"monitor.eval_every_steps=0 does not divide checkpoint.every_steps=5"):
        derive(config, **facts())
    config.monitor.eval_every_steps = 5
    plan = derive(config, **facts())
    assert (plan.checkpoint.keep_best, plan.checkpoint.asynchronous) == (2, False)
    config.eval.texts = ["news"]
    with pytest.raises(ConfigError, match=r"ranks checkpoints by domain texts, and eval.texts names none"):
        derive(config, **facts())


def test_what_changes_the_result_changes_the_fingerprint_and_what_does_not_leaves_it() -> None:
    plan = derive(experiment(), **facts())
    changed = {
        "blend": (dataclasses.replace(plan.blend[0], share=0.5), *plan.blend[1:]),
        "vocab": dataclasses.replace(plan.vocab, tokenizer_sha256="1" * 64),
        "identity": {**plan.identity, "index": "another"},  # the data, by content
        "seed": plan.seed + 1,
        "num_steps": plan.num_steps + 1,
    }
    for field, value in changed.items():
        assert dataclasses.replace(plan, **{field: value}).fingerprint != plan.fingerprint, field
    unchanged = {
        "checkpoint": dataclasses.replace(plan.checkpoint, every_steps=1, asynchronous=True, keep_best=3),
        "layout": dataclasses.replace(plan.layout, tensor=8, data=1, distributed_optimizer=False),
        "log_every_steps": 7,
    }
    for field, value in unchanged.items():
        assert dataclasses.replace(plan, **{field: value}).fingerprint == plan.fingerprint, field
