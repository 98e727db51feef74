"""Whether one KV form can be turned into another, and by which steps. Pure."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import msgspec

from diptych.errors import IncompatibleForms
from diptych.handoff.contract import VERSION, KVForm, Span, Tensor
from diptych.handoff.storage import check_storage


class Plan(msgspec.Struct, frozen=True):
    """A conversion that exists. ``steps`` says it in words; the converter reads ``source`` and ``target``."""

    source: KVForm
    target: KVForm
    steps: tuple[str, ...]

    @property
    def identity(self) -> bool:
        """True where not a single value changes its bits or its place within an image."""
        return not self.steps

    @property
    def layers(self) -> Span:
        """The target's layers as indices into the source's list of layers."""
        first = self.source.layer_span.start
        return Span(self.target.layer_span.start - first, self.target.layer_span.stop - first)

    @property
    def heads(self) -> Span:
        """The target's heads as indices into the source's heads."""
        first = self.source.head_span.start
        return Span(self.target.head_span.start - first, self.target.head_span.stop - first)


@functools.lru_cache(256)
def plan(source: KVForm, target: KVForm) -> Plan:
    """The conversion from ``source`` to ``target``; the target may hold a part of the source's layers and
    heads.

    Raises IncompatibleForms with the first property that stands in the way, and both values.
    """
    for name, have, want in _must_agree(source, target):
        if have != want:
            raise IncompatibleForms(name, have, want)
    for name, has, wants in _must_contain(source, target):
        if not wants.within(has):
            raise IncompatibleForms(name, (has.start, has.stop), (wants.start, wants.stop))
    for form in (source, target):
        check_storage(form)
    _check_rope(source, target)
    return Plan(source, target, tuple(_steps(source, target)))


def _must_agree(source: KVForm, target: KVForm) -> Iterator[tuple[str, object, object]]:
    yield "version", source.version, VERSION
    yield "version", VERSION, target.version
    yield "fingerprint", source.fingerprint, target.fingerprint
    for field in source.geometry.__struct_fields__:
        yield f"geometry.{field}", getattr(source.geometry, field), getattr(target.geometry, field)


def _must_contain(source: KVForm, target: KVForm) -> Iterator[tuple[str, Span, Span]]:
    yield "layers", source.layer_span, target.layer_span
    yield "heads", source.head_span, target.head_span


def _check_rope(source: KVForm, target: KVForm) -> None:
    if source.rope == target.rope:
        return
    head_dim = source.geometry.head_dim_k
    if "none" in (source.rope.pairing, target.rope.pairing):
        raise IncompatibleForms("rope.pairing", source.rope.pairing, target.rope.pairing)
    if source.rope.span(head_dim) != target.rope.span(head_dim):
        raise IncompatibleForms("rope.span", source.rope.span(head_dim), target.rope.span(head_dim))
    start, stop = source.rope.span(head_dim)
    if not 0 <= start < stop <= head_dim or (stop - start) % 2:
        raise IncompatibleForms("rope.span", (start, stop), f"an even part of {head_dim} dimensions")


def _steps(source: KVForm, target: KVForm) -> Iterator[str]:
    for name, has, wants in _must_contain(source, target):
        if has != wants:
            yield f"cut {name} {wants.start}..{wants.stop}"
    if source.rope.pairing != target.rope.pairing:
        yield f"re-pair {source.rope.pairing} -> {target.rope.pairing}"
    if source.block_tokens != target.block_tokens:
        yield f"re-page {source.block_tokens} -> {target.block_tokens}"
    for (plane, have, _), (_, want, _) in zip(source.planes, target.planes, strict=True):
        if (have.dtype, have.scale) != (want.dtype, want.scale):
            yield f"cast {plane} {_numbers(have)} -> {_numbers(want)}"
        if (have.axes, have.strides, have.offset) != (want.axes, want.strides, want.offset):
            yield f"reorder {plane} {'.'.join(have.axes)} -> {'.'.join(want.axes)}"


def _numbers(tensor: Tensor) -> str:
    scale = tensor.scale
    return tensor.dtype if scale.scheme == "none" else f"{tensor.dtype} ({scale.scheme} {scale.group or ''})"
