"""The configurations of Megatron-LM's functional tests whose memory is published, as this project's shapes and layouts.

Sizes are those of `tests/functional_tests/test_cases/*/CASE/model_config.yaml` in NVIDIA/Megatron-LM; `guessed` says what is not
printed there and was chosen. The measured rank is the last one of the pipeline.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from megatron_cpt.plan.activations import TRANSFORMER_ENGINE, Operations
from megatron_cpt.plan.memory import ON_CUDA, Build
from megatron_cpt.plan.model_shape import LatentAttention, ModelShape
from megatron_cpt.plan.run_plan import Layout

MIB = 2**20


@dataclass(frozen=True)
class Case:
    """One test: what is trained and how, and why its figures decide nothing where they do not."""

    shape: ModelShape
    layout: Layout
    num_rows: int
    build: Build = ON_CUDA
    pinned_workspace: bool = True  # CUBLAS_WORKSPACE_CONFIG=:4096:8, which is 32 MiB on any device
    transformer_engine: bool = True
    guessed: str = ""
    excluded: str = ""
    has_experts: bool = False


def model(family: str, *, hidden: int, layers: int, heads: int, ffn: int, positions: int, groups: int = 0, **more: object) -> ModelShape:
    values: dict[str, object] = {
        "hidden_size": hidden, "num_layers": layers, "num_attention_heads": heads, "num_query_groups": groups or heads,
        "head_dim": hidden // heads, "ffn_hidden_size": ffn, "num_base_ids": 0, "max_position": positions, "norm_epsilon": 1e-5,
        "rotary_base": 1e4, "tied_embeddings": False, "family": family, **more,
    }  # fmt: skip
    return ModelShape(**values)  # type: ignore[arg-type]


def layout(*, tensor: int, pipeline: int, gpus: int, micro: int, batch: int, sequence: int, **more: object) -> Layout:
    values: dict[str, object] = {
        "tensor": tensor, "pipeline": pipeline, "data": gpus // (tensor * pipeline), "micro_batch_size": micro, "global_batch_size": batch,
        "sequence_length": sequence, "sequence_parallel": False, "distributed_optimizer": True, "dtype": "bf16", "num_nodes": 1,
        "threads_per_rank": 1, **more,
    }  # fmt: skip
    return Layout(**values)  # type: ignore[arg-type]


DROPOUT = replace(TRANSFORMER_ENGINE, hidden_dropout=True, attention_dropout=True)
UNFUSED = replace(DROPOUT, flash_attention=False)
TE_LOSS = replace(TRANSFORMER_ENGINE, loss_bytes=0)
NO_DROPOUT_UNFUSED = replace(TRANSFORMER_ENGINE, flash_attention=False)

_7B = model("gpt2", hidden=4096, layers=32, heads=32, groups=8, ffn=16384, positions=8192)
_15B = model("nemotron", hidden=6144, layers=32, heads=48, groups=8, ffn=24576, positions=4096)
_SMALL = model("gpt2", hidden=512, layers=12, heads=8, ffn=2048, positions=1024, tied_embeddings=True)
_SMALL_MOE = replace(_SMALL, family="gpt_moe", num_experts=8, experts_per_token=2)
_8X7B = model("mixtral", hidden=4096, layers=32, heads=32, groups=8, ffn=14336, positions=4096, num_experts=8, experts_per_token=2)
_8X22B = model("mixtral", hidden=6144, layers=56, heads=48, groups=8, ffn=16384, positions=4096, num_experts=8, experts_per_token=2)
_LATENT = LatentAttention(query_rank=1536, key_value_rank=512, plain_dim=128, rotary_dim=64, value_dim=128)
_DEEPSEEK = model(
    "deepseek", hidden=7168, layers=14, heads=128, ffn=2048, positions=4096, latent=_LATENT, num_experts=64, experts_per_token=8,
    num_dense_layers=3, dense_ffn_hidden_size=18432, shared_ffn_hidden_size=2048, num_mtp_layers=1,
)  # fmt: skip
_SMALL_LATENT = model(
    "deepseek", hidden=1024, layers=16, heads=32, ffn=1024, positions=4096, latent=_LATENT, num_experts=32, experts_per_token=4,
    num_dense_layers=1, dense_ffn_hidden_size=4096, shared_ffn_hidden_size=1024, num_mtp_layers=1,
)  # fmt: skip
_SMALL_TP1 = layout(tensor=1, pipeline=1, gpus=8, micro=4, batch=32, sequence=1024)
_SMALL_PP4 = layout(
    tensor=1, pipeline=4, gpus=8, micro=4, batch=32, sequence=1024, virtual_pipeline=3, distributed_optimizer=False
)  # fmt: skip
_SMALL_MOE_TP2 = layout(
    tensor=2, pipeline=1, gpus=8, micro=4, batch=32, sequence=1024, sequence_parallel=True, distributed_optimizer=False, expert=4
)  # fmt: skip
_LATENT_PP2 = layout(tensor=2, pipeline=2, gpus=8, micro=4, batch=32, sequence=4096, virtual_pipeline=4, sequence_parallel=True, expert=4)
_OFFLOAD = "it keeps activations in the host's memory, which the planner does not describe"
_HYBRID = "most of its layers are Mamba's, which the planner does not describe"


def _small(**more: object) -> Case:
    return Case(shape=_SMALL, layout=_SMALL_TP1, num_rows=50304, build=Build(operations=UNFUSED), **more)  # type: ignore[arg-type]


def _small_pp4(group_size: int | None = None, **changes: object) -> Case:
    return Case(
        shape=_SMALL,
        layout=replace(_SMALL_PP4, **changes),
        num_rows=50304,
        build=Build(operations=UNFUSED, group_size=group_size),  # type: ignore[arg-type]
    )


def _unfused_gelu(operations: Operations) -> Operations:
    return replace(operations, fused_activation=False)


def _moe(**more: object) -> Case:
    return Case(has_experts=True, pinned_workspace=False, **more)  # type: ignore[arg-type]


CASES: dict[str, Case] = {
    "gpt3_7b_tp1_pp4_memory_speed": Case(
        shape=_7B, num_rows=131200, build=Build(operations=DROPOUT),
        layout=layout(tensor=1, pipeline=4, gpus=8, micro=1, batch=8, sequence=8192, virtual_pipeline=8),
    ),
    "gpt3_7b_tp4_pp1_memory_speed": Case(
        shape=_7B, num_rows=131584, build=Build(operations=DROPOUT),
        layout=layout(tensor=4, pipeline=1, gpus=8, micro=2, batch=8, sequence=8192)
    ),
    "gpt3_15b_8t_release": Case(
        shape=_15B, num_rows=256000, pinned_workspace=False, guessed="128 GPUs",
        layout=layout(tensor=8, pipeline=1, gpus=128, micro=4, batch=1152, sequence=4096, sequence_parallel=True),
    ),
    "gpt3_15b_8t_release_sm_gb200": Case(
        shape=_15B, num_rows=256000, pinned_workspace=False, build=Build(operations=TE_LOSS), guessed="128 GPUs",
        layout=layout(tensor=4, pipeline=2, gpus=128, micro=4, batch=1152, sequence=4096, virtual_pipeline=2, sequence_parallel=True),
    ),
    "gpt3_mcore_te_tp1_pp1": _small(),
    "gpt3_mcore_tp1_pp1_dist_optimizer_overlap_grad_reduce_param_gather": _small(transformer_engine=False),
    "gpt3_mcore_tp1_pp1_resume": replace(
        _small(transformer_engine=False), layout=replace(_SMALL_TP1, dtype="fp16")  # type: ignore[arg-type]
    ),
    "gpt3_mcore_te_tp1_pp4_vp1": _small_pp4(),
    "gpt3_mcore_te_tp1_pp4_vp1_dist_optimizer": _small_pp4(distributed_optimizer=True),
    "gpt3_mcore_te_tp1_pp4_vp1_tunable_overlap": _small_pp4(5, global_batch_size=40),
    "gpt3_mcore_te_tp1_pp4_vp1_resume_torch_dist_tunable_overlap": _small_pp4(5, global_batch_size=40),
    "mixtral_8x7b_tp1pp4ep8vpp8_release": _moe(
        shape=_8X7B, num_rows=32000, build=Build(expert_tensor=1), guessed="64 GPUs",
        layout=layout(tensor=2, pipeline=4, gpus=64, micro=1, batch=256, sequence=4096, virtual_pipeline=8,
                      sequence_parallel=True, expert=8),
    ),
    "mixtral_8x7b_alltoall_tp2pp4ep4_release": _moe(
        shape=_8X7B, num_rows=256000, guessed="128 GPUs",
        layout=layout(tensor=2, pipeline=4, gpus=128, micro=1, batch=1024, sequence=4096, sequence_parallel=True, expert=4),
    ),
    "mixtral_8x22b_tp2pp8ep8vpp1_release": _moe(
        shape=_8X22B, num_rows=32000, guessed="128 GPUs",
        layout=layout(tensor=2, pipeline=8, gpus=128, micro=1, batch=256, sequence=4096, sequence_parallel=True, expert=8),
    ),
    "deepseekv3_proxy_flex_tp1pp4emp16etp1cp1_release": _moe(
        shape=_DEEPSEEK, num_rows=258560, guessed="64 GPUs",
        build=Build(operations=TE_LOSS, expert_tensor=1, chunk_layers=(2, 2, 2, 2, 2, 2, 1, 1)),
        layout=layout(tensor=2, pipeline=4, gpus=64, micro=1, batch=512, sequence=4096, virtual_pipeline=2,
                      sequence_parallel=True, expert=16),
    ),
    "deepseekv3_proxy_flex_tp2pp2emp16etp1cp1": _moe(
        shape=_DEEPSEEK, num_rows=258560, build=Build(operations=TE_LOSS, expert_tensor=1), guessed="32 GPUs",
        layout=layout(tensor=2, pipeline=2, gpus=32, micro=4, batch=512, sequence=4096, sequence_parallel=True, expert=8),
    ),
    "deepseek_proxy_fsdp_ep2_fsdp2": _moe(
        shape=_SMALL_LATENT, num_rows=50304, layout=_LATENT_PP2,
        excluded="weights live in FP8 under FSDP; and the table's batch of 256 contradicts the stored configuration's 128",
    ),
    "gpt3_mcore_te_tp2_pp1_te_8experts_etp1_ep4": _moe(
        shape=_SMALL_MOE, layout=_SMALL_MOE_TP2, num_rows=50432, build=Build(operations=_unfused_gelu(UNFUSED), expert_tensor=1)
    ),
    "gpt3_mcore_te_tp2_pp1_te_a2a_ovlp_8experts_etp1_ep4": _moe(
        shape=_SMALL_MOE, layout=_SMALL_MOE_TP2, num_rows=50432, build=Build(operations=_unfused_gelu(UNFUSED), expert_tensor=1)
    ),
    "gpt3_mcore_te_tp2_pp2_ep4_etp1_memory_speed": _moe(
        shape=_SMALL_LATENT, layout=_LATENT_PP2, num_rows=51712, build=Build(operations=NO_DROPOUT_UNFUSED, expert_tensor=1)
    ),
    "gpt3_mcore_te_tp2_pp2_ep4_etp1_mtp_resume_torch_dist_fp8": _moe(
        shape=_SMALL_LATENT, layout=replace(_LATENT_PP2, fp8="hybrid"), num_rows=51712,
        build=Build(operations=NO_DROPOUT_UNFUSED, expert_tensor=1),
    ),
    "gpt3_mcore_te_tp2_pp2_ep4_etp1_selective_recompute_experimental": _moe(
        shape=replace(_SMALL_LATENT, num_dense_layers=3), num_rows=51712,
        layout=replace(_LATENT_PP2, virtual_pipeline=4, recompute="selective"),
        build=Build(
            operations=NO_DROPOUT_UNFUSED, expert_tensor=1, chunk_layers=(3, 2, 2, 2, 2, 2, 2, 1), extra_forward=1,
            recompute_modules=frozenset({"layernorm", "mla_up_proj", "mlp", "moe_act"}),
        ),
    ),
    "gpt3_mcore_te_tp2_zp_z3": _moe(
        shape=_SMALL_MOE, num_rows=50432, layout=replace(_SMALL_MOE_TP2, distributed_optimizer=True, expert=2, fsdp=True),
        build=Build(operations=_unfused_gelu(DROPOUT)),
        excluded="at rest it holds more than this model's whole state unsharded, 18 bytes a parameter: buffers that nobody names",
    ),
    "gpt3_moe_mcore_te_tp2_pp2_ep4_etp1": _moe(shape=_SMALL_LATENT, layout=_LATENT_PP2, num_rows=51712, excluded=_OFFLOAD),
    "nemotron3": _moe(shape=_SMALL_LATENT, layout=_LATENT_PP2, num_rows=51712, excluded=_HYBRID),
}  # fmt: skip


def case_of(test_case: str) -> Case:
    """Return the configuration whose name is the longest beginning of a test's."""
    return CASES[max((name for name in CASES if test_case.startswith(name)), key=len)]


def build_on(case: Case, gpu: str) -> Build:
    """Return the build with the bytes of torch's two workspaces and Transformer Engine's on a device.

    Before Hopper torch's default is 8 MiB and 128 KiB and Transformer Engine's 4 MiB; a golden of no named GPU is Ampere's, as those of
    the same test and release are.
    """
    is_hopper = gpu not in {"a100", ""}
    of_torch = 32 * MIB if is_hopper or case.pinned_workspace else 8 * MIB + 128 * 1024
    of_engine = (32 if is_hopper else 4) * MIB if case.transformer_engine else 0
    return replace(case.build, workspaces=2 * of_torch + of_engine, expert_workspaces=4 * of_engine)
