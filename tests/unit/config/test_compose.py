"""Composition refuses what it does not know, and says what to do instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_cpt.config.compose import compose, expand_sweep
from megatron_cpt.config.files import shipped_conf
from megatron_cpt.errors import ConfigError
from megatron_cpt.line.inputs import plan_settings
from megatron_cpt.line.run import Run

EXPERIMENTS = sorted(path.stem for path in (shipped_conf() / "experiment").glob("*.yaml"))


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name != "own_corpus"])
def test_every_shipped_experiment_composes_without_a_missing_value(name: str) -> None:
    config = compose([f"experiment={name}"])
    assert config.source
    assert set(config.blend.shares) <= set(config.source)


def test_an_override_reaches_the_typed_configuration_as_a_number() -> None:
    config = compose(["experiment=tiny", "schedule.peak_lr=1e-5", "blend.num_tokens=1000"])
    assert config.schedule.peak_lr == 1e-5
    assert config.blend.num_tokens == 1000


def test_a_list_of_stages_reaches_the_typed_configuration() -> None:
    config = compose(["experiment=tiny", "blend.stages=[{from_tokens: 20480, shares: {china_law: 1.0, mmlu_questions: 1.0}}]"])
    (stage,) = config.blend.stages
    assert (stage.from_tokens, stage.shares) == (20480, {"china_law": 1.0, "mmlu_questions": 1.0})
    with pytest.raises(ConfigError, match="from_token"):
        compose(["experiment=tiny", "blend.stages=[{from_token: 20480}]"])


def test_a_gate_rule_in_a_file_and_on_the_command_line_names_what_it_is_of(tmp_path: Path) -> None:
    (tmp_path / "gate").mkdir()
    (tmp_path / "gate/mine.yaml").write_text("rules: [{of: law, kind: must_improve, margin: 0.0}]\n")
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/mine.yaml").write_text(
        "# @package _global_\ndefaults: [tiny, override /gate: mine]\nrun_name: mine\n"
        "gate: {rules: [{of: law, kind: must_improve, margin: 0.1}]}\n"
    )
    assert [rule.of for rule in compose(["experiment=tiny"]).gate.rules] == ["china_law", "nist_controls"]
    (rule,) = compose(["experiment=mine"], config_dir=tmp_path).gate.rules
    assert (rule.of, rule.margin) == ("law", 0.1)
    (rule,) = compose(["experiment=tiny", "gate.rules=[{of: law, kind: must_improve, margin: 0, required: false}]"]).gate.rules
    assert (rule.of, rule.margin, rule.required, rule.metric, rule.confidence) == ("law", 0.0, False, "bits_per_byte", None)


@pytest.mark.parametrize("setting", [[], ["hydra.job.chdir=true"], ["hydra.job.chdir=false"]])
def test_hydras_change_of_folder_moves_no_relative_path(setting: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its default differs by version, and relative paths with it (hydra-ecosystem/hydra#2414); here they start where the command does."""
    monkeypatch.chdir(tmp_path)
    config = compose(["experiment=tiny", "runs_dir=runs", *setting])
    assert Path.cwd() == tmp_path
    assert Run(config).folder == tmp_path / "runs" / config.run_name
    assert list(tmp_path.iterdir()) == []


