"""Whether a form describes memory that can exist: every axis once, whole groups, strides that do not
collide.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from diptych.errors import IncompatibleForms
from diptych.handoff.contract import Axis, KVForm, Tensor

_SCALED = {"f8e4m3": {"none", "tensor", "inline", "apart"}, "i8": {"tensor", "inline", "apart"}}


@functools.lru_cache(256)
def check_storage(form: KVForm) -> None:
    """Raises IncompatibleForms with the property that is wrong, what it is, and what it should be."""
    wanted: set[Axis] = {"token", "head", "dim"}
    if form.block_tokens:
        wanted.add("block")
    if form.packed and form.stacked:
        wanted.add("layer")
    for plane, tensor, head_dim in form.planes:
        name = f"{form.name}.{plane}"
        if set(tensor.axes) != wanted or len(tensor.axes) != len(wanted):
            raise IncompatibleForms(f"{name}.axes", tensor.axes, tuple(sorted(wanted)))
        _check_scale(name, tensor, head_dim, form.layer_span.size)
    if form.packed:
        _check_packed(form)
    elif any(tensor.strides is not None for _, tensor, _ in form.planes):
        raise IncompatibleForms(f"{form.name}.strides", "of one of K and V", "of both")
    elif form.block_tokens:
        _check_blocks_outside(form)


def _check_blocks_outside(form: KVForm) -> None:
    for plane, tensor, _ in form.planes:
        if tensor.axes.index("block") > tensor.axes.index("token"):
            raise IncompatibleForms(f"{form.name}.{plane}.axes", tensor.axes, "block outside token")


def _check_scale(name: str, tensor: Tensor, head_dim: int, layers: int) -> None:
    scale = tensor.scale
    allowed = _SCALED.get(tensor.dtype, {"none"})
    if scale.scheme not in allowed:
        raise IncompatibleForms(f"{name}.scale", scale.scheme, tuple(sorted(allowed)))
    if scale.scheme == "tensor" and not (
        len(scale.values) in {1, layers} and all(math.isfinite(v) and v > 0 for v in scale.values)
    ):
        raise IncompatibleForms(f"{name}.scale.values", scale.values, f"1 or {layers} positive numbers")
    group = 32 if tensor.dtype == "q8_0" else scale.group
    grouped = tensor.dtype == "q8_0" or scale.scheme in {"inline", "apart"}
    if grouped and (group <= 1 or head_dim % group or tensor.axes[-1] != "dim"):
        raise IncompatibleForms(f"{name}.scale.group", group, f"a part of a row of {head_dim} values")


def _check_packed(form: KVForm) -> None:
    """K and V lie in one unit of memory and nowhere twice: bytes of a unit are marked as they are claimed."""
    name = f"{form.name}.strides"
    units = {_unit_stride(form, tensor) for _, tensor, _ in form.planes}
    if len(units) != 1 or None in units:
        raise IncompatibleForms(name, tuple(units), f"one outermost stride of {form.unit_axis} for K and V")
    (unit_bytes,) = units
    claimed = np.zeros(unit_bytes or 0, np.bool_)
    for plane, tensor, head_dim in form.planes:
        places = _bytes_of_unit(form, tensor, head_dim)
        if tensor.scale.scheme == "apart":
            raise IncompatibleForms(f"{form.name}.{plane}.scale", "apart", "inline, as K and V are packed")
        if places.min() < 0 or places.max() >= claimed.size:
            raise IncompatibleForms(name, int(places.max()), f"bytes 0 to {claimed.size - 1} of a unit")
        if claimed[places].any() or np.unique(places).size != places.size:
            raise IncompatibleForms(name, f"{plane} over other values", "memory of its own")
        claimed[places] = True


def _unit_stride(form: KVForm, tensor: Tensor) -> int | None:
    if tensor.strides is None or len(tensor.strides) != len(tensor.axes) or tensor.axes[0] != form.unit_axis:
        return None
    return tensor.strides[0]


def _bytes_of_unit(form: KVForm, tensor: Tensor, head_dim: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    assert tensor.strides is not None
    places = np.array([tensor.offset])
    for axis, stride in list(zip(tensor.axes, tensor.strides, strict=True))[1:]:
        extent = form.extent(axis, head_dim // tensor.group, 1)
        places = (places[:, None] + np.arange(extent) * stride).reshape(-1)
    return (places[:, None] + np.arange(tensor.item_bytes)).reshape(-1)
