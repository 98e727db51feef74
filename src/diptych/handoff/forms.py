"""Known KV forms, as data. A new engine's form is a few lines here, never new conversion code.

Layouts are named as their engines name them; each was read from, or checked against, the engine itself:

    name             one array per    memory order                                      K and V
    hugging-face     layer, K and V   head token dim                                    apart
    llama.cpp        layer, K and V   token head dim                                    apart
    llama.cpp-trans  layer, K and V   token head dim; V: head dim token                 apart
    vllm-nhd         layer, K and V   block token head dim                              apart
    vllm-hnd         layer, K and V   block head token dim                              apart
    vllm-lbhnc       layer            block head token [K: dim | V: dim]                packed
    vllm-lbnhc       layer            block token head [K: dim | V: dim]                packed
    vllm-blhnc       nothing          block layer head token [K: dim | V: dim]          packed, all layers
    vllm-cpu         layer            block head [K: dim token | V: token dim]          packed
    frames           nothing          token layer [K: head dim | V: head dim]           packed, all layers

(llama.cpp-trans is llama.cpp without flash attention.)
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from diptych.handoff.contract import Axis, Dtype, Geometry, KVForm, Pairing, Rope, Scale, Span, Tensor

ROWS: tuple[Axis, ...] = ("token", "head", "dim")
HEAD_MAJOR: tuple[Axis, ...] = ("head", "token", "dim")
CHANNEL_MAJOR: tuple[Axis, ...] = ("head", "dim", "token")
NHD: tuple[Axis, ...] = ("block", "token", "head", "dim")
HND: tuple[Axis, ...] = ("block", "head", "token", "dim")


class Holding(msgspec.Struct, frozen=True, kw_only=True):
    """What is held, whatever its layout: whose KV, in which numbers, which part of it."""

    geometry: Geometry
    fingerprint: str
    dtype: Dtype = "bf16"
    scale: Scale = Scale()
    rope: Rope = Rope(pairing="half")
    layers: Span | None = None
    heads: Span | None = None

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """(layers, heads, bytes of one K head, bytes of one V head)."""
        held = (self.layers or Span(0, self.geometry.layers)).size
        heads = (self.heads or Span(0, self.geometry.kv_heads)).size
        some = Tensor(axes=ROWS, dtype=self.dtype, scale=self.scale)
        k, v = (dim // some.group * some.item_bytes for dim in (self.geometry.head_dim_k, self.geometry.head_dim_v))
        return held, heads, k, v

    @property
    def item_bytes(self) -> int:
        return Tensor(axes=ROWS, dtype=self.dtype, scale=self.scale).item_bytes


def hugging_face(geometry: Geometry, fingerprint: str, dtype: Dtype = "bf16", rope: Rope | None = None) -> KVForm:
    """A transformers cache: per layer K and V as [head, token, dim] (no batch axis), half-rotated."""
    what = Holding(geometry=geometry, fingerprint=fingerprint, dtype=dtype, rope=rope or Rope(pairing="half"))
    return apart("hugging-face", what, HEAD_MAJOR)


def llama_cpp(
    geometry: Geometry, fingerprint: str, pairing: Pairing, dtype: Dtype = "f16", rope: Rope | None = None
) -> KVForm:
    """llama.cpp's rows with flash attention on: per layer K and V as [token][head * dim].

    ``pairing`` is the model's: "interleaved" where the GGUF permutes Q and K (llama and relatives), "half"
    for its NeoX architectures (qwen2, qwen3, ...). Take it from the model's metadata.
    """
    what = Holding(geometry=geometry, fingerprint=fingerprint, dtype=dtype, rope=rope or Rope(pairing=pairing))
    return apart("llama.cpp", what, ROWS)


def apart(
    name: str,
    what: Holding,
    keys: tuple[Axis, ...],
    values: tuple[Axis, ...] | None = None,
    block_tokens: int = 0,
) -> KVForm:
    """K and V of every layer as arrays of their own, in these orders of axes."""
    return _form(
        name,
        what,
        Tensor(axes=keys, dtype=what.dtype, scale=what.scale),
        Tensor(axes=values or keys, dtype=what.dtype, scale=what.scale),
        block_tokens,
    )


def vllm_lbhnc(what: Holding, block_tokens: int) -> KVForm:
    """Per layer [block, head, token, K dim | V dim] (2026: the order that its NIXL connector prefers)."""
    _, heads, k, v = what.sizes
    strides = (heads * block_tokens * (k + v), block_tokens * (k + v), k + v, what.item_bytes)
    return _packed("vllm-lbhnc", what, HND, strides, block_tokens)


def vllm_lbnhc(what: Holding, block_tokens: int) -> KVForm:
    """Per layer [block, token, head, K dim | V dim]."""
    _, heads, k, v = what.sizes
    strides = (block_tokens * heads * (k + v), heads * (k + v), k + v, what.item_bytes)
    return _packed("vllm-lbnhc", what, NHD, strides, block_tokens)


def vllm_blhnc(what: Holding, block_tokens: int) -> KVForm:
    """One buffer [block, layer, head, token, K dim | V dim]: a block holds all layers."""
    layers, heads, k, v = what.sizes
    layer = heads * block_tokens * (k + v)
    strides = (layers * layer, layer, block_tokens * (k + v), k + v, what.item_bytes)
    axes: tuple[Axis, ...] = ("block", "layer", "head", "token", "dim")
    return _packed("vllm-blhnc", what, axes, strides, block_tokens)


def vllm_cpu(what: Holding, block_tokens: int = 128) -> KVForm:
    """vLLM on a CPU (checked on AVX-512): in each (block, head) tile K transposed, then V.

    The shape of its tensors says otherwise; only names and strides tell.
    """
    _, heads, k, v = what.sizes
    tile, item = block_tokens * (k + v), what.item_bytes
    keys = Tensor(
        axes=("block", "head", "dim", "token"),
        dtype=what.dtype,
        scale=what.scale,
        strides=(heads * tile, tile, block_tokens * item, item),
    )
    values = Tensor(
        axes=HND,
        dtype=what.dtype,
        scale=what.scale,
        strides=(heads * tile, tile, v, item),
        offset=block_tokens * k,
    )
    return _form("vllm-cpu", what, keys, values, block_tokens)


def frames(what: Holding) -> KVForm:
    """Token-major: a token's KV of all layers in one frame, [token, layer, K: head dim | V: head dim]."""
    layers, heads, k, v = what.sizes
    axes: tuple[Axis, ...] = ("token", "layer", "head", "dim")
    layer = heads * (k + v)
    keys, values = (
        Tensor(
            axes=axes,
            dtype=what.dtype,
            scale=what.scale,
            strides=(layers * layer, layer, head, what.item_bytes),
            offset=offset,
        )
        for head, offset in ((k, 0), (v, heads * k))
    )
    return _form("frames", what, keys, values, 0)


