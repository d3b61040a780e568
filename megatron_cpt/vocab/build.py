"""The vocab stage's body: extend the base tokenizer by domain pieces, prove the contract, report what it brings."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from megatron_cpt.config.schema import TokenizerConfig
from megatron_cpt.errors import ConfigError, DataError
from megatron_cpt.record.hashing import sha256_file
from megatron_cpt.record.manifest import StageResult
from megatron_cpt.record.store import write_json, write_text
from megatron_cpt.record.term_list import Terms, read_terms
from megatron_cpt.record.typed import to_plain
from megatron_cpt.record.vocab_contract import (
    BASE_TOKENIZER,
    LAYOUT_NAME,
    PROBE_NAME,
    TOKENIZER_NAME,
    Check,
    Drift,
    Probe,
    probe_of,
    write_contract,
)
from megatron_cpt.record.vocab_layout import VocabLayout, padded_rows
from megatron_cpt.vocab import contract
from megatron_cpt.vocab.advice import advice
from megatron_cpt.vocab.base import BaseTokenizer, load_base, read_object, separator_id, tokenizer_from
from megatron_cpt.vocab.byte_level import readable
from megatron_cpt.vocab.compare import check_compare, gain_curve, side_by_side, tokens_against, train_candidates
from megatron_cpt.vocab.documents import SIDES, names_with_role, num_bytes, sampled
from megatron_cpt.vocab.extend import extended_data, write_tokenizer
from megatron_cpt.vocab.facts import Economy, economy_of, facts_of, say_result, say_wrapped
from megatron_cpt.vocab.family import Family
from megatron_cpt.vocab.forced import Outcome, check_room, remarks
from megatron_cpt.vocab.measure import vocabulary_of
from megatron_cpt.vocab.merges import Merge, learn_merges
from megatron_cpt.vocab.report import report_markdown
from megatron_cpt.vocab.report_page import report_page

CHECK_BYTES = 2_000_000  # round trips and held-out figures are taken on at most this much of each role
GAIN_BEYOND = 2  # the gain curve goes on to this multiple of the size asked for

Texts = Callable[[], Iterator[str]]


def build_vocab(
    result: StageResult,
    *,
    settings: TokenizerConfig,
    base_folder: Path,
    corpus_folder: Path,
    corpus_facts: dict[str, Any],
    say: Callable[[str], None],
    economy: Economy | None = None,
) -> None:
    """Write `tokenizer/`, `vocab_layout.json`, `new_pieces.jsonl`, `contract.json` and the report into the stage's folder.

    Args:
        economy: gives the break-even of an extension for this model and plan; None leaves it unknown.

    Raises:
        ConfigError: a setting is not allowed, or the list of terms cannot be used.
        DataError: the base cannot be extended, the separator is not one of its tokens, the text does not give that many pieces, or
            the contract is broken.
    """
    check_settings(settings)
    terms = read_terms(Path(settings.terms)) if settings.terms else None
    base = load_base(base_folder)
    separator = separator_id(base, settings.document_separator)
    domain, general = names_with_role(corpus_facts, "domain"), names_with_role(corpus_facts, "general")
    if settings.num_new_pieces and not (domain and num_bytes(corpus_facts, domain, ["train"])):
        raise DataError("There is no domain text to take new pieces from.", where="source", next_step="Give a source role: domain.")
    if settings.num_new_pieces and not general:
        raise DataError(
            "There is no general text to prove on that its encoding stays as it is.",
            where="source",
            next_step="Add a source with role: general, or set tokenizer.num_new_pieces=0.",
        )

    def take(names: list[str], sides: tuple[str, ...], max_bytes: int) -> Texts:
        return lambda: sampled(corpus_folder, corpus_facts, names, sides=sides, max_bytes=max_bytes)

    merges: list[Merge] = []
    outcomes: list[Outcome] = []
    gain: dict[str, Any] | None = None
    if settings.num_new_pieces:
        merges, outcomes, gain = choose_merges(
            base,
            settings,
            terms,
            domain=take(domain, ("train",), settings.sample_bytes),
            general=take(general, SIDES, settings.sample_bytes),
            say=say,
        )
    folder = result.folder / "tokenizer"
    write_tokenizer(folder, base, extended_data(base, merges) if merges else None, merges)
    if not (base.folder / "tokenizer.json").is_file():
        write_text(result.folder / BASE_TOKENIZER, json.dumps(base.data, ensure_ascii=False, indent=2))
    tokenizer = tokenizer_from(read_object(folder / "tokenizer.json"), where=folder / "tokenizer.json")
    layout = layout_of(base, merges, separator, settings.pad_rows_to_multiple, sha256_file(folder / "tokenizer.json"))
    write_json(result.folder / LAYOUT_NAME, to_plain(layout))
    pieces = describe_pieces(merges, base.num_rows, base.family)
    write_text(result.folder / "new_pieces.jsonl", "".join(map(one_line, pieces)))
    if terms is not None:
        write_text(result.folder / "terms.jsonl", "".join(one_line(asdict(outcome)) for outcome in outcomes))

    held_out = {role: take(names, ("test",), CHECK_BYTES) for role, names in (("domain", domain), ("general", general))}
    say("vocab: proving the contract")
    checks, drift, probe = prove(
        base, tokenizer, merges, result.folder, settings, general=take(general, SIDES, settings.sample_bytes), held_out=held_out
    )
    contract.refuse_broken(checks)
    write_contract(result.folder, layout, probe=probe, drift=drift, checks=checks)

    candidates, remarks_on_them = train_candidates(
        settings.compare,
        take(domain, ("train",), settings.compare.sample_bytes),
        result.folder,
        like=base.tokenizer,
        default_size=settings.num_new_pieces,
        say=say,
    )
    vocabularies = {
        "base": vocabulary_of(base.tokenizer, base.num_rows),
        "extended": vocabulary_of(tokenizer, layout.num_ids, first_new_id=base.num_rows),
        **{candidate.name: candidate.vocabulary for candidate in candidates},
    }
    fits, on_terms = side_by_side(vocabularies, held_out, terms)
    report: dict[str, Any] = {**fits, "comparison": remarks_on_them, "terms": on_terms, "gain": gain}
    report["economy"] = economy_of(economy, fits, base, layout, settings)
    domain_ratio = tokens_against(fits["domain"], "extended")
    saving = None if domain_ratio is None else 1.0 - domain_ratio
    fragments = fits["domain"]["base"]["byte_fragment_rate"] if fits["domain"]["base"] else None
    report["advice"] = advice(saving, fragments, settings.num_new_pieces, report["economy"])
    write_json(result.folder / "report.json", report)
    write_text(result.folder / "report.md", report_markdown(report, checks, pieces))
    write_text(result.folder / "report.html", report_page(report, checks, pieces))
    result.facts.update(facts_of(base, layout, merges, report, saving=saving, num_clauses=len(checks)))
    result.facts["general_drift"] = to_plain(drift)
    if outcomes:
        result.facts["terms"] = dict(Counter(outcome.outcome for outcome in outcomes))
    say_result(result.facts, say)


def check_settings(settings: TokenizerConfig) -> None:
    for key, least in (("num_new_pieces", 0), ("pad_rows_to_multiple", 1), ("sample_bytes", 1)):
        value = getattr(settings, key)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigError(
                f"tokenizer.{key} is not usable.", where=f"tokenizer.{key}", value=value, rule=f"a whole number from {least} on"
            )
    if isinstance(settings.max_drift, bool) or not isinstance(settings.max_drift, int | float) or not 0 <= settings.max_drift < 1:
        raise ConfigError(
            "tokenizer.max_drift is not usable.", where="tokenizer.max_drift", value=settings.max_drift, rule="a share from 0 to below 1"
        )
    if settings.terms and not settings.num_new_pieces:
        raise ConfigError(
            "Terms are given, but no new pieces are asked for.",
            where="tokenizer.terms",
            next_step="Set tokenizer.num_new_pieces, or unset tokenizer.terms.",
        )
    check_compare(settings.compare)


def choose_merges(
    base: BaseTokenizer, settings: TokenizerConfig, terms: Terms | None, *, domain: Texts, general: Texts, say: Callable[[str], None]
) -> tuple[list[Merge], list[Outcome], dict[str, Any]]:
    """Return the merges to append, those of the user's terms first, what became of each term, and the curve of what they and more save.

    Raises:
        DataError: the domain text gives fewer than were asked for, or the terms need more; it says how many.
    """
    barred = base.family.barred(base.tokenizer, general())
    of_size = f"{barred.num_documents:,} general documents ({barred.num_bytes / 1e6:.1f} MB)"
    say_wrapped(say, f"{barred.num_barred:,} neighbour pairs of {of_size} are barred from merging")
    table = base.family.words(base.tokenizer, domain())
    say_wrapped(say, f"learning {settings.num_new_pieces:,} merges from {table.num_tokens:,} base tokens of domain text")
    names = {number: piece for piece, number in base.tokenizer.get_vocab(with_added_tokens=True).items()}
    chains: list[Merge] = []
    outcomes: list[Outcome] = []
    if terms is not None:
        chains, outcomes = base.family.force(
            base.tokenizer, terms.terms, first_new_id=base.num_rows, barred=barred, domain=domain, general=general,
            max_share=settings.max_drift,
        )  # fmt: skip
        check_room(chains, outcomes, settings.num_new_pieces)
        for line in (*terms.remarks, *remarks(outcomes)):
            say_wrapped(say, line)
    learned = learn_merges(
        table,
        num_pieces=GAIN_BEYOND * settings.num_new_pieces,
        first_new_id=base.num_rows,
        pieces=names,
        forbidden=barred.pairs,
        refuses=base.family.refuses(barred),
        first=chains,
    )
    merges = learned[: settings.num_new_pieces]
    if len(merges) < settings.num_new_pieces:
        raise DataError(
            "The domain text does not give that many new pieces.",
            where="tokenizer.num_new_pieces",
            value=settings.num_new_pieces,
            rule=f"at most {len(merges)}: a piece stands at least twice in domain text, and its parts never side by side in general text",
            next_step=f"Set tokenizer.num_new_pieces={len(merges)} or less, or add domain text.",
        )
    gain = gain_curve([merge.count for merge in learned], sample_tokens=table.num_tokens, asked=settings.num_new_pieces)
    return merges, outcomes, gain


def layout_of(base: BaseTokenizer, merges: list[Merge], separator: int, multiple: int, tokenizer_sha256: str) -> VocabLayout:
    """Return the layout; rows of the base model beyond its tokenizer's ids stay base rows, and new ids start after them."""
    num_ids = base.num_rows + len(merges)
    return VocabLayout(base.num_rows, num_ids, padded_rows(num_ids, multiple=multiple), separator, tokenizer_sha256)


