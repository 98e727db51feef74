"""Fleets that could be bought: whole machines of one or two kinds of chip, and the simulation plan of each."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Literal

import msgspec
import numpy as np

from diptych.chips import catalogue, gpu
from diptych.chips.catalogue import Machine
from diptych.chips.fits import fits
from diptych.chips.quantity import Kind, Quantity, weakest
from diptych.chips.stepcost import StepCost
from diptych.chips.worker import Worker, cost_model, fewest_chips
from diptych.errors import ConfigError
from diptych.planner.fleetplan import DecodePool, FleetPlan, Handoff, PrefillPool
from diptych.planner.outcome import Objectives
from diptych.planner.traces import Trace

Mode = Literal["aggregated", "disaggregated", "mixed"]
COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
"""Numbers of machines that are tried. A fixed list: a larger budget only ever adds fleets."""
LINK_SHARE, LINK_BASE_S = 0.71, 0.00036
"""Part of line rate and fixed time of a KV transfer: the fit to Mooncake's table (see ``diptych validate``)."""
CONVERT_BYTES_S = 40e9
"""Assumed: conversion of KV between two engines' forms, all threads of a host together."""
WAFER_PREFILL_SHARES = (0.05, 0.15, 0.40)
"""The wafer's prefill rate is unpublished: part of its dense peak. Searches use the middle one, and say what the
others would change."""
AGGREGATED_CHUNKS = (512, 2048)


class Assumptions(msgspec.Struct, frozen=True, kw_only=True):
    """What nobody has published and the result may hang on; see ``explain.SENSITIVITIES``."""

    prefill_share: float = WAFER_PREFILL_SHARES[1]
    acceptance: float = 2.5
    convert_bytes_s: float = CONVERT_BYTES_S
    link_share: float = LINK_SHARE


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """``machines`` of one kind, each holding (or together holding) replicas of ``chips`` chips."""

    chip: str
    format: gpu.Format
    chips: int
    machine: str
    machines: int
    fit: str = ""

    @property
    def replicas(self) -> int:
        return self.machines * _machine(self).chips // self.chips

    def describe(self) -> str:
        return f"{self.machines} x {self.machine} ({self.replicas} x {self.chips} {self.chip})"


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """One fleet for one model. ``chunk_tokens`` are mixed into a step where a decode worker reads prompts."""

    model: str
    mode: Mode
    decode: Side
    prefill: Side | None = None
    chunk_tokens: int = 512
    assume: Assumptions = Assumptions()

    @property
    def sides(self) -> tuple[Side, ...]:
        return (self.decode,) if self.prefill is None else (self.prefill, self.decode)

    def describe(self) -> str:
        if self.prefill is None:
            return f"aggregated: {self.decode.describe()}, chunks of {self.chunk_tokens}"
        return f"{self.mode}: {self.prefill.describe()} -> {self.decode.describe()}"


def cost_of(candidate: Candidate, side: Side) -> StepCost:
    """The cost model of one replica. Raises ConfigError when the model does not fit."""
    return cost_model(
        Worker(
            chip=side.chip, model=candidate.model, chips=side.chips, format=side.format, fit=side.fit,
            prefill_share=candidate.assume.prefill_share, acceptance=candidate.assume.acceptance,
        )
    )  # fmt: skip


def total(candidate: Candidate, what: Literal["price", "power", "rack_units"]) -> float | None:
    """USD/h, watts or rack units of all machines; None where one is unknown."""
    found = [(getattr(_machine(side), what), side.machines) for side in candidate.sides]
    if any(not quantity.known for quantity, _ in found):
        return None
    return float(sum(quantity.si * machines for quantity, machines in found))


def kind(candidate: Candidate) -> Kind:
    """The weakest kind among what the fleet's results rest on; prices and power have their own (``quantities``)."""
    return weakest(cost_of(candidate, side).kind for side in candidate.sides)


def quantities(candidate: Candidate) -> list[tuple[str, Quantity]]:
    """Price, power and rack units of the machines, by name."""
    return [
        (f"{name} of {side.machine}", getattr(_machine(side), name))
        for side in candidate.sides
        for name in ("price", "power", "rack_units")
    ]


