"""What can be scored: the frozen base, the extended initial model, a training checkpoint. Each knows its files and digests.

Read from files alone; which weights go into which chunks is `run.py`'s part.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_cpt.errors import CheckpointError, ConfigError, CptError, DataError
from megatron_cpt.plan.run_plan import RunPlan
from megatron_cpt.record.hashing import sha256_file, sha256_plain
from megatron_cpt.record.manifest import Manifest
from megatron_cpt.record.store import read_json
from megatron_cpt.record.vocab_layout import VocabLayout, padded_rows

CHECKPOINT_RECORD = "checkpoint.json"
TOKENIZER_NAME = "tokenizer.json"
NAMES = ("base", "init", "train")


@dataclass(frozen=True)
class Subject:
    """One model to score.

    Attributes:
        hf_folder: where the weights are when they are in Hugging Face form; None otherwise.
        core_folder: where they are when they are a distributed checkpoint; None otherwise.
        checkpoint: the name in the report, relative to the run folder where it lies inside.
    """

    name: str
    checkpoint: str
    hf_folder: Path | None
    core_folder: Path | None
    vocab: VocabLayout
    tokenizer_path: Path
    weights_sha256: str


def find_subject(name: str, plan: RunPlan, run_dir: Path) -> Subject:
    """Return the subject `base`, `init` or `train` (the newest complete checkpoint of the run).

    Raises:
        ConfigError: no such name.
        CheckpointError, DataError: its files are missing.
    """
    if name == "base":
        return _base(plan, run_dir)
    if name == "init":
        return _init(plan, run_dir)
    if name == "train":
        return train_checkpoint(name, newest_checkpoint(run_dir / "train" / "checkpoints"), plan, run_dir)
    raise ConfigError("No such subject.", where="subjects", value=name, rule=f"one of {', '.join(NAMES)}, or checkpoint=<folder>")


def newest_checkpoint(folder: Path) -> Path:
    """Return the complete checkpoint with the highest step by its own record; names and times do not count.

    Raises:
        CheckpointError: there is none.
    """
    steps = {}
    for record in folder.glob(f"step_*/{CHECKPOINT_RECORD}"):
        try:
            steps[record.parent] = int(read_json(record)["step"])
        except (CptError, KeyError, TypeError, ValueError):
            continue
    if not steps:
        raise CheckpointError("The run has no complete training checkpoint.", where=folder, next_step="Train first.")
    return max(steps, key=lambda path: steps[path])


def train_checkpoint(name: str, folder: Path, plan: RunPlan, run_dir: Path) -> Subject:
    """Return a training checkpoint as a subject.

    Raises:
        CheckpointError: the folder is not a complete training checkpoint.
    """
    path = folder / CHECKPOINT_RECORD
    if not path.is_file():
        raise CheckpointError("The folder is not a complete training checkpoint.", where=folder, rule=f"it holds {CHECKPOINT_RECORD}")
    files = read_json(path)["files"]
    digest = sha256_plain({file: entry["sha256"] for file, entry in files.items()})
    return Subject(name, _shown(folder, run_dir), None, folder / "model", plan.vocab, extended_tokenizer(plan, run_dir), digest)


def extended_tokenizer(plan: RunPlan, run_dir: Path) -> Path:
    """Return the extended tokenizer's file: the one under `vocab/` with the digest that the plan names.

    Raises:
        DataError: there is none.
    """
    for path in sorted((run_dir / "vocab").rglob(TOKENIZER_NAME)):
        if sha256_file(path) == plan.vocab.tokenizer_sha256:
            return path
    raise DataError(
        "The plan's tokenizer is not in the run.",
        where=run_dir / "vocab",
        rule=f"a {TOKENIZER_NAME} with sha256 {plan.vocab.tokenizer_sha256}",
    )


def base_vocab(plan: RunPlan) -> VocabLayout:
    """Return the base model's own vocabulary: its ids, and only the padding rows that the tensor-parallel size needs.

    Raises:
        ConfigError: the document separator is not an id of the base, so that base and candidate cannot start alike.
    """
    num_ids, prefix_id = plan.shape.num_base_ids, plan.vocab.end_of_document_id
    if prefix_id >= num_ids:
        raise ConfigError(
            "The base model has no row for the document separator.",
            where="tokenizer.document_separator",
            value=prefix_id,
            rule=f"an id of the base, below {num_ids}",
        )
    return VocabLayout(num_ids, num_ids, padded_rows(num_ids, multiple=plan.layout.tensor), prefix_id, tokenizer_sha256="")


def _base(plan: RunPlan, run_dir: Path) -> Subject:
    pointer = run_dir / "init" / "base.json"
    record: Any = read_json(pointer)
    try:
        folder = run_dir / str(record["path"])  # an absolute path stays absolute
    except (KeyError, TypeError):
        raise DataError("The pointer to the base model is damaged.", where=pointer, rule='{"path": ...}') from None
    weights = {path.name: sha256_file(path) for path in sorted(folder.glob("*.safetensors"))}
    if not weights:
        raise CheckpointError("The base model's weights are missing.", where=folder, rule="*.safetensors")
    return Subject("base", _shown(folder, run_dir), folder, None, base_vocab(plan), folder / TOKENIZER_NAME, sha256_plain(weights))


def _init(plan: RunPlan, run_dir: Path) -> Subject:
    folder = run_dir / "init" / "checkpoint"
    if not folder.is_dir():
        raise CheckpointError("The initial checkpoint is missing.", where=folder, next_step="Run the init stage.")
    outputs = Manifest.load(folder.parent).outputs
    digest = sha256_plain({name: file.sha256 for name, file in outputs.items() if name.startswith("checkpoint/")})
    return Subject("init", "init/checkpoint", None, folder, plan.vocab, extended_tokenizer(plan, run_dir), digest)


def _shown(folder: Path, run_dir: Path) -> str:
    resolved = folder.resolve()
    return resolved.relative_to(run_dir).as_posix() if resolved.is_relative_to(run_dir) else str(resolved)
