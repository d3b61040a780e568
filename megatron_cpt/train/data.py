"""Blended training samples through megatron-core's dataset builder, in an order that only the plan decides.

Shapes: B micro-batch, S sequence.
"""

from __future__ import annotations

import functools
import logging
import shutil
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatron_cpt.errors import ConfigError
from megatron_cpt.model.context import part_of_rank
from megatron_cpt.plan.blend import needed_surplus
from megatron_cpt.plan.run_plan import RunPlan
from megatron_cpt.record.hashing import sha256_plain
from megatron_cpt.record.store import read_json, write_json
from megatron_cpt.train.blend_order import Continued, StagedBlend
from megatron_cpt.train.index_files import check_sources
from megatron_cpt.train.packing import document_mask
from megatron_cpt.train.runtime import is_first_rank
from megatron_cpt.train.sample_order import step_samples

CACHE_FOLDER = "index-cache"
CACHE_MARK = "complete.json"
SHARED_PATIENCE_S = 75.0
NO_PADDING_ID = -1  # no id of any vocabulary: the datasets must mask no real token as padding

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class IndexTokenizer:
    """What megatron-core's GPTDataset asks of a tokenizer: two ids, a size, and a name for its cache key."""

    eod: int
    vocab_size: int
    fingerprint: str
    pad: int = NO_PADDING_ID

    @property
    def unique_identifiers(self) -> OrderedDict[str, str]:
        return OrderedDict(fingerprint=self.fingerprint)


@dataclass(frozen=True)
class Microbatch:
    """One micro-batch of one rank; `source_ids_B` number the plan's blend entries.

    `attention_mask_B1SS` is True where a query (second to last) must not see a key, and None where every earlier token is seen.
    Of a sequence that context-parallel ranks share, each holds the tokens of `model/context.py`: S is their number, except for the
    keys of the mask, which are those of the whole sequence.
    """

    tokens_BS: torch.Tensor
    labels_BS: torch.Tensor
    loss_mask_BS: torch.Tensor
    position_ids_BS: torch.Tensor
    source_ids_B: torch.Tensor
    attention_mask_B1SS: torch.Tensor | None = None

    def to(self, device: torch.device) -> Microbatch:
        parts: list[Any] = [None if part is None else part.to(device) for part in vars(self).values()]
        return Microbatch(*parts)

    def part(self, *, rank: int, num_ranks: int) -> Microbatch:
        """Return what a context-parallel rank holds of the micro-batch."""
        cut = functools.partial(part_of_rank, rank=rank, num_ranks=num_ranks)
        mask = self.attention_mask_B1SS
        return Microbatch(
            cut(self.tokens_BS, dim=1),
            cut(self.labels_BS, dim=1),
            cut(self.loss_mask_BS, dim=1),
            cut(self.position_ids_BS, dim=1),
            self.source_ids_B,
            None if mask is None else cut(mask, dim=2),
        )


@dataclass(frozen=True)
class StepBatch:
    """The micro-batches that this rank reads in one step, and the first sample of the step's global batch."""

    first_sample: int
    microbatches: tuple[Microbatch, ...]


class TrainingData:
    """Samples by number; sample i is the same on every rank, layout and attempt."""

    def __init__(self, dataset: Any, *, plan: RunPlan, data_rank: int, device: torch.device, context_rank: int = 0) -> None:
        assert context_rank < plan.layout.context, "the layout has fewer context-parallel ranks"
        self._dataset, self._plan, self._data_rank, self.device = dataset, plan, data_rank, device
        self._context_rank = context_rank

    def from_sample(self, first_sample: int) -> Iterator[StepBatch]:
        """Yield the batches of the steps from `first_sample` to the plan's end."""
        layout = self._plan.layout
        for begin in range(first_sample, self._plan.num_samples, layout.global_batch_size):
            numbers = step_samples(layout, first_sample=begin, data_rank=self._data_rank)
            yield StepBatch(begin, tuple(self._microbatch(samples).to(self.device) for samples in numbers))

    def _microbatch(self, samples: Sequence[int]) -> Microbatch:
        rows = [self._dataset[number] for number in samples]
        stack: Callable[[str], torch.Tensor] = lambda key: torch.stack([row[key] for row in rows])  # noqa: E731
        # a blend of one source is a plain GPTDataset, whose samples carry no number
        sources = torch.tensor([int(row.get("dataset_id", 0)) for row in rows])
        tokens_BS = stack("tokens")
        mask = None if self._plan.packing.cross_document_attention else document_mask(tokens_BS, end=self._plan.vocab.end_of_document_id)
        whole = Microbatch(tokens_BS, stack("labels"), stack("loss_mask"), stack("position_ids"), sources, mask)
        return whole.part(rank=self._context_rank, num_ranks=self._plan.layout.context)


