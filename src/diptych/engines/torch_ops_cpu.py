"""The same steps for bfloat16 on a CPU: oneDNN's fused products, and two small kernels compiled by numba.

PyTorch runs RMSNorm and RoPE as a dozen passes over memory with a thread barrier after each; one pass on one
thread is two to five times faster, and stays so while another process wants the other core. Intermediates are
float32, rounded once at the end.
"""

from __future__ import annotations

import ctypes
import platform
from typing import Any, Final

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, register_jitable
from numpy.typing import NDArray

from diptych.engines.torch_ops import Rotation

_FAST: Final = {"reassoc", "contract", "nsz"}
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _MIB = -1, -3, 1 << 20


def supported(dtype: torch.dtype, device: str) -> bool:
    """Whether this machine's CPU multiplies bfloat16 through oneDNN, and that is what is wanted."""
    if dtype is not torch.bfloat16 or torch.device(device).type != "cpu":
        return False
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class CpuOps:
    """See ``Ops``. Making one also tells the allocator to keep freed memory."""

    def __init__(self) -> None:
        _keep_freed_memory()
        self._product = torch.ops.mkldnn._linear_pointwise

    def norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        out = torch.empty_like(x)
        size = weight.shape[0]
        _norm(_bits(x.view(-1, size)), _bits(weight), eps, _bits(out.view(-1, size)))
        return out

    def rotate(self, x: torch.Tensor, rotation: Rotation, out: torch.Tensor) -> None:
        _rotate(_bits(x), rotation.cos.numpy(), rotation.sin.numpy(), _bits(out))

    def gated(self, x: torch.Tensor, gate_up: torch.Tensor) -> torch.Tensor:
        gate, up = gate_up.chunk(2)
        activated = self._product(x, gate, None, "swish", [], "")
        product: torch.Tensor = self._product.binary(x, activated, up, None, "mul")
        return product


def _bits(tensor: torch.Tensor) -> NDArray[np.uint16]:
    return tensor.view(torch.uint16).numpy()


def _keep_freed_memory() -> None:
    """Stops glibc from giving temporaries of a few MB back after each step: their page faults cost as much as
    the work done in them.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 32 * _MIB)
        libc.mallopt(_M_TRIM_THRESHOLD, 64 * _MIB)


@intrinsic
def _float_of(_typing: Any, _bits: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.uint32), generate


@intrinsic
def _bits_of(_typing: Any, _value: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(32))

    return types.uint32(types.float32), generate


@register_jitable
def _read(bits: Any) -> Any:
    return _float_of(np.uint32(bits) << np.uint32(16))


@register_jitable
def _round(value: Any) -> Any:
    """To the nearest bfloat16, ties to even."""
    bits = _bits_of(value)
    return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


@njit("void(u2[:,::1], u2[::1], f4, u2[:,::1])", nogil=True, fastmath=_FAST, cache=True)
def _norm(x: Any, weight: Any, eps: Any, out: Any) -> None:
    size = x.shape[1]
    for row in range(x.shape[0]):
        source, target = x[row], out[row]
        total = np.float32(0)
        for j in range(size):
            value = _read(source[j])
            total += value * value
        scale = np.float32(1) / np.sqrt(total / np.float32(size) + eps)
        for j in range(size):
            target[j] = _round(_read(source[j]) * scale * _read(weight[j]))


@njit("void(u2[:,:,:], f4[:,::1], f4[:,::1], u2[:,:,:])", nogil=True, fastmath=_FAST, cache=True)
def _rotate(x: Any, cos: Any, sin: Any, out: Any) -> None:
    half = x.shape[2] // 2
    for token in range(x.shape[0]):
        c, s = cos[token], sin[token]
        for head in range(x.shape[1]):
            source, target = x[token, head], out[head, token]
            for j in range(half):
                low, high = _read(source[j]), _read(source[j + half])
                target[j] = _round(low * c[j] - high * s[j])
                target[j + half] = _round(high * c[j] + low * s[j])
