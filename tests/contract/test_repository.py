"""Promises about the repository itself: the layout, the groups of conf/, and what may not be in it."""

from __future__ import annotations

import dataclasses
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from megatron_cpt.config import schema
from megatron_cpt.stage_names import STAGES

ROOT = Path(__file__).resolve().parents[2]
GROUPS = {
    "model": schema.ModelConfig,
    "tokenizer": schema.TokenizerConfig,
    "source": schema.SourceConfig,
    "optim": schema.OptimConfig,
    "schedule": schema.ScheduleConfig,
    "parallel": schema.ParallelConfig,
    "cluster": schema.ClusterConfig,
    "gpu": schema.GpuConfig,
    "tariff": schema.TariffConfig,
    "gate": schema.GateConfig,
    "bench": schema.BenchConfig,
}
FILES = [(group, path) for group in GROUPS for path in sorted((ROOT / "conf" / group).glob("*.yaml"))]


@pytest.mark.parametrize(("group", "path"), FILES, ids=lambda value: value.name if isinstance(value, Path) else value)
def test_every_shipped_option_sets_only_fields_of_its_group(group: str, path: Path) -> None:
    keys = set(yaml.safe_load(path.read_text(encoding="utf-8")))
    assert keys <= {field.name for field in dataclasses.fields(GROUPS[group])}


def tracked() -> list[str]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    return subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=True).stdout.split("\n")[:-1]


def test_no_product_of_a_run_is_tracked() -> None:
    assert [name for name in tracked() if re.search(r"\.(bin|idx|safetensors|gguf|pyc|whl|pt)$|^(runs|data|wandb)/", name)] == []


def test_the_readme_names_every_stage_and_every_top_folder() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    folders = {name.split("/")[0] for name in tracked() if "/" in name} - {".ci"}
    missing = [name for name in sorted(folders) if f"{name}/" not in readme]
    missing += [stage.name for stage in STAGES if stage.name not in readme]
    assert missing == []


def test_make_commands_in_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+)", readme)) <= targets


def test_shell_files_stay_short() -> None:
    """A script only gathers arguments and hands over to Python; job bodies may be a little longer than 20 lines of code."""
    for path in sorted((ROOT / "launch").glob("*.sh")):
        code = [line for line in path.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]
        assert len(code) <= 20, path


def test_the_table_of_parallelism_names_tests_that_exist_and_options_that_can_be_set() -> None:
    text = (ROOT / "docs" / "reference" / "parallelism.md").read_text(encoding="utf-8")
    legend = dict(re.findall(r"^\| ([A-Z]) \| `(\S+)` \|$", text, flags=re.MULTILINE))
    for name in legend.values():
        file, _, test = name.partition("::")
        assert f"def {test}(" in (ROOT / file).read_text(encoding="utf-8"), name
    proofs = re.findall(r"\b([A-Z])\[([\w-]+)\]", text)
    assert len(proofs) > 20
    for letter, case in proofs:
        assert f'"{case}"' in (ROOT / legend[letter].partition("::")[0]).read_text(encoding="utf-8"), (letter, case)
    fields = {field.name for field in dataclasses.fields(schema.ParallelConfig)}
    rows = re.findall(r"^\| [^|]+ \| `(\w+)[^|]*\| (?:yes|refused by name) \|", text, flags=re.MULTILINE)
    assert set(rows) <= fields
    assert fields - set(rows) == {"micro_batch_size", "sequence_length"}  # sizes, not ways to split
