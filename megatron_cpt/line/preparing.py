"""Bodies of the stages before training: corpus, vocab, index, init and plan."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from megatron_cpt.config.schema import RowProbeConfig
from megatron_cpt.errors import ConfigError
from megatron_cpt.gate.rounds import earlier_of
from megatron_cpt.launch_ranks import run_in_child
from megatron_cpt.line.inputs import row_pairs
from megatron_cpt.line.run import Run, indented, threads_of_this_host
from megatron_cpt.line.shares import index_by_array, launcher
from megatron_cpt.meter.ledger import Attempt
from megatron_cpt.plan.benches import copy_benches, read_benches
from megatron_cpt.plan.checks import padding_problem
from megatron_cpt.plan.derive import derive, optimizer_of
from megatron_cpt.plan.model_shape import ModelShape
from megatron_cpt.plan.page import page
from megatron_cpt.plan.row_rules import FITTED, PROBE, ROW_RULES
from megatron_cpt.plan.run_plan import OptimizerPlan
from megatron_cpt.record.manifest import StageResult
from megatron_cpt.record.store import require_free_space, write_json, write_text
from megatron_cpt.record.tokenizer_file import load_tokenizer
from megatron_cpt.record.vocab_contract import check_vocab, read_layout

BASE_RECORD = "base.json"


def corpus_body(run: Run, result: StageResult, _: Attempt) -> None:
    from megatron_cpt.corpus.build import build_corpus  # noqa: PLC0415

    benches = {name: Path(bench.path) for name, bench in run.config.bench.items()}
    build_corpus(
        result, sources=run.config.source, settings=run.config.corpus, seed=run.config.seed, benches=benches,
        shares=run.config.blend.shares, say=indented, launch_array=launcher(run, "corpus"),
    )  # fmt: skip


def vocab_body(run: Run, result: StageResult, _: Attempt) -> None:
    from megatron_cpt.line.economy import prospect_of  # noqa: PLC0415
    from megatron_cpt.vocab.build import build_vocab  # noqa: PLC0415

    problem = padding_problem(run.config)
    if problem:
        raise ConfigError(problem, where="tokenizer.pad_rows_to_multiple")
    build_vocab(
        result,
        settings=run.config.tokenizer,
        base_folder=run.base_folder,
        corpus_folder=run.of("corpus"),
        corpus_facts=run.manifest("corpus").facts,
        say=indented,
        economy=prospect_of(run.config, ModelShape.from_hf_folder(run.base_folder)),
    )


def index_body(run: Run, result: StageResult, entry: Attempt) -> None:
    from megatron_cpt.index.build import build_index  # noqa: PLC0415

    launch_array = launcher(run, "index")
    if launch_array is not None:
        index_by_array(run, launch_array)
    entry.tokens = build_index(
        result, corpus_folder=run.of("corpus"), vocab_folder=run.of("vocab"), corpus_facts=run.manifest("corpus").facts, say=indented
    )


def init_body(run: Run, result: StageResult, _: Attempt) -> None:
    check_vocab(run.of("vocab"))
    settings, pairs = run.config.tokenizer, row_pairs(run)
    size = sum(path.stat().st_size for path in run.base_folder.glob("*.safetensors"))
    require_free_space(run.folder, 2 * size, purpose="the initial checkpoint")
    result.facts = run_in_child(
        _initialise_in_child,
        result.folder,
        base_folder=run.base_folder,
        vocab_folder=run.of("vocab"),
        row_init="/".join(filter(None, (settings.row_init, settings.row_init_output))),
        row_probe=settings.row_probe if settings.row_init == PROBE else None,
        optimizer=optimizer_of(run.config.optim),
        rate=run.config.schedule.peak_lr,
        domain_prefixes=_domain_prefixes(run) if any(pair.reads_domain_text for pair in pairs) or settings.row_init == PROBE else [],
        seed=run.config.seed,
        backend=run.config.cluster.backend,
        threads=threads_of_this_host(),
    )
    write_json(result.folder / BASE_RECORD, {"path": os.path.relpath(run.base_folder, run.folder)})
    facts = result.facts
    indented(f"{facts['num_params']:,} parameters, {facts['num_new_rows']} new rows by the rule {facts['row_init']!r}")
    if facts["row_fit"]:
        indented(
            f"rows fitted on {facts['row_fit']['positions']:,} positions of domain text: "
            f"{facts['row_fit']['held_out_nats_per_token_of_mean_rows']:.3f} -> {facts['row_fit']['held_out_nats_per_token']:.3f} nats per "
            "token on held-out ones"
        )
    indented(f"old-id logits unmoved: equal with the old rows alone, {facts['probe_max_difference']:.1e} apart in the whole product")


def _domain_prefixes(run: Run) -> list[Path]:
    sources = run.manifest("index").facts["sources"]
    return [run.of("index") / f"{name}.train" for name, facts in sources.items() if facts["role"] == "domain"]


def plan_body(run: Run, result: StageResult, _: Attempt) -> None:
    from megatron_cpt.plan.calibrate import measure_host  # noqa: PLC0415

    vocab = check_vocab(run.of("vocab"))
    benches = read_benches(run.config)
    now = run.round
    plan = derive(
        run.config,
        init_facts=run.manifest("init").facts,
        index_facts=run.manifest("index").facts,
        corpus_facts=run.manifest("corpus").facts,
        shape=ModelShape.from_hf_folder(run.base_folder),
        vocab=vocab,
        identity=run.fingerprints("corpus", "vocab", "index", "init"),
        host=measure_host(run.config.cluster),
        benches=benches,
        round_number=now.number,
        num_retries=now.num_retries,
        earlier=None if now.resumes_from is None else earlier_of(run.folder, now.resumes_from),
    )
    copy_benches(plan.eval, benches, result.folder)
    plan.save(result.folder)
    text = page(plan)
    write_text(result.folder / "plan.txt", text)
    result.facts = {"fingerprint": plan.fingerprint, "num_steps": plan.num_steps, "num_tokens": plan.num_tokens}
    for line in text.rstrip().splitlines():
        indented(line)


def _initialise_in_child(
    folder: Path,
    *,
    base_folder: Path,
    vocab_folder: Path,
    row_init: str,
    row_probe: RowProbeConfig | None,
    optimizer: OptimizerPlan,
    rate: float,
    domain_prefixes: list[Path],
    seed: int,
    backend: str,
    threads: int,
) -> dict[str, Any]:
    from megatron_cpt.backend import choose  # noqa: PLC0415

    chosen = choose("cpu" if backend == "cpu" else "cuda")
    import torch  # noqa: PLC0415

    from megatron_cpt.index.sample import sample_windows  # noqa: PLC0415
    from megatron_cpt.model.fit_rows import WINDOW_TOKENS, num_windows  # noqa: PLC0415
    from megatron_cpt.model.initialise import initialise  # noqa: PLC0415

    torch.set_num_threads(threads)
    result = StageResult(folder)
    vocab = read_layout(vocab_folder)
    num_new = vocab.num_ids - vocab.num_base_ids
    count = num_windows(num_new) if domain_prefixes and num_new else 0
    windows = sample_windows(domain_prefixes, num_windows=count, window_tokens=WINDOW_TOKENS, seed=seed)
    probe = None
    if row_probe is not None and not num_new:
        row_init = ROW_RULES[0]  # there is nothing to choose
    elif row_probe is not None:
        from megatron_cpt.line.row_probe import choose_rows  # noqa: PLC0415

        probe = choose_rows(
            domain_prefixes, base_folder=base_folder, vocab=vocab, vocab_folder=vocab_folder,
            tokenizer=load_tokenizer(vocab_folder / "tokenizer" / "tokenizer.json"), settings=row_probe, optimizer=optimizer, rate=rate,
            seed=seed, backend=chosen, threads=threads, say=indented,
        )  # fmt: skip
        row_init = probe["chosen"]
    if windows and FITTED in row_init.split("/"):  # minutes with a thousand rows
        indented(f"fitting {num_new:,} rows to the base's states on {len(windows) * WINDOW_TOKENS:,} positions of domain text")
    initialise(
        result, base_folder=base_folder, vocab_folder=vocab_folder, row_init=row_init, backend=chosen, seed=seed, domain_windows=windows
    )
    if probe is not None:
        result.facts["row_probe"] = probe
    return result.facts
