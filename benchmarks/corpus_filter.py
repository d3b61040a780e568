"""Speed of the corpus filters against datatrove's own, same rules, same words, same documents, one process each.

    python benchmarks/corpus_filter.py --licences scancode_toolkit_mini-32.5.0-cp311-none-any.whl --chinese data/samples/china_law.jsonl

English documents are the licences and licence notices of the wheel, or without it Python source of this interpreter and its
packages; Chinese ones are lines of a JSON-lines file. Each round runs ours and datatrove's in turn in a new process that loads the texts,
then filters them; what is timed is the filtering. datatrove's filters stand in the order in which FineWeb was made, get our splitting
into words (its own needs models that it downloads) and say what they drop; both must keep the same number of documents. MB/s are of
CPU seconds, the median of the rounds.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench_figures import note  # beside this script

PRESETS = {"gopher": ("gopher",), "fineweb": ("gopher", "fineweb"), "zh": ("zh",)}
CONF = Path(__file__).parents[1] / "conf" / "filter"


def texts_of(arguments: argparse.Namespace, language: str) -> Iterator[str]:
    if language == "zh":
        with arguments.chinese.open(encoding="utf-8") as lines:
            yield from (json.loads(line)["text"] for line in lines)
    elif arguments.licences:
        with zipfile.ZipFile(arguments.licences) as archive:
            names = [name for name in archive.namelist() if re.fullmatch(r"licensedcode/data/(licenses/.*\.LICENSE|rules/.*\.RULE)", name)]
            random.Random(0).shuffle(names)  # noqa: S311 - an order, no secret
            for name in names:
                yield re.sub(r"\A---\n.*?\n---\n", "", archive.read(name).decode("utf-8", "replace"), flags=re.DOTALL)
    else:
        for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
            yield path.read_text(encoding="utf-8", errors="replace")


def rules_of(preset: str) -> Any:
    """Return the rules of a preset as the product composes them."""
    from omegaconf import OmegaConf  # noqa: PLC0415

    from megatron_cpt.config.filter_schema import TextRulesConfig  # noqa: PLC0415

    language = "zh" if preset == "zh" else "en"
    files = [OmegaConf.load(CONF / f"{name}.yaml").rules[language] for name in PRESETS[preset]]
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TextRulesConfig), *files))


def stock_filters(rules: Any) -> list[Any]:
    """Return datatrove's filters with the same thresholds, in FineWeb's order."""
    from datatrove.pipeline.filters import (  # noqa: PLC0415
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )
    from datatrove.utils.word_tokenizers import WordTokenizer  # noqa: PLC0415

    from megatron_cpt.config.filter_schema import C4RulesConfig, LineRulesConfig  # noqa: PLC0415
    from megatron_cpt.corpus.filters.lines import num_sentences  # noqa: PLC0415
    from megatron_cpt.corpus.filters.words import WORD_PATTERN  # noqa: PLC0415

    class Splitter(WordTokenizer):
        """Our words and sentences, as regular expressions."""

        pattern = re.compile(WORD_PATTERN[rules.words])

        def word_tokenize(self, text: str) -> list[str]:
            return [match.group() for match in self.pattern.finditer(text)]

        def sent_tokenize(self, text: str) -> list[str]:
            raise NotImplementedError

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            return [(0, 0)] * num_sentences(text)

    words = Splitter()
    q, r, li, c = rules.quality, rules.repetition, rules.lines, rules.c4
    filters = [
        GopherRepetitionFilter(
            dup_line_frac=r.max_duplicate_lines, dup_para_frac=r.max_duplicate_paragraphs,
            dup_line_char_frac=r.max_duplicate_line_chars, dup_para_char_frac=r.max_duplicate_paragraph_chars,
            top_n_grams=[(limit.n, limit.share) for limit in r.max_top_ngram_chars],
            dup_n_grams=[(limit.n, limit.share) for limit in r.max_duplicate_ngram_chars], language=words,
        ),
        GopherQualityFilter(
            min_doc_words=q.min_words, max_doc_words=q.max_words, min_avg_word_length=q.min_mean_word_length,
            max_avg_word_length=q.max_mean_word_length, max_symbol_word_ratio=q.max_hashes_per_word,
            max_bullet_lines_ratio=q.max_bullet_lines, max_ellipsis_lines_ratio=q.max_ellipsis_lines,
            max_non_alpha_words_ratio=q.min_alphabetic_words, min_stop_words=q.min_stop_words, stop_words=q.stop_words, language=words,
        ),
    ]  # fmt: skip
    if c != C4RulesConfig():
        filters.append(C4QualityFilter(filter_no_terminal_punct=c.terminal_lines_only, language=words))
    if li != LineRulesConfig():
        filters.append(
            FineWebQualityFilter(
                line_punct_thr=li.min_terminal_lines, short_line_thr=999 if li.max_short_lines is None else li.max_short_lines,
                short_line_length=li.short_line_chars, char_duplicates_ratio=li.max_duplicate_line_chars,
                new_line_ratio=li.max_newlines_per_word, language=words,
            )
        )  # fmt: skip
    return filters


def run_once(which: str, preset: str, texts: list[str]) -> dict[str, float]:
    """Filter the texts and return CPU and clock seconds and how many stay."""
    rules = rules_of(preset)
    if which == "ours":
        from megatron_cpt.config.filter_schema import FilterConfig  # noqa: PLC0415
        from megatron_cpt.corpus.filters import TextFilters  # noqa: PLC0415

        filters = TextFilters(FilterConfig(rules={"any": rules}), language="en")
        filters("The first text makes the table of characters.")
        cpu, clock = time.process_time(), time.perf_counter()
        kept = sum(filters(text).reason is None for text in texts)
    else:
        from datatrove.data import Document  # noqa: PLC0415

        steps = stock_filters(rules)
        cpu, clock = time.process_time(), time.perf_counter()
        documents: Any = (Document(text=text, id="") for text in texts)
        for step in steps:
            documents = step.run(documents)
        kept = sum(1 for _ in documents)
    return {"cpu": time.process_time() - cpu, "clock": time.perf_counter() - clock, "kept": kept}


def child(which: str, preset: str, path: Path) -> None:
    with path.open(encoding="utf-8") as lines:
        texts = [json.loads(line) for line in lines]
    print(json.dumps(run_once(which, preset, texts)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=list(PRESETS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--megabytes", type=float, default=26.0, help="at most about this much text of each language")
    parser.add_argument("--licences", type=Path, help="the wheel of scancode-toolkit-mini")
    parser.add_argument("--chinese", type=Path, default=Path("data/samples/china_law.jsonl"))
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child[0], arguments.child[1], Path(arguments.child[2]))
        return
    with tempfile.TemporaryDirectory() as folder:
        for preset in arguments.presets:
            path = Path(folder) / "texts.jsonl"
            language = "zh" if preset == "zh" else "en"
            texts, size = [], 0
            for text in filter(str.strip, texts_of(arguments, language)):
                texts.append(text)
                size += len(text.encode("utf-8", "replace"))
                if size > arguments.megabytes * 1e6:
                    break
            path.write_text("".join(json.dumps(text) + "\n" for text in texts), encoding="utf-8")
            megabytes = size / 1e6
            number, texts = len(texts), []
            results: dict[str, list[dict[str, float]]] = {"ours": [], "datatrove": []}
            for _ in range(arguments.rounds):
                for which, runs in results.items():
                    command = [sys.executable, __file__, "--child", which, preset, str(path)]
                    runs.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]))
            cpu = {which: statistics.median(run["cpu"] for run in runs) for which, runs in results.items()}
            ratio = statistics.median(b["cpu"] / a["cpu"] for a, b in zip(results["ours"], results["datatrove"], strict=True))
            clock = statistics.median(b["clock"] / a["clock"] for a, b in zip(results["ours"], results["datatrove"], strict=True))
            kept = {which: int(runs[0]["kept"]) for which, runs in results.items()}
            print(
                f"{preset}: {number:,} documents, {megabytes:.1f} MB; ours {megabytes / cpu['ours']:.1f} MB/s per core,"
                f" datatrove {megabytes / cpu['datatrove']:.1f}; {ratio:.2f} times by CPU seconds, {clock:.2f} by the clock;"
                f" kept {kept['ours']:,} and {kept['datatrove']:,} (medians of {arguments.rounds})",
                flush=True,
            )
            speeds = [f"{megabytes / cpu[which]:.1f}" for which in ("ours", "datatrove")]
            detail = f"{megabytes:.1f} MB, {speeds[0]} MB per CPU second against {speeds[1]}"
            note(f"filter={preset} against datatrove's filters", ratio, "times", at_least=2, detail=detail)
            if kept["ours"] != kept["datatrove"]:
                sys.exit("The two do not keep the same documents.")


if __name__ == "__main__":
    main()
