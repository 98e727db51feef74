"""What KV looks like on one side of a handoff, said so that the other side needs to know nothing else.

A :class:`KVForm` describes storage by *named* axes, never by a bare shape: engines permute, tile and pack
their caches differently from release to release, and two of them may well have equal shapes and different
meanings.

A consumer names the form that it wants; the landing region then holds that form's **images**, one after the
other:

    region   | K layer 0 | K layer 1 | ... | V layer 0 | V layer 1 | ...     one image per tensor and layer
    image    outer x units x unit_bytes, dense; a unit is one token, or one block of tokens
             rows          [token][head][dim]         1 x tokens x (heads * dim * item)
             head-major    [head][token][dim]         heads x tokens x (dim * item)
             transposed V  [head][dim][token]         (heads * dim) x tokens x item
             paged         [block][head][slot][dim]   1 x blocks x (heads * slots * dim * item)
             packed        K and V share each unit, at their own strides and offsets: one image a layer, or,
                           where the layers too lie inside a unit, one image in all

so that whatever lies between the converter and the engine (frames, digests, transports) deals with three
integers per image and not with layouts.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Literal

import msgspec

VERSION = 1

Axis = Literal["layer", "block", "token", "head", "dim"]
Dtype = Literal["f32", "f16", "bf16", "f8e4m3", "i8", "q8_0"]
Pairing = Literal["half", "interleaved", "none"]
Plane = Literal["k", "k_scale", "v", "v_scale", "kv"]
Scheme = Literal["none", "tensor", "inline", "apart"]

ITEM_BYTES: dict[Dtype, int] = {"f32": 4, "f16": 2, "bf16": 2, "f8e4m3": 1, "i8": 1, "q8_0": 1}
"""Bytes of one value without its scale."""


class Geometry(msgspec.Struct, frozen=True, kw_only=True):
    """The model's KV. ``head_dim_v`` 0 means that there is no V (MLA keeps one latent, described as K).

    ``windows`` has one entry a layer: how many of the last tokens it attends to, 0 for all; empty means all
    are 0.
    """

    layers: int
    kv_heads: int
    head_dim_k: int
    head_dim_v: int
    windows: tuple[int, ...] = ()


class Rope(msgspec.Struct, frozen=True, kw_only=True):
    """How positions were rotated into K before it was stored.

    In the ``dims`` dimensions from ``start`` on (None: up to the end) dimension j turns together with j +
    dims/2 ("half") or with its neighbour j ^ 1 ("interleaved"). Base and scaling belong to the model's
    fingerprint.
    """

    pairing: Pairing
    start: int = 0
    dims: int | None = None

    def span(self, head_dim: int) -> tuple[int, int]:
        """The rotated dimensions as (start, stop)."""
        return self.start, head_dim if self.dims is None else self.start + self.dims


class Span(msgspec.Struct, frozen=True, array_like=True):
    """A half-open range of layers or heads of the whole model."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start

    def within(self, other: Span) -> bool:
        return other.start <= self.start and self.stop <= other.stop


class Scale(msgspec.Struct, frozen=True, kw_only=True):
    """How a stored number becomes a value: value = number * scale.

    - "none": there is no scale.
    - "tensor": ``values`` has one scale for all layers held, or one for each; they come with the weights.
    - "inline": every ``group`` neighbouring values of ``dim`` are stored behind their own f32 scale.
    - "apart": the same scales in an array of their own, the tensor's axes with dim / group entries of f32.

    q8_0 is llama.cpp's own inline scheme: an f16 scale, then 32 signed bytes.
    """

    scheme: Scheme = "none"
    group: int = 0
    values: tuple[float, ...] = ()


class Tensor(msgspec.Struct, frozen=True, kw_only=True):
    """K or V. ``axes`` run from the slowest to the fastest; with a ``block`` axis, ``token`` counts the slots
    inside a block.

    Without ``strides`` every layer is an array of its own, dense in a target, with the array's own strides in
    a source. With ``strides`` (bytes, one an axis) and ``offset``, K and V lie in the same memory: one buffer
    a layer, or one for all where ``layer`` is among the axes.
    """

    axes: tuple[Axis, ...]
    dtype: Dtype
    scale: Scale = Scale()
    strides: tuple[int, ...] | None = None
    offset: int = 0

    @property
    def group(self) -> int:
        """Neighbouring values of ``dim`` that are stored as one item."""
        if self.dtype == "q8_0":
            return 32
        return self.scale.group if self.scale.scheme == "inline" else 1

    @property
    def item_bytes(self) -> int:
        """Bytes of one stored item, its inline scale included."""
        inline = 2 if self.dtype == "q8_0" else 4 if self.scale.scheme == "inline" else 0
        return inline + self.group * ITEM_BYTES[self.dtype]


