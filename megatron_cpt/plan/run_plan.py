"""The frozen plan of a run: everything that ranks need, resolved and typed. It is written once and never edited."""

from __future__ import annotations

import math
from dataclasses import MISSING, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import yaml

from megatron_cpt.errors import DataError
from megatron_cpt.plan.model_shape import ModelShape
from megatron_cpt.record.hashing import sha256_plain
from megatron_cpt.record.store import write_text
from megatron_cpt.record.typed import from_plain, to_plain
from megatron_cpt.record.unknown import Figure, Range, Unavailable
from megatron_cpt.record.vocab_layout import VocabLayout

PLAN_SCHEMA_VERSION = 1
PLAN_NAME = "plan.yaml"
NOT_PREDICTED = Unavailable("the plan does not predict a step")
NO_ALLOWANCE = Unavailable("the plan makes no allowance for interruptions")
NOT_STATED = Unavailable("not stated in the plan")
PEAK_NOT_NAMED = Unavailable("the plan does not name the device's peak")


def _decided(part: Any) -> dict[str, Any]:
    """Return a part of the plan without fields at their default: a plan from before a field existed keeps its fingerprint."""
    defaults = {field.name: field.default for field in fields(part) if field.default is not MISSING}
    return {key: value for key, value in to_plain(part).items() if key not in defaults or getattr(part, key) != defaults[key]}


@dataclass(frozen=True)
class Layout:
    """How the model and the batch are split over ranks. Ranks = tensor x pipeline x context x data.

    Attributes:
        virtual_pipeline: chunks of layers that each pipeline rank holds; above 1 the schedule is interleaved 1F1B.
        recompute: what the backward pass computes anew instead of keeping: nothing, each layer's MLP, or each layer.
        context: ranks that share a sequence; each holds two pieces of it.
        overlap_grad_reduce: sums of gradients run beside the backward pass.
        overlap_param_gather: updated weights are gathered during the next forward pass, and not in the optimizer's step.
        bucket_size: parameters that are sent together; None is megatron-core's own number.
        fp8: format of the layers' matrix products, and `fp8_recipe` how their scales are found.
        expert: data-parallel ranks that share the experts of a mixture of experts; it adds no ranks.
        fsdp: weights and gradients are shared out among the data-parallel ranks, as the optimizer's state is (ZeRO-3).
    """

    tensor: int
    pipeline: int
    data: int
    micro_batch_size: int
    global_batch_size: int
    sequence_length: int
    sequence_parallel: bool
    distributed_optimizer: bool
    dtype: Literal["fp32", "bf16"]
    num_nodes: int
    threads_per_rank: int
    virtual_pipeline: int = 1
    recompute: Literal["none", "selective", "full"] = "none"
    context: int = 1
    overlap_grad_reduce: bool = False
    overlap_param_gather: bool = False
    bucket_size: int | None = None
    fp8: Literal["none", "hybrid", "e4m3"] = "none"
    fp8_recipe: Literal["delayed", "tensorwise", "blockwise", "mxfp8"] = "delayed"
    expert: int = 1
    fsdp: bool = False

    @property
    def num_ranks(self) -> int:
        return self.tensor * self.pipeline * self.context * self.data

    @property
    def num_microbatches(self) -> int:
        """Micro-batches that each data-parallel rank accumulates in one step."""
        return self.global_batch_size // (self.micro_batch_size * self.data)

    @property
    def tokens_per_step(self) -> int:
        return self.global_batch_size * self.sequence_length


@dataclass(frozen=True)
class BlendEntry:
    """One training source: `prefix` is relative to the run folder, `share` is of all training samples.

    `earlier_num_samples` is how many samples the rounds before this one wanted of the source, oldest first: their order of the
    text is kept, so that what was read is not read again before the rest was.
    """

    source: str
    role: Literal["domain", "general"]
    licence: str
    prefix: str
    share: float
    num_tokens: int
    num_samples: int
    num_epochs: float
    earlier_num_samples: tuple[int, ...] = ()


