"""Known KV forms, as data. A new engine's form is a new constant or function here, never new conversion
code.
"""

from __future__ import annotations

from diptych.handoff.contract import Axis, Dtype, Geometry, KVForm, Pairing, Rope, Tensor

ROWS: tuple[Axis, ...] = ("token", "head", "dim")
HEAD_MAJOR: tuple[Axis, ...] = ("head", "token", "dim")


def hugging_face(geometry: Geometry, fingerprint: str, dtype: Dtype = "bf16", rope: Rope | None = None) -> KVForm:
    """A transformers cache: per layer K and V as [head, token, dim] (no batch axis), half-rotated."""
    return KVForm(
        name="hugging-face",
        fingerprint=fingerprint,
        geometry=geometry,
        keys=Tensor(axes=HEAD_MAJOR, dtype=dtype),
        values=Tensor(axes=HEAD_MAJOR, dtype=dtype),
        rope=rope or Rope(pairing="half"),
    )


def llama_cpp(
    geometry: Geometry, fingerprint: str, pairing: Pairing, dtype: Dtype = "f16", rope: Rope | None = None
) -> KVForm:
    """llama.cpp's rows with flash attention on: per layer K and V as [token][head * dim].

    ``pairing`` is the model's: "interleaved" where the GGUF permutes Q and K (llama and relatives), "half"
    for its NeoX architectures (qwen2, qwen3, ...). Take it from the model's metadata.
    """
    return KVForm(
        name="llama.cpp",
        fingerprint=fingerprint,
        geometry=geometry,
        keys=Tensor(axes=ROWS, dtype=dtype),
        values=Tensor(axes=ROWS, dtype=dtype),
        rope=rope or Rope(pairing=pairing),
    )
