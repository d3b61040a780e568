"""What defines the domain: sources of the experiment, or files beside them; and the settings of selection, checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from megatron_cpt.config.schema import SelectConfig, SourceConfig
from megatron_cpt.corpus.clean import clean_text
from megatron_cpt.corpus.readers import Row, is_readable, read_records
from megatron_cpt.corpus.sources import files_of
from megatron_cpt.errors import DataError, printable
from megatron_cpt.record.hashing import sha256_file
from megatron_cpt.record.term_list import Terms, read_terms


def chooses(settings: SelectConfig) -> bool:
    """Say whether anything can be left out."""
    return settings.max_documents is not None or settings.max_bytes is not None or settings.min_hits > 0


def target_sources(settings: SelectConfig, sources: Mapping[str, SourceConfig]) -> list[str]:
    """Return the named sources that define the domain."""
    return [name for name in settings.target if name in sources]


def target_files(settings: SelectConfig, sources: Mapping[str, SourceConfig]) -> list[tuple[str, Path]]:
    """Return the files that define the domain beside sources, each with its name within what was given.

    Raises:
        DataError: nothing readable is there.
    """
    return [found for given in settings.target if given not in sources for found in files_of("corpus.select.target", given)]


def pool_sources(settings: SelectConfig, sources: Mapping[str, SourceConfig]) -> list[str]:
    """Return the sources whose documents compete: those named, or all but the target's."""
    return list(settings.pool) or [name for name in sources if name not in settings.target]


def terms_of(settings: SelectConfig) -> Terms | None:
    """Return the user's term list, or None where there is none.

    Raises:
        ConfigError: it cannot be read, is no UTF-8 or holds no term.
    """
    return read_terms(Path(settings.terms), key="corpus.select.terms") if settings.terms else None


def select_problems(settings: SelectConfig, sources: Mapping[str, SourceConfig]) -> list[str]:
    """Return one sentence for each setting that is not allowed or does not fit the others."""
    problems = []
    for name in ("max_documents", "max_bytes"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            problems.append(f"corpus.select.{name} is {value}: use 1 or more, or null for no bound")
    if settings.min_hits < 0:
        problems.append(f"corpus.select.min_hits is {settings.min_hits}: use 0 or more")
    if not 1 <= settings.ngram <= 5:
        problems.append(f"corpus.select.ngram is {settings.ngram}: use 1 to 5")
    if not 2 <= settings.num_buckets <= 65_536:
        problems.append(f"corpus.select.num_buckets is {settings.num_buckets}: use 2 to 65536")
    if not settings.prior_per_bucket >= 0:
        problems.append(f"corpus.select.prior_per_bucket is {settings.prior_per_bucket}: use 0 or more")
    unknown = [name for name in settings.pool if name not in sources]
    problems += [f"corpus.select.pool names {printable(name)!r}, which is no source: {', '.join(sorted(sources))}" for name in unknown]
    for given in settings.target:
        if given not in sources and not Path(given).expanduser().exists() and not any(mark in given for mark in "*?["):
            problems.append(f"corpus.select.target names {printable(given)!r}, which is neither a source nor a file")
    if (settings.min_hits > 0 or settings.hit_weight) and not settings.terms:
        problems.append("corpus.select.min_hits and hit_weight count hits of a term list: set corpus.select.terms to a file of terms")
    if settings.max_documents is not None or settings.max_bytes is not None:
        if not settings.target and not (settings.terms and settings.hit_weight):
            problems.append("corpus.select has a size and nothing to choose by: set corpus.select.target, or terms with a hit_weight")
        if not pool_sources(settings, sources) and not unknown:
            problems.append("corpus.select has no pool: every source is a target; name the sources to choose from in corpus.select.pool")
    return problems


def select_inputs(settings: SelectConfig, sources: Mapping[str, SourceConfig]) -> dict[str, Any]:
    """Return what the choice depends on beside settings and sources: digests of the target's files and of the term list.

    Raises:
        DataError: a file of the target is not there.
    """
    files = {f"{place}:{name}": sha256_file(path) for place, (name, path) in enumerate(target_files(settings, sources))}
    terms = Path(settings.terms) if settings.terms else None
    return {"target": files, "terms": sha256_file(terms) if terms is not None and terms.is_file() else ""}


def target_texts(settings: SelectConfig, sources: Mapping[str, SourceConfig]) -> Iterator[str]:
    """Yield the cleaned texts of the target's files; records without a text are passed over.

    Raises:
        DataError: a file is damaged, or there are files and no text in any of them.
    """
    found = 0
    files = target_files(settings, sources)
    for _, path in files:
        if not is_readable(path):
            continue
        for record in read_records(path, text_keys=(settings.target_text_key,)):
            value = record.fields.get(settings.target_text_key) if isinstance(record, Row) else None
            if isinstance(value, str) and (text := clean_text(value).text).strip():
                found += 1
                yield text
    if files and not found:
        raise DataError(
            "The target of the selection holds no text.", where="corpus.select.target", value=", ".join(settings.target),
            rule=f"records with a text under {settings.target_text_key!r}", next_step="Correct corpus.select.target or target_text_key.",
        )  # fmt: skip