@dataclass(frozen=True)
class BlendStage:
    """From step `first_step` (counted from 0) to the next stage: how many samples each blend entry gives, in its order."""

    first_step: int
    samples: tuple[int, ...]


@dataclass(frozen=True)
class PackingPlan:
    """What a token of a packed sequence sees and learns of the documents beside its own; see `blend` in the configuration."""

    reset_positions: bool = False
    cross_document_attention: bool = True
    loss_on_end_of_document: bool = True


@dataclass(frozen=True)
class OptimizerPlan:
    """AdamW; the rates of embedding and output rows are the schedule's times `embedding_lr_scale`.

    `router_aux_loss` weighs the load-balancing loss of a mixture of experts, which acts on the router's gradient alone.
    """

    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float
    clip_grad_norm: float
    embedding_lr_scale: float = 1.0
    router_aux_loss: float = 0.0


@dataclass(frozen=True)
class SchedulePlan:
    """A learning rate as a pure function of samples seen; the rates are per parameter update.

    Attributes:
        warmup_samples: counted from the first sample after the new-rows stage, as is `decay_samples`.
        warmup_from_lr: the rate that the warm-up begins at; above 0 where a run takes up the rate that another one ended with.
        decay_samples: where the schedule ends, warm-up included.
        anneal_samples: length of the last phase of `wsd` and `infinite`, which ends at `decay_samples`.
        anneal_shape: how `wsd` falls in it, in megatron-core's names.
        cooldown_samples: length of the fall of `infinite` from peak to `constant_lr`, after the warm-up.
        new_rows_samples: length of the first stage, which trains the rows of new ids only, at `new_rows_lr`; whole steps.
    """

    kind: Literal["cosine", "linear", "constant", "wsd", "infinite"]
    peak_lr: float
    min_lr: float
    warmup_samples: int
    decay_samples: int
    anneal_samples: int = 0
    anneal_shape: Literal["linear", "cosine", "minus_sqrt", "exponential"] = "linear"
    cooldown_samples: int = 0
    constant_lr: float = 0.0
    new_rows_samples: int = 0
    new_rows_lr: float = 0.0
    warmup_from_lr: float = 0.0


@dataclass(frozen=True)
class CheckpointPlan:
    """When checkpoints are written, whether training waits for them, and which stay (the newest, and the best by domain texts)."""

    every_steps: int
    keep_last: int
    asynchronous: bool = False
    keep_best: int = 0


@dataclass(frozen=True)
class EvalText:
    """A held-out text: `path` is a jsonl of the corpus stage, relative to the run folder; a document limit of None is none.

    `watch_path` is the source's validation side, which is scored while training so that the test side is left to the gate; without
    one the test side serves for both.
    """

    name: str
    role: Literal["domain", "general"]
    path: str
    max_bytes: int
    max_document_bytes: int | None = None
    watch_path: str | None = None


@dataclass(frozen=True)
class EvalTask:
    """A benchmark to score: `path` is the plan's own copy, relative to the run folder, and `sha256` its digest.

    Attributes:
        metrics: what is measured, the main one first; `gap` is the spread of the main one over subgroups.
        num_items: items that are scored.
        template: what a question becomes, `{question}` being its place; `separator` stands between that and an answer.
        few_shot: the first items, which are examples and not scored; `max_items` of the others are, None for all.
        stop: what is generated ends before the first of these texts.
    """

    name: str
    path: str
    sha256: str
    kind: Literal["choice", "generation", "code", "pairs"]
    group: Literal["domain", "general", "bias", "safety"]
    licence: str
    source: str
    metrics: tuple[str, ...]
    num_items: int
    template: str
    separator: str
    few_shot: int = 0
    max_items: int | None = None
    max_new_tokens: int = 128
    stop: tuple[str, ...] = ()
    num_samples: int = 1
    temperature: float = 0.0


@dataclass(frozen=True)
class ContaminationPlan:
    """Length of the runs of words, or of characters, that are looked for in the training index, and the share from which it counts."""

    words: int = 13
    characters: int = 24
    task_share: float = 0.0
    document_share: float = 0.5


