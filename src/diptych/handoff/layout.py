"""Memory seen by named axes: whatever the layout, K or V of one layer is [block, token, head, item].

Storage that is not paged is one block. Nothing here copies or computes; a view that does not fit its memory
is refused.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from diptych.errors import CorruptKV
from diptych.handoff import codecs
from diptych.handoff.contract import Axis, KVForm
from diptych.handoff.region import Bytes, Region

Array = NDArray[Any]
Cells = NDArray[Any]
"""Stored items as [block, token, head, item]."""

CELLS: tuple[Axis, ...] = ("block", "token", "head", "dim")


class Chunk(msgspec.Struct, frozen=True):
    """One chunk of tokens as an engine hands it over: per layer an array (or one buffer in all, where
    stacked).

    ``blocks`` are the blocks that hold the tokens, in order, where storage is paged.
    """

    keys: Sequence[Any]
    values: Sequence[Any]
    tokens: int
    blocks: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        form: KVForm,
        keys: Sequence[Any],
        values: Sequence[Any],
        tokens: int | None = None,
        blocks: Sequence[int] | None = None,
    ) -> Chunk:
        """Checks the numbers of arrays, tokens and blocks. Raises CorruptKV."""
        wanted = 1 if form.stacked else form.layer_span.size
        if len(keys) != wanted or (form.geometry.head_dim_v and not form.packed and len(values) != wanted):
            raise CorruptKV(f"K of {len(keys)} and V of {len(values)} layers were handed over, not of {wanted}")
        if tokens is None:
            tokens = _count(form, keys[0])
        table = np.arange(-(-tokens // form.unit_tokens)) if blocks is None else np.asarray(blocks, np.int64)
        if not form.block_tokens:
            table = np.zeros(1, np.int64)
        if tokens <= 0 or table.size * (form.block_tokens or tokens) < tokens:
            raise CorruptKV(f"{tokens} tokens were handed over in {table.size} blocks")
        return cls(keys, values, tokens, table)


class View:
    """K (plane 0) or V (1) of any layer as [block, token, head, item]; what it learns of the first array of
    a kind (dtype, shape, strides) it need not ask again of the others.
    """

    def __init__(self, form: KVForm, plane: int, tokens: int) -> None:
        _, tensor, head_dim = form.planes[plane]
        self._form, self._plane, self._tokens = form, plane, tokens
        self._axes, self._packed = tensor.axes, tensor.strides is not None
        self._storage = codecs.storage(tensor)
        self._extents = [form.extent(axis, head_dim // tensor.group, tokens) for axis in tensor.axes]
        self._order = [tensor.axes.index(axis) for axis in CELLS if axis in tensor.axes]
        self._paged = form.block_tokens > 0
        self._kind: Any = None
        self._shape: tuple[int, ...] = ()

    def __call__(self, memory: Any, layer: int) -> Cells:
        """``layer`` counts from the first layer held. Raises CorruptKV for memory of another form."""
        if self._packed:
            return _strided(self._form, self._plane, memory, self._tokens, layer)
        kind = (memory.dtype, memory.shape, memory.strides)
        if kind != self._kind:
            self._shape = _typed(self._axes, self._extents, self._storage, memory).shape
            self._kind = kind
        array = memory if memory.dtype == self._storage else memory.view(self._storage)
        if array.shape != self._shape:
            array = array.reshape(self._shape)
        ordered: Cells = array.transpose(self._order)
        return ordered if self._paged else ordered[None]


def cells(form: KVForm, plane: int, memory: Any, tokens: int, layer: int) -> Cells:
    """One layer of K (plane 0) or V (1) in an array or buffer, as [block, token, head, item]."""
    return View(form, plane, tokens)(memory, layer)


def scale_cells(form: KVForm, plane: int, memory: Any, tokens: int) -> Cells:
    """The scales of one layer that are stored apart, as [block, token, head, group]."""
    _, tensor, head_dim = form.planes[plane]
    wanted = [form.extent(axis, head_dim // tensor.scale.group, tokens) for axis in tensor.axes]
    array = _typed(tensor.axes, wanted, np.dtype(np.float32), memory)
    ordered: Cells = array.transpose([tensor.axes.index(axis) for axis in CELLS if axis in tensor.axes])
    return ordered if form.block_tokens else ordered[None]


def arrays(form: KVForm, region: Bytes, tokens: int) -> tuple[list[Any], list[Any]]:
    """A region's memory as the arrays that an engine of this form would hand over: (keys, values)."""
    places = Region(form, region, tokens)
    whole: dict[str, list[Any]] = {"k": [], "v": [], "kv": []}
    for index, image in enumerate(form.images):
        piece = places.piece(index, 0, tokens)
        if image.plane == "kv":
            whole["kv"].append(piece.reshape(-1))
            continue
        name, scaled = image.plane[0], image.plane.endswith("scale")
        _, tensor, head_dim = form.planes["kv".index(name)]
        item = np.dtype(np.float32) if scaled else codecs.storage(tensor)
        last = head_dim // (tensor.scale.group if scaled else tensor.group)
        shape = [form.extent(axis, last, tokens) for axis in tensor.axes]
        array = piece.reshape(-1).view(item).reshape(shape)
        if scaled:
            whole[name][-1] = (whole[name][-1], array)
        else:
            whole[name].append(array)
    return (whole["kv"], whole["kv"]) if form.packed else (whole["k"], whole["v"])


