"""What the vocab stage needs to know of model, plan and prices to say whether an extension pays; it imports none of them itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from megatron_cpt.config.schema import BlendConfig, ExperimentConfig, SourceConfig
from megatron_cpt.plan.break_even import Tokens, Training, break_even
from megatron_cpt.plan.calibrate import HostFacts
from megatron_cpt.plan.derive import peak_of, utilization_of
from megatron_cpt.plan.model_shape import ModelShape
from megatron_cpt.plan.money import known
from megatron_cpt.plan.throughput import flops_per_token
from megatron_cpt.record.typed import to_plain
from megatron_cpt.record.unknown import Figure, Unavailable, combine


@dataclass(frozen=True)
class Prospect:
    """The training that a vocabulary is for, as far as it is known before the vocabulary is."""

    shape: ModelShape
    sequence_length: int
    planned_tokens: Figure
    domain_share: float
    usd_per_flop: Figure
    relearn_tokens: float | None = None

    def __call__(
        self, *, num_new_rows: int, num_base_rows: int, num_padded_rows: int, domain_ratio: float, general_ratio: float
    ) -> dict[str, Any]:
        """Return the break-even of an extension as plain data; `num_base_rows` are padded too."""
        training = Training(
            flops_before=flops_per_token(self.shape, num_rows=num_base_rows, sequence_length=self.sequence_length),
            flops_after=flops_per_token(self.shape, num_rows=num_padded_rows, sequence_length=self.sequence_length),
            planned_tokens=self.planned_tokens,
            domain_share=self.domain_share,
            usd_per_flop=self.usd_per_flop,
            relearn_tokens=self.relearn_tokens,
        )
        return dict(
            to_plain(break_even(Tokens(num_new_rows=num_new_rows, domain_ratio=domain_ratio, general_ratio=general_ratio), training))
        )


def prospect_of(config: ExperimentConfig, shape: ModelShape) -> Prospect:
    """Return what a configuration says of the training; money is unknown where a price or the device's rate is."""
    tokens = config.blend.num_tokens
    length = config.parallel.sequence_length
    return Prospect(
        shape=shape,
        sequence_length=length if isinstance(length, int) else shape.max_position,
        planned_tokens=float(tokens) if isinstance(tokens, int | float) else Unavailable("set blend.num_tokens"),
        domain_share=domain_share(config.blend, config.source),
        usd_per_flop=usd_per_flop(config, shape),
        relearn_tokens=config.tokenizer.compare.relearn_tokens,
    )


def domain_share(blend: BlendConfig, sources: dict[str, SourceConfig]) -> float:
    """Return the domain's share of the blend's tokens over its stages; 1 where no share is set."""
    domain = total = 0.0
    starts = [0, *(stage.from_tokens for stage in blend.stages)]
    ends = [*starts[1:], blend.num_tokens if isinstance(blend.num_tokens, int) else starts[-1] + 1]
    for start, end, shares in zip(starts, ends, [blend.shares, *(stage.shares for stage in blend.stages)], strict=True):
        all_shares = sum(shares.values())
        if all_shares > 0 and end > start:
            part = sum(share for name, share in shares.items() if name in sources and sources[name].role == "domain")
            domain += (end - start) * part / all_shares
            total += end - start
    return domain / total if total else 1.0


def usd_per_flop(config: ExperimentConfig, shape: ModelShape) -> Figure:
    """Return the price of one model FLOP: a device hour's over what a device does in it at the expected share of its peak."""
    unmeasured = Unavailable("the plan stage measures the rate of a CPU; set gpu.dense_tflops")
    peak = peak_of(config, HostFacts(matrix_tflops=unmeasured, memory_available_bytes=unmeasured))
    share, _ = utilization_of(config, shape, peak=peak)
    price = known(config.tariff.usd_per_device_hour, key="tariff.usd_per_device_hour", reason=config.tariff.price_source)
    likely: Figure = share if isinstance(share, Unavailable) else share.likely
    return combine(lambda usd, tflops, part: usd / (3600 * tflops * 1e12 * part), price, peak, likely)
