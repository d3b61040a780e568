"""Bodies of the stages export and report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_cpt.errors import DataError, printable
from megatron_cpt.gate.act import GoodCheckpoint, check_digest
from megatron_cpt.gate.verdict import VERDICT_NAME, Verdict
from megatron_cpt.launch_ranks import run_in_child
from megatron_cpt.line.inputs import model_files
from megatron_cpt.line.run import Run, indented, threads_of_this_host
from megatron_cpt.meter.ledger import Attempt
from megatron_cpt.meter.totals import attempts_of, totals_by_stage
from megatron_cpt.plan.run_plan import PLAN_NAME, RunPlan
from megatron_cpt.record.hashing import sha256_plain
from megatron_cpt.record.manifest import MANIFEST_NAME, StageResult
from megatron_cpt.record.store import require_free_space, write_text
from megatron_cpt.record.vocab_contract import check_vocab
from megatron_cpt.stage_names import STAGES


def export_body(run: Run, result: StageResult, _: Attempt) -> None:
    check_vocab(run.of("vocab"), expected=run.plan.vocab)
    verdict = Verdict.load(run.of("gate") / VERDICT_NAME)
    good = GoodCheckpoint.load(run.folder)
    if verdict.decision != "promote" or good.verdict_sha256 != verdict.fingerprint:
        raise DataError(
            "Only a promoted checkpoint is exported.", where=run.of("gate"), value=verdict.decision, next_step="See gate/verdict.json."
        )
    check_digest(run.folder, good)
    plan, settings, folder = run.plan, run.config.export, result.folder / "hf"
    size = sum(path.stat().st_size for path in run.base_folder.glob("*.safetensors"))
    require_free_space(run.folder, int(1.3 * size * (2 if settings.instruct_model else 1)), purpose="the exported model")
    threads = threads_of_this_host()
    result.facts = run_in_child(
        _export_in_child,
        folder,
        checkpoint=run.folder / good.checkpoint / "model",
        base_folder=run.base_folder,
        tokenizer_folder=run.of("vocab") / "tokenizer",
        plan_path=run.of("plan") / PLAN_NAME,
        dtype=settings.dtype,
        max_shard_bytes=int(settings.max_shard_gb * 1e9),
        threads=threads,
    )
    indented(f"{run.of('export') / 'hf'}: reloaded in transformers, logits equal to {result.facts['max_relative_difference']:.1e}")
    indented(_size_change(result.facts, base_bytes=size))
    if settings.completion_tokens:
        result.facts["completions"] = run_in_child(
            _complete_in_child,
            settings.prompts or _held_out_beginnings(run),
            base_folder=run.base_folder,
            continued_folder=folder,
            start_id=plan.vocab.end_of_document_id,
            num_tokens=settings.completion_tokens,
            threads=threads,
        )
        for each in result.facts["completions"]:
            for label, text in (("prompt", each["prompt"]), ("base", each["base"]), ("continued", each["continued"])):
                indented(f"{label:<11}{printable(text)}")
    card = _model_card(run, good=good, verdict=verdict, export_facts=result.facts)
    write_text(folder / "README.md", card)
    if settings.instruct_model:
        _add_chat(run, result, card=card, instruct_folder=Path(settings.instruct_model).resolve())


def _add_chat(run: Run, result: StageResult, *, card: str, instruct_folder: Path) -> None:
    """Write the second folder, with the instruct model's difference to the base added."""
    from megatron_cpt.export.card import with_chat  # noqa: PLC0415

    folder = result.folder / "hf-chat"
    result.facts["chat"] = run_in_child(
        _add_chat_in_child,
        folder,
        continued_folder=result.folder / "hf",
        base_folder=run.base_folder,
        instruct_folder=instruct_folder,
        max_shard_bytes=int(run.config.export.max_shard_gb * 1e9),
        threads=threads_of_this_host(),
    )
    write_text(folder / "README.md", with_chat(card, instruct_sha256=sha256_plain(model_files(instruct_folder))))
    share = result.facts["chat"]["delta_over_weights"]
    indented(f"{run.of('export') / 'hf-chat'}: instruct minus base added, {share:.1%} of the weights' norm")