KNOWN: dict[str, Callable[[Holding, int], KVForm]] = {
    "hugging-face": lambda what, _: apart("hugging-face", what, HEAD_MAJOR),
    "llama.cpp": lambda what, _: apart("llama.cpp", what, ROWS),
    "llama.cpp-trans": lambda what, _: apart("llama.cpp-trans", what, ROWS, CHANNEL_MAJOR),
    "vllm-nhd": lambda what, block_tokens: apart("vllm-nhd", what, NHD, NHD, block_tokens),
    "vllm-hnd": lambda what, block_tokens: apart("vllm-hnd", what, HND, HND, block_tokens),
    "vllm-lbhnc": vllm_lbhnc,
    "vllm-lbnhc": vllm_lbnhc,
    "vllm-blhnc": vllm_blhnc,
    "vllm-cpu": vllm_cpu,
    "frames": lambda what, _: frames(what),
}
"""Name -> (what is held, tokens of a block) -> its form. Forms that are not paged ignore the block."""


def _packed(name: str, what: Holding, axes: tuple[Axis, ...], strides: tuple[int, ...], block_tokens: int) -> KVForm:
    """Rows of K's dim and then V's dim, at these strides."""
    keys, values = (
        Tensor(axes=axes, dtype=what.dtype, scale=what.scale, strides=strides, offset=offset)
        for offset in (0, what.sizes[2])
    )
    return _form(name, what, keys, values, block_tokens)


def _form(name: str, what: Holding, keys: Tensor, values: Tensor, block_tokens: int) -> KVForm:
    return KVForm(
        name=name,
        fingerprint=what.fingerprint,
        geometry=what.geometry,
        keys=keys,
        values=values,
        rope=what.rope,
        block_tokens=block_tokens,
        layers=what.layers,
        heads=what.heads,
    )