@dataclass(frozen=True)
class HarnessPlan:
    """Tasks of lm-evaluation-harness, by name, from a folder of the user's own task files; a folder with another digest is refused.

    `runs_code`: task files may name Python functions, which then run as this user. `max_items` of each task are scored, None is all.
    """

    path: str
    sha256: str
    tasks: tuple[str, ...]
    runs_code: bool = False
    max_items: int | None = None


@dataclass(frozen=True)
class EvalPlan:
    """What is scored, and how.

    Attributes:
        stride_tokens: a window scores so many tokens after the ones that it shares with the window before; None is all of its own.
        cache: scores of the base are kept beside the runs, and taken from there when everything that decides them is the same.
    """

    texts: tuple[EvalText, ...]
    window_tokens: int
    micro_batch_size: int
    tasks: tuple[EvalTask, ...] = ()
    tasks_in_loop: bool = False
    run_code_unconfined: bool = False
    contamination: ContaminationPlan = ContaminationPlan()
    stride_tokens: int | None = None
    cache: bool = False
    harness: HarnessPlan | None = None


RuleGroup = Literal["domain", "general", "bias", "safety"]


@dataclass(frozen=True)
class GateRule:
    """One rule on one metric of a held-out text or a task, candidate against base, judged on a paired bootstrap interval.

    `on` names the text or task and `margin` is in the metric's unit. An advisory rule (`required` is false) is shown and decides
    nothing. A `confidence` of None is the gate's.
    """

    of: str
    kind: Literal["must_improve", "may_not_worsen"]
    margin: float
    metric: str = "bits_per_byte"
    group: RuleGroup = "general"
    required: bool = True
    confidence: float | None = None


@dataclass(frozen=True)
class GateLimit:
    """Training stops and is rolled back when an in-loop score of `on` is surely more than `max_increase` above the frozen base's."""

    of: str
    max_increase: float
    metric: Literal["bits_per_byte"] = "bits_per_byte"


@dataclass(frozen=True)
class Retry:
    """The one thing that the next round changes after a rollback. The others are None.

    Attributes:
        lower_rate: factor on every rate of the schedule.
        replay: share of the general sources in the blend.
        vocabulary: `keep` begins anew with the base's own vocabulary.
    """

    lower_rate: float | None = None
    replay: float | None = None
    vocabulary: Literal["keep"] | None = None

    def __str__(self) -> str:
        return ", ".join(f"{field.name} {value}" for field in fields(self) if (value := getattr(self, field.name)) is not None)


@dataclass(frozen=True)
class GatePlan:
    rules: tuple[GateRule, ...]
    confidence: float
    bootstrap_samples: int
    seed: int
    limits: tuple[GateLimit, ...] = ()
    retries: tuple[Retry, ...] = ()
    max_retries: int = 0


@dataclass(frozen=True)
class ResumePoint:
    """The one checkpoint of another plan that training may start from: its path in the run folder and the digest of its files.

    `round` is the round that saved it.
    """

    checkpoint: str
    sha256: str
    round: int


@dataclass(frozen=True)
class StopScore:
    """Training saves, stops and exits 6 when an in-loop score of text or task `of` is at a threshold, in the unit of `metric`."""

    of: str
    metric: str
    at_most: float | None = None
    at_least: float | None = None


@dataclass(frozen=True)
class StopConditions:
    """Limits at which training saves, stops and exits 6, None for none; and how many bad updates it leaves out before it fails."""

    max_hours: float | None
    max_usd: float | None
    max_kwh: float | None
    max_skipped_steps: int = 0
    spike_factor: float | None = None
    max_tokens: int | None = None
    scores: tuple[StopScore, ...] = ()


