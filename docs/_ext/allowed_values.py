"""The values that a key of text takes, from the constants and types that check them."""

from __future__ import annotations

from typing import get_args

from megatron_cpt.corpus.decontaminate import ACTIONS as DECONTAMINATE_ACTIONS
from megatron_cpt.corpus.engine import KINDS as ENGINE_KINDS
from megatron_cpt.corpus.filters.private import ACTIONS as PRIVATE_ACTIONS
from megatron_cpt.corpus.filters.words import WORD_PATTERN
from megatron_cpt.corpus.sources import ROLES
from megatron_cpt.plan.derive import Fp8, Fp8Recipe, Recompute, WandbMode
from megatron_cpt.plan.retry import KEEP
from megatron_cpt.plan.row_rules import ROW_RULES
from megatron_cpt.plan.rules import RULE_GROUPS, RULE_KINDS
from megatron_cpt.plan.schedule import ANNEAL_SHAPES, SCHEDULE_KINDS
from megatron_cpt.record.bench import GROUPS
from megatron_cpt.vocab.candidates import KINDS as VOCABULARY_KINDS
from megatron_cpt.vocab.candidates import NORMALISERS

PRIVATE = ("email", "phone", "resident_id_cn", "ssn_us", "payment_card", "ip_address", "private_key", "api_token")
ALLOWED: dict[str, tuple[str, ...]] = {
    "tokenizer.row_init": (*ROW_RULES, "probe"),
    "tokenizer.row_init_output": ROW_RULES,
    "tokenizer.compare.kinds": tuple(VOCABULARY_KINDS),
    "tokenizer.compare.normaliser": NORMALISERS,
    "source.role": ROLES,
    "corpus.engine.kind": ENGINE_KINDS,
    "corpus.dedup.compare": ("text", "units"),
    "corpus.decontaminate.action": DECONTAMINATE_ACTIONS,
    "corpus.filters.unicode.mojibake": ("keep", "repair"),
    "corpus.filters.unicode.normal_form": ("", "NFC", "NFKC"),
    "corpus.filters.unicode.format_characters": ("keep", "remove"),
    "corpus.filters.unicode.line_ends": ("keep", "lf"),
    "corpus.filters.rules.words": tuple(WORD_PATTERN),
    **{f"corpus.filters.private.{kind}": PRIVATE_ACTIONS for kind in PRIVATE},
    "schedule.kind": SCHEDULE_KINDS,
    "schedule.anneal_shape": ANNEAL_SHAPES,
    "parallel.recompute": get_args(Recompute),
    "parallel.fp8": get_args(Fp8),
    "parallel.fp8_recipe": get_args(Fp8Recipe),
    "parallel.dtype": ("fp32", "bf16"),
    "cluster.backend": ("cpu", "cuda"),
    "gate.rules.kind": RULE_KINDS,
    "gate.rules.group": tuple(group for group in RULE_GROUPS if group is not None),
    "gate.retries.vocabulary": (KEEP,),
    "bench.group": GROUPS,
    "export.dtype": ("fp32", "bf16", "fp16"),
    "monitor.wandb_mode": get_args(WandbMode),
}
