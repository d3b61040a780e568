"""`megatron-cpt plan` before any stage has run: the same page from the configuration alone, and nothing written.

It reads the base model's config.json and the configuration, so that a login node without torch, weights or data can do it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_cpt.config.schema import ExperimentConfig
from megatron_cpt.plan.benches import read_benches
from megatron_cpt.plan.calibrate import measure_host
from megatron_cpt.plan.derive import derive
from megatron_cpt.plan.model_shape import ModelShape
from megatron_cpt.plan.run_plan import RunPlan
from megatron_cpt.record.manifest import MANIFEST_NAME
from megatron_cpt.record.vocab_layout import VocabLayout, padded_rows

_MEASURED_SECONDS = 0.25  # of a CPU: an answer at once rather than a steady clock
STAGES_BEFORE = ("corpus", "vocab", "index", "init")


def is_before_the_plan(config: ExperimentConfig) -> bool:
    """Say whether a stage that the plan is derived from has not finished in this run."""
    folder = Path(config.runs_dir).resolve() / config.run_name
    return any(not (folder / stage / MANIFEST_NAME).exists() for stage in STAGES_BEFORE)


def expected_plan(config: ExperimentConfig) -> RunPlan:
    """Return the plan that the configuration leads to when its sources give the tokens that it states (`blend.num_tokens`).

    Sources are taken to hold what the blend reads of them, so nothing is said of how often they are read.

    Raises:
        ConfigError: listing everything that does not divide, fit, exist or stay within a limit.
        CheckpointError: the base model's config.json is missing or of no known family.
    """
    shape = ModelShape.from_hf_folder(Path(config.model.path).resolve())
    sources: dict[str, Any] = {
        name: {"documents": 1, "tokens": max(config.blend.num_tokens, 1), "role": source.role, "licence": source.licence}
        for name, source in config.source.items()
    }
    return derive(
        config,
        init_facts={},
        index_facts={"sources": sources},
        corpus_facts={
            "sources": {
                name: {"test_documents": 1, "valid_documents": int(source.valid_fraction > 0)} for name, source in config.source.items()
            }
        },
        shape=shape,
        vocab=expected_vocab(config, shape),
        identity={},
        host=measure_host(config.cluster, seconds=_MEASURED_SECONDS),
        benches=read_benches(config),
    )


def expected_vocab(config: ExperimentConfig, shape: ModelShape) -> VocabLayout:
    """Return the vocabulary that the configuration asks for, before the tokenizer was extended: new pieces and the separator at most."""
    num_ids = shape.num_base_ids + config.tokenizer.num_new_pieces + (1 if config.tokenizer.num_new_pieces else 0)
    rows = padded_rows(num_ids, multiple=config.tokenizer.pad_rows_to_multiple)
    return VocabLayout(shape.num_base_ids, num_ids, rows, 0, "")
