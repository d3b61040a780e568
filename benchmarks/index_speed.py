"""How fast a corpus becomes an index: tools/preprocess_data.py against the reference library, one document at a time in a pool.

    python benchmarks/index_speed.py --tokenizer llama3/tokenizer.json --sentencepiece mistral/tokenizer.model

The peer is the way Megatron-LM's own tool works: a pool of processes parses and encodes one line at a time, handed over in chunks of 32,
and one process writes. It comes in two forms. One calls the reference library alone, and must write our bytes. The other, for a byte-level
tokenizer, does what Megatron-LM's tool does: megatron-core's tokenizer over transformers in each worker, and megatron-core's
IndexedDatasetBuilder (its bytes may differ where a text names a special token, docs/reference/token-index.md). All begin as new
processes and end when their files are on disk; runs are interleaved and medians are compared. The text is Python source of this
machine (standard library and site-packages). Prints one line of figures for each tokenizer, and the peak memory at 1x and 4x.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench_figures import note  # beside this script

ROOT = Path(__file__).resolve().parents[1]
CHUNK_LINES = 32  # as Megatron-LM's tool hands lines to its workers

# run in a small process of its own, so that the peak memory is the command's
MEASURE = """
import resource, subprocess, sys, time
begun = time.perf_counter()
run = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(run.returncode, time.perf_counter() - begun, used.ru_utime + used.ru_stime, used.ru_maxrss / 1e3, run.stderr[-500:])
"""

_encode: Any = None


@dataclass(frozen=True)
class Run:
    """Seconds on the clock, seconds of CPU of all processes, and the peak memory of the largest process in MB."""

    seconds: float
    cpu_seconds: float
    peak_mb: float


def python_sources(target: Path, limit_bytes: int) -> int:
    """Write the Python files of this machine as JSON lines; return their bytes of text."""
    paths = sysconfig.get_paths()
    roots, written = [Path(paths["stdlib"]), Path(paths["purelib"])], 0
    with target.open("w", encoding="utf-8") as out:
        for root in roots:
            for path in sorted(root.rglob("*.py")):
                if root == roots[0] and roots[1] in path.parents:
                    continue
                try:
                    text = path.read_text(encoding="utf-8")
                    size = len(text.encode("utf-8"))
                except (OSError, UnicodeError):
                    continue
                if text.strip() and written + size <= limit_bytes:
                    out.write(json.dumps({"text": text}) + "\n")
                    written += size
    return written


def start_worker(kind: str, model: str) -> None:
    global _encode  # noqa: PLW0603 - a pool's workers keep their tokenizer so
    if kind == "megatron":
        from megatron.core.tokenizers.text.libraries.huggingface_tokenizer import HuggingFaceTokenizer  # noqa: PLC0415

        _encode = HuggingFaceTokenizer(str(Path(model).parent), use_fast=True).text_to_ids
    elif kind == "sentencepiece":
        from sentencepiece import SentencePieceProcessor  # noqa: PLC0415

        _encode = SentencePieceProcessor(model_file=model).encode
    else:
        from megatron_cpt.record.tokenizer_file import load_tokenizer  # noqa: PLC0415

        tokenizer = load_tokenizer(Path(model))
        _encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids  # noqa: E731


def encode_line(line: str) -> list[int]:
    return _encode(json.loads(line)["text"])  # type: ignore[no-any-return]


def peer(source: str, target: str, *, kind: str, model: str, end_id: int, num_ids: int, workers: int) -> None:
    """Index a file with a pool of one-at-a-time encoders."""
    import numpy as np  # noqa: PLC0415

    from megatron_cpt.index.format import dtype_code_for, write_idx  # noqa: PLC0415
    from megatron_cpt.record.index_pair import DTYPES  # noqa: PLC0415

    code, lengths = dtype_code_for(num_ids), []
    pool = multiprocessing.Pool(workers, start_worker, (kind, model))
    with pool, open(source, encoding="utf-8") as lines, open(target + ".bin", "wb") as out:
        for ids in pool.imap(encode_line, lines, CHUNK_LINES):
            if ids:
                ids.append(end_id)
                out.write(np.array(ids, dtype=DTYPES[code]).tobytes())
                lengths.append(len(ids))
    with open(target + ".idx", "wb") as out:
        write_idx(out, np.array(lengths, dtype=np.int32), code)


def megatron(source: str, target: str, *, model: str, end_id: int, num_ids: int, workers: int) -> None:
    """Index a file as Megatron-LM's tool does, with megatron-core's own parts."""
    import torch  # noqa: PLC0415
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder  # noqa: PLC0415

    builder = IndexedDatasetBuilder(target + ".bin", dtype=DType.optimal_dtype(num_ids))
    pool = multiprocessing.Pool(workers, start_worker, ("megatron", model))
    with pool, open(source, encoding="utf-8") as lines:
        for ids in pool.imap(encode_line, lines, CHUNK_LINES):
            if ids:
                ids.append(end_id)
                builder.add_document(torch.IntTensor(ids), [len(ids)])
    builder.finalize(target + ".idx")


def timed(command: list[str]) -> Run:
    """Run a command in a process that measures it: peak memory is of that command's own processes."""
    answer = subprocess.run([sys.executable, "-c", MEASURE, *command], check=True, capture_output=True, text=True, env=environment())
    code, seconds, cpu, peak, *rest = answer.stdout.split(maxsplit=4)
    if int(code):
        raise SystemExit(f"{' '.join(command)} failed:\n{rest}")
    return Run(float(seconds), float(cpu), float(peak))


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def compare(folder: Path, source: Path, *, kind: str, model: str, workers: int, repeats: int) -> str:
    """Run both sides in turn, assert equal bytes, and return one line of figures."""
    sys.path.insert(0, str(ROOT))
    from megatron_cpt.index.codec import HfCodec, SentencePieceCodec  # noqa: PLC0415

    codec = SentencePieceCodec(Path(model)) if kind == "sentencepiece" else HfCodec.from_file(Path(model))
    end = codec.end_token if isinstance(codec, SentencePieceCodec) else codec.special_texts()[1]
    assert end is not None, "the model has no end mark"
    end_id, num_ids = codec.id_of(end), codec.num_ids
    types = {"sentencepiece": "SentencePieceTokenizer", "byte-level": "HuggingFaceTokenizer"}
    ours = [
        sys.executable, str(ROOT / "tools" / "preprocess_data.py"), "--input", str(source), "--output-prefix", str(folder / "ours"),
        "--tokenizer-type", types[kind], "--tokenizer-model", model, "--append-eod", "--eod-token", end, "--workers", str(workers),
    ]  # fmt: skip
    settings = json.dumps({"kind": kind, "model": model, "end_id": end_id, "num_ids": num_ids, "workers": workers})
    theirs = [sys.executable, __file__, "--peer", str(source), str(folder / "theirs"), settings]
    sides = {"theirs": theirs, "ours": ours}
    if kind == "byte-level" and (Path(model).parent / "tokenizer_config.json").is_file():
        plain = json.dumps({"model": model, "end_id": end_id, "num_ids": num_ids, "workers": workers})
        sides["megatron"] = [sys.executable, __file__, "--megatron", str(source), str(folder / "megatron"), plain]
    runs: dict[str, list[Run]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, command in sides.items():
            runs[name].append(timed(command))
    for half in (".bin", ".idx"):
        assert (folder / f"ours_text_document{half}").read_bytes() == (folder / f"theirs{half}").read_bytes(), f"{half} differs"
    clock, cpu = ({n: statistics.median(getattr(run, field) for run in runs[n]) for n in runs} for field in ("seconds", "cpu_seconds"))
    record = json.loads((folder / "ours_text_document.json").read_text())
    four = folder / "four.jsonl"
    with four.open("wb") as out:
        for _ in range(4):
            out.write(source.read_bytes())
    at_four = timed([str(four) if part == str(source) else part for part in ours])
    four.unlink()
    as_megatron = ""
    if "megatron" in sides:
        as_megatron = (
            f"; as Megatron-LM's tool does it {clock['megatron']:.2f} s ({cpu['megatron']:.2f} CPU s): "
            f"{clock['megatron'] / clock['ours']:.1f}x on the clock"
        )
    size = f"{record['text_bytes'] / 1e6:.0f} MB, {record['encoder']['name']}"
    goal = 15.0 if kind == "byte-level" else 1.5
    peer = "megatron" if "megatron" in sides else "theirs"
    against = "Megatron-LM's way with megatron-core's parts" if peer == "megatron" else f"a pool of {workers} of the reference library"
    detail = f"{size}: {clock['ours']:.2f} s against {clock[peer]:.2f} s"
    note(f"text to .bin/.idx, {kind}, against {against}", clock[peer] / clock["ours"], "times", at_least=goal, detail=detail)
    return (
        f"{kind}: {record['text_bytes'] / 1e6:.0f} MB, {record['tokens'] / 1e6:.1f} M tokens, encoder {record['encoder']['name']}: "
        f"ours {clock['ours']:.2f} s ({cpu['ours']:.2f} CPU s), pool of {workers} {clock['theirs']:.2f} s ({cpu['theirs']:.2f} CPU s): "
        f"{clock['theirs'] / clock['ours']:.1f}x on the clock, {cpu['theirs'] / cpu['ours']:.1f}x in CPU; equal bytes{as_megatron}; "
        f"peak {max(run.peak_mb for run in runs['ours']):.0f} MB at 1x, {at_four.peak_mb:.0f} MB at 4x ({at_four.seconds:.2f} s)"
    )


def main() -> None:
    if sys.argv[1:2] in (["--peer"], ["--megatron"]):
        sys.path.insert(0, str(ROOT))
        side = peer if sys.argv[1] == "--peer" else megatron
        side(sys.argv[2], sys.argv[3], **json.loads(sys.argv[4]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", help="a byte-level tokenizer.json")
    parser.add_argument("--sentencepiece", help="a SentencePiece .model")
    parser.add_argument("--megabytes", type=int, default=182)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "python.jsonl"
        python_sources(source, chosen.megabytes * 10**6)
        for kind, model in (("byte-level", chosen.tokenizer), ("sentencepiece", chosen.sentencepiece)):
            if model:
                print(compare(folder, source, kind=kind, model=model, workers=chosen.workers, repeats=chosen.repeats), flush=True)


if __name__ == "__main__":
    main()