def test_a_rate_without_a_dot_in_a_file_is_a_number(tmp_path: Path) -> None:
    """A plain YAML 1.1 loader reads 1e-5 as text (public report D38)."""
    folder = tmp_path / "schedule"
    folder.mkdir()
    (folder / "mine.yaml").write_text("kind: cosine\nwarmup_fraction: 0.0\npeak_lr: 1e-5\nmin_lr: .000001\n")
    config = compose(["experiment=tiny", "schedule=mine"], config_dir=tmp_path)
    assert isinstance(config.schedule.warmup_fraction, float)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["experiment=tiny", "optim.peek_lr=1"], ["peek_lr"]),
        (["experiment=tiny", "+model.num_layer=3"], ["num_layer"]),
        (["experiment=tiny", "blend.num_tokens=many"], ["many", "num_tokens"]),
        (["experiment=tiny", "tariff.price_date=null"], ["'tariff.price_date' is not Optional"]),
        (["experiment=tiny", "gpu=rtx9090"], ["gpu=rtx9090", "gpu is one of a100_40gb_sxm, a100_80gb_sxm, b200_sxm, cpu_host, h100_pcie"]),
        (["experiment=quikstart"], ["experiment=quickstart"]),
        ([], ["experiment"]),
        (["experiment=tiny", "model.path=a=b.ckpt"], ["Quote"]),
        (["experiment=tiny", "run_name=../x"], ["run_name"]),
        (["experiment=tiny", "run_name=a,b"], ["-m"]),
    ],
)
def test_a_wrong_key_value_or_grammar_is_a_config_error_that_names_it(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        compose(overrides)
    for word in words:
        assert word in str(raised.value)
    assert "Traceback" not in str(raised.value)


@pytest.mark.parametrize("where", ["file", "override"])
def test_a_provenance_in_one_phrase_is_answered_with_its_three_parts(tmp_path: Path, where: str) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/mine.yaml").write_text("path: x.jsonl\nrole: domain\nlicence: MIT\nprovenance: a court\nlanguage: en\n")
    wrong = "+source@source.mine=mine" if where == "file" else "source.china_law.provenance=a court"
    with pytest.raises(ConfigError, match=r"three parts: \{origin: \.\.\., date: \.\.\., obtained"):
        compose(["experiment=tiny", wrong], config_dir=tmp_path)


def test_all_missing_values_are_listed_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "experiment"
    folder.mkdir()
    (folder / "bare.yaml").write_text("# @package _global_\nrun_name: bare\n")
    with pytest.raises(ConfigError) as raised:
        compose(["experiment=bare"], config_dir=tmp_path)
    for key in ("model.path", "blend.num_tokens", "schedule.peak_lr", "parallel.tensor"):
        assert key in str(raised.value)


def test_a_quoted_value_with_an_equals_sign_and_chinese_passes() -> None:
    assert compose(["experiment=tiny", 'model.path="模型=1.ckpt"']).model.path == "模型=1.ckpt"


def test_a_sweep_is_the_product_of_its_choices_in_order() -> None:
    assert expand_sweep(["experiment=tiny", "seed=1,2", "schedule.peak_lr=1e-3,1e-4"]) == [
        ["experiment=tiny", "seed=1", "schedule.peak_lr=0.001"],
        ["experiment=tiny", "seed=1", "schedule.peak_lr=0.0001"],
        ["experiment=tiny", "seed=2", "schedule.peak_lr=0.001"],
        ["experiment=tiny", "seed=2", "schedule.peak_lr=0.0001"],
    ]


def test_settings_that_came_later_change_the_inputs_of_a_plan_only_where_they_are_set() -> None:
    config = compose(["experiment=tiny"])
    settings = plan_settings(config)
    assert set(settings["tariff"]) == {  # as plans of the first release recorded them
        "name", "usd_per_device_hour", "price_source", "pue", "pue_source", "grid_g_co2e_per_kwh", "grid_source",
    }  # fmt: skip
    assert set(settings["stop"]) == {"max_hours", "max_usd", "max_kwh", "max_skipped_steps", "spike_factor"}
    assert "allowance" not in settings
    config.tariff.grid_region, config.stop.max_tokens, config.allowance.likely = "FRA", 1000, 0.5
    settings = plan_settings(config)
    assert (settings["tariff"]["grid_region"], settings["stop"]["max_tokens"], settings["allowance"]["likely"]) == ("FRA", 1000, 0.5)


def test_a_file_of_a_folder_of_ones_own_comes_before_the_shipped_one_of_its_name(tmp_path: Path) -> None:
    (tmp_path / "schedule").mkdir()
    (tmp_path / "schedule" / "cosine.yaml").write_text("kind: linear\nmin_fraction: 0.25\n")
    assert compose(["experiment=tiny"]).schedule.kind == "cosine"
    own = compose(["experiment=tiny"], config_dir=tmp_path).schedule
    assert (own.kind, own.min_fraction) == ("linear", 0.25)
    assert compose(["experiment=tiny"]).schedule.kind == "cosine"


def test_a_root_in_a_folder_of_ones_own_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    with pytest.raises(ConfigError, match="no root"):
        compose(["experiment=tiny"], config_dir=tmp_path)
