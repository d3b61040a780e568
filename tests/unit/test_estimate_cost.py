"""tools/estimate_cost.py: the planner's numbers on flags or a config.json, as text and JSON, and clear refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import estimate_cost  # noqa: E402

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0, "hidden_act": "silu", "tie_word_embeddings": False,
}  # fmt: skip
SIZES = ["--layers=32", "--hidden-size=4096", "--heads=32", "--kv-heads=8", "--ffn=14336", "--vocabulary=128256"]
RUN = ["--gpus=8", "--gpu=h100_sxm", "--tokens=1e9", "--sequence-length=4096", "--global-batch-size=256"]
SPLIT = ["--tensor=4", "--sequence-parallel", "--micro-batch-size=1"]
PRICE = ["--price=2.00", "--price-date=2024-12", "--pue=1.1", "--region=FRA", "--mfu=0.4"]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG))
    return path


def asked(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = estimate_cost.main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_flags_and_a_config_give_the_same_numbers_and_they_are_those_of_a_hand_count(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = asked(capsys, "--config", config, *RUN, *SPLIT, *PRICE, "--json")
    assert code == 0
    found = json.loads(out)
    _, from_sizes, _ = asked(capsys, *SIZES, *RUN, *SPLIT, *PRICE, "--json")
    assert json.loads(from_sizes)["estimate"] == found["estimate"]
    estimate = found["estimate"]
    # 6 N of the layers' and output matrices, and 6 s h L of causal attention, a token
    layers = 32 * (4096 * 4096 * 2 + 4096 * 1024 * 2 + 3 * 4096 * 14336) + 4096 * 128256
    per_token = 6 * layers + 6 * 4096 * 4096 * 32
    assert estimate["flops_per_token"] == pytest.approx(per_token)
    assert estimate["tokens"] == 954 * 256 * 4096  # whole steps
    hours = per_token * estimate["tokens"] / (989e12 * 0.4) / 3600  # of all 8 devices: their number cancels
    assert estimate["device_hours"] == pytest.approx(hours)
    assert estimate["usd"] == pytest.approx(2.0 * hours)
    # 700 W x 0.91 + 350 W for the rest of the node, at a PUE of 1.1, on France's grid
    assert estimate["kwh"] == pytest.approx(hours * 0.987 * 1.1)
    assert estimate["kg_co2e"] == pytest.approx(hours * 0.987 * 1.1 * 0.056039)
    assert estimate["bill"]["kg_market"] == {"unavailable": "your contract for electricity states it; set tariff.market_g_co2e_per_kwh"}
    assert estimate["memory"][0]["total"] < 80e9


def test_without_a_layout_the_fastest_that_fits_is_taken_and_said(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = asked(capsys, "--config", config.parent, *RUN, "--tariff=market_h100")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    text = " ".join(out.split())
    assert "(the fastest that fits, by the step model)" in text
    assert "2026-05-20: median of 37 providers" in text
    assert "low: Nebius spot" in text


def test_over_budget_prints_the_answer_and_every_problem_and_exits_2(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = asked(capsys, "--config", config, *RUN, *SPLIT, *PRICE, "--max-usd=1", "--max-hours=0.1", "--max-kwh=1")
    assert code == 2
    assert "in short" in out
    for number, key in enumerate(("stop.max_hours", "stop.max_usd", "stop.max_kwh"), 1):
        assert f"{number}. the run is estimated at" in err
        assert key in err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([*RUN, "--price=2"], 2, "price without its date"),
        ([*RUN, "--price=nan", "--price-date=2026-01"], 2, "is not 0 or more"),
        ([*RUN, "--pue=-1"], 2, "tariff.pue=-1.0 is below 1"),
        ([*RUN, "--region=nowhere"], 2, "is not in the table of regions"),
        ([*RUN, "--tariff=lamda_h100"], 2, "Did you mean lambda_h100?"),
        ([*RUN, "--mfu=lots"], 2, "--mfu is no share"),
        ([*RUN, "--mfu=1.5"], 2, "are not an interval"),
        ([*RUN, "--tensor=3"], 2, "parallel.tensor=3 does not divide"),
        ([*RUN, "--layers=4"], 2, "both describe the model"),
        (["--gpus=8", "--gpu=h100", "--tokens=1e9", "--sequence-length=4096"], 2, "There is no gpu of that name"),
        (["--gpus=9", "--gpu=h100_sxm", "--tokens=1e9", "--sequence-length=4096"], 2, "do not divide over the nodes"),
        (["--gpus=0", "--gpu=h100_sxm", "--tokens=1e9", "--sequence-length=4096"], 2, "must be 1 or more"),
        (["--gpus=8", "--gpu=h100_sxm", "--tokens=nan", "--sequence-length=4096"], 2, "must be 1 or more"),
        (["--gpus=1", "--gpu=l40s", "--tokens=1e9", "--sequence-length=4096"], 2, "cannot be predicted on this device"),
        (["--gpus=1", "--gpu=h100_sxm", "--tokens=1e9", "--sequence-length=4096"], 2, "No layout of the model fits"),
    ],
)
def test_a_request_that_makes_no_sense_is_one_clear_error(
    config: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, words: str
) -> None:
    found, out, err = asked(capsys, "--config", config, *arguments)
    assert (found, out) == (code, "")
    assert words in err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (json.dumps({**CONFIG, "architectures": ["MambaForCausalLM"]}), "architectures is ['MambaForCausalLM']"),
        ("{", "not JSON"),
        ("[]", "one JSON object"),
        (json.dumps({**CONFIG, "hidden_size": -4}), "hidden_size is -4"),
    ],
)
def test_a_config_of_no_known_model_is_refused(config: Path, capsys: pytest.CaptureFixture[str], content: str, words: str) -> None:
    config.write_text(content)
    code, out, err = asked(capsys, "--config", config, *RUN)
    assert (code, out) == (4, "")
    assert words in err


def test_from_the_shell_it_needs_no_torch(config: Path) -> None:
    code = (
        "import sys; import estimate_cost; status = estimate_cost.main(sys.argv[1:]); assert 'torch' not in sys.modules; sys.exit(status)"
    )
    command = [sys.executable, "-c", code, "--config", str(config), *RUN, *SPLIT, *PRICE]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT, env={"PYTHONPATH": f"{ROOT}:{ROOT / 'tools'}", "PATH": ""}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("in short    8 GPUs for ")
