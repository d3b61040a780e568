"""The stages of the line in order, with what each reads, writes and refuses, for help texts and for `stages`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StageInfo:
    name: str
    does: str
    reads: str
    writes: str
    refuses: str


STAGES = (
    StageInfo(
        "corpus", "clean, deduplicate and split the sources",
        "raw text of every source (jsonl, .gz, .zst, parquet, txt)", "train and test documents, rejects with reasons, a data card",
        "a source without licence or role; documents in != out + rejected",
    ),
    StageInfo(
        "vocab", "extend the base tokenizer and prove that no old id moved",
        "the base tokenizer, the corpus", "tokenizer/, vocab_layout.json, contract.json, report.md",
        "an old id or the segmentation of general text changed",
    ),
    StageInfo(
        "index", "tokenise the training documents for Megatron",
        "the corpus, the extended tokenizer", ".bin/.idx per source with token counts",
        "decoded samples differ from the text; an id is out of range",
    ),
    StageInfo(
        "init", "turn the base model with its new rows into a Megatron checkpoint",
        "the base model, the vocabulary, the index", "checkpoint/ of step 0",
        "a new row is zero or NaN; a logit of an old id moved",
    ),
    StageInfo(
        "plan", "freeze layout, schedule, memory, time, cost, stop conditions and gate rules",
        "index, init, the configuration", "plan.yaml, plan.txt",
        "anything that does not divide, fit or afford; all problems at once",
    ),
    StageInfo(
        "baseline", "score the frozen base and the extended model before training",
        "the plan, held-out text", "eval.json",
        "a held-out text without documents",
    ),
    StageInfo(
        "train", "train on the blend, with checkpoints that resume exactly",
        "the plan", "checkpoints, metrics.jsonl, outcome.json",
        "a plan or data other than the checkpoint's",
    ),
    StageInfo(
        "eval", "score the candidate with the code that scored the base",
        "the candidate checkpoint, held-out text", "eval.json",
        "a held-out text without documents",
    ),
    StageInfo(
        "gate", "decide by the plan's rules, and promote or roll back",
        "both eval.json, the rules of the plan", "verdict.json; moves the pointer good.json",
        "a metric that a rule needs is missing (unknown, never a pass)",
    ),
    StageInfo(
        "export", "write the promoted model as a Hugging Face folder",
        "the promoted checkpoint", "hf/ with weights, tokenizer and model card",
        "a verdict other than promote; logits that differ after reloading",
    ),
    StageInfo(
        "report", "put every record on one page",
        "the records of the run", "report.html, summary.txt",
        "nothing: unknown is shown as unknown",
    ),
)  # fmt: skip
