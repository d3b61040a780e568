"""Begins a new round of a run: one that a person asks for, or the next one of the retry policy."""

from __future__ import annotations

from megatron_cpt.errors import ConfigError, RolledBack
from megatron_cpt.gate.act import GOOD_NAME, GoodCheckpoint
from megatron_cpt.gate.rounds import Round, asked_round, begin_round, going_on_from, next_retry, resume_point, tried_rounds
from megatron_cpt.gate.verdict import VERDICT_NAME, Verdict
from megatron_cpt.line.deciding import do_verdict
from megatron_cpt.line.inputs import INPUTS, plan_inputs
from megatron_cpt.line.run import Run, say
from megatron_cpt.record.manifest import MANIFEST_NAME, finished
from megatron_cpt.stage_names import STAGES


def rollback_without_retry(run: Run, rollback: RolledBack) -> RolledBack:
    """Return the rollback that ends the walk, with what was tried in each round when there was more than one."""
    tried = tried_rounds(run.folder)
    if len(tried) < 2:
        return rollback
    return RolledBack(
        "The candidate was rolled back, and the retry policy has nothing more to try. A person decides now:\n    " + "\n    ".join(tried),
        where=run.of("gate") / VERDICT_NAME,
        value=f"{GOOD_NAME} names {GoodCheckpoint.load(run.folder).checkpoint}",
        next_step="Change one thing and begin a round of your own: megatron-cpt run --new-round ... <overrides>.",
    )


def begin_asked_round(run: Run) -> None:
    """Begin the round that a person asked for, after a verdict and with a configuration that differs from the one that was judged.

    Raises:
        ConfigError: there is no verdict yet, nothing differs, or something differs that a round cannot change.
    """
    now = run.round
    if not (run.of("gate") / MANIFEST_NAME).exists():
        if now.number > 1 and not (run.of("plan") / MANIFEST_NAME).exists():
            return  # a command that was killed had begun it
        raise ConfigError(
            f"Round {now.number} has no verdict yet, so that no new round can begin.",
            where=run.of("gate"),
            next_step="Leave out --new-round to go on with this round. After changes use a new run_name.",
        )
    do_verdict(run, say_it=False)
    if now.changes:
        dropped = ", then ".join(map(str, now.changes))
        say(f"--- a round that is asked for is as it is asked for: the retries' changes are dropped ({dropped})")
    for stage in STAGES[: [each.name for each in STAGES].index("plan")]:
        finished(run.of(stage.name), INPUTS[stage.name](run))
    before, now_wanted = run.manifest("plan").inputs, plan_inputs(run)
    if all(before.get(key) == now_wanted[key] for key in ("settings", "seed")):
        raise ConfigError(
            "Nothing differs from the round that was judged, so that a new one would end alike.",
            where=run.of("plan"),
            next_step="Change something with it, e.g. megatron-cpt run --new-round ... schedule.peak_lr=1e-5 or blend.num_tokens=2000000.",
        )
    _begin_round(run, asked_round(now))


def begin_retry(run: Run) -> None:
    """Begin the next round of the retry policy.

    Raises:
        ConfigError: the last verdict is no rollback, or the policy has nothing more to try.
    """
    now = run.round
    if now.num_retries and not (run.of("plan") / MANIFEST_NAME).exists():
        return  # a command that was killed had begun it
    gate = run.of("gate") / VERDICT_NAME
    if not gate.exists() or Verdict.load(gate).decision != "rollback":
        raise ConfigError("Only a rollback is retried.", where=gate, next_step="Run the line to its verdict first.")
    following = next_retry(now, run.plan)
    if following is None:
        raise ConfigError(
            f"The plan allows {run.plan.gate.max_retries} retries, and {now.num_retries} were made.",
            where="gate.max_retries",
            next_step="Begin a round of your own: megatron-cpt run --new-round ... <overrides>.",
        )
    do_verdict(run, say_it=False)
    _begin_round(run, following)


def _begin_round(run: Run, following: Round) -> None:
    point = None
    verdict = Verdict.load(run.of("gate") / VERDICT_NAME)
    if verdict.decision == "unknown":  # neither refused nor promoted: what was trained is gone on with
        facts = run.manifest("train").facts
        point = resume_point(run.folder, facts["checkpoint"], facts["checkpoint_sha256"])
    else:
        good = GoodCheckpoint.load(run.folder)
        if good.is_trained:
            point = resume_point(run.folder, good.checkpoint, good.sha256)
    begin_round(run.folder, going_on_from(following, point), stages=[stage.name for stage in STAGES])
    say(f"--- round {following.number}, {following.why}: from {point.checkpoint if point else 'the initial weights'}")