def fleet_plan(candidate: Candidate, cache: bool) -> FleetPlan:
    """What the simulator runs. With ``cache`` prefill workers keep prefixes in the memory that weights leave."""
    g = catalogue.model(candidate.model).geometry
    decode = cost_of(candidate, candidate.decode)
    reads = candidate.mode != "disaggregated"
    pools: tuple[PrefillPool, ...] = ()
    if candidate.prefill is not None:
        cost = cost_of(candidate, candidate.prefill)
        pools = (
            PrefillPool(
                name="P", cost=cost, count=candidate.prefill.replicas,
                cache_tokens=cost.kv_capacity_tokens // 2 if cache else 0,
                nic_bytes_s=_nic(candidate.prefill) * candidate.assume.link_share,
            ),
        )  # fmt: skip
    element = gpu.PRECISIONS[candidate.decode.format].kv_bytes
    each = g.kv_elements * element
    return FleetPlan(
        prefill=pools,
        decode=(
            DecodePool(
                name="D", cost=decode, count=candidate.decode.replicas, prefills=reads,
                chunk_tokens=candidate.chunk_tokens, interference=decode.interference,
                nic_bytes_s=_nic(candidate.decode) * candidate.assume.link_share,
            ),
        ),
        handoff=Handoff(
            (g.layers - g.windowed_layers) * each, g.windowed_layers * each, g.window, LINK_BASE_S,
            candidate.assume.convert_bytes_s,
        ),
        price_per_hour=total(candidate, "price"), power_w=total(candidate, "power"),
        rack_units=total(candidate, "rack_units"),
    )  # fmt: skip


def _nic(side: Side) -> float:
    """Bytes/s of one replica's share of its machines' interfaces; of an unknown one, 12.5 GB/s (100 Gbit/s)."""
    machine = _machine(side)
    whole = machine.nic.si if machine.nic.known else 12.5e9
    return whole * side.chips / machine.chips


def _machine(side: Side) -> Machine:
    chip = catalogue.chip(side.chip)
    return next(machine for machine in chip.machines if machine.id == side.machine)


# -- enumeration -------------------------------------------------------------------------------------------------------


class Choice(msgspec.Struct, frozen=True):
    """A chip to choose from: the format of its weights, and coefficients of one's own (a file of ``diptych fit``)."""

    chip: str
    format: gpu.Format = "bf16"
    fit: str = ""


