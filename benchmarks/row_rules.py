"""Bits per byte from each rule for new rows, at step 0 and after a short probe: `python benchmarks/row_rules.py RUN_FOLDER --rule mean`.

RUN_FOLDER is a run that has finished its index stage. Each rule gets the same windows of indexed domain text in the same order and is
scored on held-out texts of the corpus, which no step reads. One call tries the rules it names and writes them into the JSON file,
beside those that are there already; `--table` prints the file as Markdown. `base` is the base model with its own vocabulary, which
takes no steps. `--rows-only` makes a rule's rows and keeps them beside the JSON file for the next call: fitting is half of the work.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

from megatron_cpt.config.schema import RowProbeConfig
from megatron_cpt.plan.run_plan import EvalText, OptimizerPlan
from megatron_cpt.record.store import read_json, write_json
from megatron_cpt.record.typed import from_plain
from megatron_cpt.record.vocab_layout import VocabLayout

OPTIMIZER = OptimizerPlan(0.9, 0.95, 1e-8, 0.1, 1.0)


def measure(arguments: argparse.Namespace, rule: str) -> dict[str, Any]:
    from megatron_cpt.backend import choose  # noqa: PLC0415

    backend = choose("cpu")
    import torch  # noqa: PLC0415
    from safetensors.torch import load_file, save_file  # noqa: PLC0415

    from megatron_cpt.eval.texts import read_text, total_bytes  # noqa: PLC0415
    from megatron_cpt.eval.tokenize import encode  # noqa: PLC0415
    from megatron_cpt.index.sample import sample_windows  # noqa: PLC0415
    from megatron_cpt.line.row_probe import Ground, Text, plan_of, rows_of, try_added  # noqa: PLC0415
    from megatron_cpt.model.added_rows import AddedRows, read_parts  # noqa: PLC0415
    from megatron_cpt.model.fit_rows import WINDOW_TOKENS, num_windows  # noqa: PLC0415
    from megatron_cpt.model.hf_folder import HfFolder  # noqa: PLC0415
    from megatron_cpt.model.initialise import dtype_of  # noqa: PLC0415
    from megatron_cpt.plan.model_shape import ModelShape  # noqa: PLC0415
    from megatron_cpt.plan.row_rules import row_pair  # noqa: PLC0415
    from megatron_cpt.record.tokenizer_file import load_tokenizer  # noqa: PLC0415

    run, is_base = arguments.run_folder, rule == "base"
    torch.set_num_threads(arguments.threads)
    shape, base = ModelShape.from_hf_folder(arguments.base), HfFolder.open(arguments.base)
    vocab = from_plain(VocabLayout, read_json(run / "vocab" / "vocab_layout.json"), where=run)
    tokenizer = load_tokenizer((arguments.base if is_base else run / "vocab" / "tokenizer") / "tokenizer.json")
    parts = [] if is_base else read_parts(run / "vocab" / "new_pieces.jsonl", vocab)
    if is_base:
        vocab = dataclasses.replace(vocab, num_ids=vocab.num_base_ids, num_padded_rows=vocab.num_base_ids)
    settings = RowProbeConfig(steps=arguments.steps, sequences=arguments.sequences, sequence_length=arguments.sequence_length)
    texts = {}
    for role, name in (("domain", arguments.domain), ("general", arguments.general)):
        documents = read_text(EvalText(name, role, f"corpus/{name}.test.jsonl", arguments.bytes, 1500), run)
        texts[role] = Text(encode(tokenizer, documents, num_ids=vocab.num_ids, where=rule), total_bytes(documents))
    prefixes = [run / "index" / f"{arguments.domain}.train"]
    windows = sample_windows(
        prefixes, num_windows=0 if is_base else settings.steps * settings.sequences, window_tokens=settings.sequence_length + 1, seed=1
    )
    ground = Ground(
        base=base, shape=shape, vocab=vocab, parts=parts, training=windows, texts=texts,
        plan=plan_of(
            shape, vocab, settings, sequence=settings.sequence_length, dtype=dtype_of(base), optimizer=OPTIMIZER, rate=arguments.rate,
            seed=1, threads=arguments.threads, backend="cpu",
        ),
        fitting=sample_windows(prefixes, num_windows=num_windows(len(parts)), window_tokens=WINDOW_TOKENS, seed=1),
    )  # fmt: skip
    started = time.perf_counter()
    kept = arguments.output.with_suffix(f".{rule.replace('/', '-')}.safetensors")
    if kept.exists():
        added = AddedRows(load_file(kept), None)
    else:
        added = rows_of(row_pair("mean" if is_base else rule, tied=shape.tied_embeddings), ground, seed=1, backend=backend)
    if arguments.rows_only:
        save_file(added.by_tensor, kept)
        return {"row_fit": added.fit}
    found = try_added(added, ground, backend=backend)
    return {
        **found, "steps": len(windows) // settings.sequences, "tokens_per_step": settings.sequences * settings.sequence_length,
        "learning_rate": arguments.rate, "num_new_pieces": len(parts), "bytes": {role: text.num_bytes for role, text in texts.items()},
        "tokens": {role: sum(map(len, text.documents)) for role, text in texts.items()}, "seconds": time.perf_counter() - started,
    }  # fmt: skip


def table(figures: dict[str, Any]) -> str:
    lines = ["| rule | domain, step 0 | domain, after | general, step 0 | general, after |", "| --- | --- | --- | --- | --- |"]
    for rule, found in figures.items():
        start, end = found["bits_per_byte_at_start"], found["bits_per_byte"]
        cells = [start["domain"], end["domain"] if found["steps"] else None, start["general"], end["general"] if found["steps"] else None]
        lines.append(f"| {rule} | " + " | ".join("-" if cell is None else f"{cell:.4f}" for cell in cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_folder", type=Path)
    parser.add_argument("--base", type=Path, default=Path("data/models/smollm2-135m"))
    parser.add_argument("--rule", action="append", default=[])
    parser.add_argument("--domain", default="china_law")
    parser.add_argument("--general", default="us_history")
    parser.add_argument("--bytes", type=int, default=18_000)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--sequences", type=int, default=2)
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--rate", type=float, default=6e-4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("row_rules.json"))
    parser.add_argument("--rows-only", action="store_true")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    for rule in arguments.rule:
        found = measure(arguments, rule)
        print(json.dumps({rule: {key: value for key, value in found.items() if key != "losses"}}), flush=True)
        if not arguments.rows_only:
            write_json(arguments.output, (read_json(arguments.output) if arguments.output.exists() else {}) | {rule: found})
    if arguments.table:
        print(table(read_json(arguments.output)))


if __name__ == "__main__":
    main()
