"""The block of the first pass that cuts texts into words once, and looks there for what is evaluated and for what copies are told by."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

from megatron_cpt.config.schema import CorpusConfig, SourceConfig
from megatron_cpt.corpus.decontaminate import EvalGrams, Match, matches_in_words
from megatron_cpt.corpus.dedup.bands import BandHasher
from megatron_cpt.corpus.scratch import TaskWriter, halves
from megatron_cpt.corpus.split import side_of
from megatron_cpt.text.runs import Rows, TextHashes

GRAMS_NAME = "eval_grams.npz"
BATCH_CHARS = 1 << 20
_HASHES = TextHashes()  # one a process: its tables serve every task


def needs_units(settings: CorpusConfig, scratch: Path) -> bool:
    return settings.dedup.near.enabled or compares_units(settings) or (scratch / GRAMS_NAME).exists()


def compares_units(settings: CorpusConfig) -> bool:
    return settings.dedup.exact and settings.dedup.compare == "units"


@lru_cache(maxsize=1)
def load_grams(path: Path, _written_ns: int) -> EvalGrams:
    return EvalGrams.load(path, _HASHES)


class CompareUnits(PipelineStep):  # type: ignore[misc] # datatrove has no types
    """Leaves out documents of the training side that hold what is evaluated, or notes them; gives the others their columns.

    A document's metadata get `columns`: `bands` (uint64, one a band) and `form` (two halves of the digest of its units), as far as the
    settings ask for them.
    """

    name = "units"
    type = "COMPARE"

    def __init__(self, settings: CorpusConfig, source: SourceConfig, writer: TaskWriter) -> None:
        super().__init__()
        self.settings, self.source, self.writer = settings, source, writer

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        path = self.writer.scratch / GRAMS_NAME
        grams = load_grams(path, path.stat().st_mtime_ns) if path.exists() else None
        hasher = BandHasher(self.settings.dedup.near, _HASHES) if self.settings.dedup.near.enabled else None
        batch: list[Document] = []
        size = 0
        for document in data or ():
            batch.append(document)
            size += len(document.text)
            if size >= BATCH_CHARS:
                yield from self.batch(batch, grams, hasher)
                batch, size = [], 0
        yield from self.batch(batch, grams, hasher)

    def batch(self, documents: list[Document], grams: EvalGrams | None, hasher: BandHasher | None) -> Iterator[Document]:
        texts = [document.text for document in documents]
        rows = Rows.of(texts, _HASHES)
        matches = grams.matches_of_rows(rows, texts) if grams else [[] for _ in texts]
        bands = hasher.keys_of_rows(rows) if hasher else None
        for place, document in enumerate(documents):
            if matches[place] and self.holds_items(document, matches[place]):
                continue
            columns = document.metadata.setdefault("columns", {})
            if bands is not None:
                columns["bands"] = bands[place]
            if compares_units(self.settings):
                columns["form"] = form_digest(rows, place, document.text)
            yield document

    def holds_items(self, document: Document, matches: list[Match]) -> bool:
        """Note a document of the training side in which items stand; say whether it is left out. What is held out may hold them."""
        digest = hashlib.sha256(document.text.encode("utf-8")).hexdigest()
        if side_of(digest, valid_fraction=self.source.valid_fraction, test_fraction=self.source.test_fraction) != "train":
            return False
        piece, line = document.metadata["piece"], document.metadata["line"]
        self.writer.contaminated(piece, line, [[match.bench, match.item, match.share, match.run] for match in matches])
        if self.settings.decontaminate.action != "drop":
            return False
        self.writer.reject(piece, line, "contaminated", matches_in_words(matches))
        return True


def form_digest(rows: Rows, place: int, text: str) -> np.ndarray:
    """Return 16 bytes of the digest of a text's units; of a text without any, that of the text itself."""
    units = rows.units[rows.begins[place] : rows.ends[place]]
    return np.array(halves(hashlib.sha256(units.tobytes() if len(units) else text.encode("utf-8")).digest()), dtype=np.uint64)
