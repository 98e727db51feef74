"""The one converter: executes a plan on one chunk of tokens, image by image, over named axes.

    engine's arrays --cut, reorder, re-pair, cast--> staging (private, cached) --copy--> landing region
                                                        +--> digest

Every image of a chunk is made in a private staging buffer first. Its digest is taken there, so it says what
*we* made, whatever another process may do to shared memory in the meantime; and transports get dense bytes,
whatever the layout. The staging buffer is small enough to stay in the cache, so this costs little next to
writing the region itself.

Casts that numba has a kernel for run at memory speed without the interpreter's lock; the rest runs in numpy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from diptych.errors import CorruptKV
from diptych.handoff import codecs
from diptych.handoff.contract import Dtype, KVForm, Tensor
from diptych.handoff.plan import Plan
from diptych.handoff.region import Bytes, Region

Cells = NDArray[Any]
"""Stored items of one layer of K or V; inside this module viewed as [token, head, dim] whatever the memory
order.
"""

_CELL_AXES = ("token", "head", "dim")


def execute(plan: Plan, token_start: int, keys: Sequence[Cells], values: Sequence[Cells], region: Region) -> bytes:
    """Writes the chunk that starts at ``token_start`` into ``region``; returns its XXH3-128 digest.

    ``keys`` and ``values`` hold one array per layer of the source, all of one chunk of tokens; ``region``
    has the target's images. Raises CorruptKV where an array is not of the source's form.
    """
    digest = xxhash.xxh3_128()
    tokens = chunk_tokens(plan.source, keys)
    for index, staged in enumerate(converted(plan, keys, values)):
        digest.update(staged.data)
        region.put(index, token_start, tokens, staged)
    return digest.digest()


def converted(plan: Plan, keys: Sequence[Cells], values: Sequence[Cells]) -> Iterator[Bytes]:
    """The target's images of one chunk, in their order, as dense bytes; each is valid until the next is
    asked for.
    """
    tokens = chunk_tokens(plan.source, keys)
    staging = np.empty(max(image.size(tokens) for image in plan.target.images), np.uint8)
    for index, ((plane, _, _), arrays) in enumerate(zip(plan.source.planes, (keys, values), strict=False)):
        if len(arrays) != plan.source.layer_span.size:
            raise CorruptKV(f"{len(arrays)} layers of {plane} were handed over, not {plan.source.layer_span.size}")
        mover: _Mover | None = None
        for array in arrays[plan.layers.start : plan.layers.stop]:
            if mover is None or not mover.fits(array):
                mover = _Mover(plan, index, array, tokens, staging)
            yield mover.move(array)


def chunk_tokens(form: KVForm, keys: Sequence[Cells]) -> int:
    """How many tokens the arrays of one chunk hold."""
    if not keys:
        raise CorruptKV("no layers were handed over")
    axes = _axes(form.keys)
    if keys[0].ndim != len(axes):
        raise CorruptKV(f"an array of shape {keys[0].shape} was handed over for axes {axes}")
    return int(keys[0].shape[axes.index("token")])


def warm(plan: Plan) -> None:
    """Loads (or, once per installation, compiles) what this plan's conversions need, so that no request
    waits for it.
    """
    form = plan.source
    extents = {"token": 16, "head": form.head_span.size}
    arrays = [
        [
            np.zeros([extents.get(axis, head_dim) for axis in _axes(tensor)], codecs.STORAGE[tensor.dtype])
            for _ in range(form.layer_span.size)
        ]
        for _, tensor, head_dim in form.planes
    ]
    memory = np.zeros(plan.target.region_bytes(16), np.uint8)
    execute(plan, 0, arrays[0], arrays[-1], Region(plan.target, memory, 16))


class _Mover:
    """Moves arrays of one shape and one set of strides into staging; made once for all the layers of a
    plane.
    """

    def __init__(self, plan: Plan, plane_index: int, array: Cells, tokens: int, staging: Bytes) -> None:
        plane, have, head_dim = plan.source.planes[plane_index]
        want = plan.target.planes[plane_index][1]
        self._kind = (array.shape, array.strides, array.dtype)
        self._have, self._want = have, want
        self._heads = plan.heads
        self._storage = codecs.STORAGE[have.dtype]
        self._order = [_axes(have).index(axis) for axis in _CELL_AXES]
        cells = self._cells(array, plan.source, head_dim, tokens)
        self._as_is = plan.identity and array.flags.c_contiguous
        self._staged, target = _staging_for(want, cells.shape, staging)
        repair = plane == "k" and plan.source.rope.pairing != plan.target.rope.pairing
        self._moves = [
            (
                start,
                stop,
                pairing,
                _loop(cells[..., start:stop], target[..., start:stop], have, want, pairing),
            )
            for start, stop, pairing in (_spans(plan, head_dim) if repair else [(0, head_dim, "none")])
        ]
        self._target = target

    def fits(self, array: Cells) -> bool:
        return self._kind == (array.shape, array.strides, array.dtype)

    def move(self, array: Cells) -> Bytes:
        stored = array.view(self._storage)
        if self._as_is:
            return stored.view(np.uint8).reshape(-1)
        cells = stored.transpose(self._order)[:, self._heads.start : self._heads.stop]
        for start, stop, pairing, loop in self._moves:
            source, target = cells[..., start:stop], self._target[..., start:stop]
            if loop is None:
                _move(source, target, self._have.dtype, self._want.dtype, pairing)
            else:
                loop(source, target.view(np.uint32))
        return self._staged

    def _cells(self, array: Cells, form: KVForm, head_dim: int, tokens: int) -> Cells:
        extents = {"token": tokens, "head": form.head_span.size, "dim": head_dim}
        wanted = tuple(extents[axis] for axis in _axes(self._have))
        if array.shape != wanted or array.itemsize != self._storage.itemsize:
            raise CorruptKV(f"an array of {array.dtype} {array.shape} was handed over, not {self._have.dtype} {wanted}")
        cells: Cells = array.view(self._storage).transpose(self._order)[:, self._heads.start : self._heads.stop]
        return cells


def _axes(tensor: Tensor) -> tuple[str, ...]:
    return tuple(axis for axis in tensor.axes if axis != "layer")


def _staging_for(want: Tensor, cells: tuple[int, ...], staging: Bytes) -> tuple[Bytes, Cells]:
    """Dense bytes for [token, head, dim] ``cells`` in the target's order, and the same memory seen as those
    cells.
    """
    axes = _axes(want)
    shape = [cells[_CELL_AXES.index(axis)] for axis in axes]
    storage = codecs.STORAGE[want.dtype]
    staged = staging[: cells[0] * cells[1] * cells[2] * storage.itemsize]
    return staged, staged.view(storage).reshape(shape).transpose([axes.index(axis) for axis in _CELL_AXES])


def _spans(plan: Plan, head_dim: int) -> Iterator[tuple[int, int, str]]:
    """(start, stop, pairing wanted) over one head's dimensions; "none" where they only move."""
    start, stop = plan.source.rope.span(head_dim)
    for first, last, pairing in (
        (0, start, "none"),
        (start, stop, plan.target.rope.pairing),
        (stop, head_dim, "none"),
    ):
        if first < last:
            yield first, last, pairing


