"""From a worker's settings to the seconds of its chip: the planner's cost models, divided by ``speed``."""

from __future__ import annotations

import math

import msgspec

from diptych.chips import catalogue, gpu
from diptych.chips.stepcost import StepCost
from diptych.chips.worker import Worker, cost_model, fewest_chips
from diptych.config import DecodeSettings, EmulatedChip
from diptych.errors import ConfigError


def emulated_worker(settings: EmulatedChip) -> Worker:
    """The chips that are emulated: a whole machine, or more where the model needs it. Raises ConfigError."""
    if settings.chip is None:
        raise ConfigError(f'engine = "emulated" needs chip = "...": one of {", ".join(catalogue.chip_ids())}')
    usual = "mxfp4" if catalogue.model(settings.costs_of).id.startswith("gpt-oss") else "bf16"
    one = Worker(
        chip=settings.chip, model=settings.costs_of, chips=1, prefill_share=settings.prefill_share,
        format=msgspec.convert(settings.format or usual, gpu.Format),
    )  # fmt: skip
    return msgspec.structs.replace(one, chips=settings.chips or _usual_chips(one))


def _usual_chips(one: Worker) -> int:
    """A wafer system too many leaves room for KV, as in the planner; other chips are bought in whole machines."""
    chip, fewest = catalogue.chip(one.chip), fewest_chips(one)
    if chip.family == "wafer":
        return fewest + max(1, fewest // 2)
    machine = min(chip.machines, key=lambda machine: machine.chips)
    return -(-fewest // machine.chips) * machine.chips


class Pace(msgspec.Struct, frozen=True):
    """Seconds on this clock: the cost model's, divided by the speed-up and multiplied by a fault's slowness."""

    cost: StepCost
    factor: float

    def prefill_s(self, new_tokens: int, cached_tokens: int = 0) -> float:
        """A chip whose rate at reading prompts is not known reads them as it decodes, a token a step."""
        seconds = self.cost.prefill_s(new_tokens, cached_tokens)
        if math.isinf(seconds):
            seconds = new_tokens * self.cost.decode_s(1, cached_tokens + new_tokens // 2)
        return seconds * self.factor

    def step_s(self, batch: int, context_tokens: int) -> float:
        return self.cost.decode_s(batch, context_tokens) * self.factor


def pace_of(settings: EmulatedChip, slowdown: float) -> Pace:
    """Raises ConfigError for a chip, model or format that is not in the catalogue, or that does not fit."""
    return Pace(cost_model(emulated_worker(settings)), slowdown / settings.speed)


def build_of(settings: EmulatedChip) -> str:
    """The engine's build, which keys a qualification: what is emulated, and what is wrong with it."""
    worker = emulated_worker(settings)
    flawed = f", fault {settings.fault}" if settings.fault else ""
    return f"{worker.chips} x {worker.chip}, costs of {worker.model} in {worker.format}{flawed}"


def room_for(settings: DecodeSettings, cost: StepCost) -> int:
    """Tokens of KV that the chips hold. Raises ConfigError where not even one request fits."""
    if cost.kv_capacity_tokens < settings.ctx_per_request:
        raise ConfigError(
            f"{build_of(settings)}: room for {cost.kv_capacity_tokens} tokens of KV, less than ctx_per_request = "
            f"{settings.ctx_per_request}; raise chips, or lower it"
        )
    return cost.kv_capacity_tokens
