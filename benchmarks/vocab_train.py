"""Speed and peak memory of training candidate vocabularies, against the library alone on the same prepared text.

    npm pack chinese-poetry@2.0.1
    python benchmarks/vocab_train.py --megabytes 100 --chinese chinese-poetry-2.0.1.tgz

The text is Python source of this interpreter and its packages, seven tenths, and classical Chinese, three tenths, as the corpus stage
leaves it: shards of JSON lines. Ours is a whole process: reading and sampling the shards, splitting, the account of characters, the bound
on the trainer's memory, training, the tables for measuring, saving. The peer is a process that trains with the same settings on a file
that holds exactly the lines that our trainer got. Both in turn, medians; where a machine has other work, CPU seconds say more. The peak
is each process's own ru_maxrss.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench_figures import note  # beside this script

KINDS = ("bpe", "unigram", "byte_level")


def python_sources() -> Iterator[str]:
    for folder in dict.fromkeys(sysconfig.get_paths()[key] for key in ("stdlib", "purelib")):
        for path in sorted(Path(folder).rglob("*.py")):
            try:
                text = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                continue
            if text.strip():
                yield text


def chinese(path: Path) -> Iterator[str]:
    """Yield poems of the npm package chinese-poetry, or the texts of a JSON-lines file."""
    if path.suffix != ".tgz":
        with path.open(encoding="utf-8") as lines:
            yield from (json.loads(line)["text"] for line in lines)
        return
    with tarfile.open(path) as archive:
        for member in archive:
            if "/dist/" in member.name and ("/poet." in member.name or "/ci.song" in member.name) and member.name.endswith(".json"):
                file = archive.extractfile(member)
                assert file is not None
                yield from ("\n".join(poem["paragraphs"]) for poem in json.load(file) if poem.get("paragraphs"))


def write_corpus(folder: Path, megabytes: float, chinese_path: Path) -> dict[str, dict[str, dict[str, int]]]:
    """Write two train shards as the corpus stage does and return its facts on them."""
    facts = {}
    for name, texts, share in (("python", python_sources(), 0.7), ("chinese", chinese(chinese_path), 0.3)):
        size = 0
        with (folder / f"{name}.train.jsonl").open("w", encoding="utf-8") as shard:
            for text in texts:
                if size > share * megabytes * 1e6:
                    break
                shard.write(json.dumps({"id": str(size), "text": text, "source": name}, ensure_ascii=False) + "\n")
                size += len(text.encode("utf-8"))
        facts[name] = {"train_bytes": size}
    return {"sources": facts}


def ours(kind: str, folder: Path, num_pieces: int, keep: bool) -> None:
    """Train as the product does; with `keep` leave the text that the trainer got as `<kind>.txt` and its settings, for the peer."""
    from megatron_cpt.vocab import candidates  # noqa: PLC0415
    from megatron_cpt.vocab.documents import sampled  # noqa: PLC0415
    from megatron_cpt.vocab.sample import write_sample  # noqa: PLC0415

    facts = json.loads((folder / "facts.json").read_text())
    size = sum(each["train_bytes"] for each in facts["sources"].values())
    scratch = folder / "sample.txt"
    sample = write_sample(sampled(folder, facts, sorted(facts["sources"]), sides=["train"], max_bytes=size), scratch)
    if keep:
        bounded = sample.bounded(candidates.bound_of(kind, sample))
        if kind == "byte_level":
            with (folder / f"{kind}.txt").open("wb") as text:
                text.writelines(bounded.lines())
        else:
            shutil.copyfile(bounded.for_sentencepiece(folder / "part.txt"), folder / f"{kind}.txt")
        pieces, coverage = candidates.plan_size(bounded.characters, num_pieces)
        kept = {"bytes": bounded.num_bytes, "pieces": pieces, "coverage": coverage}
        (folder / f"{kind}.json").write_text(json.dumps(kept))
        return
    candidate = candidates.train_candidate(kind, sample, num_pieces=num_pieces)
    candidates.save_candidate(folder / f"ours_{kind}", candidate)


def library(kind: str, folder: Path, num_pieces: int) -> None:
    """Train with the library alone."""
    text, settings = folder / f"{kind}.txt", json.loads((folder / f"{kind}.json").read_text())
    if kind == "byte_level":
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: PLC0415

        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(vocab_size=256 + num_pieces, initial_alphabet=alphabet, min_frequency=2, show_progress=False)
        tokenizer.train([str(text)], trainer)
        tokenizer.save(str(folder / "peer.json"))
        return
    import sentencepiece  # noqa: PLC0415

    sentencepiece.SentencePieceTrainer.train(
        input=[str(text)], model_prefix=str(folder / "peer"), model_type=kind, vocab_size=settings["pieces"] + 259,
        character_coverage=settings["coverage"], max_sentence_length=4096, byte_fallback=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False, add_dummy_prefix=False, allow_whitespace_only_pieces=True, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip


def timed(who: str, kind: str, folder: Path, num_pieces: int) -> tuple[float, float, float]:
    """Return the seconds of a fresh process from its start to its end, its CPU seconds, and its peak in bytes."""
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, __file__, "--child", who, kind, str(folder), "--pieces", str(num_pieces)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"    {kind} {who}: {seconds:.1f} s, {cpu:.1f} s of CPU", flush=True)
    return seconds, cpu, json.loads(answer.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=100.0)
    parser.add_argument(
        "--chinese", type=Path, default=Path("data/samples/china_law.jsonl"), help="archive of chinese-poetry, or JSON lines"
    )
    parser.add_argument("--pieces", type=int, default=16_000)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", nargs=3, metavar=("WHO", "KIND", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        who, kind, folder = options.child
        if who == "library":
            library(kind, Path(folder), options.pieces)
        else:
            ours(kind, Path(folder), options.pieces, keep=who == "prepare")
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        facts = write_corpus(folder, options.megabytes, options.chinese)
        (folder / "facts.json").write_text(json.dumps(facts))
        print(", ".join(f"{source}: {each['train_bytes'] / 1e6:.1f} MB" for source, each in facts["sources"].items()), flush=True)
        found: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
        for kind in options.kinds:
            timed("prepare", kind, folder, options.pieces)
            for _ in range(options.rounds):
                for who in ("ours", "library"):
                    found.setdefault((kind, who), []).append(timed(who, kind, folder, options.pieces))
            seconds, cpu = (
                {who: statistics.median(each[place] for each in found[kind, who]) for who in ("ours", "library")} for place in (0, 1)
            )
            peak = {who: max(each for _, _, each in found[kind, who]) / 1e9 for who in ("ours", "library")}
            trained = json.loads((folder / f"{kind}.json").read_text())["bytes"] / 1e6
            ratio, of_cpu = (each["ours"] / each["library"] for each in (seconds, cpu))
            detail = f"{trained:.1f} MB, {seconds['ours']:.1f} s against {seconds['library']:.1f} s; peak {peak['ours']:.2f} GB"
            note(f"training a vocabulary, {kind}, against the library alone", ratio, "times", at_most=1.10, detail=detail)
            print(
                f"{kind:<11} {options.pieces:,} pieces from {trained:.1f} MB within the bound: {seconds['ours']:.1f} s, library alone "
                f"{seconds['library']:.1f} s, ratio {ratio:.2f} (goal: at most 1.10), of CPU seconds {of_cpu:.2f}; "
                f"peak {peak['ours']:.2f} GB, library {peak['library']:.2f} GB (goal: below 2)",
                flush=True,
            )


if __name__ == "__main__":
    main()