def sides(model: str, choice: Choice) -> list[tuple[Side, int]]:
    """(one step of a side, machines in a step) for the replica sizes worth trying. Raises ConfigError if none fits."""
    chip, format_ = choice.chip, choice.format
    if choice.fit:
        fits(choice.fit)  # a bad file is refused as such, not as a chip on which nothing fits
    found = catalogue.chip(chip)
    machine = min(found.machines, key=lambda machine: machine.chips)
    fewest = fewest_chips(Worker(chip=chip, model=model, chips=1, format=format_))
    if found.family == "wafer":
        sizes = [fewest, fewest + max(1, fewest // 2)]
    else:
        smallest = 2 ** math.ceil(math.log2(fewest))
        tried = [smallest * times for times in (1, 2, 4, 8) if smallest * times <= max(smallest, machine.chips)]
        sizes = [size for size in tried if machine.chips % size == 0 or size % machine.chips == 0]
    steps = []
    for chips in sizes:
        each = max(1, -(-chips // machine.chips))
        side = Side(chip=chip, format=format_, chips=chips, machine=machine.id, machines=each, fit=choice.fit)
        try:
            cost_model(Worker(chip=chip, model=model, chips=chips, format=format_, fit=choice.fit))
        except ConfigError:
            continue
        steps.append((side, each))
    if not steps:
        raise ConfigError(f"{model} does not fit on any whole machine of {chip}; try another format or chip")
    return steps


def enumerate_fleets(
    model: str, choices: Sequence[Choice], trace: Trace, objectives: Objectives, budget: float, modes: Sequence[Mode],
) -> list[Candidate]:  # fmt: skip
    """Every fleet within ``budget`` USD/h; for two kinds of machine, those whose rates match."""
    found: list[Candidate] = []
    pairings: tuple[Mode, ...] = ("disaggregated", "mixed")
    for choice in choices:
        if "aggregated" in modes:
            found += _aggregated(model, choice)
    for reader in choices:
        for writer in choices:
            for mode in pairings:
                if mode in modes and not (mode == "mixed" and catalogue.chip(writer.chip).family == "wafer"):
                    found += _paired(model, reader, writer, mode, trace, objectives)
    affordable = [c for c in found if (price := total(c, "price")) is not None and price <= budget]
    return list(dict.fromkeys(affordable))


def _aggregated(model: str, choice: Choice) -> Iterator[Candidate]:
    for step, each in sides(model, choice):
        for count in COUNTS:
            bought = msgspec.structs.replace(step, machines=count * each)
            for chunk in AGGREGATED_CHUNKS:
                yield Candidate(model=model, mode="aggregated", decode=bought, chunk_tokens=chunk)


def _paired(
    model: str, reader: Choice, writer: Choice, mode: Mode, trace: Trace, objectives: Objectives
) -> Iterator[Candidate]:
    """Decode machines in every number, with the numbers of prefill machines just below and above the same rate.

    The smallest decode side is also tried with fewer: a small budget may not reach the rate of one machine.
    """
    for read_step, read_each in sides(model, reader):
        for write_step, write_each in sides(model, writer):
            pair = Candidate(model=model, mode=mode, prefill=read_step, decode=write_step)
            ratio = _decode_rps(pair, trace, objectives) / _prefill_rps(pair, trace)
            for count in COUNTS:
                replicas = ratio * count * write_each * _per_machine(write_step)
                wanted = replicas / (_per_machine(read_step) * read_each)
                matched = {max(1, math.floor(wanted)), max(1, math.ceil(wanted))}
                fewer = {n for n in COUNTS if n < wanted} if count == 1 else set()
                for readers in sorted(matched | fewer):
                    yield msgspec.structs.replace(
                        pair,
                        prefill=msgspec.structs.replace(read_step, machines=readers * read_each),
                        decode=msgspec.structs.replace(write_step, machines=count * write_each),
                    )


def _per_machine(side: Side) -> float:
    return _machine(side).chips / side.chips


def fluid_rps(candidate: Candidate, trace: Trace, objectives: Objectives) -> float:
    """Requests a second at which the fleet would be full if work were a fluid: where the search begins."""
    writing = _decode_rps(candidate, trace, objectives) * candidate.decode.replicas
    if candidate.prefill is not None:
        reading = _prefill_rps(candidate, trace) * candidate.prefill.replicas
        return min(reading, writing)
    reading = _prefill_rps(candidate, trace) * candidate.decode.replicas
    return 1.0 / (1.0 / reading + 1.0 / writing) if reading and writing else 0.0


def _prefill_rps(candidate: Candidate, trace: Trace) -> float:
    cost = cost_of(candidate, candidate.prefill or candidate.decode)
    return 1.0 / float(np.mean([cost.prefill_s(prompt) for prompt in _sample(trace)]))


def _decode_rps(candidate: Candidate, trace: Trace, objectives: Objectives) -> float:
    """Requests a second of one replica at the largest batch that its KV and the objective on the gap allow."""
    cost = cost_of(candidate, candidate.decode)
    prompt, output = _means(trace)
    context = prompt + output / 2
    batch = int(max(1, min(256, cost.kv_capacity_tokens / context)))
    bound_s = (objectives.itl_ms or math.inf) / 1e3
    while batch > 1 and cost.decode_s(batch, int(batch * context)) > bound_s:
        batch -= max(1, batch // 8)
    return batch / (cost.decode_s(batch, int(batch * context)) * output)


def _sample(trace: Trace) -> list[int]:
    return list(trace.input_tokens[:: max(1, len(trace) // 200)])


def _means(trace: Trace) -> tuple[float, float]:
    return _mean(tuple(_sample(trace))), float(np.mean(trace.output_tokens))


@cache
def _mean(values: tuple[int, ...]) -> float:
    return float(np.mean(values))