def build_dataset(plan: RunPlan, run_dir: Path, train_dir: Path, *, barrier: Callable[[], None]) -> Any:
    """Return the blended dataset of the plan; collective. The first rank builds the index cache, the others read it.

    The cache sits under `train/index-cache/<key>`, where the key holds the plan and the size of every source file, and
    counts only with its completion mark: a kill while it is written leaves nothing that a later start trusts.

    Raises:
        DataError: a source is missing, damaged, empty or holds an id that the model has no row for.
    """
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder  # noqa: PLC0415
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig  # noqa: PLC0415

    prefixes = [run_dir / entry.prefix for entry in plan.blend]
    shares = [entry.share for entry in plan.blend]
    cache = train_dir / CACHE_FOLDER / _cache_key(plan, prefixes)
    if is_first_rank():
        _prepare_cache(cache, prefixes, num_ids=plan.vocab.num_ids)
    barrier()
    _require_shared(cache)

    def build(blend: tuple[list[str], list[float] | None], *, num_samples: int, surplus: float, seed: int = plan.seed) -> Any:
        config = GPTDatasetConfig(
            random_seed=seed,
            sequence_length=plan.layout.sequence_length,
            blend_per_split=[blend, None, None],
            path_to_cache=str(cache),
            tokenizer=IndexTokenizer(plan.vocab.end_of_document_id, plan.vocab.num_ids, plan.vocab.fingerprint),
            reset_position_ids=plan.packing.reset_positions,
            reset_attention_mask=False,  # document_mask makes the mask that is needed, without a float matrix a sample
            eod_mask_loss=not plan.packing.loss_on_end_of_document,
            create_attention_mask=False,
            mid_level_dataset_surplus=surplus,
        )
        return BlendedMegatronDatasetBuilder(GPTDataset, [num_samples, None, None], lambda: True, config).build()[0]

    paths = [str(prefix) for prefix in prefixes]
    if plan.blend_stages:

        def in_own_order(path: str) -> Callable[[int, int], Any]:
            return lambda num_samples, number: build(([path], None), num_samples=num_samples, surplus=0.0, seed=plan.seed + number)

        parts = [
            Continued.build(in_own_order(path), wanted=(*entry.earlier_num_samples, entry.num_samples))
            for path, entry in zip(paths, plan.blend, strict=True)
        ]
        dataset: Any = StagedBlend(parts, [stage.samples for stage in plan.blend_stages])
    else:
        surplus = needed_surplus(shares, num_samples=plan.num_samples)
        dataset = build((paths, shares), num_samples=plan.num_samples, surplus=surplus)
    barrier()
    if is_first_rank():
        write_json(cache / CACHE_MARK, {"num_samples": plan.num_samples})
    return dataset


def _cache_key(plan: RunPlan, prefixes: Sequence[Path]) -> str:
    files = [prefix.with_name(prefix.name + suffix) for prefix in prefixes for suffix in (".bin", ".idx")]
    return sha256_plain([plan.fingerprint, [path.stat().st_size if path.is_file() else None for path in files]])[:16]


def _require_shared(cache: Path) -> None:
    """Refuse a run folder that this rank does not share with the first one, which alone builds the index.

    A network file system may show a new folder only after its attribute cache has run out (60 s at most by default: acdirmax in nfs(5)).
    """
    last_look = time.monotonic() + SHARED_PATIENCE_S
    while not cache.is_dir():
        if time.monotonic() > last_look:
            raise ConfigError(
                "This rank does not see the index that the first rank has made.",
                where=cache,
                rule="all nodes of a run see the same run folder",
                next_step="Set runs_dir to a folder on a file system that all nodes share.",
            )
        time.sleep(0.1)


def _prepare_cache(cache: Path, prefixes: Sequence[Path], *, num_ids: int) -> None:
    """Check the sources once per cache, and remove every cache but this one, and this one too when it is a torso."""
    if (cache / CACHE_MARK).exists():
        read_json(cache / CACHE_MARK)
        return
    check_sources(prefixes, num_ids=num_ids)
    if cache.parent.exists():
        shutil.rmtree(cache.parent)
    cache.mkdir(parents=True)
