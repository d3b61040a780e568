"""Speed of one forward and backward pass against plain transformers, on the CPU: `python benchmarks/train_step.py`.

Both compute the same loss of the same weights (the shape of SmolLM2-135M, random) on the same ids, in fp32, each in a process of its
own. The processes alternate and the figure is the ratio of medians, because one machine's speed drifts within minutes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

STEPS = 3


def time_steps(step: Callable[[], float]) -> dict[str, object]:
    """Return the loss and the seconds of each step after one that warms up."""
    loss, seconds = step(), []
    for _ in range(STEPS):
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    return {"loss": loss, "seconds": seconds}


def ids_of(sequence: int, vocab: int) -> list[int]:
    return [(7919 * number + 13) % vocab for number in range(sequence + 1)]


def run_peer(folder: Path, sequence: int) -> dict[str, object]:
    import torch  # noqa: PLC0415
    from transformers import LlamaForCausalLM  # noqa: PLC0415

    model = LlamaForCausalLM.from_pretrained(folder, attn_implementation="sdpa")
    ids = torch.tensor([ids_of(sequence, model.config.vocab_size)])

    def step() -> float:
        model.zero_grad()
        logits = model(ids[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        return float(loss.detach())

    return time_steps(step)


def run_ours(folder: Path, sequence: int) -> dict[str, object]:
    from megatron_cpt.backend import choose  # noqa: PLC0415

    backend = choose("cpu")
    import torch  # noqa: PLC0415

    from megatron_cpt.model.build import build_chunks  # noqa: PLC0415
    from megatron_cpt.model.convert import load_hf_into  # noqa: PLC0415
    from megatron_cpt.model.hf_folder import HfFolder  # noqa: PLC0415
    from megatron_cpt.model.parallel import ranks, single_rank_layout  # noqa: PLC0415
    from megatron_cpt.plan.model_shape import ModelShape  # noqa: PLC0415
    from megatron_cpt.record.vocab_layout import VocabLayout  # noqa: PLC0415

    shape = ModelShape.from_hf_folder(folder)
    vocab = VocabLayout(*[shape.num_base_ids] * 3, end_of_document_id=0, tokenizer_sha256="")
    layout = single_rank_layout(sequence, dtype="fp32", threads=torch.get_num_threads())
    with ranks(layout, backend=backend, seed=0):
        chunks = build_chunks(shape, vocab, layout, backend=backend, initialise_weights=False)
        load_hf_into(chunks, HfFolder.open(folder), shape, vocab)
        ids = torch.tensor([ids_of(sequence, shape.num_base_ids)])
        positions = torch.arange(sequence)[None]

        def step() -> float:
            chunks[0].zero_grad()
            loss = chunks[0](ids[:, :-1], positions, None, labels=ids[:, 1:]).mean()
            loss.backward()
            return float(loss.detach())

        return time_steps(step)


def write_model(folder: Path) -> None:
    import torch  # noqa: PLC0415
    from transformers import LlamaConfig, LlamaForCausalLM  # noqa: PLC0415

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
        max_position_embeddings=2048, tie_word_embeddings=True, rms_norm_eps=1e-5, rope_theta=100_000.0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sequence", type=int, default=512)
    parser.add_argument("--side", choices=["ours", "peer"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps({"ours": run_ours, "peer": run_peer}[arguments.side](arguments.folder, arguments.sequence)))
        return
    seconds: dict[str, list[float]] = {"ours": [], "peer": []}
    losses: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        write_model(Path(name))
        for _ in range(arguments.rounds):
            for side in seconds:
                argv = [sys.executable, __file__, "--side", side, "--folder", name, "--sequence", str(arguments.sequence)]
                out = json.loads(subprocess.run(argv, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
                seconds[side] += out["seconds"]
                losses[side] = out["loss"]
    assert abs(losses["ours"] - losses["peer"]) < 1e-4, losses
    medians = {side: statistics.median(times) for side, times in seconds.items()}
    for side, label in (("ours", "megatron_cpt, CPU backend"), ("peer", "transformers, SDPA")):
        print(
            f"{label:<28}{arguments.sequence / medians[side]:8.1f} tokens/s   median of {len(seconds[side])} steps, loss {losses[side]:.5f}"
        )
    print(f"ratio of medians            {medians['peer'] / medians['ours']:8.2f} times transformers")


if __name__ == "__main__":
    main()