def _count(form: KVForm, memory: Any) -> int:
    """Tokens in an engine's array; a paged one is taken as full."""
    array = memory[0] if isinstance(memory, tuple) else memory
    if form.packed:
        assert form.keys.strides is not None
        return int(array.nbytes // form.keys.strides[0] * form.unit_tokens)
    if array.ndim != len(form.keys.axes) and array.ndim != 2:
        raise CorruptKV(f"an array of shape {array.shape} was handed over for the axes {form.keys.axes}")
    return int(array.shape[form.keys.axes.index(form.unit_axis)]) * form.unit_tokens


def _typed(axes: tuple[Axis, ...], extents: list[int], storage: np.dtype[Any], memory: Array) -> Array:
    """The same memory with the storage's dtype and an axis for each name: an array of the same shape, or
    the bytes of whole rows. A pool may hold more blocks than these tokens need. Raises CorruptKV.
    """
    wanted = list(extents)
    if "block" in axes and memory.ndim == len(axes):
        wanted[axes.index("block")] = memory.shape[axes.index("block")]
    array = memory
    if memory.dtype != storage and memory.dtype.kind in "iuf":
        rows = memory.dtype == np.uint8 and memory.ndim > 0 and memory.strides[-1] == 1
        if memory.itemsize == storage.itemsize and storage.kind in "iuf":
            array = memory.view(storage)
        elif rows and memory.shape == (wanted[0], math.prod(wanted[1:]) * storage.itemsize):
            array = memory.view(storage).reshape(wanted)
        elif rows and memory.shape[-1] == wanted[-1] * storage.itemsize:
            array = memory.view(storage)
    if array.dtype != storage or list(array.shape) != wanted:
        should = dict(zip(axes, wanted, strict=True))
        raise CorruptKV(f"an array of {memory.dtype} {memory.shape} was handed over, not of {storage} {should}")
    return array


def _strided(form: KVForm, plane: int, memory: Array, tokens: int, layer: int) -> Cells:
    _, tensor, head_dim = form.planes[plane]
    assert tensor.strides is not None
    by_axis = dict(zip(tensor.axes, tensor.strides, strict=True))
    if not memory.flags.c_contiguous:
        raise CorruptKV("a packed cache must be handed over as one dense buffer")
    raw = memory.reshape(-1).view(np.uint8)
    blocks = raw.nbytes // by_axis[form.unit_axis] if form.block_tokens else 1
    items = head_dim // tensor.group
    try:
        return np.ndarray(
            (blocks, form.extent("token", items, tokens), form.head_span.size, items),
            codecs.storage(tensor),
            buffer=raw.data,
            offset=tensor.offset + layer * by_axis.get("layer", 0),
            strides=(by_axis.get("block", 0), by_axis["token"], by_axis["head"], by_axis["dim"]),
        )
    except (TypeError, ValueError) as error:
        raise CorruptKV(f"a buffer of {raw.nbytes} bytes cannot hold {tokens} tokens: {error}") from error