@dataclass(frozen=True)
class RankMemory:
    """Peak bytes of one pipeline stage's rank, itemised.

    Attributes:
        activations: what the backward pass waits for, of all micro-batches in flight, and one layer that is computed anew.
        logits: of the last stage, with what the loss and the output matrix's gradient add.
        communication: buffers that tokens are gathered in and that the neighbouring stages send to.
        workspaces: of the matrix libraries.
        allowance: for fragmentation, an assumption and not a count.
        stage_inputs: what a stage keeps of the last micro-batch between steps; a new one takes its place, so no peak has it.
        checkpoint_load: everything that is there at once while a checkpoint is read, in the place of a step's items, and
            `checkpoint_save` while one is written.
        host_checkpoint: of the host's memory, the larger of both.
        outside_torch: the CUDA context and NCCL's buffers, an assumption and not a count.
    """

    pipeline_rank: int
    num_params: int
    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    communication: float = 0.0
    workspaces: float = 0.0
    allowance: float = 0.0
    stage_inputs: float = 0.0
    checkpoint_load: float = 0.0
    checkpoint_save: float = 0.0
    host_checkpoint: float = 0.0
    outside_torch: float = 0.0

    @property
    def state(self) -> float:
        """Weights, gradients and optimizer state."""
        return self.weights + self.gradients + self.optimizer

    @property
    def at_rest(self) -> float:
        """Bytes that are allocated between two steps."""
        return self.state + self.workspaces + self.stage_inputs

    @property
    def allocated_peak(self) -> float:
        """Bytes that are allocated at a step's peak, without the allowance."""
        return self.state + self.workspaces + self.activations + self.logits + self.communication

    @property
    def total(self) -> float:
        """What the rank must have: for a step with the allowance, or for a checkpoint, and what torch does not see."""
        return max(self.allocated_peak + self.allowance, self.checkpoint_load, self.checkpoint_save) + self.outside_torch


@dataclass(frozen=True)
class Bill:
    """What the training steps take, as intervals, and what stands beside them.

    Attributes:
        usd: of the devices; `storage_usd` is of what the run keeps, `stored_gb`, for the tariff's months.
        kg_location: carbon of the energy by the grid's intensity, `kg_market` by the contract's, `kg_embodied` of making the machines.
        lost_share: device time of checkpoints and interruptions, as a share on top of the steps'.
        allowance: that of development and failed runs, on top of both.
    """

    device_hours: Range
    usd: Range
    storage_usd: Range
    stored_gb: Figure
    kwh: Range
    kg_location: Range
    kg_market: Range
    kg_embodied: Range
    lost_share: Figure
    allowance: Range
    allowance_source: str = ""


@dataclass(frozen=True)
class Estimate:
    """What the plan expects; `flops_convention` names what is counted.

    Attributes:
        step_seconds: of one step, from first principles; `seconds` is from published runs, so that one checks the other.
        goodput: share of elapsed time that trains, the rest being checkpoints and interruptions.
        elapsed_seconds: `seconds` over `goodput`.
        bill: money, energy and carbon as intervals; `usd`, `kwh` and `kg_co2e` are its likely figures of the training steps alone.
    """

    num_params: int
    memory: tuple[RankMemory, ...]
    memory_limit_bytes: Figure
    flops_per_token: float
    flops_convention: str
    tokens: int
    seconds_low: Figure
    seconds: Figure
    seconds_high: Figure
    device_hours: Figure
    usd: Figure
    kwh: Figure
    kg_co2e: Figure
    basis: tuple[str, ...]
    dense_tflops: Figure = PEAK_NOT_NAMED
    step_seconds: Figure = NOT_PREDICTED
    goodput: Figure = NO_ALLOWANCE
    elapsed_seconds: Figure = NO_ALLOWANCE
    bill: Bill | None = None


