"""Handoffs between unequal shardings: which source part goes to which target part, each as a handoff of its
own.

    TP 4 -> TP 1   four handoffs land in one engine, each in its heads
    TP 2 -> TP 8   eight handoffs, four from each source
    pipeline       the same over ranges of layers

A target that several sources fill is cut along their borders, so every part has exactly one source, one
region, one seal and one digest; the parts meet only in the engine's private buffers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from diptych.errors import IncompatibleForms
from diptych.handoff.contract import Span

Part = tuple[Span, Span]
"""(layers, heads)."""


class Route(msgspec.Struct, frozen=True):
    """One handoff: ``part`` of the model goes from the ``source``-th holder to the ``target``-th."""

    source: int
    target: int
    part: Part


def routes(sources: Sequence[Part], targets: Sequence[Part]) -> list[Route]:
    """Handoffs that fill every target exactly once. A part that several sources hold comes from the first.

    Raises IncompatibleForms with the first part of a target that no source holds.
    """
    found: list[Route] = []
    for index, wanted in enumerate(targets):
        open_parts = [wanted]
        for holder, held in enumerate(sources):
            met = [(part, _overlap(part, held)) for part in open_parts]
            found += [Route(holder, index, both) for _, both in met if both is not None]
            open_parts = [rest for part, both in met for rest in ([part] if both is None else _without(part, both))]
        if open_parts:
            raise IncompatibleForms("layers and heads", "no holder", _said(open_parts[0]))
    return found


def even(layers: int, heads: int, tensor_parallel: int = 1, pipeline_parallel: int = 1) -> list[Part]:
    """The parts of an even split, rank by rank. With more ranks than heads, a head is held by several."""
    return [
        (over_layers, over_heads)
        for over_layers in _split(layers, pipeline_parallel)
        for over_heads in _split(heads, tensor_parallel)
    ]


def _split(total: int, ranks: int) -> list[Span]:
    starts = [rank * total // ranks for rank in range(ranks)]
    return [Span(start, max(start + 1, (rank + 1) * total // ranks)) for rank, start in enumerate(starts)]


def _overlap(one: Part, other: Part) -> Part | None:
    both = [Span(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(one, other, strict=True)]
    return None if any(span.size <= 0 for span in both) else (both[0], both[1])


def _without(part: Part, hole: Part) -> Iterator[Part]:
    """What is left of ``part`` around ``hole``, which lies within it: at most four parts."""
    layers, heads = part
    for span in (Span(layers.start, hole[0].start), Span(hole[0].stop, layers.stop)):
        if span.size > 0:
            yield span, heads
    for span in (Span(heads.start, hole[1].start), Span(hole[1].stop, heads.stop)):
        if span.size > 0:
            yield hole[0], span


def _said(part: Part) -> str:
    layers, heads = part
    return f"layers {layers.start}..{layers.stop}, heads {heads.start}..{heads.stop}"