class Image(msgspec.Struct, frozen=True):
    """One dense part of a landing region: ``outer`` x units x ``unit_bytes``, a unit ``unit_tokens`` tokens.

    ``layer`` is -1 where the image holds all layers.
    """

    plane: Plane
    layer: int
    outer: int
    unit_tokens: int
    unit_bytes: int

    def units(self, tokens: int) -> int:
        return -(-tokens // self.unit_tokens)

    def size(self, tokens: int) -> int:
        """Bytes of the image of ``tokens`` tokens."""
        return self.outer * self.units(tokens) * self.unit_bytes


class KVForm(msgspec.Struct, frozen=True, kw_only=True):
    """The whole description. ``fingerprint`` names everything that decides the numbers: weights, RoPE base,
    scaling.

    ``block_tokens`` is 0 where storage is not paged. ``layers`` and ``heads`` are the shard that is held
    (None: all); its tokens are 0 .. n of the sequence, token i at position i. ``name`` is for people.
    """

    name: str
    fingerprint: str
    geometry: Geometry
    keys: Tensor
    values: Tensor
    rope: Rope
    block_tokens: int = 0
    layers: Span | None = None
    heads: Span | None = None
    version: int = VERSION

    @property
    def layer_span(self) -> Span:
        return self.layers or Span(0, self.geometry.layers)

    @property
    def head_span(self) -> Span:
        return self.heads or Span(0, self.geometry.kv_heads)

    @property
    def unit_tokens(self) -> int:
        """Tokens of the smallest piece that can be placed by itself."""
        return self.block_tokens or 1

    @property
    def unit_axis(self) -> Axis:
        return "block" if self.block_tokens else "token"

    @property
    def packed(self) -> bool:
        """True where K and V share memory."""
        return self.keys.strides is not None

    @property
    def stacked(self) -> bool:
        """True where all layers share memory too."""
        return "layer" in self.keys.axes

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one token over all layers held, K and V (a block's share, where paged)."""
        return self.region_bytes(self.unit_tokens) // self.unit_tokens

    @property
    def planes(self) -> tuple[tuple[Plane, Tensor, int], ...]:
        """(plane, tensor, head_dim) of K and, where there is one, V."""
        k: tuple[Plane, Tensor, int] = ("k", self.keys, self.geometry.head_dim_k)
        v: tuple[Plane, Tensor, int] = ("v", self.values, self.geometry.head_dim_v)
        return (k, v) if self.geometry.head_dim_v else (k,)

    @property
    def images(self) -> tuple[Image, ...]:
        """The images of a landing region in their order: K of every layer held, then V."""
        return _images(self)

    def region_bytes(self, tokens: int) -> int:
        """Bytes of a landing region for ``tokens`` tokens."""
        return sum(image.size(tokens) for image in self.images)

    def extent(self, axis: Axis, head_dim: int, tokens: int) -> int:
        """Length of ``axis`` where ``tokens`` tokens are held; that of ``dim`` is in values."""
        if axis == "token":
            return self.block_tokens or tokens
        if axis == "block":
            return -(-tokens // self.unit_tokens)
        return {"head": self.head_span.size, "dim": head_dim, "layer": self.layer_span.size}[axis]


@functools.lru_cache(256)
def _images(form: KVForm) -> tuple[Image, ...]:
    layers = range(form.layer_span.start, form.layer_span.stop)
    if form.packed:
        assert form.keys.strides is not None
        unit_bytes = form.keys.strides[form.keys.axes.index(form.unit_axis)]
        held = (-1,) if form.stacked else layers
        return tuple(Image("kv", layer, 1, form.unit_tokens, unit_bytes) for layer in held)
    return tuple(
        image
        for plane, tensor, head_dim in form.planes
        for layer in layers
        for image in _dense(form, plane, tensor, head_dim, layer)
    )


def _dense(form: KVForm, plane: Plane, tensor: Tensor, head_dim: int, layer: int) -> Iterator[Image]:
    at = tensor.axes.index(form.unit_axis)
    outer = math.prod(form.extent(axis, head_dim // tensor.group, 1) for axis in tensor.axes[:at])
    inner = math.prod(form.extent(axis, head_dim // tensor.group, 1) for axis in tensor.axes[at + 1 :])
    yield Image(plane, layer, outer, form.unit_tokens, inner * tensor.item_bytes)
    if tensor.scale.scheme == "apart":
        scales = inner // head_dim * (head_dim // tensor.scale.group) * 4
        yield Image("k_scale" if plane == "k" else "v_scale", layer, outer, form.unit_tokens, scales)
