"""Bits per byte from each rule for new rows, before and after the probe's steps: `python benchmarks/row_rules.py RUN_FOLDER --rule mean`.

RUN_FOLDER is a run that has finished its index stage. What `tokenizer.row_init: probe` does is done here rule by rule, with the same
functions: the same windows of indexed domain text in the same order, the same documents held back from them. A general text that the
steps never see is scored beside them; it has no part in the choice. One call tries the rules it names and writes them into the JSON
file, beside those that are there already; `--table` prints the file as Markdown with the rule that the probe takes. `base` is the base
model with its own vocabulary, which takes no steps. `--untied` gives the base an output matrix of its own, a copy of its embedding, so
that rules can be `input/output`. `--rows-only` makes a rule's rows and keeps them beside the JSON file for the next call: fitting is
half of the work.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import time
from pathlib import Path
from typing import Any

from bench_figures import note  # beside this script

from megatron_cpt.config.schema import RowProbeConfig
from megatron_cpt.plan.run_plan import EvalText, OptimizerPlan
from megatron_cpt.record.store import read_json, write_json
from megatron_cpt.record.typed import from_plain
from megatron_cpt.record.vocab_layout import VocabLayout

OPTIMIZER = OptimizerPlan(0.9, 0.95, 1e-8, 0.0, 1.0)  # conf/optim/adamw.yaml


def untied_copy(base: Path, folder: Path) -> Path:
    """Write a base whose output matrix is its own, equal to its embedding: what a tied model computes, as an untied model."""
    from safetensors.torch import load_file, save_file  # noqa: PLC0415

    if not folder.exists():
        folder.mkdir()
        tensors = load_file(base / "model.safetensors")
        save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, folder / "model.safetensors")
        write_json(folder / "config.json", read_json(base / "config.json") | {"tie_word_embeddings": False})
        (folder / "tokenizer.json").write_bytes((base / "tokenizer.json").read_bytes())
    return folder


def measure(arguments: argparse.Namespace, rule: str) -> dict[str, Any]:
    from megatron_cpt.backend import choose  # noqa: PLC0415

    backend = choose("cpu")
    import torch  # noqa: PLC0415
    from safetensors.torch import load_file, save_file  # noqa: PLC0415

    from megatron_cpt.eval.texts import read_text, total_bytes  # noqa: PLC0415
    from megatron_cpt.eval.tokenize import encode  # noqa: PLC0415
    from megatron_cpt.line.row_probe import Text, lay_ground, rows_of, try_added  # noqa: PLC0415
    from megatron_cpt.model.added_rows import AddedRows  # noqa: PLC0415
    from megatron_cpt.plan.row_rules import row_pair  # noqa: PLC0415
    from megatron_cpt.record.tokenizer_file import load_tokenizer  # noqa: PLC0415

    run, is_base = arguments.run_folder, rule == "base"
    torch.set_num_threads(arguments.threads)
    base_folder = untied_copy(arguments.base, arguments.output.with_suffix(".base")) if arguments.untied else arguments.base
    vocab = from_plain(VocabLayout, read_json(run / "vocab" / "vocab_layout.json"), where=run)
    extended = load_tokenizer(run / "vocab" / "tokenizer" / "tokenizer.json")
    settings = RowProbeConfig(
        steps=arguments.steps or 1, sequences=arguments.sequences, sequence_length=arguments.sequence_length,
        held_out_tokens=arguments.held_out_tokens,
    )  # fmt: skip
    ground = lay_ground(
        [run / "index" / f"{arguments.domain}.train"], base_folder=base_folder, vocab=vocab, vocab_folder=run / "vocab",
        tokenizer=extended, settings=settings, optimizer=OPTIMIZER, rate=arguments.rate, seed=arguments.seed, backend=backend,
        threads=arguments.threads,
    )  # fmt: skip
    documents = read_text(EvalText(arguments.general, "general", f"corpus/{arguments.general}.test.jsonl", arguments.bytes, 1500), run)
    general = Text(encode(extended, documents, num_ids=vocab.num_ids, where=rule), total_bytes(documents))
    assert max(map(max, general.documents)) < vocab.num_base_ids, "the general text holds a new id"
    training = ground.training if arguments.steps else []
    ground = dataclasses.replace(ground, training=training, texts={**ground.texts, "general": general})
    if is_base:
        old = load_tokenizer(base_folder / "tokenizer.json")
        domain = [old.encode(extended.decode(ids), add_special_tokens=False).ids for ids in ground.texts["domain"].documents]
        vocab = dataclasses.replace(vocab, num_ids=vocab.num_base_ids, num_padded_rows=vocab.num_base_ids)
        texts = {"domain": Text(domain, ground.texts["domain"].num_bytes), "general": general}
        plan = dataclasses.replace(ground.plan, vocab=vocab)
        ground = dataclasses.replace(ground, vocab=vocab, parts=[], training=[], texts=texts, plan=plan)
    started = time.perf_counter()
    kept = arguments.output.with_suffix(f".{rule.replace('/', '-')}.safetensors")
    if kept.exists():
        added = AddedRows(load_file(kept), None)
    else:
        pair = row_pair("mean" if is_base else rule, tied=ground.shape.tied_embeddings)
        added = rows_of(pair, ground, seed=arguments.seed, backend=backend)
    if arguments.rows_only:
        save_file(added.by_tensor, kept)
        return {"row_fit": added.fit}
    over_old_ids = old_vocabulary_bits(ground, added, backend)
    found = try_added(added, ground, backend=backend)
    return {
        **found, "general_over_old_ids": over_old_ids / general.num_bytes, "steps": len(ground.training) // settings.sequences,
        "tokens_per_step": settings.sequences * settings.sequence_length, "learning_rate": arguments.rate,
        "num_new_pieces": len(ground.parts),
        "bytes": {role: text.num_bytes for role, text in ground.texts.items()},
        "tokens": {role: sum(map(len, text.documents)) for role, text in ground.texts.items()}, "seconds": time.perf_counter() - started,
    }  # fmt: skip


def old_vocabulary_bits(ground: Any, added: Any, backend: Any) -> float:
    """Return the bits of the general text where the softmax is taken over old ids alone: nothing about them may have moved."""
    import torch  # noqa: PLC0415

    from megatron_cpt.model.build import build_chunks, inner_model  # noqa: PLC0415
    from megatron_cpt.model.convert import load_hf_into  # noqa: PLC0415
    from megatron_cpt.model.parallel import ranks  # noqa: PLC0415

    bits = 0.0
    with ranks(ground.plan.layout, backend=backend, seed=0), torch.no_grad():
        chunks = build_chunks(ground.shape, ground.vocab, ground.plan.layout, backend=backend, initialise_weights=False)
        load_hf_into(chunks, ground.base, ground.shape, ground.vocab, added.by_tensor)
        model = inner_model(chunks[0])
        rows = model.shared_embedding_or_output_weight() if model.share_embeddings_and_output_weights else model.output_layer.weight
        hidden: list[Any] = []
        model.output_layer.register_forward_pre_hook(lambda _, given: hidden.append(given[0]))
        for ids in ground.texts["general"].documents:
            inputs = torch.tensor([[ground.vocab.end_of_document_id, *ids[:-1]]])
            chunks[0](inputs, torch.arange(inputs.shape[1])[None], None)
            logits = torch.nn.functional.linear(hidden.pop()[:, 0], rows[: ground.shape.num_base_ids])
            bits += float(torch.nn.functional.cross_entropy(logits.double(), torch.tensor(ids), reduction="sum")) / math.log(2)
    return bits


def _after(found: dict[str, Any]) -> dict[str, float]:
    """Return the scores after the steps; none where there were no steps or they failed."""
    return found["bits_per_byte"] if found["steps"] and found["failure"] is None else {}


def table(figures: dict[str, Any]) -> str:
    """Return the figures as Markdown; a column that no rule has a figure for is left out."""
    columns = {
        "domain, step 0": [found["bits_per_byte_at_start"]["domain"] for found in figures.values()],
        "domain, after": [_after(found).get("domain") for found in figures.values()],
        "general, step 0": [found["bits_per_byte_at_start"]["general"] for found in figures.values()],
        "general, after": [_after(found).get("general") for found in figures.values()],
        "general over old ids, step 0": [found.get("general_over_old_ids") for found in figures.values()],
    }
    shown = {head: cells for head, cells in columns.items() if any(cell is not None for cell in cells)}
    lines = ["| rule | " + " | ".join(shown) + " |", "| --- " * (len(shown) + 1) + "|"]
    for number, rule in enumerate(figures):
        cells = ["-" if column[number] is None else f"{column[number]:.4f}" for column in shown.values()]
        lines.append(f"| {rule} | " + " | ".join(cells) + " |")
    over_old_ids = {found.get("general_over_old_ids") for found in figures.values()}
    if over_old_ids != {None}:
        lines += [
            "",  # after the table
            "Over old ids alone: " + ("equal bit for bit in all rows." if len(over_old_ids) == 1 else f"NOT EQUAL: {over_old_ids}."),
        ]
    tried = {rule: found["bits_per_byte"]["domain"] for rule, found in figures.items() if found["steps"] and found["failure"] is None}
    if tried:
        lines += [] if lines[-1].startswith("Over") else [""]
        lines.append(f"The probe takes {min(tried, key=lambda rule: tried[rule])}.")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_folder", type=Path)
    parser.add_argument("--base", type=Path, default=Path("data/models/smollm2-135m"))
    parser.add_argument("--rule", action="append", default=[])
    parser.add_argument("--domain", default="china_law")
    parser.add_argument("--general", default="us_history")
    parser.add_argument("--bytes", type=int, default=6000, help="of the general text")
    parser.add_argument("--held-out-tokens", type=int, default=8192, help="of domain text, as tokenizer.row_probe.held_out_tokens")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=50, help="0 for the start alone")
    parser.add_argument("--sequences", type=int, default=2)
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--rate", type=float, default=6e-4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("row_rules.json"))
    parser.add_argument("--untied", action="store_true")
    parser.add_argument("--rows-only", action="store_true")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    for rule in arguments.rule:
        found = measure(arguments, rule)
        print(json.dumps({rule: {key: value for key, value in found.items() if key != "losses"}}), flush=True)
        if not arguments.rows_only:
            scored = found["bits_per_byte"] if arguments.steps and found["failure"] is None else found["bits_per_byte_at_start"]
            for role in ("domain", "general"):
                note(f"rows by `{rule}`: {role} text after {found['steps']} steps", scored[role], "bits per byte")
            write_json(arguments.output, (read_json(arguments.output) if arguments.output.exists() else {}) | {rule: found})
    if arguments.table:
        print(table(read_json(arguments.output)))


if __name__ == "__main__":
    main()
