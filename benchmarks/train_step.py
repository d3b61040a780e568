"""Speed of one training step against plain transformers and torch, on the CPU: `python benchmarks/train_step.py`.

Both train the same weights (the shape of SmolLM2-135M, random) on the same ids, in fp32 with torch's fused AdamW and a clipped
gradient, each in a process of its own. The processes alternate and the figure is the ratio of medians, because one machine's speed
drifts within minutes. Both must find the same losses. Ours runs with the environment that its launcher gives ranks on a CPU; with
`--same-malloc` the peer does too.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench_figures import note  # beside this script

from megatron_cpt.launch_ranks import KEEP_FREED_MEMORY

WARM_UP_STEPS = 2  # the first one faults in the optimizer's state, the second what the first freed
STEPS = 3
RATE = 1e-4


def time_steps(step: Callable[[], float]) -> dict[str, object]:
    """Return the losses of all steps and the seconds of those after the warm-up."""
    losses, seconds = [step() for _ in range(WARM_UP_STEPS)], []
    for _ in range(STEPS):
        started = time.perf_counter()
        losses.append(step())
        seconds.append(time.perf_counter() - started)
    return {"losses": losses, "seconds": seconds}


def ids_of(sequence: int, vocab: int) -> list[int]:
    return [(7919 * number + 13) % vocab for number in range(sequence + 1)]


def run_peer(folder: Path, sequence: int) -> dict[str, object]:
    import torch  # noqa: PLC0415
    from transformers import LlamaForCausalLM  # noqa: PLC0415

    model = LlamaForCausalLM.from_pretrained(folder, attn_implementation="sdpa")
    ids = torch.tensor([ids_of(sequence, model.config.vocab_size)])
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95), eps=1e-8, fused=True)

    def step() -> float:
        logits = model(ids[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return time_steps(step)


def run_ours(folder: Path, sequence: int) -> dict[str, object]:
    from megatron_cpt.backend import choose  # noqa: PLC0415

    backend = choose("cpu")
    import torch  # noqa: PLC0415
    from smollm2_shape import make_plan  # noqa: PLC0415

    from megatron_cpt.model.build import build_chunks  # noqa: PLC0415
    from megatron_cpt.model.convert import load_hf_into  # noqa: PLC0415
    from megatron_cpt.model.hf_folder import HfFolder  # noqa: PLC0415
    from megatron_cpt.model.parallel import ranks  # noqa: PLC0415
    from megatron_cpt.plan.run_plan import SchedulePlan  # noqa: PLC0415
    from megatron_cpt.train.data import Microbatch, StepBatch  # noqa: PLC0415
    from megatron_cpt.train.optimizer import wrap_and_optimize  # noqa: PLC0415
    from megatron_cpt.train.state import TrainState  # noqa: PLC0415
    from megatron_cpt.train.step import optimizer_step  # noqa: PLC0415

    plan = dataclasses.replace(make_plan(sequence), schedule=SchedulePlan("constant", RATE, RATE, 0, 1000))
    with ranks(plan.layout, backend=backend, seed=0):
        model = build_chunks(plan.shape, plan.vocab, plan.layout, backend=backend)
        load_hf_into(model, HfFolder.open(folder), plan.shape, plan.vocab)
        chunks, optimizer = wrap_and_optimize(model, plan)
        ids = torch.tensor([ids_of(sequence, plan.vocab.num_ids)])
        positions, mask = torch.arange(sequence)[None], torch.ones(1, sequence)
        batch = StepBatch(0, (Microbatch(ids[:, :-1], ids[:, 1:].contiguous(), mask, positions, torch.tensor([0])),))
        state = TrainState.start(plan)
        return time_steps(lambda: optimizer_step(chunks, optimizer, batch, plan, before=state).loss)


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
    parser.add_argument("--same-malloc", action="store_true", help="give the peer the malloc settings of our ranks too")
    parser.add_argument("--side", choices=["ours", "peer"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps({"ours": run_ours, "peer": run_peer}[arguments.side](arguments.folder, arguments.sequence)))
        return
    seconds: dict[str, list[float]] = {"ours": [], "peer": []}
    losses: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        write_model(Path(name))
        for _ in range(arguments.rounds):
            for side in seconds:
                argv = [sys.executable, __file__, "--side", side, "--folder", name, "--sequence", str(arguments.sequence)]
                keeps = side == "ours" or arguments.same_malloc
                environment = (KEEP_FREED_MEMORY if keeps else {}) | dict(os.environ)
                done = subprocess.run(argv, check=True, capture_output=True, text=True, env=environment)
                out = json.loads(done.stdout.splitlines()[-1])
                seconds[side] += out["seconds"]
                losses[side] = out["losses"]
    assert all(abs(ours - peer) < 1e-4 for ours, peer in zip(losses["ours"], losses["peer"], strict=True)), losses
    medians = {side: statistics.median(times) for side, times in seconds.items()}
    for side, label in (("ours", "megatron_cpt, CPU backend"), ("peer", "transformers, SDPA, fused AdamW")):
        speed, first, last = arguments.sequence / medians[side], losses[side][0], losses[side][-1]
        print(f"{label:<33}{speed:8.1f} tokens/s   median of {len(seconds[side])} steps, losses {first:.5f} to {last:.5f}")
    ratio = medians["peer"] / medians["ours"]
    print(f"ratio of medians                 {ratio:8.2f} times transformers")
    detail = f"{arguments.sequence / medians['ours']:.0f} against {arguments.sequence / medians['peer']:.0f} tokens/s, SmolLM2-135M's shape"
    note("a training step against transformers with SDPA and fused AdamW", ratio, "times", at_least=1, detail=detail)


if __name__ == "__main__":
    main()
