"""Convert model weights, one command a direction; `--check` proves the result and prints the figures.

    python tools/convert_checkpoint.py hf-to-megatron       FOLDER     OUT [--check]
    python tools/convert_checkpoint.py megatron-to-hf       CHECKPOINT OUT --like FOLDER [--tokenizer FOLDER] [--check]
    python tools/convert_checkpoint.py megatron-to-megatron CHECKPOINT OUT --like FOLDER [--pad-rows-to-multiple 256] [--check]
    python tools/convert_checkpoint.py gguf-to-hf           FILE       OUT [--tokenizer FOLDER] [--check]

FOLDER is a Hugging Face folder with safetensors. CHECKPOINT is a folder that holds metadata.json and .metadata (torch_dist,
megatron-core 0.16 to 0.19); OUT/model is one. OUT appears when it is whole. docs/reference/export.md says more.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from pathlib import Path
from typing import Any

from megatron_cpt.errors import CptError

DIRECTIONS = ("hf-to-megatron", "megatron-to-hf", "megatron-to-megatron", "gguf-to-hf")


def convert(options: argparse.Namespace) -> dict[str, Any]:
    """Do what the command line asks for and return the figures."""
    from megatron_cpt.backend import choose  # noqa: PLC0415 - the help and a wrong argument need no torch

    backend = choose("cpu")
    import torch  # noqa: PLC0415

    from megatron_cpt.export import conversions  # noqa: PLC0415
    from megatron_cpt.model.parallel import ranks, single_rank_layout  # noqa: PLC0415

    max_shard_bytes = int(options.max_shard_gb * 1e9)
    if options.direction == "gguf-to-hf":
        return conversions.gguf_to_hf(
            options.source,
            options.out,
            tokenizer=options.tokenizer,
            dtype=options.dtype or "fp32",
            max_shard_bytes=max_shard_bytes,
            check=options.check,
        )
    with ranks(single_rank_layout(1, dtype="fp32", threads=torch.get_num_threads()), backend=backend, seed=0):
        if options.direction == "hf-to-megatron":
            return conversions.hf_to_megatron(
                options.source,
                options.out,
                rows_multiple=options.pad_rows_to_multiple,
                dtype=options.dtype,
                check=options.check,
                backend=backend,
            )
        of_checkpoint = {"like": options.like, "tokenizer": options.tokenizer, "num_ids": options.num_ids, "check": options.check}
        if options.direction == "megatron-to-hf":
            return conversions.megatron_to_hf(
                options.source, options.out, dtype=options.dtype, max_shard_bytes=max_shard_bytes, backend=backend, **of_checkpoint
            )
        return conversions.megatron_to_megatron(
            options.source,
            options.out,
            rows_multiple=options.pad_rows_to_multiple,
            dtype=options.dtype or "fp32",
            backend=backend,
            **of_checkpoint,
        )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("direction", choices=DIRECTIONS, help="what becomes what")
    parser.add_argument("source", type=Path, help="a Hugging Face folder, a checkpoint folder or a GGUF file, by direction")
    parser.add_argument("out", type=Path, metavar="OUT", help="a folder that does not exist yet")
    parser.add_argument("--check", action="store_true", help="prove weights (bit for bit) and logits; loads the model")
    parser.add_argument("--like", type=Path, metavar="FOLDER", help="Hugging Face folder whose config the checkpoint has")
    parser.add_argument("--tokenizer", type=Path, metavar="FOLDER", help="folder with the tokenizer (default: that of --like or the file)")
    parser.add_argument("--num-ids", type=int, metavar="N", help="rows that belong to ids; the others are padding")
    parser.add_argument("--pad-rows-to-multiple", type=int, default=128, metavar="N", help="rows of the checkpoint (default: %(default)s)")
    parser.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), help="type of the written weights (default: the source's)")
    parser.add_argument("--max-shard-gb", type=float, default=2.0, metavar="GB", help="size of a safetensors file (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.direction.startswith("megatron-") and options.like is None:
        parser.error(f"{options.direction} needs --like FOLDER: a distributed checkpoint does not say which model it holds")
    if options.dtype == "fp16" and options.direction.endswith("-megatron"):
        parser.error("a checkpoint holds fp32 or bf16")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    started = time.monotonic()
    try:
        facts = convert(options)
    except CptError as error:
        print(f"convert_checkpoint: {error}", file=sys.stderr)
        return error.exit_code
    for name, value in facts.items():
        print(f"{name:<24}{f'{value:.2e}' if isinstance(value, float) else value}")
    print(f"{'written':<24}{options.out} in {time.monotonic() - started:.1f} s")
    if not facts.get("tokenizer_proven", True):
        print("the tokenizer is transformers' reading of the file, which is not exact for every kind; --tokenizer takes the original's")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
