"""What each command that is no stage reads, writes and refuses, with examples, for its `--help`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CommandText:
    """The help of one command: a sentence, what it reads, writes and refuses, and examples as arguments of `megatron-cpt`."""

    does: str
    reads: str
    writes: str
    refuses: str
    examples: tuple[str, ...]
    more: str = ""

    @property
    def description(self) -> str:
        return f"{self.does}\n\nreads:   {self.reads}\nwrites:  {self.writes}\nrefuses: {self.refuses}"

    @property
    def epilog(self) -> str:
        return "\n".join(["examples:", *(f"  {example}" for example in self.examples)])


COMMANDS = {
    "run": CommandText(
        "Walk the line from corpus to report. A stage that has finished with equal inputs is not done again.",
        "the configuration; the base model and raw text that it names",
        "runs/<run_name>/, a folder a stage, and the run's ledger",
        "what any of its stages refuses; a run that another command is working on",
        (
            "megatron-cpt run experiment=tiny",
            "megatron-cpt run --until plan experiment=medical schedule.peak_lr=1e-5",
            "megatron-cpt run -m schedule.peak_lr=1e-5,3e-5 experiment=tiny",
        ),
    ),
    "audit": CommandText(
        "Check that the verdict was carried out and that no record is missing.",
        "the records of a run",
        "nothing",
        "a file that differs from its record, a verdict that was not carried out; ends with 3 then",
        ("megatron-cpt audit experiment=tiny", "megatron-cpt audit run_name=second experiment=medical"),
    ),
    "drill": CommandText(
        "Continue a judged run badly, in a copy that shares its files, and test every promise of the gate and the rollback.",
        "a run with a verdict",
        "copies of the run beside it, and the drill's page",
        "a run without a verdict; a broken promise of a drill ends with 3",
        ("megatron-cpt drill experiment=tiny", "megatron-cpt drill --only rate experiment=tiny"),
    ),
    "doctor": CommandText(
        "Look at Python, packages, memory, disk, clock, GPUs, links, meters and Slurm; with an experiment also at its files and plan.",
        "this machine; with overrides the configuration, the base model's config.json and the sources",
        "nothing",
        "a machine on which the planned run could not start: ends with 2",
        ("megatron-cpt doctor", "megatron-cpt doctor experiment=medical cluster=h100_8 gpu=h100_sxm --json"),
    ),
    "search": CommandText(
        "Rank every legal layout that fits by predicted time, and say why the configuration's own is slower if it is.",
        "the configuration and the base model's config.json; no stage need have run, no GPU is used",
        "nothing",
        "a device whose rates are not known",
        (
            "megatron-cpt search experiment=medical cluster=h100_8 gpu=h100_sxm parallel.dtype=bf16",
            "megatron-cpt search --count 3 experiment=medical cluster=h100_8 gpu=h100_sxm parallel.dtype=bf16",
        ),
    ),
    "calibrate": CommandText(
        "Measure matrix rate, memory bandwidth and the link between two ranks, and hold a finished run's time against its plan.",
        "this machine; the plan and steps of the run, if it has any",
        "with --out, a gpu group for --config-dir; nothing is corrected by it",
        "a file that exists already",
        ("megatron-cpt calibrate experiment=tiny", "megatron-cpt calibrate --out mine/gpu/this_host.yaml experiment=tiny"),
    ),
    "dashboard": CommandText(
        "Print the panels of a project's wandb workspace as JSON, or save them there: gain, forgetting, training, speed, cost, energy.",
        "nothing: the panels are code and fit every run (docs/reference/trackers.md)",
        "with --save, a new view of the project's workspace at wandb",
        "with --save: a project without its entity, a machine without wandb key or without the extra `dashboard`",
        ("megatron-cpt dashboard > panels.json", "megatron-cpt dashboard --save my-team/megatron_cpt"),
    ),
    "completion": CommandText(
        "Print a script that completes commands, options, groups, their options and keys.",
        "nothing",
        "nothing",
        "a shell other than bash and zsh",
        ("source <(megatron-cpt completion bash)", "megatron-cpt completion zsh > ~/.zfunc/_megatron-cpt"),
    ),
    "submit": CommandText(
        "Plan here, freeze code and configuration into the run's folder, and send the line to Slurm as a chain of jobs.",
        "the configuration, its cluster group, and what the plan reads",
        "runs/<run_name>/slurm/submission-<n>/, and jobs in Slurm's queue",
        "a plan that does not fit; a stage whose inputs changed; a run whose jobs are still in the queue",
        (
            "megatron-cpt submit --dry-run experiment=medical cluster=h100_8 gpu=h100_sxm parallel.dtype=bf16 parallel.global_batch_size=8",
            "megatron-cpt submit --until train experiment=medical cluster=h100_8 gpu=h100_sxm parallel.dtype=bf16",
        ),
    ),
    "status": CommandText(
        "Show a submitted line: its jobs, last step, loss, rate and spend.",
        "the run's submission and records; Slurm's queue and accounting",
        "nothing",
        "a run that was not submitted",
        ("megatron-cpt status experiment=medical", "megatron-cpt status run_name=second experiment=medical"),
    ),
    "preflight": CommandText(
        "In a Slurm job: look at its nodes before training on them. The job bodies call it.",
        "the job's nodes",
        "what it found of each node, into the run's folder",
        "a shell that is in no Slurm job; nodes that could not train, by name",
        ("megatron-cpt preflight experiment=medical", "megatron-cpt preflight --composed runs/medical/slurm/submission-1/config.yaml"),
    ),
    "cancel": CommandText(
        "End a submitted line, training with a checkpoint.",
        "the run's submission; Slurm's queue",
        "a stop request into the run's folder",
        "a run that was not submitted",
        ("megatron-cpt cancel experiment=medical", "megatron-cpt cancel --wait 60 experiment=medical"),
    ),
}
