"""A folder in which the commands of the documents mean something: what a reader has made by the time that a page is read."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
LINKED = ("tools", "benchmarks", "launch", "slurm", "docs", "tests", "megatron_cpt", "setup.py")
# SmolLM2-135M's, from its model card: a plan reads no more of a base model
CONFIG_JSON = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "intermediate_size": 1536, "vocab_size": 49152, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
    "rope_theta": 100000.0, "tie_word_embeddings": True,
    "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32",
}  # fmt: skip
SIZED_FOR_A_CLUSTER = {"global_batch_size: 2": "global_batch_size: 32", "dtype: fp32": "dtype: bf16"}  # as its owner would
FILLED_IN = {
    "path": "texts.jsonl",
    "licence": "Apache-2.0",
    "origin": "these documents",
    "date": "2026-11-29",
    "obtained": "by hand",
}


def make(folder: Path) -> Path:
    """Fill a folder: the repository's parts, `site/` with the options that pages call mine, and a base model's config.json."""
    for name in LINKED:
        (folder / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "conf", folder / "conf")
    shutil.copyfile(ROOT / "Makefile", folder / "Makefile")
    for model in ("data/models/smollm2-135m", "data/models/tiny-llama", "path/to/hf_folder"):
        (folder / model).mkdir(parents=True)
        (folder / model / "config.json").write_text(json.dumps(CONFIG_JSON), encoding="utf-8")
    _write_texts(folder / FILLED_IN["path"], "reference/*.md")
    for option in (ROOT / "conf" / "source").glob("*.yaml"):
        path = folder / yaml.safe_load(option.read_text(encoding="utf-8"))["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_texts(path, "[eh]*/*.md" if option.stem == "war_and_peace" else "decisions.md")
    for group, template in (("cluster", "slurm_h100_4x8"), ("tariff", "lambda_h100"), ("gpu", "cpu_host")):
        (folder / "site" / group).mkdir(parents=True)
        name = "this_host" if group == "gpu" else "mine"
        shutil.copyfile(ROOT / "conf" / group / f"{template}.yaml", folder / "site" / group / f"{name}.yaml")
    (folder / "site" / "experiment").mkdir()
    for name in ("mine", "own_corpus"):
        (folder / "site" / "experiment" / f"{name}.yaml").write_text(filled_in_template(), encoding="utf-8")
    _write_yaml_blocks(folder)
    (folder / ".venv").mkdir()
    (folder / ".venv" / ".installed").touch()
    return folder


def _write_texts(path: Path, pages: str) -> None:
    """Write the prose of some of these documents as texts of a hundred words and more, one a line, as a filter for the web wants it."""
    texts, words = [""], 0
    for page in sorted((ROOT / "docs").glob(pages)):
        for paragraph in re.split(r"\n\s*\n", page.read_text(encoding="utf-8")):
            if paragraph[:1] in "|#`-<" or not paragraph.endswith("."):
                continue
            texts[-1] += " ".join(re.sub(r"[`*{}]", "", paragraph).split()) + "\n"
            words += len(paragraph.split())
            if words > 120:
                texts, words = [*texts, ""], 0
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[:-1]), encoding="utf-8")


def filled_in_template() -> str:
    """Return conf/experiment/own_corpus.yaml with every ??? filled in, as the README asks."""
    text = (ROOT / "conf" / "experiment" / "own_corpus.yaml").read_text(encoding="utf-8").replace("run_name: own_corpus", "run_name: mine")
    for template, sized in SIZED_FOR_A_CLUSTER.items():
        assert template in text
        text = text.replace(template, sized)
    text = re.sub(r"(\w+): \?\?\?", lambda found: f'{found[1]}: "{FILLED_IN.get(found[1], "en")}"', text)
    assert "???" not in text.partition("# @package")[2].partition("\n")[2].split("# A template")[0]
    return text


def _write_yaml_blocks(folder: Path) -> None:
    """Write each YAML block whose first line is a comment with a path, as `# site/cluster/mine.yaml`, where it says that it stands."""
    from document_blocks import blocks  # noqa: PLC0415  # which makes the generated pages

    for block in blocks():
        named = re.match(r"# ((?:[\w.-]+/)+[\w.-]+\.ya?ml)\b", block.text)
        if block.language == "yaml" and named and not named[1].startswith(LINKED):
            yaml.safe_load(block.text)
            path = folder / named[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
            beside = folder / "site" / path.parent.name / path.name  # conf/ of a package cannot be added to by a test
            beside.parent.mkdir(parents=True, exist_ok=True)
            beside.write_text(block.text, encoding="utf-8")
