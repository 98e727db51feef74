"""The one converter: executes a plan on one chunk of tokens, image by image, over named axes.

    engine's arrays --cut, re-page, reorder, re-pair, cast--> staging (private, cached) --> landing region
                                                                 |
                                                                 +--> digest

Every image of a chunk is made in a private staging buffer first. Its digest is taken there, so it says what
*we* made, whatever another process may do to shared memory in the meantime; and transports get dense bytes,
whatever the layout. The buffer is small enough to stay in the cache, so this costs little next to writing the
region itself (one exception: a target that keeps all layers in one block is staged whole).

Casts that numba has a kernel for run at memory speed without the interpreter's lock; the rest runs in numpy.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import xxhash

from diptych.errors import CorruptKV
from diptych.handoff import codecs, layout
from diptych.handoff.contract import Tensor
from diptych.handoff.layout import Cells, Chunk
from diptych.handoff.plan import Plan
from diptych.handoff.region import Bytes, Region


def execute(plan: Plan, token_start: int, chunk: Chunk, region: Region) -> bytes:
    """One chunk by a converter of its own; see :meth:`Converter.write`."""
    return Converter(plan).write(token_start, chunk, region)


def warm(plan: Plan) -> None:
    """Loads (or, once per installation, compiles) what this plan needs, so that no request waits for it."""
    tokens = 16 * max(1, plan.source.unit_tokens, plan.target.unit_tokens)
    memory = np.zeros(plan.source.region_bytes(tokens), np.uint8)
    chunk = Chunk.of(plan.source, *layout.arrays(plan.source, memory, tokens), tokens)
    landing = np.zeros(plan.target.region_bytes(tokens), np.uint8)
    execute(plan, 0, chunk, Region(plan.target, landing, tokens))


class Converter:
    """A plan under execution: staging, and what was learned of the arrays, are kept from chunk to chunk.

    For one thread at a time.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._tokens = 0
        self._lanes: list[_Lane | _PackedLane] = []

    def images(self, chunk: Chunk) -> Iterator[Bytes]:
        """The target's images of one chunk, in order, as dense bytes; each is valid until the next is asked for.

        Raises CorruptKV where an array is not of the source's form.
        """
        if chunk.tokens != self._tokens:
            self._lanes = self._lanes_for(chunk.tokens)
            self._tokens = chunk.tokens
        for lane in self._lanes:
            yield from lane.images(chunk)

    def _lanes_for(self, tokens: int) -> list[_Lane | _PackedLane]:
        if self._plan.target.packed:
            return [_PackedLane(self._plan, tokens)]
        return [_Lane(self._plan, plane, tokens) for plane in range(len(self._plan.target.planes))]

    def write(self, token_start: int, chunk: Chunk, region: Region) -> bytes:
        """Puts the chunk, whose first token is ``token_start``, into ``region``; returns its XXH3-128 digest."""
        digest = xxhash.xxh3_128()
        for index, staged in enumerate(self.images(chunk)):
            digest.update(staged.data)
            region.put(index, token_start, chunk.tokens, staged)
        return digest.digest()


