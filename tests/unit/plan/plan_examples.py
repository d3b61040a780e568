"""Published model shapes, from the config.json of each model on its model card; and a small experiment that plans without a problem."""

from __future__ import annotations

import dataclasses
from typing import Any

from megatron_cpt.config.schema import (
    BlendConfig,
    CheckpointConfig,
    ClusterConfig,
    EvalConfig,
    ExperimentConfig,
    GateConfig,
    GateRuleConfig,
    GpuConfig,
    ModelConfig,
    OptimConfig,
    ParallelConfig,
    ProvenanceConfig,
    ScheduleConfig,
    SourceConfig,
    TariffConfig,
    TokenizerConfig,
)
from megatron_cpt.plan.calibrate import HostFacts
from megatron_cpt.plan.model_shape import LatentAttention, ModelShape
from megatron_cpt.plan.run_plan import Layout
from megatron_cpt.record.unknown import Unavailable
from megatron_cpt.record.vocab_layout import VocabLayout


def shape(
    *, hidden: int, layers: int, heads: int, groups: int, ffn: int, vocabulary: int, tied: bool = False, positions: int = 8192
) -> ModelShape:
    return ModelShape(
        hidden_size=hidden,
        num_layers=layers,
        num_attention_heads=heads,
        num_query_groups=groups,
        head_dim=hidden // heads,
        ffn_hidden_size=ffn,
        num_base_ids=vocabulary,
        max_position=positions,
        norm_epsilon=1e-5,
        rotary_base=10000.0,
        tied_embeddings=tied,
    )


SMOLLM2_135M = shape(hidden=576, layers=30, heads=9, groups=3, ffn=1536, vocabulary=49152, tied=True)
TINYLLAMA_1B = shape(hidden=2048, layers=22, heads=32, groups=4, ffn=5632, vocabulary=32000, positions=2048)
LLAMA2_7B = shape(hidden=4096, layers=32, heads=32, groups=32, ffn=11008, vocabulary=32000, positions=4096)
LLAMA2_13B = shape(hidden=5120, layers=40, heads=40, groups=40, ffn=13824, vocabulary=32000, positions=4096)
LLAMA3_8B = shape(hidden=4096, layers=32, heads=32, groups=8, ffn=14336, vocabulary=128256)
LLAMA3_70B = shape(hidden=8192, layers=80, heads=64, groups=8, ffn=28672, vocabulary=128256)
LLAMA31_405B = shape(hidden=16384, layers=126, heads=128, groups=8, ffn=53248, vocabulary=128256)
# arXiv 2412.19437, section 4.2, and 2405.04434, section 3.1.2
DEEPSEEK_V3 = dataclasses.replace(
    shape(hidden=7168, layers=61, heads=128, groups=128, ffn=2048, vocabulary=129280), family="deepseek",
    latent=LatentAttention(1536, 512, 128, 64, 128), num_experts=256, experts_per_token=8, num_dense_layers=3,
    dense_ffn_hidden_size=18432, shared_ffn_hidden_size=2048,
)  # fmt: skip
DEEPSEEK_V2 = dataclasses.replace(
    shape(hidden=5120, layers=60, heads=128, groups=128, ffn=1536, vocabulary=102400), family="deepseek",
    latent=LatentAttention(1536, 512, 128, 64, 128), num_experts=160, experts_per_token=6, num_dense_layers=1,
    dense_ffn_hidden_size=12288, shared_ffn_hidden_size=3072,
)  # fmt: skip

ONE_RANK = Layout(
    tensor=1, pipeline=1, data=1, micro_batch_size=1, global_batch_size=8, sequence_length=512, sequence_parallel=False,
    distributed_optimizer=False, dtype="bf16", num_nodes=1, threads_per_rank=1,
)  # fmt: skip

NO_HOST = HostFacts(matrix_tflops=Unavailable("not measured"), memory_available_bytes=Unavailable("not measured"))


def source(role: str) -> SourceConfig:
    return SourceConfig(path="x.jsonl", role=role, licence="CC0-1.0", provenance=ProvenanceConfig("a test", "2026", "made"), language="en")


def experiment() -> ExperimentConfig:
    """Return Llama 3 8B on 8 H100s for 2^20 tokens a step and 10 steps: law at 3 parts, web at 1."""
    return ExperimentConfig(
        run_name="example",
        model=ModelConfig(path="base", licence="llama3", provenance="a test"),
        tokenizer=TokenizerConfig(num_new_pieces=0, document_separator="<eod>"),
        source={"law": source("domain"), "web": source("general"), "news": source("general")},
        blend=BlendConfig(shares={"law": 3, "web": 1}, num_tokens=10 * 2**20, max_epochs=4),
        optim=OptimConfig(weight_decay=0.1),
        schedule=ScheduleConfig(peak_lr=1e-5, min_lr=1e-6, warmup_fraction=0.1),
        parallel=ParallelConfig(
            tensor=4, pipeline=1, micro_batch_size=1, global_batch_size=128, sequence_length=8192, sequence_parallel=True, dtype="bf16"
        ),
        cluster=ClusterConfig(backend="cuda", num_nodes=1, ranks_per_node=8),
        gpu=GpuConfig(
            name="H100", dense_tflops=989, memory_gb=80, node_watts_per_device=970, mfu_low=0.33, mfu_likely=0.4, mfu_high=0.5,
            source="a test",
        ),
        tariff=TariffConfig(
            name="t", usd_per_device_hour=3.0, price_source="a test", price_date="2026-01-01", pue=1.2, pue_source="a test",
            grid_g_co2e_per_kwh=400, grid_source="a test",
        ),
        gate=GateConfig(
            rules=[
                GateRuleConfig(of="law", kind="must_improve", margin=0.0),
                GateRuleConfig(of="news", kind="may_not_worsen", margin=0.02),
            ]
        ),
        eval=EvalConfig(texts=["law", "news"], window_tokens=8192),
        checkpoint=CheckpointConfig(every_steps=5),
    )  # fmt: skip


def facts() -> dict[str, Any]:
    """Return the arguments of `derive` beside the configuration."""
    return {
        "init_facts": {},
        "index_facts": {
            "sources": {
                "law": {"documents": 900, "tokens": 4_000_000, "role": "domain", "licence": "CC0-1.0"},
                "web": {"documents": 900, "tokens": 9_000_000, "role": "general", "licence": "CC0-1.0"},
            }
        },
        "corpus_facts": {"sources": {"law": {"test_documents": 40}, "web": {"test_documents": 0}, "news": {"test_documents": 7}}},
        "shape": LLAMA3_8B,
        "vocab": VocabLayout(128256, 128256, 128256, 128001, "0" * 64),
        "identity": {"index": "i", "init": "j"},
        "host": NO_HOST,
    }
