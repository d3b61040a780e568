"""What can be scored: the base, the extended initial model, a training checkpoint, a Hugging Face folder. Each knows its files and digests.

Read from files alone; which weights go into which chunks is `run.py`'s part.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_cpt.errors import CheckpointError, ConfigError, CptError, DataError
from megatron_cpt.plan.model_shape import ModelShape
from megatron_cpt.plan.run_plan import RunPlan
from megatron_cpt.record.hashing import sha256_file, sha256_plain
from megatron_cpt.record.manifest import Manifest
from megatron_cpt.record.store import read_json
from megatron_cpt.record.tokenizer_file import load_tokenizer
from megatron_cpt.record.vocab_contract import BASE_TOKENIZER, check_vocab
from megatron_cpt.record.vocab_layout import VocabLayout, padded_rows

CHECKPOINT_RECORD = "checkpoint.json"
TOKENIZER_NAME = "tokenizer.json"
NAMES = ("base", "init", "train")


@dataclass(frozen=True)
class Subject:
    """One model to score.

    Attributes:
        shape: of this model; a Hugging Face folder may have other sizes than the plan's.
        hf_folder: where the weights are when they are in Hugging Face form; None otherwise.
        core_folder: where they are when they are a distributed checkpoint; None otherwise.
        checkpoint: the name in the report, relative to the run folder where it lies inside.
    """

    name: str
    checkpoint: str
    shape: ModelShape
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
    return Subject(name, _shown(folder, run_dir), plan.shape, None, folder / "model", plan.vocab, extended_tokenizer(plan, run_dir), digest)


def extended_tokenizer(plan: RunPlan, run_dir: Path) -> Path:
    """Return the extended tokenizer's file: the one under `vocab/` with the digest that the plan names.

    Raises:
        DataError: there is none, or the vocabulary's contract does not hold.
    """
    for path in sorted((run_dir / "vocab").rglob(TOKENIZER_NAME)):
        if sha256_file(path) == plan.vocab.tokenizer_sha256:
            if "vocab" in plan.identity:
                check_vocab(run_dir / "vocab", expected=plan.vocab)
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
    return _own_vocab(num_ids, prefix_id, plan)


def hf_subject(name: str, folder: Path, plan: RunPlan, run_dir: Path) -> Subject:
    """Return any Hugging Face folder of the plan's family as a subject, with its own tokenizer and number of ids.

    Its windows start with the plan's document separator, as the base's and the candidate's do.

    Raises:
        CheckpointError: the folder has no weights, or is of another family.
        ConfigError: it has fewer positions than a window has tokens, or no id for the separator.
    """
    shape = ModelShape.from_hf_folder(folder)
    if shape.family != plan.shape.family:
        raise CheckpointError(
            "The folder's model is of another family than the plan's.", where=folder, value=shape.family, rule=plan.shape.family
        )
    if plan.eval.window_tokens > shape.max_position:
        raise ConfigError(
            "A window is longer than the folder's positions.",
            where=folder,
            value=plan.eval.window_tokens,
            rule=f"at most {shape.max_position}",
        )
    tokenizer_path = folder / TOKENIZER_NAME
    separator = load_tokenizer(extended_tokenizer(plan, run_dir)).id_to_token(plan.vocab.end_of_document_id)
    assert separator is not None, "the plan's own tokenizer has the plan's separator"
    prefix_id = load_tokenizer(tokenizer_path).token_to_id(separator)
    if prefix_id is None or prefix_id >= shape.num_base_ids:
        raise ConfigError(
            "The folder's tokenizer has no id for the plan's document separator.",
            where=tokenizer_path,
            value=prefix_id,
            rule=f"an id of {separator!r} below {shape.num_base_ids}",
        )
    vocab = _own_vocab(shape.num_base_ids, prefix_id, plan)
    return Subject(name, _shown(folder, run_dir), shape, folder, None, vocab, tokenizer_path, _digest_of_hf(folder))


def _own_vocab(num_ids: int, prefix_id: int, plan: RunPlan) -> VocabLayout:
    return VocabLayout(num_ids, num_ids, padded_rows(num_ids, multiple=plan.layout.tensor), prefix_id, tokenizer_sha256="")


def _digest_of_hf(folder: Path) -> str:
    """Return one digest of everything in a Hugging Face folder that decides what its model computes; nothing is remembered by name.

    Raises:
        CheckpointError: there are no weights.
    """
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise CheckpointError("The model's weights are missing.", where=folder, rule="*.safetensors")
    decides = [*weights, *sorted(folder.glob("*.index.json")), folder / "config.json"]
    return sha256_plain({path.name: sha256_file(path) for path in decides if path.is_file()})


def _base(plan: RunPlan, run_dir: Path) -> Subject:
    pointer = run_dir / "init" / "base.json"
    record: Any = read_json(pointer)
    try:
        folder = run_dir / str(record["path"])  # an absolute path stays absolute
    except (KeyError, TypeError):
        raise DataError("The pointer to the base model is damaged.", where=pointer, rule='{"path": ...}') from None
    vocab = base_vocab(plan)
    own = folder / TOKENIZER_NAME
    tokenizer = own if own.is_file() else run_dir / "vocab" / BASE_TOKENIZER  # a base that is a tokenizer.model alone
    return Subject("base", _shown(folder, run_dir), plan.shape, folder, None, vocab, tokenizer, _digest_of_hf(folder))


def _init(plan: RunPlan, run_dir: Path) -> Subject:
    folder = run_dir / "init" / "checkpoint"
    if not folder.is_dir():
        raise CheckpointError("The initial checkpoint is missing.", where=folder, next_step="Run the init stage.")
    outputs = Manifest.load(folder.parent).outputs
    digest = sha256_plain({name: file.sha256 for name, file in outputs.items() if name.startswith("checkpoint/")})
    return Subject("init", "init/checkpoint", plan.shape, None, folder, plan.vocab, extended_tokenizer(plan, run_dir), digest)


def _shown(folder: Path, run_dir: Path) -> str:
    resolved = folder.resolve()
    return resolved.relative_to(run_dir).as_posix() if resolved.is_relative_to(run_dir) else str(resolved)