class _Lane:
    """K or V of a target that keeps them apart: per layer the items, then scales that are kept apart."""

    def __init__(self, plan: Plan, plane: int, tokens: int) -> None:
        form = plan.target
        name, tensor, head_dim = form.planes[plane]
        sizes = [image.size(tokens) for image in form.images if image.plane[0] == name][:2]
        self._layers = range(plan.layers.start, plan.layers.stop)
        self._staging, self._scales = _staging(sizes[0]), None
        self._mover = _Mover(plan, plane, tokens)
        shape = [form.extent(axis, head_dim // tensor.group, tokens) for axis in tensor.axes]
        items = layout.cells(form, plane, self._staging.view(codecs.storage(tensor)).reshape(shape), tokens, 0)
        scales = None
        if tensor.scale.scheme == "apart":
            self._scales = _staging(sizes[1])
            shape = [form.extent(axis, head_dim // tensor.scale.group, tokens) for axis in tensor.axes]
            scales = layout.scale_cells(form, plane, self._scales.view(np.float32).reshape(shape), tokens)
        self._mover.aim(items, scales)

    def images(self, chunk: Chunk) -> Iterator[Bytes]:
        mover = self._mover
        mover.feed(chunk)
        for layer in self._layers:
            as_is = mover.as_is(layer) if mover.untouched else None
            if as_is is not None:
                yield as_is
                continue
            mover.move(layer)
            yield self._staging
            if self._scales is not None:
                yield self._scales


class _PackedLane:
    """K and V of a target that packs them: one image a layer, or one of all layers."""

    def __init__(self, plan: Plan, tokens: int) -> None:
        self._form, self._tokens = plan.target, tokens
        self._layers = range(plan.layers.start, plan.layers.stop)
        self._staging = _staging(plan.target.images[0].size(tokens))
        self._movers = [_Mover(plan, plane, tokens) for plane in range(len(plan.target.planes))]

    def images(self, chunk: Chunk) -> Iterator[Bytes]:
        for mover in self._movers:
            mover.feed(chunk)
        for layer in self._layers:
            within = layer - self._layers.start if self._form.stacked else 0
            for plane, mover in enumerate(self._movers):
                mover.aim(layout.cells(self._form, plane, self._staging, self._tokens, within), None)
                mover.move(layer)
            if not self._form.stacked:
                yield self._staging
        if self._form.stacked:
            yield self._staging


def _staging(size: int) -> Bytes:
    """Zeroed bytes that begin at a cache line."""
    memory = np.zeros(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size]


class _Mover:
    """Moves K or V of one layer after the other from the engine's arrays to where it is aimed."""

    def __init__(self, plan: Plan, plane: int, tokens: int) -> None:
        self._plan, self._plane = plan, plane
        name, self._have, head_dim = plan.source.planes[plane]
        self._want = plan.target.planes[plane][1]
        self._of_values = name == "v" and not plan.source.packed
        self._stacked = plan.source.stacked
        self._view = layout.View(plan.source, plane, tokens)
        self._heads = None if plan.heads.size == plan.source.head_span.size else plan.heads
        self._spans = list(_spans(plan, name, head_dim))
        self._same = (self._have.dtype, self._have.scale) == (self._want.dtype, self._want.scale)
        self.untouched = plan.identity and not plan.source.packed and not plan.source.block_tokens
        self._loops: list[Any] = []
        self._kind: Any = None

    def feed(self, chunk: Chunk) -> None:
        """The arrays of the next layers."""
        self._chunk = chunk
        self._memory = chunk.values if self._of_values else chunk.keys
        if self._plan.source.block_tokens:
            self._kind = None  # another table to check

    def aim(self, target: Cells, scales: Cells | None) -> None:
        """Where the next layers go, as cells: items, and scales that are kept apart."""
        self._target, self._target_scales = target, scales
        self._kind = None

    def as_is(self, layer: int) -> Bytes | None:
        """The engine's own bytes, where they are dense already; for movers that are ``untouched``."""
        memory = self._memory[layer]
        if isinstance(memory, tuple) or not memory.flags.c_contiguous:
            return None
        self._view(memory, layer)  # is it of the form?
        raw: Bytes = memory.reshape(-1).view(np.uint8)
        return raw

    def move(self, layer: int) -> None:
        source = self._source(layer)
        kind = (source.shape, source.strides)
        if self._kind != kind:
            self._learn(source)
            self._kind = kind
        if not self._loops:
            self._move_in_numpy(source, layer)
        for start, stop, loop, target in self._loops:
            part = source if len(self._loops) == 1 else source[..., start:stop]
            loop(part, self._chunk.blocks, target, self._chunk.tokens)

    def _learn(self, source: Cells) -> None:
        """How to move cells of this shape and these strides: by compiled loops, or (none) in numpy."""
        blocks = self._chunk.blocks
        if blocks.min() < 0 or blocks.max() >= source.shape[0]:
            raise CorruptKV(f"the table of blocks names one that is not among the {source.shape[0]}")
        self._loops = []
        for start, stop, pairing in self._spans:
            target = self._target[..., start:stop]
            loop = _loop(source[..., start:stop], target, self._have, self._want, pairing)
            if loop is None:
                self._loops = []
                return
            self._loops.append((start, stop, loop, target.view(np.uint32)))

    def _source(self, layer: int) -> Cells:
        memory = self._memory[0 if self._stacked else layer]
        found = self._view(memory[0] if isinstance(memory, tuple) else memory, layer)
        return found if self._heads is None else found[:, :, self._heads.start : self._heads.stop]

    def _move_in_numpy(self, source: Cells, layer: int) -> None:
        """Every pair of dtypes and every stride; numbers that need not change keep their very bits."""
        items = _gather(source, self._chunk)
        scales = self._source_scales(layer)
        paired = any(pairing != "none" for _, _, pairing in self._spans)
        regrouped = paired and (self._have.group > 1 or scales is not None)
        if not self._same or regrouped:
            values = codecs.decode(items, self._have, _static(self._have, layer), scales)
            to = layer - self._plan.layers.start
            items, scales = codecs.encode(self._paired(values), self._want, _static(self._want, to))
        else:
            items = self._paired(items)
        _scatter(items, self._target)
        if self._target_scales is not None:
            assert scales is not None
            _scatter(scales, self._target_scales)

    def _source_scales(self, layer: int) -> Cells | None:
        memory = self._memory[0 if self._plan.source.stacked else layer]
        if not isinstance(memory, tuple):
            return None
        form, heads = self._plan.source, self._plan.heads
        found = layout.scale_cells(form, self._plane, memory[1], self._chunk.tokens)
        return _gather(found[:, :, heads.start : heads.stop], self._chunk)

    def _paired(self, items: Cells) -> Cells:
        """Dimensions in the order of the target's pairing."""
        if all(pairing == "none" for _, _, pairing in self._spans):
            return items
        out = items.copy()
        for start, stop, pairing in self._spans:
            half = (stop - start) // 2
            if pairing == "interleaved":
                out[..., start:stop:2] = items[..., start : start + half]
                out[..., start + 1 : stop : 2] = items[..., start + half : stop]
            elif pairing == "half":
                out[..., start : start + half] = items[..., start:stop:2]
                out[..., start + half : stop] = items[..., start + 1 : stop : 2]
        return out


def _spans(plan: Plan, plane: str, head_dim: int) -> Iterator[tuple[int, int, str]]:
    """(start, stop, pairing wanted) over one head's dimensions; "none" where they only move."""
    wanted = plan.target.rope.pairing
    if plane != "k" or plan.source.rope.pairing == wanted:
        yield 0, head_dim, "none"
        return
    start, stop = plan.source.rope.span(head_dim)
    for first, last, pairing in ((0, start, "none"), (start, stop, wanted), (stop, head_dim, "none")):
        if first < last:
            yield first, last, pairing


def _static(tensor: Tensor, layer: int) -> float:
    values = tensor.scale.values
    return 1.0 if not values else values[layer] if len(values) > 1 else values[0]


def _gather(source: Cells, chunk: Chunk) -> Cells:
    """The chunk's tokens as [token, head, item]."""
    if source.shape[0] == 1 and chunk.blocks.size == 1 and chunk.blocks[0] == 0:
        return source[0, : chunk.tokens]
    taken = source[chunk.blocks]
    return taken.reshape(-1, *source.shape[2:])[: chunk.tokens]


def _scatter(items: Cells, target: Cells) -> None:
    """[token, head, item] into [block, token, head, item]; the rest of the last block stays."""
    slots = target.shape[1]
    full = items.shape[0] // slots
    target[:full] = items[: full * slots].reshape(full, slots, *items.shape[1:])
    if rest := items.shape[0] % slots:
        target[full, :rest] = items[full * slots :]


def _loop(source: Cells, target: Cells, have: Tensor, want: Tensor, pairing: str) -> Any:
    """The compiled kernel, if there is one: for rows of neighbours, aligned words, forward strides."""
    words = 4 if pairing == "half" else 2
    if (
        target.itemsize != 2
        or (have.scale.scheme, want.scale.scheme) != ("none", "none")
        or (source.strides[3], target.strides[3]) != (source.itemsize, 2)
        or target.shape[3] % words
        or target.ctypes.data % 4
        or any(stride % 4 for stride in target.strides[:3])
        or any(stride < 0 or stride % source.itemsize for stride in source.strides[:3])
    ):
        return None
    from diptych.handoff import kernels  # noqa: PLC0415  numba takes half a second to import

    return kernels.kernel(have.dtype, want.dtype, kernels.MODES[pairing])