def describe_pieces(merges: list[Merge], num_base_ids: int, family: Family) -> list[dict[str, Any]]:
    """Return per new piece its text, its two parts and the base ids that it replaces."""
    base_ids: dict[int, list[int]] = {}
    described = []
    for merge in merges:
        base_ids[merge.new_id] = [number for part in merge.parts for number in ([part] if part < num_base_ids else base_ids[part])]
        described.append(
            {
                "id": merge.new_id, "piece": readable(contract.new_piece_bytes(family, merge)), "left": merge.left, "right": merge.right,
                "base_ids": base_ids[merge.new_id], "count": merge.count, **({"forced": True} if merge.forced else {}),
            }
        )  # fmt: skip
    return described


def one_line(piece: dict[str, Any]) -> str:
    """Return a piece as one line of JSON for every reader: some take U+0085, U+2028 and U+2029 for ends of lines."""
    line = json.dumps(piece, ensure_ascii=False)
    for separator in ("\x85", "\u2028", "\u2029"):
        line = line.replace(separator, f"\\u{ord(separator):04x}")
    return line + "\n"


def prove(
    base: BaseTokenizer,
    tokenizer: Tokenizer,
    merges: list[Merge],
    folder: Path,
    settings: TokenizerConfig,
    *,
    general: Texts,
    held_out: dict[str, Texts],
) -> tuple[list[Check], Drift, Probe]:
    """Return every clause with its result, the drift of general text, and the probe, which is written to `folder` for the reload."""
    data = read_object(folder / TOKENIZER_NAME)
    same_ids, drift = contract.drifting(base, tokenizer, general(), max_share=float(settings.max_drift))
    probe = probe_of(tokenizer, contract.probe_texts(held_out["domain"](), held_out["general"]()))
    write_json(folder / PROBE_NAME, to_plain(probe))
    older = contract.older_files_agree(folder, data, probe)
    forms = contract.forms_agree(base, folder / "tokenizer", tokenizer, [held_out["domain"](), held_out["general"]()])
    checks = [
        contract.changed_ids(base, tokenizer),
        same_ids,
        contract.doubled(data),
        contract.same_settings(base, data),
        contract.lossy(tokenizer, "held-out domain text", held_out["domain"](), remark=base.family.remark),
        contract.lossy(tokenizer, "held-out general text", held_out["general"](), remark=base.family.remark),
        contract.lossy(tokenizer, "the nasty texts", iter(contract.NASTY_TEXTS), remark=base.family.remark),
        contract.longer(base, tokenizer, held_out["domain"]()),
        contract.special_tokens(base, tokenizer),
        contract.unreachable(base, tokenizer, merges),
        contract.missing_byte_pieces(base, tokenizer),
        *contract.reloads(folder, probe),
        *(check for check in (older, forms) if check),
    ]
    return checks, drift, probe
