"""One dataclass per `conf/` group. What decides a result or a bill has no default (`MISSING`) and must be in a file or an override."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from megatron_cpt.config.filter_schema import FilterConfig

MISSING: Any = "???"  # omegaconf's mark, repeated here so that this module needs no omegaconf


@dataclass
class ModelConfig:
    """The base model: a local Hugging Face folder."""

    path: str = MISSING  #: folder of the base model: config.json, safetensors, tokenizer
    licence: str = MISSING  #: SPDX expression of the base model's licence
    provenance: str = MISSING  #: where the base model came from, in words


@dataclass
class RowProbeConfig:
    """What `row_init: probe` tries: `rules` (all where none is named; a pair as `input/output`), each for so many training steps.

    A step reads `sequences` windows of `sequence_length` tokens at `schedule.peak_lr`. `held_out_tokens` of indexed domain text are
    kept from the steps, and the rule with the fewest bits per byte on them is taken.
    """

    rules: list[str] = field(default_factory=list)  #: rules to try; empty: all
    #: [steps] training steps of each trial
    steps: int = 50  # about 50 steps tell the rules apart, the loss at the start does not: arXiv 2608.03494
    sequences: int = 2  #: [sequences] windows in a step
    sequence_length: int = 256  #: [tokens] length of a window
    held_out_tokens: int = 8192  #: [tokens] domain text that no trial trains on and all are scored on


@dataclass
class CompareConfig:
    """Vocabularies trained on the domain sample beside the extension, each of `kinds` at each of `sizes` (empty: `num_new_pieces`).

    `normaliser` is identity, or nfkc, which is refused where it would change the text. `relearn_tokens` is how many tokens of training
    the new rows need, where you measured it (docs/reference/vocabulary-break-even.md); null takes a published figure.
    """

    kinds: list[str] = field(default_factory=lambda: ["bpe", "unigram", "byte_level"])  #: kinds of vocabulary to train beside the extension
    sizes: list[int] = field(default_factory=list)  #: [pieces] sizes to try; empty: num_new_pieces
    sample_bytes: int = 1_000_000  #: [bytes] domain text that they are trained on
    normaliser: str = "identity"  #: what is done to the text first
    relearn_tokens: float | None = None  #: [tokens] training that the new rows need, as you measured it; null: a published figure


@dataclass
class TokenizerConfig:
    """How the base tokenizer is extended. `num_new_pieces: 0` keeps it as it is.

    `terms` is a UTF-8 file of terms, one a line, that are forced in as pieces; `max_drift` the share of general documents whose ids they
    may change.
    `row_init` is the rule of new embedding rows, `row_init_output` that of output rows where it is another (untied models alone).
    """

    num_new_pieces: int = MISSING  #: [pieces] how many pieces are added; 0 keeps the base tokenizer
    document_separator: str = MISSING  #: the token that ends a document, as the base was trained with it
    pad_rows_to_multiple: int = 128  #: [rows] embedding and output matrices are padded to a multiple of this
    sample_bytes: int = 8_000_000  #: [bytes] domain text from which pieces are learnt
    row_init: str = "mean"  #: rule for the first values of new embedding rows
    terms: str = ""  #: file of terms, one a line, that become pieces; empty: none
    max_drift: float = 0.0  #: [share] general documents whose ids the terms may change
    row_init_output: str = ""  #: rule of new output rows where it is another one (untied models); empty: row_init
    row_probe: RowProbeConfig = field(default_factory=RowProbeConfig)  #: what row_init: probe tries
    compare: CompareConfig = field(default_factory=CompareConfig)  #: other vocabularies to train and compare


@dataclass
class ProvenanceConfig:
    """Where a text came from: its origin (a publisher, package or address), the date it was fetched or made (2026, 2026-11 or
    2026-11-29), and how it was obtained."""

    origin: str = MISSING  #: publisher, package or address
    date: str = MISSING  #: when it was fetched or made: 2026, 2026-11 or 2026-11-29
    obtained: str = MISSING  #: how it was obtained


@dataclass
class SourceConfig:
    """A source of text: where it lies, what it is for, whose it is (SPDX), where it came from, its language (BCP 47).

    `text_key` is the field that holds the text, or a list of fields whose texts are joined by a blank line. A document of fewer than
    `min_chars` characters is left out. `test_fraction` of the documents is held out for the gate and `valid_fraction` for what is watched
    while training; the digest of a text decides on which side it stands.
    """

    path: str = MISSING  #: a file, folder or glob: jsonl, jsonl.gz, jsonl.zst, txt, parquet
    text_key: Any = "text"  #: field of a record that holds the text, or a list of fields
    role: str = MISSING  #: what the text is for
    licence: str = MISSING  #: SPDX expression; LicenseRef-<name> for others
    provenance: ProvenanceConfig = field(default_factory=ProvenanceConfig)  #: where the text came from
    language: str = MISSING  #: BCP 47 tag of the text's language
    test_fraction: float = 0.05  #: [share] documents held out for the gate
    min_chars: int = 1  #: [characters] a shorter document is left out
    valid_fraction: float = 0.0  #: [share] documents held out for evaluations while training


@dataclass
class EngineConfig:
    """Where the corpus is read and cleaned: `local` processes, a `slurm` array or `ray`. It decides time alone, never a byte.

    `auto` is an array before the stage's job in a submitted line, where the corpus has more than one task, and `local` elsewhere.
    `workers: null` is every core of this machine (local), 16 elements of the array (slurm), every core of the cluster (ray). A task
    reads about `task_mb` MB; long jsonl files are cut at lines.
    """

    kind: str = "auto"  #: what reads and cleans the corpus
    workers: int | None = None  #: processes, array elements or cores; null: as many as there are (16 of an array)
    task_mb: float = 64.0  #: [MB] text that one task reads


@dataclass
class IndexEngineConfig:
    """Where the index is made: `local`, or a `slurm` array of an element for each source. It decides time alone, never a byte.

    `auto` is an array before the stage's job in a submitted line, where more than one source is trained on, and `local` elsewhere.
    """

    kind: str = "auto"  #: what makes the index


@dataclass
class IndexConfig:
    """How the training documents become token ids."""

    engine: IndexEngineConfig = field(default_factory=IndexEngineConfig)  #: where the work is done


@dataclass
class NearDedupConfig:
    """Near-duplicates by MinHash: texts that share a band of `rows_per_band` minima in one of `num_bands` are compared.

    Two texts are near-duplicates when the Jaccard similarity of their runs of `ngram` words (`ngram_characters` where most of a text is
    of a script without spaces) is at least `threshold`, counted exactly. `verify: false` takes every text that shares a band, and those
    that share one with it, for one text, as most tools do.
    """

    enabled: bool = False  #: whether near-duplicates are looked for
    #: [bands] bands of the signature
    num_bands: int = 14  # with 8 rows a pair of similarity 0.8 shares a band at 92 %: FineWeb's settings, arXiv 2406.17557
    rows_per_band: int = 8  #: [minima] minima in a band
    ngram: int = 5  #: [words] length of a shingle
    #: [characters] length of a shingle where a script has no spaces
    ngram_characters: int = 8  # a Chinese word has some 1.5 to 2 characters
    threshold: float = 0.8  #: [Jaccard similarity] from here on two texts are near-duplicates
    verify: bool = True  #: count the similarity of every candidate pair exactly
    seed: int = 1  #: seed of the hash functions


@dataclass
class DedupConfig:
    """Which documents are dropped because another one says the same, over all files and sources.

    `exact` drops equal texts: equal in every character, or with `compare: units` but for case, width, spaces and punctuation.
    """

    exact: bool = True  #: whether equal texts are dropped
    compare: str = "text"  #: what makes two texts equal
    near: NearDedupConfig = field(default_factory=NearDedupConfig)  #: near-duplicates


@dataclass
class DecontaminateConfig:
    """What happens to a training document that holds what is evaluated: `drop`, `report` (kept, and listed) or `off`.

    Every file of `bench` is looked for, and the documents of `texts`, files of held-out text that the experiment does not train on. A
    document holds an item when at least `item_share` of the runs of its question, or of its right answer, stand in it: runs of `words`
    words, `characters` where a script has no spaces. It holds a held-out text from `document_share` of its runs on.
    """

    action: str = "drop"  #: what happens to a training document that holds what is evaluated
    #: [words] length of a run
    words: int = 13  # Brown et al. 2020, arXiv 2005.14165, appendix C
    #: [characters] length of a run where a script has no spaces
    characters: int = 24  # a Chinese word has some 1.5 to 2 characters
    #: [share] runs of a question or answer from which it counts as held
    item_share: float = 0.5  # one run alone may be a set phrase, which statutes are full of (docs/reference/corpus.md)
    texts: list[str] = field(default_factory=list)  #: files of held-out text to look for besides the benchmarks
    text_key: str = "text"  #: field of their records that holds the text
    document_share: float = 0.5  #: [share] runs of a held-out text from which it counts as held


@dataclass
class SelectConfig:
    """Which documents of a pool are chosen by their likeness to a domain (docs/reference/corpus.md). The default chooses all.

    `target` defines the domain: sources of the experiment by name, or files, whose text is in `target_text_key`. The documents of `pool`
    (empty: every source but the target's) compete for `max_documents` and `max_bytes` of UTF-8 text; what is not chosen is rejected.
    Runs of up to `ngram` units are hashed into `num_buckets`; `prior_per_bucket` steadies a small target (0: as the paper has it).
    `terms` is a UTF-8 file of terms, one a line: a document with fewer than `min_hits` of them is not chosen, and each hit adds
    `hit_weight` to its log weight, in nats.
    """

    target: list[str] = field(default_factory=list)  #: sources or files that define the domain; empty: choose all
    target_text_key: str = "text"  #: field of the target files' records that holds the text
    pool: list[str] = field(default_factory=list)  #: sources to choose from; empty: every one but the target's
    max_documents: int | None = None  #: [documents] how many are chosen; null: no limit
    max_bytes: int | None = None  #: [bytes] how much UTF-8 text is chosen; null: no limit
    terms: str = ""  #: file of terms, one a line; empty: none
    min_hits: int = 0  #: [terms] a document with fewer is not chosen
    hit_weight: float = 0.0  #: [nats] what each hit adds to the log weight
    #: [units] longest run that is hashed
    ngram: int = 2  # both as in Xie et al. 2023, arXiv 2302.03169, section 3
    num_buckets: int = 10_000  #: [buckets] size of the hash table
    prior_per_bucket: float = 1.0  #: [counts] steadies the counts of a small target


@dataclass
class CoverageConfig:
    """What the chosen corpus is held against: the terms of `select.terms`, or `num_terms` drawn from the target, and `num_topics` of it."""

    num_terms: int = 200  #: [terms] how many are drawn from the target where none are given
    num_topics: int = 10  #: [topics] how many topics of the target are compared


@dataclass
class CorpusConfig:
    """How the sources become the corpus (docs/reference/corpus.md)."""

    engine: EngineConfig = field(default_factory=EngineConfig)  #: where the work is done
    filters: FilterConfig = field(default_factory=FilterConfig)  #: what is done to the text
    dedup: DedupConfig = field(default_factory=DedupConfig)  #: duplicates
    decontaminate: DecontaminateConfig = field(default_factory=DecontaminateConfig)  #: documents that hold what is evaluated
    select: SelectConfig = field(default_factory=SelectConfig)  #: choosing documents by their likeness to a domain
    coverage: CoverageConfig = field(default_factory=CoverageConfig)  #: what the chosen corpus is held against


@dataclass
class BlendStageConfig:
    """Other shares from a token count on, which is rounded up to a whole step."""

    from_tokens: int = MISSING  #: [tokens] when this stage begins
    shares: dict[str, float] = field(default_factory=dict)  #: [share] share of training samples of each source, normalised


@dataclass
class BlendConfig:
    """Share of training samples per source; shares are normalised. A source without a share is held out whole.

    `shares` hold until the first of `stages`, each of which holds until the next; every source is read on from where it stood.
    `reset_positions` counts positions anew in each document. `cross_document_attention: false` keeps a token from seeing the
    documents packed before its own. `loss_on_end_of_document: false` trains no prediction that starts from an end mark: the
    first token of a document does not follow from the document before.
    """

    shares: dict[str, float] = field(default_factory=dict)  #: [share] share of training samples of each source, normalised
    #: [epochs] a source that would be read more often is refused
    max_epochs: float = 4.0  # up to 4 epochs are nearly as good as new data: Muennighoff et al. 2023, arXiv 2305.16264
    num_tokens: int = MISSING  #: [tokens] length of the run, rounded up to whole steps
    stages: list[BlendStageConfig] = field(default_factory=list)  #: other shares from later token counts on
    reset_positions: bool = False  #: count positions anew in each packed document
    cross_document_attention: bool = True  #: let a token see the documents packed before its own
    loss_on_end_of_document: bool = True  #: train the prediction of a document's first token from the end mark before it


@dataclass
class OptimConfig:
    beta1: float = 0.9  #: decay of AdamW's first moment
    beta2: float = 0.95  #: decay of AdamW's second moment
    epsilon: float = 1.0e-8  #: AdamW's epsilon
    weight_decay: float = MISSING  #: AdamW's decoupled weight decay
    clip_grad_norm: float = 1.0  #: [L2 norm] the gradient is scaled down to this norm
    #: [multiple] rate of embedding and output rows over the schedule's
    embedding_lr_scale: float = 1.0  # rate of embedding and output rows, as a multiple of the schedule's
    #: weight of the load-balancing loss of a mixture of experts
    router_aux_loss: float = 0.0  # weight of the load-balancing loss of a mixture of experts (Fedus et al. 2021, arXiv 2101.03961)


@dataclass
class ScheduleConfig:
    """The learning rate over the run. A phase has one length: a fraction of the run after the new-rows stage, tokens or samples.

    The floor is `min_lr`, or `min_fraction` of the peak. `anneal_*` is the last phase of wsd and infinite, `cooldown_*`
    and `constant_lr` belong to infinite. Without any warm-up length it is 1 %. The warm-up begins at `warmup_from_lr`, 0 without one.
    """

    kind: str = "cosine"  #: shape of the learning rate over the run
    peak_lr: float = MISSING  #: [rate per update] highest rate
    min_lr: float | None = None  #: [rate per update] floor, or min_fraction instead
    min_fraction: float | None = None  #: [share of the peak] floor, or min_lr instead
    warmup_fraction: float | None = None  #: [share of the run] length of the warm-up
    warmup_tokens: int | None = None  #: [tokens] the same in tokens
    warmup_samples: int | None = None  #: [samples] the same in samples
    warmup_from_lr: float | None = None  #: [rate per update] where the warm-up begins; null: 0
    anneal_fraction: float | None = None  #: [share of the run] length of the last phase (wsd, infinite)
    anneal_tokens: int | None = None  #: [tokens] the same in tokens
    anneal_samples: int | None = None  #: [samples] the same in samples
    anneal_shape: str | None = None  #: shape of the last phase (wsd)
    cooldown_fraction: float | None = None  #: [share of the run] length of the way down to constant_lr (infinite)
    cooldown_tokens: int | None = None  #: [tokens] the same in tokens
    cooldown_samples: int | None = None  #: [samples] the same in samples
    constant_lr: float | None = None  #: [rate per update] rate between cooldown and last phase (infinite)
    new_rows_first_tokens: int = 0  #: [tokens] first trains the new rows alone for so long; 0: never
    new_rows_lr: float | None = None  #: [rate per update] rate of that stage, which must have one


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

    tensor: int = MISSING  #: [ranks] ranks that share each matrix
    pipeline: int = MISSING  #: [ranks] ranks that share the layers
    virtual_pipeline: int = 1  #: [chunks] chunks of layers on each pipeline rank; above 1: interleaved
    micro_batch_size: int = MISSING  #: [sequences] sequences in one forward pass of a data-parallel rank
    global_batch_size: int = MISSING  #: [sequences] sequences in one update
    sequence_length: int = MISSING  #: [tokens] length of a training sequence
    sequence_parallel: bool = False  #: shard activations between the tensor-parallel regions along the sequence
    distributed_optimizer: bool = True  #: shard the optimizer's state over data-parallel ranks (ZeRO-1)
    recompute: str = "none"  #: what is computed again in the backward pass to save memory
    expert: int = 1  #: [ranks] data-parallel ranks that share the experts
    dtype: str = MISSING  #: type of weights and activations
    context: int = 1  #: [ranks] ranks that share a sequence
    overlap_grad_reduce: bool = False  #: send gradients while the backward pass goes on
    overlap_param_gather: bool = False  #: send updated weights during the next forward pass
    bucket_size: int | None = None  #: [parameters] size of one message of the two overlaps; null: megatron-core's own
    fp8: str = "none"  #: format of the layers' matrix products
    fp8_recipe: str = "delayed"  #: how fp8's scales are found
    fsdp: bool = False  #: shard weights and gradients over data-parallel ranks too (ZeRO-3)


@dataclass
class ClusterConfig:
    """Where it runs. The memory of a device is in the gpu group.

    `checkpoint_seconds` is what writing one holds training up, `restart_seconds` what an interruption costs until training goes on:
    MegaScale finds a fault in under 10 minutes and catches up in under 15 (Jiang et al. 2024, arXiv 2402.15627).

    Under Slurm `env_file` is a shell file that each job sources (examples: slurm/env/), and a training job that is warned or loses a
    node starts again at most `max_requeues` times; `preflight` looks at every node before it trains. `has_emulated_meter` marks the
    joules of Slurm's accounting as no measurement. `memory_gb` is what each job asks for of a node's memory, 0 all of it; `null` is the
    cluster's default, or for jobs on ranks what the plan says they need where that is more. With `exclusive` jobs on ranks have whole
    nodes to themselves, memory included.
    """

    backend: str = MISSING  #: devices that training runs on
    num_nodes: int = MISSING  #: [nodes] machines of the run
    ranks_per_node: int = MISSING  #: [ranks] processes (devices) on each
    threads_per_rank: int = 1  #: [threads] CPU threads of a process
    checkpoint_seconds: float = 60.0  #: [s] what writing a checkpoint holds training up
    restart_seconds: float = 900.0  #: [s] what an interruption costs until training goes on
    partition: str | None = None  #: Slurm partition; null: the site's default
    account: str | None = None  #: Slurm account; null: your default
    time_limit: str | None = None  #: Slurm time limit of a job, e.g. 24:00:00; null: the partition's
    env_file: str | None = None  #: shell file that each job sources, e.g. slurm/env/plain.sh
    qos: str | None = None  #: Slurm quality of service; null: your default
    max_requeues: int = 20  #: [times] how often a warned or struck training job starts again
    preflight: bool = True  #: look at every node before training on it
    has_emulated_meter: bool = False  #: the joules of Slurm's accounting are no measurement here
    memory_gb: float | None = None  #: [GB] asked for in each job, 0 all of a node; null: the default, or the plan's need
    exclusive: bool = False  #: whole nodes for the jobs on ranks, memory included


@dataclass
class GpuConfig:
    """A device: dense peak per second, memory, power; `null` is unknown and stays unknown. `mfu_*` are shares of the bf16 peak.

    `matmul_tflops` to `num_multiprocessors` let the plan predict a step (docs/reference/planning.md): what large matrix products reach,
    and what memory, the link to another device of the node, and the network to another node carry, each way. `mtbf_hours` is how long
    one device, with its part of node and network, works between two interruptions of a run.

    Power is `node_watts_per_device` where somebody measured a node (a device's part of it), else that of the node's parts: the device's
    rated watts times the share of them that training draws, the rest of the node, and the switches of a run over several nodes.
    """

    name: str = MISSING  #: name of the device
    dense_tflops: float | None = None  #: [TFLOP/s] dense bf16 peak (fp32 of a CPU)
    memory_gb: float | None = None  #: [GB] memory of the device
    node_watts_per_device: float | None = None  #: [W] measured power of a node, a device's part of it
    mfu_low: float | None = None  #: [share of the peak] low end of the model-FLOP utilization
    mfu_likely: float | None = None  #: [share of the peak] likely model-FLOP utilization; null: from published runs
    mfu_high: float | None = None  #: [share of the peak] high end of it
    source: str = MISSING  #: where these figures come from
    dense_fp8_tflops: float | None = None  #: [TFLOP/s] dense fp8 peak
    fp8_mfu_low: float | None = None  #: [share of the bf16 peak] the same with fp8
    fp8_mfu_likely: float | None = None  #: [share of the bf16 peak] the same with fp8
    fp8_mfu_high: float | None = None  #: [share of the bf16 peak] the same with fp8
    matmul_tflops: float | None = None  #: [TFLOP/s] what large bf16 matrix products reach
    matmul_fp8_tflops: float | None = None  #: [TFLOP/s] what large fp8 matrix products reach
    memory_tb_per_second: float | None = None  #: [TB/s] bandwidth of the device's memory
    link_gb_per_second: float | None = None  #: [GB/s] to another device of the node, each way
    network_gb_per_second: float | None = None  #: [GB/s] to another node, each way, a device
    num_multiprocessors: int | None = None  #: [multiprocessors] streaming multiprocessors of the device
    mtbf_hours: float | None = None  #: [h] mean time between interruptions, a device
    device_watts: float | None = None  #: [W] rated power of the device
    watts_share_low: float | None = None  #: [share of the rated power] low end of what training draws
    watts_share_likely: float | None = None  #: [share of the rated power] likely draw of training
    watts_share_high: float | None = None  #: [share of the rated power] high end of it
    rest_of_node_watts: float | None = None  #: [W] the rest of the node, a device's part of it
    network_watts: float | None = None  #: [W] switches of a run over several nodes, a device's part of them
    power_source: str = ""  #: where the figures on power come from


@dataclass
class TariffConfig:
    """Money and carbon per unit, each with its source; `null` is unknown and stays unknown. A price has the date of its quotation.

    `*_low` and `*_high` are the ends of an interval around the likely figure, which alone is one too: nothing is known of its spread.
    `grid_region` is a region of the shipped table (`plan/grid_intensity.csv`); a grid intensity of your own goes before it, and is
    location-based like it. `market_g_co2e_per_kwh` is what your contract for electricity states, and never taken from the grid.
    `usd_per_gb_month` prices what a run stores for `keep_months`. `embodied_g_co2e_per_device_hour` is the making of the machines.
    """

    name: str = MISSING  #: name of the tariff
    usd_per_device_hour: float | None = None  #: [USD/h] price of a device (of a rank on CPUs)
    price_source: str = ""  #: who quoted it
    pue: float | None = None  #: [ratio] power usage effectiveness of the site
    pue_source: str = ""  #: where it comes from
    grid_g_co2e_per_kwh: float | None = None  #: [g CO2e/kWh] intensity of the grid, location-based
    grid_source: str = ""  #: where it comes from
    price_date: str = ""  #: date of the quotation
    usd_per_device_hour_low: float | None = None  #: [USD/h] low end of the price
    usd_per_device_hour_high: float | None = None  #: [USD/h] high end of the price
    pue_low: float | None = None  #: [ratio] low end of it
    pue_high: float | None = None  #: [ratio] high end of it
    grid_region: str | None = None  #: region of the shipped table of grid intensities
    market_g_co2e_per_kwh: float | None = None  #: [g CO2e/kWh] intensity that your contract for electricity states
    market_source: str = ""  #: where it comes from
    usd_per_gb_month: float | None = None  #: [USD/GB/month] price of storage
    storage_date: str = ""  #: date of that quotation
    storage_source: str = ""  #: who quoted it
    keep_months: float | None = None  #: [months] how long what the run stores is kept
    embodied_g_co2e_per_device_hour: float | None = None  #: [g CO2e/h] making of the machines, a device
    embodied_source: str = ""  #: where it comes from


@dataclass
class AllowanceConfig:
    """Device time of development and of runs that fail, as a share on top of the run's own: a line of its own in the plan.

    Published: 0.5 (OLMo, arXiv 2503.05804), 4.6 (Olmo 3: 82.2 % of all was not the final run). `null` counts nothing, and says so.
    """

    low: float | None = None  #: [share of the run] low end of it
    likely: float | None = None  #: [share of the run] likely share; null: nothing is counted
    high: float | None = None  #: [share of the run] high end
    source: str = ""  #: where these shares come from


@dataclass
class GateRuleConfig:
    """A rule on one metric of a held-out text or a task; the margin is in the metric's own unit.

    `group: null` is the role of the text or the group of the task. An advisory rule (`required: false`) is shown and decides
    nothing. `confidence: null` is that of the gate.
    """

    of: str = MISSING  #: name of a text of eval.texts or of a task
    kind: str = MISSING  #: what the candidate must show
    margin: float = MISSING  #: [unit of the metric] by how much
    metric: str = "bits_per_byte"  #: metric of the text or task
    group: str | None = None  #: group that the rule counts for; null: the text's role or the task's group
    required: bool = True  #: false: shown, and decides nothing
    confidence: float | None = None  #: [probability] of the interval; null: the gate's


@dataclass
class GateLimitConfig:
    """A hard limit while training: a held-out text may not be this much above the frozen base at an in-loop evaluation."""

    of: str = MISSING  #: name of a text of eval.texts
    max_increase: float = MISSING  #: [bits per byte] training stops when the text is surely more than this above the frozen base
    metric: str = "bits_per_byte"  #: metric of the text


@dataclass
class RetryConfig:
    """One change against the round that was rolled back; exactly one of these is set.

    `lower_rate` multiplies every rate of the schedule; `replay` is the share of the general sources in the blend;
    `vocabulary: keep` begins anew with the base's own vocabulary.
    """

    lower_rate: float | None = None  #: [multiple] every rate of the schedule times this
    replay: float | None = None  #: [share] of the general sources in the blend
    vocabulary: str | None = None  #: begin anew with the base's own vocabulary


@dataclass
class GateConfig:
    """How a candidate is judged, what stops training at once, and what is tried after a rollback (docs/reference/rollback.md)."""

    rules: list[GateRuleConfig] = field(default_factory=list)  #: what a candidate must show
    confidence: float = 0.95  #: [probability] of the intervals
    bootstrap_samples: int = 2000  #: [resamples] resamples of the paired bootstrap
    limits: list[GateLimitConfig] = field(default_factory=list)  #: hard limits while training
    retries: list[RetryConfig] = field(default_factory=list)  #: what is tried after a rollback, in order
    max_retries: int = 0  #: [rounds] how many of them are taken without asking


@dataclass
class BenchConfig:
    """A benchmark: a JSONL file of questions (docs/reference/bench.md). What its rows say of group, licence, source need not be repeated.

    `template` turns a question into a prompt ({question} is its place) and `separator` stands before an answer. The first `few_shot`
    items are shown as examples and not scored; at most `max_items` of the others are. What is generated, up to `max_new_tokens`, ends at
    the first text of `stop` (null: the kind's own). Of code, `num_samples` programs are drawn at `temperature` for each k of `pass_at`.
    """

    path: str = MISSING  #: JSONL file of questions
    group: str | None = None  #: what it measures; null: as the rows say
    licence: str | None = None  #: SPDX expression; null: as the rows say
    source: str | None = None  #: where it came from; null: as the rows say
    template: str | None = None  #: text around a question; {question} is its place
    separator: str = " "  #: text before an answer
    few_shot: int = 0  #: [items] first items shown as examples and not scored
    max_items: int | None = None  #: [items] most that are scored; null: all
    max_new_tokens: int = 128  #: [tokens] most that are generated for an item
    stop: list[str] | None = None  #: texts that end what is generated; null: the kind's own
    num_samples: int = 1  #: [programs] drawn for an item of code
    temperature: float = 0.0  #: of that drawing; 0: the likeliest token
    pass_at: list[int] = field(default_factory=lambda: [1])  #: values of k of pass@k


@dataclass
class ContaminationConfig:
    """When an item or a held-out document counts as seen in training, by runs of words (of characters where a script has no spaces).

    An item is contaminated when more than `task_share` of its runs stand in the training index (0: any one does), a held-out document
    from `document_share` on.
    """

    #: [words] length of a run
    words: int = 13  # Brown et al. 2020, arXiv 2005.14165, appendix C
    #: [characters] length of a run where a script has no spaces
    characters: int = 24  # a Chinese word has some 1.5 to 2 characters
    task_share: float = 0.0  #: [share] an item counts when more of its runs stand in the index
    document_share: float = 0.5  #: [share] a held-out document counts from here on


@dataclass
class EvalConfig:
    """Held-out texts: the test split of each named source, at most `max_bytes` of it and `max_document_bytes` of a document.

    `tasks` names benchmarks of `bench`; with `tasks_in_loop` they are scored while training too. Generated code runs in a sandbox
    (docs/reference/bench.md); where the kernel offers none the evaluation stops, unless `run_code_unconfined` accepts the risk.

    With `stride_tokens` windows overlap: each scores so many tokens, given the `window_tokens - stride_tokens` before them, at
    `window_tokens / stride_tokens` times the cost; null cuts a document into windows side by side. `cache` keeps the scores of the base
    and of the extended start in `<runs_dir>/.eval-cache`, for other runs that score the same weights on the same items in the same way.
    `harness` names tasks of lm-evaluation-harness in the task files of `harness_tasks_path`, of which at most `harness_max_items`
    are scored; `harness_runs_code: true` lets those files name Python functions, which run as you.
    """

    texts: list[str] = field(default_factory=list)  #: sources whose test side is scored
    max_bytes: int = 200_000  #: [bytes] most of a text that is scored
    max_document_bytes: int | None = None  #: [bytes] most of a document; null: all of it
    window_tokens: int = MISSING  #: [tokens] length of a scored window
    micro_batch_size: int = 1  #: [windows] windows in one forward pass
    tasks: list[str] = field(default_factory=list)  #: benchmarks of bench to score
    tasks_in_loop: bool = False  #: score them while training too
    run_code_unconfined: bool = False  #: run generated code even where the kernel offers no sandbox
    contamination: ContaminationConfig = field(default_factory=ContaminationConfig)  #: what counts as seen in training
    stride_tokens: int | None = None  #: [tokens] step between overlapping windows; null: side by side
    cache: bool = True  #: keep the base's scores for other runs with equal inputs
    harness: list[str] = field(default_factory=list)  #: tasks of lm-evaluation-harness, by name
    harness_tasks_path: str | None = None  #: folder of their task files
    harness_max_items: int | None = None  #: [items] most of a task that are scored; null: all
    harness_runs_code: bool = False  #: let task files name Python functions, which run as you


@dataclass
class ExportConfig:
    """How a promoted checkpoint becomes a Hugging Face folder.

    `dtype: null` keeps the base's type. `prompts` are completed by base and exported model side by side, at most
    `completion_tokens` each; without any they are the beginnings of held-out texts, and 0 tokens leave the step out.
    `instruct_model` is the folder of the instruct model that was made from this base: its difference to the base is added in a
    second folder (docs/reference/export.md).
    """

    dtype: str | None = None  #: type of the exported weights; null: the base's
    max_shard_gb: float = 2.0  #: [GB] largest file of weights
    prompts: list[str] = field(default_factory=list)  #: texts that base and exported model complete side by side
    completion_tokens: int = 32  #: [tokens] most of a completion; 0: none is made
    instruct_model: str | None = None  #: folder of the instruct model that was made from this base; null: none


@dataclass
class CheckpointConfig:
    """A checkpoint every so many steps.

    `asynchronous` writes it while training goes on, for up to its size in host memory; `keep_best` keeps as many beside the newest, by
    the mean bits per byte of the domain texts in the in-loop evaluation.
    """

    every_steps: int = MISSING  #: [steps] between two checkpoints
    keep_last: int = 2  #: [checkpoints] newest that stay
    asynchronous: bool = False  #: write while training goes on
    keep_best: int = 0  #: [checkpoints] best by the domain texts that stay besides


@dataclass
class StopScoreConfig:
    """Training ends when an in-loop evaluation scores this text (bits per byte) or task (its main metric) at a threshold.

    Exactly one of `at_most` and `at_least` is set, in the metric's own unit.
    """

    of: str = MISSING  #: name of a text of eval.texts or of a task
    at_most: float | None = None  #: [unit of the metric] stop at this score or below
    at_least: float | None = None  #: [unit of the metric] stop at this score or above


@dataclass
class StopConfig:
    """When training ends before its plan does: limits at which it saves and exits 6, and what it does with a bad step.

    `max_tokens` counts what the run has trained on since its first step; `scores` are thresholds on in-loop evaluations.

    An update is bad when its loss or gradient is not finite, or when its gradient norm is above `spike_factor` times the running
    median (null: no such test). Up to `max_skipped_steps` bad updates are left out, the next one ends the run.
    """

    max_hours: float | None = None  #: [h] time of training; null: no limit
    max_usd: float | None = None  #: [USD] cost of training; null: no limit
    max_kwh: float | None = None  #: [kWh] energy of training; null: no limit
    max_skipped_steps: int = 0  #: [updates] bad ones that are left out before the run ends
    spike_factor: float | None = None  #: [multiple] an update is bad above this times the median gradient norm; null: no such test
    max_tokens: int | None = None  #: [tokens] trained since the run's first step; null: no limit
    scores: list[StopScoreConfig] = field(default_factory=list)  #: thresholds on in-loop evaluations


@dataclass
class MonitorConfig:
    """What is written while training. `grace_steps: null` judges forgetting from the end of the warm-up on."""

    log_every_steps: int = 1  #: [steps] between two lines of metrics.jsonl
    eval_every_steps: int = 0  #: [steps] between two in-loop evaluations; 0: none
    wandb_mode: str = "offline"  #: where Weights & Biases writes
    wandb_project: str = "megatron_cpt"  #: project of Weights & Biases
    tensorboard: bool = False  #: write event files for TensorBoard too
    grace_steps: int | None = None  #: [steps] forgetting is not judged before; null: the warm-up's


@dataclass
class DrillConfig:
    """How bad the continuations of a drill are.

    One trains `rate_steps` at `rate_factor` times the plan's peak rate, the other `blend_steps` on garbage at the peak rate.
    """

    rate_steps: int = 8  #: [steps] length of the continuation with a huge rate
    rate_factor: float = 100.0  #: [multiple] its rate over the plan's peak
    blend_steps: int = 32  #: [steps] length of the continuation on garbage


@dataclass
class ExperimentConfig:
    """The root: what `megatron-cpt` composes from `conf/` and the command line."""

    run_name: str = MISSING  #: name of the run and of its folder
    runs_dir: str = "runs"  #: folder of all runs
    seed: int = 1234  #: seed of everything random in the run
    model: ModelConfig = field(default_factory=ModelConfig)  #: the base model
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)  #: the vocabulary
    source: dict[str, SourceConfig] = field(default_factory=dict)  #: texts, by name
    corpus: CorpusConfig = field(default_factory=CorpusConfig)  #: how the sources become the corpus
    index: IndexConfig = field(default_factory=IndexConfig)  #: how the corpus becomes token ids
    bench: dict[str, BenchConfig] = field(default_factory=dict)  #: benchmarks, by name
    blend: BlendConfig = field(default_factory=BlendConfig)  #: what is trained on, how much of each
    optim: OptimConfig = field(default_factory=OptimConfig)  #: the optimizer
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)  #: the learning rate
    parallel: ParallelConfig = field(default_factory=ParallelConfig)  #: how model and batch are split
    cluster: ClusterConfig = field(default_factory=ClusterConfig)  #: where it runs
    gpu: GpuConfig = field(default_factory=GpuConfig)  #: the device
    tariff: TariffConfig = field(default_factory=TariffConfig)  #: prices and factors
    allowance: AllowanceConfig = field(default_factory=AllowanceConfig)  #: device time of development and failed runs
    gate: GateConfig = field(default_factory=GateConfig)  #: how a candidate is judged
    eval: EvalConfig = field(default_factory=EvalConfig)  #: what is scored
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)  #: when checkpoints are written
    export: ExportConfig = field(default_factory=ExportConfig)  #: the Hugging Face folder
    stop: StopConfig = field(default_factory=StopConfig)  #: when training ends early
    monitor: MonitorConfig = field(default_factory=MonitorConfig)  #: what is written while training
    drill: DrillConfig = field(default_factory=DrillConfig)  #: how bad a drill is