@dataclass(frozen=True)
class Tariff:
    """Prices and factors with the source and date of each; unknown ones say why."""

    name: str
    usd_per_device_hour: Figure
    price_source: str
    watts_per_device: Figure
    power_source: str
    pue: Figure
    pue_source: str
    grid_g_co2e_per_kwh: Figure
    grid_source: str
    price_date: str = ""
    usd_per_device_hour_low: Figure = NOT_STATED
    usd_per_device_hour_high: Figure = NOT_STATED
    watts_per_device_low: Figure = NOT_STATED
    watts_per_device_high: Figure = NOT_STATED
    pue_low: Figure = NOT_STATED
    pue_high: Figure = NOT_STATED
    grid_g_co2e_per_kwh_low: Figure = NOT_STATED
    grid_g_co2e_per_kwh_high: Figure = NOT_STATED
    market_g_co2e_per_kwh: Figure = NOT_STATED
    market_source: str = ""
    usd_per_gb_month: Figure = NOT_STATED
    storage_date: str = ""
    storage_source: str = ""
    keep_months: Figure = NOT_STATED
    embodied_g_co2e_per_device_hour: Figure = NOT_STATED
    embodied_source: str = ""


@dataclass(frozen=True)
class RunPlan:
    """Everything that decides a run. `identity` holds the fingerprints of the stages that it was derived from.

    Without `blend_stages` the shares of `blend` hold from the first sample to the last. A plan of a later `round` that
    `resumes_from` a checkpoint of an earlier one starts there, and from nothing else.
    """

    schema_version: int
    run_name: str
    seed: int
    backend: Literal["cpu", "cuda"]
    shape: ModelShape
    vocab: VocabLayout
    layout: Layout
    blend: tuple[BlendEntry, ...]
    num_steps: int
    optimizer: OptimizerPlan
    schedule: SchedulePlan
    checkpoint: CheckpointPlan
    log_every_steps: int
    eval_every_steps: int
    wandb_mode: Literal["offline", "online", "disabled"]
    wandb_project: str
    eval: EvalPlan
    gate: GatePlan
    stop: StopConditions
    tariff: Tariff
    estimate: Estimate
    identity: dict[str, str]
    blend_stages: tuple[BlendStage, ...] = ()
    packing: PackingPlan = PackingPlan()
    tensorboard: bool = False
    grace_steps: int | None = None
    round: int = 1
    resumes_from: ResumePoint | None = None

    @property
    def num_samples(self) -> int:
        return self.num_steps * self.layout.global_batch_size

    @property
    def num_tokens(self) -> int:
        return self.num_steps * self.layout.tokens_per_step

    @cached_property
    def fingerprint(self) -> str:
        """Digest of what decides the result of training; not of prices, estimates, or how the ranks are laid out."""
        layout = self.layout
        decides = [
            self.seed, _decided(self.shape), self.vocab.fingerprint, [_decided(entry) for entry in self.blend], self.num_steps,
            _decided(self.optimizer), _decided(self.schedule), layout.global_batch_size, layout.sequence_length, layout.dtype,
            self.identity,
        ]  # fmt: skip
        if self.blend_stages or self.packing != PackingPlan():  # a plan without them keeps the digest that its checkpoints name
            decides.append([to_plain(self.blend_stages), to_plain(self.packing)])
        if layout.fp8 != "none":
            decides.append([layout.fp8, layout.fp8_recipe])
        if self.resumes_from is not None:
            decides.append(to_plain(self.resumes_from))
        return sha256_plain(decides)

    def save(self, folder: Path) -> Path:
        path = folder / PLAN_NAME
        write_text(path, yaml.safe_dump(to_plain(self), sort_keys=False, allow_unicode=True, width=120))
        return path

    @classmethod
    def load(cls, path: Path) -> RunPlan:
        """Read a plan file.

        Raises:
            DataError: the file is missing or is not YAML.
            ConfigError: a key is missing, unknown or of the wrong type.
        """
        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise DataError("The plan is missing.", where=path, next_step="Run: megatron-cpt run --until plan ...") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise DataError("The plan is not readable YAML.", where=path, value=str(error)) from None
        return from_plain(cls, data, where=path)


def grace_window_steps(plan: RunPlan) -> int:
    """Return the steps in which a loss on general text is expected and nothing is judged: as configured, or the warm-up.

    Source: the stability gap, Guo et al. 2024, arXiv 2406.14833.
    """
    if plan.grace_steps is not None:
        return plan.grace_steps
    return math.ceil(plan.schedule.warmup_samples / plan.layout.global_batch_size)
