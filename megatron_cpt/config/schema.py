"""One dataclass per `conf/` group. What decides a result or a bill has no default (`MISSING`) and must be in a file or an override."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from megatron_cpt.config.filter_schema import FilterConfig

MISSING: Any = "???"  # omegaconf's mark, repeated here so that this module needs no omegaconf


@dataclass
class ModelConfig:
    """The base model: a local Hugging Face folder."""

    path: str = MISSING
    licence: str = MISSING
    provenance: str = MISSING


@dataclass
class RowProbeConfig:
    """What `row_init: probe` tries: `rules` (all where none is named; a pair as `input/output`), each for so many training steps.

    A step reads `sequences` windows of `sequence_length` tokens at `schedule.peak_lr`. `held_out_tokens` of indexed domain text are
    kept from the steps, and the rule with the fewest bits per byte on them is taken.
    """

    rules: list[str] = field(default_factory=list)
    steps: int = 50  # about 50 steps tell the rules apart, the loss at the start does not: arXiv 2608.03494
    sequences: int = 2
    sequence_length: int = 256
    held_out_tokens: int = 8192


@dataclass
class CompareConfig:
    """Vocabularies trained on the domain sample beside the extension, each of `kinds` at each of `sizes` (empty: `num_new_pieces`).

    `normaliser` is identity, or nfkc, which is refused where it would change the text. `relearn_tokens` is how many tokens of training
    the new rows need, where you measured it (docs/vocabulary-break-even.md); null takes a published figure.
    """

    kinds: list[str] = field(default_factory=lambda: ["bpe", "unigram", "byte_level"])
    sizes: list[int] = field(default_factory=list)
    sample_bytes: int = 1_000_000
    normaliser: str = "identity"
    relearn_tokens: float | None = None


@dataclass
class TokenizerConfig:
    """How the base tokenizer is extended. `num_new_pieces: 0` keeps it as it is.

    `terms` is a UTF-8 file of terms, one a line, that are forced in as pieces; `max_drift` the share of general documents whose ids they
    may change.
    `row_init` is the rule of new embedding rows, `row_init_output` that of output rows where it is another (untied models alone).
    """

    num_new_pieces: int = MISSING
    document_separator: str = MISSING
    pad_rows_to_multiple: int = 128
    sample_bytes: int = 8_000_000
    row_init: str = "mean"
    terms: str = ""
    max_drift: float = 0.0
    row_init_output: str = ""
    row_probe: RowProbeConfig = field(default_factory=RowProbeConfig)
    compare: CompareConfig = field(default_factory=CompareConfig)


@dataclass
class ProvenanceConfig:
    """Where a text came from: its origin (a publisher, package or address), the date it was fetched or made (2026, 2026-11 or
    2026-11-29), and how it was obtained."""

    origin: str = MISSING
    date: str = MISSING
    obtained: str = MISSING


@dataclass
class SourceConfig:
    """A source of text: where it lies, what it is for, whose it is (SPDX), where it came from, its language (BCP 47).

    `text_key` is the field that holds the text, or a list of fields whose texts are joined by a blank line. A document of fewer than
    `min_chars` characters is left out. `test_fraction` of the documents is held out for the gate and `valid_fraction` for what is watched
    while training; the digest of a text decides on which side it stands.
    """

    path: str = MISSING
    text_key: Any = "text"
    role: str = MISSING
    licence: str = MISSING
    provenance: ProvenanceConfig = field(default_factory=ProvenanceConfig)
    language: str = MISSING
    test_fraction: float = 0.05
    min_chars: int = 1
    valid_fraction: float = 0.0


@dataclass
class EngineConfig:
    """Where the corpus is read and cleaned: `local` processes, a `slurm` array or `ray`. It decides time alone, never a byte.

    `workers: null` is every core of this machine (local), 16 elements of the array (slurm), every core of the cluster (ray). A task
    reads about `task_mb` MB; long jsonl files are cut at lines.
    """

    kind: str = "local"
    workers: int | None = None
    task_mb: float = 64.0


@dataclass
class NearDedupConfig:
    """Near-duplicates by MinHash: texts that share a band of `rows_per_band` minima in one of `num_bands` are compared.

    Two texts are near-duplicates when the Jaccard similarity of their runs of `ngram` words (`ngram_characters` where most of a text is
    of a script without spaces) is at least `threshold`, counted exactly. `verify: false` takes every text that shares a band, and those
    that share one with it, for one text, as most tools do.
    """

    enabled: bool = False
    num_bands: int = 14  # with 8 rows a pair of similarity 0.8 shares a band at 92 %: FineWeb's settings, arXiv 2406.17557
    rows_per_band: int = 8
    ngram: int = 5
    ngram_characters: int = 8  # a Chinese word has some 1.5 to 2 characters
    threshold: float = 0.8
    verify: bool = True
    seed: int = 1


@dataclass
class DedupConfig:
    """Which documents are dropped because another one says the same, over all files and sources.

    `exact` drops equal texts: equal in every character, or with `compare: units` but for case, width, spaces and punctuation.
    """

    exact: bool = True
    compare: str = "text"
    near: NearDedupConfig = field(default_factory=NearDedupConfig)


@dataclass
class DecontaminateConfig:
    """What happens to a training document that holds what is evaluated: `drop`, `report` (kept, and listed) or `off`.

    Every file of `bench` is looked for, and the documents of `texts`, files of held-out text that the experiment does not train on. A
    document holds an item when at least `item_share` of the runs of its question, or of its right answer, stand in it: runs of `words`
    words, `characters` where a script has no spaces. It holds a held-out text from `document_share` of its runs on.
    """

    action: str = "drop"
    words: int = 13  # Brown et al. 2020, arXiv 2005.14165, appendix C
    characters: int = 24  # a Chinese word has some 1.5 to 2 characters
    item_share: float = 0.5  # one run alone may be a set phrase, which statutes are full of (docs/corpus.md)
    texts: list[str] = field(default_factory=list)
    text_key: str = "text"
    document_share: float = 0.5


@dataclass
class SelectConfig:
    """Which documents of a pool are chosen by their likeness to a domain (docs/corpus.md). The default chooses all.

    `target` defines the domain: sources of the experiment by name, or files, whose text is in `target_text_key`. The documents of `pool`
    (empty: every source but the target's) compete for `max_documents` and `max_bytes` of UTF-8 text; what is not chosen is rejected.
    Runs of up to `ngram` units are hashed into `num_buckets`; `prior_per_bucket` steadies a small target (0: as the paper has it).
    `terms` is a UTF-8 file of terms, one a line: a document with fewer than `min_hits` of them is not chosen, and each hit adds
    `hit_weight` to its log weight, in nats.
    """

    target: list[str] = field(default_factory=list)
    target_text_key: str = "text"
    pool: list[str] = field(default_factory=list)
    max_documents: int | None = None
    max_bytes: int | None = None
    terms: str = ""
    min_hits: int = 0
    hit_weight: float = 0.0
    ngram: int = 2  # both as in Xie et al. 2023, arXiv 2302.03169, section 3
    num_buckets: int = 10_000
    prior_per_bucket: float = 1.0


@dataclass
class CoverageConfig:
    """What the chosen corpus is held against: the terms of `select.terms`, or `num_terms` drawn from the target, and `num_topics` of it."""

    num_terms: int = 200
    num_topics: int = 10


@dataclass
class CorpusConfig:
    """How the sources become the corpus (docs/corpus.md)."""

    engine: EngineConfig = field(default_factory=EngineConfig)
    filters: FilterConfig = field(default_factory=FilterConfig)
    dedup: DedupConfig = field(default_factory=DedupConfig)
    decontaminate: DecontaminateConfig = field(default_factory=DecontaminateConfig)
    select: SelectConfig = field(default_factory=SelectConfig)
    coverage: CoverageConfig = field(default_factory=CoverageConfig)


@dataclass
class BlendStageConfig:
    """Other shares from a token count on, which is rounded up to a whole step."""

    from_tokens: int = MISSING
    shares: dict[str, float] = field(default_factory=dict)


@dataclass
class BlendConfig:
    """Share of training samples per source; shares are normalised. A source without a share is held out whole.

    `shares` hold until the first of `stages`, each of which holds until the next; every source is read on from where it stood.
    `reset_positions` counts positions anew in each document. `cross_document_attention: false` keeps a token from seeing the
    documents packed before its own. `loss_on_end_of_document: false` trains no prediction that starts from an end mark: the
    first token of a document does not follow from the document before.
    """

    shares: dict[str, float] = field(default_factory=dict)
    max_epochs: float = 4.0  # up to 4 epochs are nearly as good as new data: Muennighoff et al. 2023, arXiv 2305.16264
    num_tokens: int = MISSING
    stages: list[BlendStageConfig] = field(default_factory=list)
    reset_positions: bool = False
    cross_document_attention: bool = True
    loss_on_end_of_document: bool = True


@dataclass
class OptimConfig:
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1.0e-8
    weight_decay: float = MISSING
    clip_grad_norm: float = 1.0
    embedding_lr_scale: float = 1.0  # rate of embedding and output rows, as a multiple of the schedule's
    router_aux_loss: float = 0.0  # weight of the load-balancing loss of a mixture of experts (Fedus et al. 2021, arXiv 2101.03961)


@dataclass
class ScheduleConfig:
    """The learning rate over the run. A phase has one length: a fraction of the run after the new-rows stage, tokens or samples.

    The floor is `min_lr`, or `min_fraction` of the peak. `anneal_*` is the last phase of wsd and infinite, `cooldown_*`
    and `constant_lr` belong to infinite. Without any warm-up length it is 1 %. The warm-up begins at `warmup_from_lr`, 0 without one.
    """

    kind: str = "cosine"
    peak_lr: float = MISSING
    min_lr: float | None = None
    min_fraction: float | None = None
    warmup_fraction: float | None = None
    warmup_tokens: int | None = None
    warmup_samples: int | None = None
    warmup_from_lr: float | None = None
    anneal_fraction: float | None = None
    anneal_tokens: int | None = None
    anneal_samples: int | None = None
    anneal_shape: str | None = None
    cooldown_fraction: float | None = None
    cooldown_tokens: int | None = None
    cooldown_samples: int | None = None
    constant_lr: float | None = None
    new_rows_first_tokens: int = 0
    new_rows_lr: float | None = None


@dataclass
class ParallelConfig:
    """How to split model and batch. The data-parallel size is what the cluster's ranks leave over.

    `virtual_pipeline` is the number of chunks of layers that each pipeline rank holds; above 1 the schedule is interleaved.
    `context` is the number of ranks that share a sequence. `recompute` trades time for memory: `none`; `selective`, the MLP of
    every layer; `full`, every layer. `overlap_grad_reduce` sends gradients while the backward pass goes on, and
    `overlap_param_gather` the updated weights during the next forward pass, in buckets of `bucket_size` parameters (null:
    megatron-core's own). `fp8` is the format of the layers' matrix products, `fp8_recipe` how their scales are found: both in
    Transformer Engine's words. `fsdp` shares weights and gradients out among the data-parallel ranks too (Megatron-FSDP, ZeRO-3).
    `recompute` trades time for memory: `none`; `selective`, the MLP of every layer; `full`, every layer.
    `expert` data-parallel ranks share the experts of a mixture of experts, each holding its part of them.
    """

    tensor: int = MISSING
    pipeline: int = MISSING
    virtual_pipeline: int = 1
    micro_batch_size: int = MISSING
    global_batch_size: int = MISSING
    sequence_length: int = MISSING
    sequence_parallel: bool = False
    distributed_optimizer: bool = True
    recompute: str = "none"
    expert: int = 1
    dtype: str = MISSING
    context: int = 1
    overlap_grad_reduce: bool = False
    overlap_param_gather: bool = False
    bucket_size: int | None = None
    fp8: str = "none"
    fp8_recipe: str = "delayed"
    fsdp: bool = False


@dataclass
class ClusterConfig:
    """Where it runs. The memory of a device is in the gpu group.

    `checkpoint_seconds` is what writing one holds training up, `restart_seconds` what an interruption costs until training goes on:
    MegaScale finds a fault in under 10 minutes and catches up in under 15 (Jiang et al. 2024, arXiv 2402.15627).

    Under Slurm `env_file` is a shell file that each job sources (examples: slurm/env/), and a training job that is warned or loses a
    node starts again at most `max_requeues` times; `preflight` looks at every node before it trains. `has_emulated_meter` marks the
    joules of Slurm's accounting as no measurement.
    """

    backend: str = MISSING
    num_nodes: int = MISSING
    ranks_per_node: int = MISSING
    threads_per_rank: int = 1
    checkpoint_seconds: float = 60.0
    restart_seconds: float = 900.0
    partition: str | None = None
    account: str | None = None
    time_limit: str | None = None
    env_file: str | None = None
    qos: str | None = None
    max_requeues: int = 20
    preflight: bool = True
    has_emulated_meter: bool = False


@dataclass
class GpuConfig:
    """A device: dense peak per second, memory, power; `null` is unknown and stays unknown. `mfu_*` are shares of the bf16 peak.

    `matmul_tflops` to `num_multiprocessors` let the plan predict a step (docs/planning.md): what large matrix products reach, and what
    memory, the link to another device of the node, and the network to another node carry, each way. `mtbf_hours` is how long one
    device, with its part of node and network, works between two interruptions of a run.

    Power is `node_watts_per_device` where somebody measured a node (a device's part of it), else that of the node's parts: the device's
    rated watts times the share of them that training draws, the rest of the node, and the switches of a run over several nodes.
    """

    name: str = MISSING
    dense_tflops: float | None = None
    memory_gb: float | None = None
    node_watts_per_device: float | None = None
    mfu_low: float | None = None
    mfu_likely: float | None = None
    mfu_high: float | None = None
    source: str = MISSING
    dense_fp8_tflops: float | None = None
    fp8_mfu_low: float | None = None
    fp8_mfu_likely: float | None = None
    fp8_mfu_high: float | None = None
    matmul_tflops: float | None = None
    matmul_fp8_tflops: float | None = None
    memory_tb_per_second: float | None = None
    link_gb_per_second: float | None = None
    network_gb_per_second: float | None = None
    num_multiprocessors: int | None = None
    mtbf_hours: float | None = None
    device_watts: float | None = None
    watts_share_low: float | None = None
    watts_share_likely: float | None = None
    watts_share_high: float | None = None
    rest_of_node_watts: float | None = None
    network_watts: float | None = None
    power_source: str = ""


@dataclass
class TariffConfig:
    """Money and carbon per unit, each with its source; `null` is unknown and stays unknown. A price has the date of its quotation.

    `*_low` and `*_high` are the ends of an interval around the likely figure, which alone is one too: nothing is known of its spread.
    `grid_region` is a region of the shipped table (`plan/grid_intensity.csv`); a grid intensity of your own goes before it, and is
    location-based like it. `market_g_co2e_per_kwh` is what your contract for electricity states, and never taken from the grid.
    `usd_per_gb_month` prices what a run stores for `keep_months`. `embodied_g_co2e_per_device_hour` is the making of the machines.
    """

    name: str = MISSING
    usd_per_device_hour: float | None = None
    price_source: str = ""
    pue: float | None = None
    pue_source: str = ""
    grid_g_co2e_per_kwh: float | None = None
    grid_source: str = ""
    price_date: str = ""
    usd_per_device_hour_low: float | None = None
    usd_per_device_hour_high: float | None = None
    pue_low: float | None = None
    pue_high: float | None = None
    grid_region: str | None = None
    market_g_co2e_per_kwh: float | None = None
    market_source: str = ""
    usd_per_gb_month: float | None = None
    storage_date: str = ""
    storage_source: str = ""
    keep_months: float | None = None
    embodied_g_co2e_per_device_hour: float | None = None
    embodied_source: str = ""


@dataclass
class AllowanceConfig:
    """Device time of development and of runs that fail, as a share on top of the run's own: a line of its own in the plan.

    Published: 0.5 (OLMo, arXiv 2503.05804), 4.6 (Olmo 3: 82.2 % of all was not the final run). `null` counts nothing, and says so.
    """

    low: float | None = None
    likely: float | None = None
    high: float | None = None
    source: str = ""


@dataclass
class GateRuleConfig:
    """A rule on one metric of a held-out text or a task; the margin is in the metric's own unit.

    `group: null` is the role of the text or the group of the task. An advisory rule (`required: false`) is shown and decides
    nothing. `confidence: null` is that of the gate.
    """

    of: str = MISSING
    kind: str = MISSING
    margin: float = MISSING
    metric: str = "bits_per_byte"
    group: str | None = None
    required: bool = True
    confidence: float | None = None


@dataclass
class GateLimitConfig:
    """A hard limit while training: a held-out text may not be this much above the frozen base at an in-loop evaluation."""

    of: str = MISSING
    max_increase: float = MISSING
    metric: str = "bits_per_byte"


@dataclass
class RetryConfig:
    """One change against the round that was rolled back; exactly one of these is set.

    `lower_rate` multiplies every rate of the schedule; `replay` is the share of the general sources in the blend;
    `vocabulary: keep` begins anew with the base's own vocabulary.
    """

    lower_rate: float | None = None
    replay: float | None = None
    vocabulary: str | None = None


@dataclass
class GateConfig:
    """How a candidate is judged, what stops training at once, and what is tried after a rollback (docs/rollback.md)."""

    rules: list[GateRuleConfig] = field(default_factory=list)
    confidence: float = 0.95
    bootstrap_samples: int = 2000
    limits: list[GateLimitConfig] = field(default_factory=list)
    retries: list[RetryConfig] = field(default_factory=list)
    max_retries: int = 0


@dataclass
class BenchConfig:
    """A benchmark: a JSONL file of questions (docs/bench.md). What its rows say of group, licence and source need not be repeated.

    `template` turns a question into a prompt ({question} is its place) and `separator` stands before an answer. The first `few_shot`
    items are shown as examples and not scored; at most `max_items` of the others are. What is generated, up to `max_new_tokens`, ends at
    the first text of `stop` (null: the kind's own). Of code, `num_samples` programs are drawn at `temperature` for each k of `pass_at`.
    """

    path: str = MISSING
    group: str | None = None
    licence: str | None = None
    source: str | None = None
    template: str | None = None
    separator: str = " "
    few_shot: int = 0
    max_items: int | None = None
    max_new_tokens: int = 128
    stop: list[str] | None = None
    num_samples: int = 1
    temperature: float = 0.0
    pass_at: list[int] = field(default_factory=lambda: [1])


@dataclass
class ContaminationConfig:
    """When an item or a held-out document counts as seen in training, by runs of words (of characters where a script has no spaces).

    An item is contaminated when more than `task_share` of its runs stand in the training index (0: any one does), a held-out document
    from `document_share` on.
    """

    words: int = 13  # Brown et al. 2020, arXiv 2005.14165, appendix C
    characters: int = 24  # a Chinese word has some 1.5 to 2 characters
    task_share: float = 0.0
    document_share: float = 0.5


@dataclass
class EvalConfig:
    """Held-out texts: the test split of each named source, at most `max_bytes` of it and `max_document_bytes` of a document.

    `tasks` names benchmarks of `bench`; with `tasks_in_loop` they are scored while training too. Generated code runs in a sandbox
    (docs/bench.md); where the kernel offers none the evaluation stops, unless `run_code_unconfined` accepts the risk.

    With `stride_tokens` windows overlap: each scores so many tokens, given the `window_tokens - stride_tokens` before them, at
    `window_tokens / stride_tokens` times the cost; null cuts a document into windows side by side. `cache` keeps the scores of the base
    and of the extended start in `<runs_dir>/.eval-cache`, for other runs that score the same weights on the same items in the same way.
    `harness` names tasks of lm-evaluation-harness in the task files of `harness_tasks_path`, of which at most `harness_max_items`
    are scored; `harness_runs_code: true` lets those files name Python functions, which run as you.
    """

    texts: list[str] = field(default_factory=list)
    max_bytes: int = 200_000
    max_document_bytes: int | None = None
    window_tokens: int = MISSING
    micro_batch_size: int = 1
    tasks: list[str] = field(default_factory=list)
    tasks_in_loop: bool = False
    run_code_unconfined: bool = False
    contamination: ContaminationConfig = field(default_factory=ContaminationConfig)
    stride_tokens: int | None = None
    cache: bool = True
    harness: list[str] = field(default_factory=list)
    harness_tasks_path: str | None = None
    harness_max_items: int | None = None
    harness_runs_code: bool = False


@dataclass
class ExportConfig:
    """How a promoted checkpoint becomes a Hugging Face folder.

    `dtype: null` keeps the base's type. `prompts` are completed by base and exported model side by side, at most
    `completion_tokens` each; without any they are the beginnings of held-out texts, and 0 tokens leave the step out.
    `instruct_model` is the folder of the instruct model that was made from this base: its difference to the base is added in a
    second folder (docs/export.md).
    """

    dtype: str | None = None
    max_shard_gb: float = 2.0
    prompts: list[str] = field(default_factory=list)
    completion_tokens: int = 32
    instruct_model: str | None = None


@dataclass
class CheckpointConfig:
    """A checkpoint every so many steps.

    `asynchronous` writes it while training goes on, for up to its size in host memory; `keep_best` keeps as many beside the newest, by
    the mean bits per byte of the domain texts in the in-loop evaluation.
    """

    every_steps: int = MISSING
    keep_last: int = 2
    asynchronous: bool = False
    keep_best: int = 0


@dataclass
class StopScoreConfig:
    """Training ends when an in-loop evaluation scores this text (bits per byte) or task (its main metric) at a threshold.

    Exactly one of `at_most` and `at_least` is set, in the metric's own unit.
    """

    of: str = MISSING
    at_most: float | None = None
    at_least: float | None = None


@dataclass
class StopConfig:
    """When training ends before its plan does: limits at which it saves and exits 6, and what it does with a bad step.

    `max_tokens` counts what the run has trained on since its first step; `scores` are thresholds on in-loop evaluations.

    An update is bad when its loss or gradient is not finite, or when its gradient norm is above `spike_factor` times the running
    median (null: no such test). Up to `max_skipped_steps` bad updates are left out, the next one ends the run.
    """

    max_hours: float | None = None
    max_usd: float | None = None
    max_kwh: float | None = None
    max_skipped_steps: int = 0
    spike_factor: float | None = None
    max_tokens: int | None = None
    scores: list[StopScoreConfig] = field(default_factory=list)


@dataclass
class MonitorConfig:
    """What is written while training. `grace_steps: null` judges forgetting from the end of the warm-up on."""

    log_every_steps: int = 1
    eval_every_steps: int = 0
    wandb_mode: str = "offline"
    wandb_project: str = "megatron_cpt"
    tensorboard: bool = False
    grace_steps: int | None = None


@dataclass
class DrillConfig:
    """How bad the continuations of a drill are.

    One trains `rate_steps` at `rate_factor` times the plan's peak rate, the other `blend_steps` on garbage at the peak rate.
    """

    rate_steps: int = 8
    rate_factor: float = 100.0
    blend_steps: int = 32


@dataclass
class ExperimentConfig:
    """The root: what `megatron-cpt` composes from `conf/` and the command line."""

    run_name: str = MISSING
    runs_dir: str = "runs"
    seed: int = 1234
    model: ModelConfig = field(default_factory=ModelConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    source: dict[str, SourceConfig] = field(default_factory=dict)
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    bench: dict[str, BenchConfig] = field(default_factory=dict)
    blend: BlendConfig = field(default_factory=BlendConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    gpu: GpuConfig = field(default_factory=GpuConfig)
    tariff: TariffConfig = field(default_factory=TariffConfig)
    allowance: AllowanceConfig = field(default_factory=AllowanceConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    stop: StopConfig = field(default_factory=StopConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    drill: DrillConfig = field(default_factory=DrillConfig)