def _loop(source: Cells, target: Cells, have: Tensor, want: Tensor, pairing: str) -> Any:
    """The compiled kernel for these arrays: rows of neighbouring items, whole aligned words, strides only
    forward.
    """
    words = 2 if pairing == "half" else 1
    if not (
        target.itemsize == 2
        and source.strides[2] == source.itemsize
        and target.strides[2] == 2
        and target.shape[2] % (2 * words) == 0
        and target.ctypes.data % 4 == 0
        and all(stride % 4 == 0 for stride in target.strides[:2])
        and all(stride >= 0 and stride % source.itemsize == 0 for stride in source.strides[:2])
    ):
        return None
    from diptych.handoff import kernels  # noqa: PLC0415  numba takes half a second to import

    return kernels.kernel(have.dtype, want.dtype, kernels.MODES[pairing])


def _move(source: Cells, target: Cells, have: Dtype, want: Dtype, pairing: str) -> None:
    """The same in numpy, for every pair of dtypes and every stride; equal dtypes keep their very bits."""
    bits = source if have == want else codecs.encode(codecs.decode(source, have), want)
    half = target.shape[2] // 2
    if pairing == "interleaved":
        target[..., 0::2], target[..., 1::2] = bits[..., :half], bits[..., half:]
    elif pairing == "half":
        target[..., :half], target[..., half:] = bits[..., 0::2], bits[..., 1::2]
    else:
        target[...] = bits
