"""The element-wise steps of a decoder block, in plain PyTorch: any device, any float dtype."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)


class Rotation(NamedTuple):
    """RoPE's tables for a run of positions, float32 [tokens, d / 2], with any scale multiplied in."""

    cos: torch.Tensor
    sin: torch.Tensor

    def rows(self, start: int, stop: int) -> Rotation:
        """The tables of a part of the run."""
        return Rotation(self.cos[start:stop], self.sin[start:stop])

    def scaled(self, scale: float) -> Rotation:
        """The same angles with ``scale`` multiplied in."""
        return Rotation(self.cos * scale, self.sin * scale)


class Ops(Protocol):
    """What a device may have a faster way for. Tensors are of the model's dtype, rows contiguous."""

    def norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """RMSNorm over the last axis."""

    def rotate(self, x: torch.Tensor, rotation: Rotation, out: torch.Tensor) -> None:
        """Half-rotated RoPE of ``x`` [tokens, heads, d] into ``out`` [heads, tokens, d]."""

    def gated(self, x: torch.Tensor, gate_up: torch.Tensor) -> torch.Tensor:
        """silu(x gate^T) * (x up^T), where ``gate_up`` stacks the rows of both matrices."""


class PortableOps:
    """Nothing but PyTorch."""

    def norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        return F.rms_norm(x, weight.shape, weight, eps)

    def rotate(self, x: torch.Tensor, rotation: Rotation, out: torch.Tensor) -> None:
        cos, sin = (table.to(x.dtype)[:, None] for table in rotation)
        low, high = x.chunk(2, -1)
        out_low, out_high = out.transpose(0, 1).chunk(2, -1)
        torch.mul(low, cos, out=out_low).addcmul_(high, sin, value=-1)
        torch.mul(high, cos, out=out_high).addcmul_(low, sin)

    def gated(self, x: torch.Tensor, gate_up: torch.Tensor) -> torch.Tensor:
        gate, up = F.linear(x, gate_up).chunk(2, -1)
        return F.silu(gate).mul_(up)
