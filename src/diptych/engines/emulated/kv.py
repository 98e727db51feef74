"""KV that nothing but the prompt and the model decides, small and exact.

    token, position --mix--> u64  --running sum-->  state of token i  --mix with lane-->  8 signed bytes a lane

Like real KV, a token's rows depend on it and on all tokens before it, so they can be computed chunk by chunk. Their
values are multiples of 1/32 with seven bits: bf16 and f16 hold them exactly, whatever way they take between two forms.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from diptych.handoff import forms
from diptych.handoff.contract import Geometry, KVForm

GEOMETRY = Geometry(layers=4, kv_heads=2, head_dim_k=16, head_dim_v=16)
"""512 bytes a token: real enough to be converted and checked, small enough to cost a laptop nothing."""

U64 = NDArray[np.uint64]
Values = NDArray[np.float32]

_LANES = GEOMETRY.layers * 2 * GEOMETRY.kv_heads * GEOMETRY.head_dim_k // 8
_STEP = np.uint64(0x9E3779B97F4A7C15)


def fingerprint(model: str) -> str:
    """What decides the numbers. Never equal to a real engine's, whose KV this is not."""
    return hashlib.sha256(f"emulated 1 {model}".encode()).hexdigest()


def prefill_form(model: str) -> KVForm:
    """What the emulated prefill engine writes: bf16, per layer [head, token, dim], rotated in halves."""
    return forms.hugging_face(GEOMETRY, fingerprint(model), "bf16")


def decode_form(model: str) -> KVForm:
    """What the emulated decode engine wants: f16, per layer [token, head x dim], rotated in neighbours."""
    return forms.llama_cpp(GEOMETRY, fingerprint(model), "interleaved")


def states(prompt: Sequence[int], model: str) -> U64:
    """One number a token, which names the whole prompt up to it."""
    positions = np.arange(1, len(prompt) + 1, dtype=np.uint64)
    tokens = np.asarray(prompt, dtype=np.uint64)
    start = np.uint64(int(fingerprint(model)[:16], 16))
    found: U64 = np.cumsum(mix(tokens * _STEP ^ mix(positions)), dtype=np.uint64) + start
    return found


def values(found: U64) -> Values:
    """[tokens, layer, K and V, head, dim] of the tokens with these states."""
    lanes = np.arange(_LANES, dtype=np.uint64) * _STEP
    octets = mix(found[:, None] + lanes[None, :]).view(np.int8)
    g = GEOMETRY
    shaped: Values = octets.reshape(len(found), g.layers, 2, g.kv_heads, g.head_dim_k).astype(np.float32)
    return shaped * np.float32(1 / 32)


def as_written(kv: Values) -> tuple[list[NDArray[np.uint16]], list[NDArray[np.uint16]]]:
    """Keys and values in the prefill engine's form: a layer an array [head, token, dim] of bf16's bits."""
    bits = (np.ascontiguousarray(kv.transpose(1, 2, 3, 0, 4)).view(np.uint32) >> 16).astype(np.uint16)
    return list(bits[:, 0]), list(bits[:, 1])


def as_rows(kv: Values) -> list[NDArray[np.uint8]]:
    """The decode engine's images: [tokens, row bytes] of f16, K of every layer and then V."""
    tokens, g = len(kv), GEOMETRY
    keys, plain = kv[:, :, 0], kv[:, :, 1]
    halves = keys.reshape(tokens, g.layers, g.kv_heads, 2, g.head_dim_k // 2)
    neighbours = halves.swapaxes(-1, -2).reshape(keys.shape)
    return [
        np.ascontiguousarray(plane[:, layer].reshape(tokens, -1).astype(np.float16)).view(np.uint8)
        for plane in (neighbours, plain)
        for layer in range(g.layers)
    ]


def mix(x: U64) -> U64:
    """splitmix64: a bijection of 64 bits in which every input bit changes half of the output's."""
    x = x + _STEP
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
