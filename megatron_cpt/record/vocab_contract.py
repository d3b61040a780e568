"""The vocabulary's contract as a record: what was proven, and the check that every stage makes before it uses the vocabulary.

A vocabulary folder holds `vocab_layout.json`, `contract.json`, `probe.json`, `new_pieces.jsonl` and `tokenizer/`. The probe keeps texts
with the ids that they had when the contract was proven: another release of the tokenizers library can give one and the same file
other ids without a word (huggingface/tokenizers#1358), and then neither the index nor the model's rows mean what they did.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from megatron_cpt.errors import DataError, printable
from megatron_cpt.record.hashing import sha256_file, sha256_plain
from megatron_cpt.record.store import read_json, write_json
from megatron_cpt.record.tokenizer_file import load_tokenizer
from megatron_cpt.record.typed import from_plain, to_plain
from megatron_cpt.record.vocab_layout import VocabLayout

LAYOUT_NAME = "vocab_layout.json"
CONTRACT_NAME = "contract.json"
PROBE_NAME = "probe.json"
TOKENIZER_NAME = "tokenizer/tokenizer.json"
BASE_TOKENIZER = "base/tokenizer.json"  # where the base's own folder has another form only
LIBRARIES = ("tokenizers", "transformers", "sentencepiece")
NEXT_STEP = "Run the vocab stage again and what follows it, or restore its folder."


@dataclass(frozen=True)
class Check:
    """One clause: what was promised, whether it holds, on how many cases, and the first failure or a remark."""

    name: str
    holds: bool
    num_cases: int
    detail: str = ""


@dataclass(frozen=True)
class Drift:
    """General documents whose ids the extension changed, and the largest share of them that the settings allow."""

    num_documents: int
    num_changed: int
    max_share: float

    @property
    def share(self) -> float:
        return self.num_changed / self.num_documents if self.num_documents else 0.0


@dataclass(frozen=True)
class Contract:
    """What a vocabulary was proven to keep.

    Attributes:
        vocab_fingerprint: of the layout that was proven.
        probe_sha256: digest of the probe's texts and ids.
        libraries: the versions that it was proven with; a package that is absent is left out.
    """

    vocab_fingerprint: str
    probe_sha256: str
    libraries: dict[str, str]
    drift: Drift
    checks: list[Check]


@dataclass(frozen=True)
class Probe:
    """Texts and the ids that they had."""

    texts: list[str]
    ids: list[list[int]]

    @property
    def sha256(self) -> str:
        return sha256_plain([self.texts, self.ids])


def installed_libraries() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def probe_of(tokenizer: Tokenizer, texts: Sequence[str]) -> Probe:
    return Probe(list(texts), [encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)])


def write_contract(folder: Path, layout: VocabLayout, *, probe: Probe, drift: Drift, checks: Sequence[Check]) -> None:
    """Write `probe.json` and `contract.json` beside the layout."""
    write_json(folder / PROBE_NAME, to_plain(probe))
    write_json(folder / CONTRACT_NAME, to_plain(Contract(layout.fingerprint, probe.sha256, installed_libraries(), drift, list(checks))))


def read_layout(folder: Path) -> VocabLayout:
    """Return the layout of a vocabulary folder; whoever uses the vocabulary calls `check_vocab` instead."""
    path = folder / LAYOUT_NAME
    return from_plain(VocabLayout, read_json(path), where=path)


def check_vocab(folder: Path, *, expected: VocabLayout | None = None) -> VocabLayout:
    """Return the layout of a vocabulary that is what was proven, and that the installed library reads as it was read then.

    Args:
        expected: the layout that the caller's plan or index was made for.

    Raises:
        DataError: a file is missing or damaged, a clause does not hold, the tokenizer or the layout is another one, an id has no
            row, or a probe text gets other ids.
        ConfigError: a record does not have the expected form.
    """
    layout = read_layout(folder)
    _check_same(folder, layout, expected)
    contract = from_plain(Contract, read_json(folder / CONTRACT_NAME), where=folder / CONTRACT_NAME)
    _check_clauses(folder, layout, contract)
    path = folder / TOKENIZER_NAME
    if not path.is_file():
        raise DataError("A tokenizer.json is missing.", where=path, next_step=NEXT_STEP)
    if (digest := sha256_file(path)) != layout.tokenizer_sha256:
        raise DataError(
            "The tokenizer is not the one that the vocabulary was proven with.",
            where=path,
            value=f"sha256 {digest}",
            rule=f"sha256 {layout.tokenizer_sha256}",
            next_step=NEXT_STEP,
        )
    tokenizer = load_tokenizer(path)
    check_rows(tokenizer, layout.num_ids, where=path)
    _check_probe(folder, tokenizer, contract)
    return layout


def check_rows(tokenizer: Tokenizer, num_ids: int, *, where: object) -> None:
    """Refuse a tokenizer with an id that a model has no row for: on a GPU that is a device assert far from its cause.

    Raises:
        DataError: naming the token, its id and the file.
    """
    token, largest = max(tokenizer.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1], default=("", -1))
    if largest >= num_ids:
        raise DataError(
            "The tokenizer has an id that the model has no row for.",
            where=where,
            value=f"id {largest} ({printable(token)[:80]})",
            rule=f"ids below {num_ids}",
            next_step="Use the tokenizer that belongs to this model.",
        )


def _check_same(folder: Path, layout: VocabLayout, expected: VocabLayout | None) -> None:
    if expected is None or layout.fingerprint == expected.fingerprint:
        return
    here, wanted = to_plain(layout), to_plain(expected)
    differing = [key for key in here if here[key] != wanted[key]]
    raise DataError(
        "The vocabulary is not the one that the plan was made for.",
        where=folder / LAYOUT_NAME,
        value=", ".join(f"{key} {here[key]}" for key in differing),
        rule=", ".join(f"{key} {wanted[key]}" for key in differing),
        next_step="Use a new run_name, or restore the folder.",
    )


def _check_clauses(folder: Path, layout: VocabLayout, contract: Contract) -> None:
    path = folder / CONTRACT_NAME
    if contract.vocab_fingerprint != layout.fingerprint:
        raise DataError(
            "The contract was proven for another vocabulary.",
            where=path,
            value=f"fingerprint {contract.vocab_fingerprint}",
            rule=f"fingerprint {layout.fingerprint} of {LAYOUT_NAME}",
            next_step=NEXT_STEP,
        )
    broken = [check for check in contract.checks if not check.holds]
    if broken or not contract.checks:
        raise DataError(
            "The vocabulary's contract does not hold.",
            where=path,
            value="; ".join(f"{check.name}: {check.detail}" for check in broken) or "no clause",
            rule="every clause holds",
            next_step=NEXT_STEP,
        )
    if contract.drift.share > contract.drift.max_share:
        raise DataError(
            "The vocabulary changes more general text than its contract allows.",
            where=path,
            value=f"{contract.drift.num_changed} of {contract.drift.num_documents} documents",
            rule=f"a share of at most {contract.drift.max_share}",
            next_step=NEXT_STEP,
        )


def _check_probe(folder: Path, tokenizer: Tokenizer, contract: Contract) -> None:
    path = folder / PROBE_NAME
    probe = from_plain(Probe, read_json(path), where=path)
    if probe.sha256 != contract.probe_sha256 or len(probe.texts) != len(probe.ids):
        raise DataError(
            "The probe is not the one of the contract.", where=path, rule=f"digest {contract.probe_sha256}", next_step=NEXT_STEP
        )
    now = probe_of(tokenizer, probe.texts)
    for text, before, after in zip(probe.texts, probe.ids, now.ids, strict=True):
        if before != after:
            place = next((n for n, (old, new) in enumerate(zip(before, after, strict=False)) if old != new), min(len(before), len(after)))
            installed = installed_libraries()
            raise DataError(
                "The installed tokenizers library gives this vocabulary other ids than those it was proven with.",
                where=path,
                value=f"{printable(text[:60])}: ids {after[place : place + 5]} from token {place} on, with {_shown(installed)}",
                rule=f"ids {before[place : place + 5]}, with {_shown(contract.libraries)}",
                next_step=f"Install tokenizers=={contract.libraries.get('tokenizers')}, or run the vocab stage again and what follows it.",
            )


def _shown(libraries: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in libraries.items())
