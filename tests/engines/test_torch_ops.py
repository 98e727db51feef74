"""The CPU's own element-wise steps against PyTorch's in float32, and against the portable ones."""

from __future__ import annotations

import pytest
import torch

from diptych.engines import torch_ops_cpu
from diptych.engines.torch_ops import Ops, PortableOps, Rotation

pytestmark = pytest.mark.skipif(
    not torch_ops_cpu.supported(torch.bfloat16, "cpu"), reason="this CPU does not multiply bfloat16 by oneDNN"
)
SHAPES = [(1, 64), (7, 96), (256, 576), (33, 17)]


def noise(*shape: int, scale: float = 1.0, seed: int = 3) -> torch.Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).bfloat16()


@pytest.fixture(params=["portable", "cpu"])
def ops(request: pytest.FixtureRequest) -> Ops:
    return PortableOps() if request.param == "portable" else torch_ops_cpu.CpuOps()


def ulps(found: torch.Tensor, exact: torch.Tensor) -> float:
    """The largest error, in units of bfloat16's last place (of the value, or of 1 % of the maximum)."""
    size = exact.abs().clamp_min(exact.abs().max().item() / 100)
    return ((found.float() - exact).abs() / size).max().item() * 256


@pytest.mark.parametrize(("rows", "size"), SHAPES)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
def test_norm(ops: Ops, rows: int, size: int, scale: float) -> None:
    x, weight = noise(rows, size, scale=scale), noise(size, seed=4)
    exact = torch.nn.functional.rms_norm(x.float(), (size,), weight.float(), 1e-5)
    assert ulps(ops.norm(x, weight, 1e-5), exact) <= 3


def test_norm_of_every_head(ops: Ops) -> None:
    x, weight = noise(5, 4, 32), noise(32, seed=4)
    exact = torch.nn.functional.rms_norm(x.float(), (32,), weight.float(), 1e-5)
    assert ulps(ops.norm(x, weight, 1e-5), exact) <= 3


def test_rotation(ops: Ops) -> None:
    """Against complex numbers; input and output are strided views, as in the model."""
    mixed, out = noise(50, 3 * 64 + 40), torch.zeros(3, 80, 64, dtype=torch.bfloat16)
    x = mixed[:, :192].view(50, 3, 64)
    angles = torch.outer(torch.arange(900, 950).float(), 1e5 ** -(torch.arange(32) / 32))
    ops.rotate(x, Rotation(angles.cos(), angles.sin()), out[:, 10:60])
    turned = torch.complex(*x.float().chunk(2, -1)) * torch.polar(torch.ones(()), angles)[:, None]
    exact = torch.cat((turned.real, turned.imag), -1).transpose(0, 1)
    length = torch.cat((turned.abs(), turned.abs()), -1).transpose(0, 1)  # terms may cancel: measure by the pair
    assert ((out[:, 10:60].float() - exact).abs() / length).max() < 3 / 256
    assert not out[:, :10].any()
    assert not out[:, 60:].any()


def test_scale_is_multiplied_in(ops: Ops) -> None:
    x = noise(9, 2, 64)
    angles = torch.outer(torch.arange(9).float(), torch.rand(32))
    plain, scaled = torch.empty(2, 9, 64).bfloat16(), torch.empty(2, 9, 64).bfloat16()
    rotation = Rotation(angles.cos(), angles.sin())
    ops.rotate(x, rotation, plain)
    ops.rotate(x, rotation.scaled(0.125), scaled)
    torch.testing.assert_close(scaled, plain * 0.125)


@pytest.mark.parametrize("rows", [1, 7, 256])
def test_gated(ops: Ops, rows: int) -> None:
    x, gate_up = noise(rows, 96), noise(320, 96, scale=0.1, seed=5)
    gate, up = (x.float() @ gate_up.float().T).chunk(2, -1)
    assert ulps(ops.gated(x, gate_up), torch.nn.functional.silu(gate) * up) <= 8


def test_other_devices_and_dtypes_are_left_to_pytorch() -> None:
    assert not torch_ops_cpu.supported(torch.float32, "cpu")
    assert not torch_ops_cpu.supported(torch.bfloat16, "cuda:0")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_not_hidden(ops: Ops, value: float) -> None:
    x = noise(3, 64)
    x[1, 5] = value
    found = ops.norm(x, torch.ones(64).bfloat16(), 1e-5)
    assert not torch.isfinite(found[1, 5])
    assert torch.isfinite(found[0]).all()
