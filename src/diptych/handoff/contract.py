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

so that whatever lies between the converter and the engine (frames, digests, transports) deals with three
integers per image and not with layouts.
"""

from __future__ import annotations

import functools
import math
from typing import Literal

import msgspec

VERSION = 1

Axis = Literal["layer", "block", "token", "head", "dim"]
Dtype = Literal["f32", "f16", "bf16", "f8e4m3", "i8", "q8_0"]
Pairing = Literal["half", "interleaved", "none"]
Plane = Literal["k", "v"]

GROUPS: dict[Dtype, tuple[int, int]] = {
    "f32": (1, 4),
    "f16": (1, 2),
    "bf16": (1, 2),
    "f8e4m3": (1, 1),
    "i8": (1, 1),
    "q8_0": (32, 34),  # llama.cpp: an f16 scale, then 32 signed bytes
}
"""Per dtype, how many neighbouring values of ``dim`` are stored together, and in how many bytes."""


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


class Tensor(msgspec.Struct, frozen=True, kw_only=True):
    """K or V. ``axes`` run from the slowest to the fastest; ``layer`` is not among them where each layer is
    an array.

    With a ``block`` axis, ``token`` counts the slots inside a block. ``strides`` (bytes, one an axis) and
    ``offset`` describe raw memory; None means that an array's own strides rule (a source) or that it is
    dense (a target).
    """

    axes: tuple[Axis, ...]
    dtype: Dtype
    strides: tuple[int, ...] | None = None
    offset: int = 0


class Image(msgspec.Struct, frozen=True):
    """One layer of K or V in a landing region: ``outer`` x ``units`` x ``unit_bytes``, a unit
    ``unit_tokens`` tokens.
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


@functools.lru_cache(256)
def _images(form: KVForm) -> tuple[Image, ...]:
    return tuple(
        Image(plane, layer, *form.unit_of(tensor, head_dim))
        for plane, tensor, head_dim in form.planes
        for layer in range(form.layer_span.start, form.layer_span.stop)
    )


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
        """Length of ``axis`` in stored groups (not values) where ``tokens`` tokens are held."""
        if axis == "token":
            return self.block_tokens or tokens
        if axis == "block":
            return -(-tokens // self.unit_tokens)
        return {"head": self.head_span.size, "dim": head_dim, "layer": self.layer_span.size}[axis]

    def unit_of(self, tensor: Tensor, head_dim: int) -> tuple[int, int, int]:
        """(outer, unit_tokens, unit_bytes) of an image of this tensor."""
        group, item = GROUPS[tensor.dtype]
        unit_axis: Axis = "block" if self.block_tokens else "token"
        axes = tuple(axis for axis in tensor.axes if axis != "layer")
        at = axes.index(unit_axis)
        outer = math.prod(self.extent(axis, head_dim, 1) for axis in axes[:at])
        inner = math.prod(self.extent(axis, head_dim, 1) for axis in axes[at + 1 :])
        return outer, self.unit_tokens, inner * item // group
