"""Peak memory and speed of conversion in both directions, on a synthetic model of several GB: `python benchmarks/convert.py`.

Makes a Llama of random bf16 weights shard by shard, and an extended vocabulary layout of it, then converts it in fresh processes, one
a conversion, and reads each process's own peak of resident memory (ru_maxrss, so that mapped file pages count too). Beside each
stands a plain copy of the same bytes with the same syncs, interleaved; ratios are of medians. The input of both is in the page
cache after the first round, and both wait for the disk with fsync.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench_figures import note  # beside this script

from megatron_cpt.backend import choose

ROWS_MULTIPLE = 128


def make_model(folder: Path, *, hidden: int, num_layers: int, num_ids: int, max_shard_bytes: int) -> None:
    """Write a random untied bf16 Llama: each tensor is made when it is written."""
    import torch  # noqa: PLC0415

    from megatron_cpt.model.hf_folder import write_tensors  # noqa: PLC0415
    from megatron_cpt.model.names import expected_shapes  # noqa: PLC0415
    from megatron_cpt.plan.model_shape import ModelShape  # noqa: PLC0415

    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden, "num_hidden_layers": num_layers,
        "num_attention_heads": hidden // 128, "num_key_value_heads": hidden // 512, "intermediate_size": hidden * 7 // 2,
        "vocab_size": num_ids, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }  # fmt: skip
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    shapes = expected_shapes(ModelShape.from_hf_folder(folder), num_rows=num_ids)
    generator = torch.Generator().manual_seed(0)
    write_tensors(
        folder,
        ((name, torch.empty(shape, dtype=torch.bfloat16).normal_(0.0, 0.02, generator=generator)) for name, shape in shapes.items()),
        declared={name: (torch.bfloat16, shape) for name, shape in shapes.items()},
        max_shard_bytes=max_shard_bytes,
    )


def convert(direction: str, source: Path, out: Path, like: Path, max_shard_bytes: int) -> None:
    """Convert in this process and print its seconds and its peak of resident memory."""
    backend = choose("cpu")
    import torch  # noqa: PLC0415

    from megatron_cpt.model import rows  # noqa: PLC0415
    from megatron_cpt.model.convert import ROW_TENSORS  # noqa: PLC0415
    from megatron_cpt.model.hf_folder import HfFolder, write_tensors  # noqa: PLC0415
    from megatron_cpt.model.parallel import ranks, single_rank_layout  # noqa: PLC0415
    from megatron_cpt.model.stream import declared_tensors, read_checkpoint, skeleton, write_checkpoint  # noqa: PLC0415
    from megatron_cpt.plan.model_shape import ModelShape  # noqa: PLC0415
    from megatron_cpt.record.vocab_layout import VocabLayout, padded_rows  # noqa: PLC0415

    shape = ModelShape.from_hf_folder(like)
    num_ids = shape.num_base_ids
    vocab = VocabLayout(num_ids, num_ids, padded_rows(num_ids, multiple=ROWS_MULTIPLE), 0, "")
    with ranks(single_rank_layout(1, dtype="bf16", threads=2), backend=backend, seed=0):
        idle = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started = time.perf_counter()
        bones = skeleton(shape, vocab, dtype="bf16", backend=backend)
        if direction == "init":
            base = HfFolder.open(source)
            num_padding = vocab.num_padded_rows - num_ids
            added = {
                name: rows.new_rows(rows.RowInputs(base.read(name), []), rule="mean", num_padding=num_padding)
                for name in ROW_TENSORS  # of any family: those that this one has
                if num_padding and name in base.entries
            }
            write_checkpoint(out, base, bones, new_rows=added, common={})
        else:
            tensors = read_checkpoint(source, bones, dtype=torch.bfloat16)
            write_tensors(out, tensors, declared=declared_tensors(bones, dtype=torch.bfloat16), max_shard_bytes=max_shard_bytes)
        seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "idle": idle * 1024}))


def copy_folder(source: Path, out: Path) -> float:
    """Copy every file, wait for the disk, and return the seconds."""
    started = time.perf_counter()
    out.mkdir()
    for file in sorted(source.iterdir()):
        with file.open("rb") as reading, (out / file.name).open("wb") as writing:
            shutil.copyfileobj(reading, writing, 16 * 1024**2)
            writing.flush()
            os.fsync(writing.fileno())
    return time.perf_counter() - started


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def run(direction: str, source: Path, out: Path, options: argparse.Namespace, like: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--convert", direction, str(source), str(out), str(like), "--shard-gb", str(options.shard_gb)]
    answer = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    if answer.returncode:
        sys.exit(f"The conversion ended with {answer.returncode}; what it said stands above.")
    return json.loads(answer.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=2048, help="a multiple of 512")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--ids", type=int, default=65_000, help="no multiple of 128, so that there are padding rows")
    parser.add_argument("--shard-gb", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to write, four times the model (default: a temporary folder)")
    parser.add_argument("--convert", nargs=4, metavar=("DIRECTION", "SOURCE", "OUT", "LIKE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    shard = int(options.shard_gb * 1e9)
    if options.convert:
        direction, source, out, like = options.convert
        convert(direction, Path(source), Path(out), Path(like), shard)
        return
    root = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        base, found = root / "base", {}
        make_model(base, hidden=options.hidden, num_layers=options.layers, num_ids=options.ids, max_shard_bytes=shard)
        print(f"model: {size_of(base) / 1e9:.2f} GB in bf16, shards of at most {options.shard_gb} GB")
        for _ in range(options.rounds):
            for direction, source in (("init", base), ("export", root / "init")):
                out, copied = root / direction, root / "copy"
                shutil.rmtree(out, ignore_errors=True)
                found.setdefault(f"copy {direction}", []).append({"seconds": copy_folder(source, copied)})
                shutil.rmtree(copied)
                found.setdefault(direction, []).append(run(direction, source, out, options, base))
        for direction, source in (("init", base), ("export", root / "init")):
            ours, copies = (statistics.median(each["seconds"] for each in found[name]) for name in (direction, f"copy {direction}"))
            peak, idle = (max(each[name] for each in found[direction]) for name in ("peak", "idle"))
            size = size_of(source)
            print(
                f"{direction:<7}{size / ours / 1e6:6.0f} MB/s   copy {size / copies / 1e6:6.0f} MB/s   "
                f"ratio {copies / ours:4.2f} (goal: at least 0.50)   "
                f"peak {peak / 1e9:4.2f} GB, {idle / 1e9:4.2f} GB of it before the conversion began; the model has {size / 1e9:.2f} GB"
            )
            into = {"init": "Megatron", "export": "Hugging Face"}[direction]
            detail = f"{size / 1e9:.2f} GB, {size / ours / 1e6:.0f} MB/s against {size / copies / 1e6:.0f}; peak {peak / 1e9:.2f} GB"
            note(f"weights to {into}, speed against a plain copy with fsync", copies / ours, "times", at_least=0.5, detail=detail)
        shards = sorted(path.name for path in base.glob("*.safetensors"))
        same = all((base / name).read_bytes() == (root / "export" / name).read_bytes() for name in shards)
        print(f"the exported shards are byte for byte the base's: {same}")
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