def _size_change(facts: dict[str, Any], *, base_bytes: int) -> str:
    kept = "the base's type" if facts["dtype"] == facts["base_dtype"] else f"the base has {facts['base_dtype']}"
    return f"{facts['weights_bytes'] / 1e6:.1f} MB of weights in {facts['dtype']} ({kept}, {base_bytes / 1e6:.1f} MB)"


def _held_out_beginnings(run: Run) -> list[str]:
    """Return a prompt of the first document of each held-out text."""
    from megatron_cpt.eval.texts import read_text  # noqa: PLC0415
    from megatron_cpt.export.prompts import beginnings  # noqa: PLC0415

    return beginnings([read_text(text, run.folder)[0].text for text in run.plan.eval.texts])


def _model_card(run: Run, *, good: GoodCheckpoint, verdict: Verdict, export_facts: dict[str, Any]) -> str:
    from megatron_cpt.export.card import model_card  # noqa: PLC0415

    return model_card(
        run.plan,
        run.config.model,
        good=good,
        verdict=verdict,
        facts={stage.name: run.manifest(stage.name).facts for stage in STAGES if (run.of(stage.name) / MANIFEST_NAME).exists()},
        lineage={
            "base": sha256_plain(run.manifest("init").inputs["base"]),
            **run.fingerprints("corpus"),
            "tokenizer": run.plan.vocab.tokenizer_sha256,
            **run.fingerprints("vocab", "index", "init"),
        },
        totals=[total for total in totals_by_stage(attempts_of(run.folder)) if total.stage != "export"],
        completions=export_facts.get("completions", []),
        private=[str(run.folder), str(run.base_folder), f"{Path.home()}/"],
    )


def report_body(run: Run, result: StageResult, _: Attempt) -> None:
    from megatron_cpt.report.page import write_report  # noqa: PLC0415

    write_report(result.folder, run.folder)


def _export_in_child(
    folder: Path,
    *,
    checkpoint: Path,
    base_folder: Path,
    tokenizer_folder: Path,
    plan_path: Path,
    dtype: str | None,
    max_shard_bytes: int,
    threads: int,
) -> dict[str, Any]:
    from megatron_cpt.backend import choose  # noqa: PLC0415

    plan = RunPlan.load(plan_path)
    chosen = choose(plan.backend)
    import torch  # noqa: PLC0415

    from megatron_cpt.export.folder import export_folder  # noqa: PLC0415

    torch.set_num_threads(threads)
    return export_folder(
        folder,
        checkpoint=checkpoint,
        base_folder=base_folder,
        tokenizer_folder=tokenizer_folder,
        shape=plan.shape,
        vocab=plan.vocab,
        backend=chosen,
        dtype=dtype,
        max_shard_bytes=max_shard_bytes,
    )


def _complete_in_child(
    prompts: list[str], *, base_folder: Path, continued_folder: Path, start_id: int, num_tokens: int, threads: int
) -> list[dict[str, Any]]:
    from megatron_cpt.backend import choose  # noqa: PLC0415

    choose("cpu")
    import torch  # noqa: PLC0415

    from megatron_cpt.export.completions import side_by_side  # noqa: PLC0415

    torch.set_num_threads(threads)
    return side_by_side(prompts, base_folder=base_folder, continued_folder=continued_folder, start_id=start_id, num_tokens=num_tokens)


def _add_chat_in_child(
    folder: Path, *, continued_folder: Path, base_folder: Path, instruct_folder: Path, max_shard_bytes: int, threads: int
) -> dict[str, Any]:
    from megatron_cpt.backend import choose  # noqa: PLC0415

    choose("cpu")
    import torch  # noqa: PLC0415

    from megatron_cpt.export.chat import add_chat  # noqa: PLC0415

    torch.set_num_threads(threads)
    return add_chat(
        folder, continued_folder=continued_folder, base_folder=base_folder, instruct_folder=instruct_folder, max_shard_bytes=max_shard_bytes
    )
