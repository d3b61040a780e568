"""Why a bill is not what was planned: the difference of time, money and energy taken apart into reasons that add up to it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from megatron_cpt.meter.attempts import AttemptRecord
from megatron_cpt.meter.totals import planned_of
from megatron_cpt.record.unknown import Figure, Unavailable, combine

# The reasons, in the order in which they are told. Those before the first colon are the keys of records.
TOKENS = "other tokens: more or fewer were trained on than planned"
LOST = "lost work: attempts and steps whose work is in no weights"
START = "starts: time before an attempt's first step and after its last"
SPEED = "speed: time per token that stayed, checkpoints and evaluations between the steps included"
PRICE = "price: a device-hour cost another price than planned"
POWER = "power: a device at work drew more or less than planned, as far as it was measured"
UNMEASURED = "not measured: what the plan expects of attempts and devices without a figure"
IN_WEIGHTS = ("finished", "stopped", "running")


@dataclass(frozen=True)
class Difference:
    """One figure of the bill against the plan: `actual` minus `planned` is the sum of `parts`, by reason.

    `actual` is of what has a figure. `num_outside` attempts have no time either, so that nothing is known of them.
    """

    planned: float
    actual: float
    parts: dict[str, float]
    num_outside: int


def useless_share(records: Sequence[AttemptRecord]) -> list[float]:
    """Return, for the attempts of one stage in order, the share of each one's work that is in no weights, from 0 to 1.

    An attempt began with `start_tokens` in its weights and read `tokens` more; where the next one begins with fewer than that, the last
    tokens before it are lost, of several attempts where its checkpoint is older than the last of them. An attempt that read nothing and
    did not finish is lost as a whole.
    """
    left = [float(record.tokens) for record in records]
    trained = [number for number, record in enumerate(records) if record.start_tokens is not None]
    for place in range(1, len(trained)):
        before, after = records[trained[place - 1]], records[trained[place]]
        missing = float((before.start_tokens or 0) + before.tokens - (after.start_tokens or 0))
        for number in reversed(trained[:place]):
            taken = min(max(missing, 0.0), left[number])
            left[number] -= taken
            missing -= taken
    return [
        1 - stayed / record.tokens if record.tokens else float(record.status not in IN_WEIGHTS)
        for record, stayed in zip(records, left, strict=True)
    ]


def differences(records: Sequence[AttemptRecord]) -> dict[str, Difference | Unavailable]:
    """Return why the `seconds`, `usd` and `kwh` of attempts differ from their plans; one run, the stages that have a plan.

    The plan is that of `planned_of`. Energy is that of the site (with PUE), on both sides.
    """
    planned = planned_of(records)
    if planned is None:
        return {key: Unavailable("no attempt carries a plan") for key in ("seconds", "usd", "kwh")}
    staged = {record.stage for record in records if record.planned}
    mine = [record for record in records if record.stage in staged]
    shares = useless_share(mine)
    return {
        "seconds": _of_time(mine, shares, planned),
        "usd": _of_rate(mine, shares, planned, key="usd", figure="usd", reason=PRICE),
        "kwh": _of_rate(mine, shares, planned, key="kwh", figure="site_kwh", reason=POWER),
    }


def _work(
    records: Sequence[AttemptRecord], shares: Sequence[float], planned: Mapping[str, Figure], *, figure: str, planned_work: float
) -> tuple[float, dict[str, float]]:
    """Return the work (seconds or device-seconds) of attempts, and why it is not what was planned, in the same unit."""
    pairs = zip(records, shares, strict=True)
    timed = [(value, share, record) for record, share in pairs if (value := _known(record, figure)) is not None]
    total = math.fsum(value for value, _, _ in timed)
    lost = math.fsum(value * share for value, share, _ in timed)
    began = math.fsum(value * (1 - share) * _share_of_start(record) for value, share, record in timed)
    tokens = planned.get("tokens", Unavailable("not recorded"))
    if isinstance(tokens, Unavailable) or tokens <= 0:
        return total, {TOKENS: 0.0, LOST: lost, START: began, SPEED: total - lost - began - planned_work}
    stayed = math.fsum(record.tokens * (1 - share) for _, share, record in timed)
    rate = planned_work / tokens
    return total, {TOKENS: (stayed - tokens) * rate, LOST: lost, START: began, SPEED: total - lost - began - stayed * rate}


def _share_of_start(record: AttemptRecord) -> float:
    """Return the share of an attempt's time in which no step was under way; 0 where it is not known."""
    if record.training_seconds is None or isinstance(record.seconds, Unavailable) or record.seconds <= 0:
        return 0.0
    return min(max(1 - record.training_seconds / record.seconds, 0.0), 1.0)


def _of_time(records: Sequence[AttemptRecord], shares: Sequence[float], planned: Mapping[str, Figure]) -> Difference | Unavailable:
    expected = planned.get("seconds", Unavailable("not recorded"))
    if isinstance(expected, Unavailable):
        return expected
    total, parts = _work(records, shares, planned, figure="seconds", planned_work=expected)
    return Difference(expected, total, parts, _num_outside(records, "seconds"))


def _of_rate(
    records: Sequence[AttemptRecord], shares: Sequence[float], planned: Mapping[str, Figure], *, key: str, figure: str, reason: str
) -> Difference | Unavailable:
    """Take apart a figure that the plan makes by a rate (price, power) times device-seconds."""
    expected, seconds = planned.get(key, Unavailable("not recorded")), planned.get("seconds", Unavailable("not recorded"))
    num_devices = max((record.num_ranks for record in records if record.planned), default=0)
    work = combine(lambda value: value * num_devices, seconds)
    if isinstance(expected, Unavailable):
        return expected
    if isinstance(work, Unavailable):
        return work
    if work <= 0:
        return Unavailable("the plan expects no device time")
    rate = expected / work
    _, parts = _work(records, shares, planned, figure="device_seconds", planned_work=work)
    actual, at_rate, unmeasured = 0.0, 0.0, 0.0
    for record in records:
        used, value = _known(record, "device_seconds"), _known(record, figure)
        if used is None:
            continue
        share = 0.0 if value is None else record.share_measured if figure == "site_kwh" else 1.0
        actual += value or 0.0
        at_rate += (value or 0.0) - used * rate * share
        unmeasured -= used * rate * (1 - share)
    in_unit = {name: value * rate for name, value in parts.items()}
    return Difference(expected, actual, {**in_unit, reason: at_rate, UNMEASURED: unmeasured}, _num_outside(records, "device_seconds"))


def _known(record: AttemptRecord, figure: str) -> float | None:
    value: Figure = getattr(record, figure)
    return None if isinstance(value, Unavailable) else value


def _num_outside(records: Sequence[AttemptRecord], figure: str) -> int:
    return sum(_known(record, figure) is None for record in records)
