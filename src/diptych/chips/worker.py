"""A worker as the planner names it (model, chips, precision), and the cost model that follows from the catalogue."""

from __future__ import annotations

import math
from functools import cache
from importlib import import_module
from typing import Protocol, cast

import msgspec

from diptych.chips import catalogue, gpu
from diptych.chips.catalogue import Chip, Model
from diptych.chips.fits import Fits, fits
from diptych.chips.quantity import Kind, Quantity, weakest
from diptych.chips.stepcost import StepCost
from diptych.errors import ConfigError

MEMORY_SHARE = 0.9
"""Part of the memory that weights and KV may fill; the rest is activations and the engine itself."""
SPAN_TOKENS = 8192.0
"""Context for which a token's KV is averaged where layers have windows."""


class Worker(msgspec.Struct, frozen=True, kw_only=True):
    """One replica of ``model`` on ``chips`` of ``chip``.

    ``format`` names weights, KV and arithmetic (see ``gpu.PRECISIONS``). ``fit`` names other coefficients than the
    family's. Only for wafers: ``prefill_share`` is the part of the dense peak that prefill reaches, which nobody has
    published (None: the worker cannot prefill), and ``acceptance`` the tokens that one pass emits by speculation.
    """

    chip: str
    model: str
    chips: int
    format: gpu.Format = "bf16"
    dp: int = 1
    fit: str = ""
    prefill_share: float | None = None
    acceptance: float = 2.5


class Family(Protocol):
    """One file in ``families/``: how the numbers of a chip and a model become seconds."""

    def build(self, worker: Worker, chip: Chip, model: Model, coefficients: Fits) -> StepCost: ...


FAMILIES = {"gpu": "gpu", "cpu": "gpu", "trainium": "trainium", "wafer": "wafer"}
"""Family of a chip -> its file. A CPU is a GPU whose coefficients differ. What ``diptych fit`` wrote is measured.py."""


@cache
def cost_model(worker: Worker) -> StepCost:
    """Seconds and capacity of the worker. Raises ConfigError when the model does not fit or a number is unknown."""
    chip, model = catalogue.chip(worker.chip), catalogue.model(worker.model)
    _require(chip, worker)
    coefficients = fits(worker.fit or chip.family)
    name = "measured" if "fixed" in coefficients.decode else FAMILIES[chip.family]
    family = cast("Family", import_module(f"diptych.chips.families.{name}"))
    built = family.build(worker, chip, model, coefficients)
    if built.kv_capacity_tokens <= 0:
        raise ConfigError(
            f"{worker.model} in {worker.format} needs {weight_bytes(worker) / 1e9:,.0f} GB for its weights and does "
            f"not fit on {worker.chips} x {worker.chip}; the fewest that hold it are {fewest_chips(worker)}"
        )
    return built


def fewest_chips(worker: Worker) -> int:
    """The smallest number of chips whose memory holds the weights and some KV."""
    capacity = catalogue.chip(worker.chip).memory.capacity.si * MEMORY_SHARE
    return math.ceil(weight_bytes(worker) * 1.02 / capacity)


def weight_bytes(worker: Worker) -> float:
    """Bytes of all weights in the worker's format."""
    g, p = catalogue.model(worker.model).geometry, gpu.PRECISIONS[worker.format]
    experts = g.moe_layers * g.experts * g.expert_params
    return (g.params - experts) * p.dense_bytes + experts * p.expert_bytes


def price(worker: Worker) -> float | None:
    """US dollars an hour of the chips used; None where it is unknown."""
    cost = catalogue.chip(worker.chip).footprint.price
    return cost.si * worker.chips if cost.known else None


def _require(chip: Chip, worker: Worker) -> None:
    if worker.format not in gpu.PRECISIONS:
        raise ConfigError(f"unknown format {worker.format!r}; known are {', '.join(gpu.PRECISIONS)}")
    if worker.chips < 1 or worker.dp < 1 or worker.chips % worker.dp:
        raise ConfigError(f"{worker.chips} chips cannot be split into {worker.dp} equal attention groups")
    needed = {"FLOP/s": chip.flops.bf16, "memory": chip.memory.capacity, "bandwidth": chip.memory.bandwidth}
    for name, quantity in needed.items():
        if not quantity.known:
            raise ConfigError(f"{chip.id}: {name} unknown ({quantity.source}); it cannot be simulated")


def kind_of(chip: Chip, model: Model, coefficients: Fits, *more: Quantity) -> Kind:
    """The weakest kind among what every cost model uses and ``more``; coefficients of other chips are assumed."""
    inputs = (chip.flops.bf16, chip.memory.capacity, chip.memory.bandwidth, *more)
    borrowed: Kind = "measured" if not coefficients.chips or chip.id in coefficients.chips else "assumed"
    return weakest([model.kind, coefficients.kind(), borrowed, *(quantity.kind for quantity in inputs)])


def notes_of(chip: Chip, coefficients: Fits) -> tuple[str, ...]:
    """What a reader has to know about where the coefficients come from."""
    if not coefficients.chips or chip.id in coefficients.chips:
        return ()
    return (f"{chip.id}: no measurement; the coefficients of {', '.join(coefficients.chips)} are assumed for it",)
