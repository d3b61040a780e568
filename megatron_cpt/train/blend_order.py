"""Which sample of which source comes when in a blend whose shares change: a pure function of the plan's exact counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]


def interleave(counts: Sequence[int]) -> NDArray[np.int16]:
    """Return the source of each of `sum(counts)` samples: exactly `counts` of each, every source spread evenly.

    Sample k of a source with n of N samples is due at (k + 1/2) N / n; the samples come in the order in which they are due.
    """
    source_N = np.repeat(np.arange(len(counts), dtype=np.int16), counts)
    due_N = np.concatenate([(np.arange(count) + 0.5) / count for count in counts if count])
    return source_N[np.argsort(due_N, kind="stable")]


def staged_order(stages: Sequence[Sequence[int]]) -> tuple[NDArray[np.int16], Numbers]:
    """Return source and number within it of every sample of a blend.

    Args:
        stages: samples of each source, stage by stage. A source is read on in a later stage from where it stood.
    """
    source_N = np.concatenate([interleave(counts) for counts in stages])
    number_N = np.empty(len(source_N), dtype=np.int64)
    for source in range(len(stages[0])):
        places = np.flatnonzero(source_N == source)
        number_N[places] = np.arange(len(places))
    return source_N, number_N


class Continued:
    """One source over the rounds of a run: the order of each earlier round to the end of its last epoch, then that of the next."""

    def __init__(self, parts: Sequence[Any]) -> None:
        self._parts, self._ends = parts, np.cumsum([len(part) for part in parts])

    @classmethod
    def build(cls, build: Callable[[int, int], Any], *, wanted: Sequence[int]) -> Any:
        """Return a source that gives what each round wanted of it, oldest first, the samples of the rounds before included.

        Args:
            build: returns the source as megatron-core's dataset, in whole epochs, for a number of samples and the number of the round
                whose order it has.
        """
        parts: list[Any] = []
        covered = 0
        for number, total in enumerate(wanted):
            if total > covered:
                parts.append(build(total - covered, number))
                covered += len(parts[-1])
        return parts[0] if len(parts) == 1 else cls(parts)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, number: int) -> Any:
        part = int(np.searchsorted(self._ends, number, side="right"))
        return self._parts[part][number - (int(self._ends[part - 1]) if part else 0)]


class StagedBlend:
    """Samples of several sources by number; megatron-core's BlendedDataset knows only shares that never change."""

    def __init__(self, datasets: Sequence[Any], stages: Sequence[Sequence[int]]) -> None:
        self._datasets = datasets
        self._source_N, self._number_N = staged_order(stages)
        drawn = np.bincount(self._source_N, minlength=len(datasets))
        assert all(count <= len(dataset) for count, dataset in zip(drawn, datasets, strict=True)), "a source was built too short"

    def __len__(self) -> int:
        return len(self._source_N)

    def __getitem__(self, number: int) -> dict[str, Any]:
        source = int(self._source_N[number])
        return {"dataset_id": source, **self._datasets[source][int(self._number_N[number])]}
