"""The shipped sweeps plan, job by job, as their files and docs/measured/sweeps.md say that they are run."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from megatron_cpt.config.compose import compose, expand_sweep
from megatron_cpt.config.files import shipped_conf
from megatron_cpt.line.expecting import expected_plan
from megatron_cpt.line.inputs import plan_settings

ROOT = Path(__file__).resolve().parents[3]
SWEEPS = sorted(path.stem for path in (shipped_conf() / "experiment").glob("sweep_*.yaml"))
SMOLLM2 = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
    "rope_theta": 100000.0, "hidden_act": "silu", "tie_word_embeddings": True,
}  # fmt: skip


def command_of(name: str) -> list[str]:
    """Return the command at the head of a sweep's file, in words."""
    lines = (shipped_conf() / "experiment" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    begin = next(number for number, line in enumerate(lines) if line.startswith("#   megatron-cpt"))
    text = lines[begin].removeprefix("#")
    while text.endswith("\\"):
        begin += 1
        text = text[:-1] + lines[begin].removeprefix("#")
    return shlex.split(text)


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_plans_every_job_of_the_command_in_its_file_and_in_the_docs(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SMOLLM2))
    words = command_of(name)
    assert words[:5] == ["megatron-cpt", "run", "-m", "--until", "gate"]
    assert f"experiment={name}" in words
    plans = []
    for overrides in expand_sweep(words[5:]):
        config = compose([*overrides, f"model.path={tmp_path}"])
        plan = expected_plan(config)
        assert (plan.num_tokens, plan.num_steps) == (16_384, 32)
        plans.append((plan_settings(config), config.tokenizer))
    assert all(plans.count(each) == 1 for each in plans), "two jobs of a sweep are the same run"
    assert len(plans) > 1
    docs = (ROOT / "docs" / "measured" / "sweeps.md").read_text(encoding="utf-8").replace("\\\n", " ")
    assert words in [shlex.split(line) for line in docs.splitlines() if line.strip().startswith("megatron-cpt")]
