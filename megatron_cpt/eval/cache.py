"""Scores that outlive a run: kept under a digest of everything that decides them, and never served for anything else.

Kept are the frozen base and the extended model before training: they are what run after run scores anew. The first rank reads and writes.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

from megatron_cpt import __version__
from megatron_cpt.errors import CptError
from megatron_cpt.eval.report import SubjectScore, worded
from megatron_cpt.eval.subjects import Subject
from megatron_cpt.gate.pairs import BASE
from megatron_cpt.plan.run_plan import RunPlan
from megatron_cpt.record.hashing import sha256_file, sha256_plain
from megatron_cpt.record.store import read_json, write_json
from megatron_cpt.record.typed import from_plain, to_plain

FOLDER_NAME = ".eval-cache"
SCORING_VERSION = 1  # raised with every change of code that changes a score

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class CacheEntry:
    """Where a subject's scores are kept, and what they are scores of."""

    path: Path
    identity: dict[str, Any]

    @classmethod
    def of(cls, subject: Subject, plan: RunPlan, run_dir: Path) -> CacheEntry:
        """Return the entry of a subject: weights, tokenizer, prefix, settings, contents of texts, number formats and the code's version.

        How the ranks are laid out is not among them: it changes no score.
        """
        layout = plan.layout
        identity = {
            "weights_sha256": subject.weights_sha256,
            "tokenizer_sha256": sha256_file(subject.tokenizer_path),
            "prefix_id": subject.vocab.end_of_document_id,
            "eval": to_plain(dataclasses.replace(plan.eval, cache=True)),
            "texts": {text.name: sha256_file(run_dir / text.path) for text in plan.eval.texts},
            "watched": {text.name: sha256_file(run_dir / text.watch_path) for text in plan.eval.texts if text.watch_path},
            "numbers": [plan.backend, layout.dtype, layout.fp8, layout.fp8_recipe],
            "seed": plan.seed if any(task.temperature > 0 for task in plan.eval.tasks) else None,  # of drawn programs
            "version": __version__,
            "scoring_version": SCORING_VERSION,
        }
        if subject.name != BASE:
            identity["subject"] = subject.name
        return cls(run_dir.parent / FOLDER_NAME / f"{sha256_plain(identity)}.json", identity)

    def read(self) -> SubjectScore | None:
        """Return the scores, or None: with a warning where the file is damaged, so that they are computed again."""
        if not self.path.exists():
            return None
        try:
            record = read_json(self.path)
            if record["identity"] != self.identity or record["scores_sha256"] != sha256_plain(record["scores"]):
                raise ValueError("its contents do not agree with its digests")
            return from_plain(SubjectScore, record["scores"], where=self.path)
        except (CptError, KeyError, TypeError, ValueError) as error:
            logger.warning("The kept scores %s are damaged and are computed again: %s", self.path, error)
            return None

    def write(self, score: SubjectScore) -> None:
        """Keep the scores, unless one is not a finite number."""
        plain = to_plain(score)
        if worded(plain) != plain:
            return
        write_json(self.path, {"identity": self.identity, "scores_sha256": sha256_plain(plain), "scores": plain})
