"""The same model on transformers' stock path: what PyTorch alone would do, prompt and answer.

A benchmark's baseline, a test's oracle, and what torch_decode.py serves from. The stock modules take the engine's own
tensors (rows of the merged matrices are views), so a second copy of the weights is not held.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import msgspec
import torch
import transformers
from transformers.generation.streamers import BaseStreamer

from diptych.engines.torch import TorchPrefill
from diptych.engines.torch_weights import LayerWeights
from diptych.models.gguf_meta import Geometry


class GreedyRun(msgspec.Struct, frozen=True):
    """Tokens, and when each came: milliseconds from the call."""

    tokens: tuple[int, ...]
    at_ms: tuple[float, ...]

    @property
    def ttft_ms(self) -> float:
        return self.at_ms[0]

    @property
    def e2e_ms(self) -> float:
        return self.at_ms[-1]

    @property
    def itl_ms(self) -> float:
        """Mean gap after the first token; 0 where there is only one."""
        return (self.at_ms[-1] - self.at_ms[0]) / max(1, len(self.at_ms) - 1)


class StockModel:
    """transformers' own model and its ``generate``, with its KV cache and default attention."""

    def __init__(self, engine: TorchPrefill) -> None:
        self.end_tokens = list(engine.bundle.end_tokens)
        self.device = engine.config.device
        self.model = _stock_model(engine)

    @torch.inference_mode()
    def logits(self, prompt: Sequence[int]) -> torch.Tensor:
        """Logits (float32 [tokens, vocab]) after every token of ``prompt``, in one pass."""
        ids = torch.tensor([list(prompt)], device=self.device)
        logits: torch.Tensor = self.model(ids).logits[0].float().cpu()
        return logits

    def generate_greedy(self, prompt: Sequence[int], max_tokens: int, *, ignore_eos: bool = False) -> GreedyRun:
        """Up to ``max_tokens`` greedy tokens after ``prompt``, each with its time."""
        clock = _Clock()
        ids = torch.tensor([list(prompt)], device=self.device)
        self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_tokens,
            min_new_tokens=max_tokens if ignore_eos else None,
            eos_token_id=None if ignore_eos else self.end_tokens,
            pad_token_id=self.end_tokens[0] if self.end_tokens else 0,
            do_sample=False,
            streamer=clock,
        )
        return GreedyRun(tuple(clock.tokens), tuple(clock.at_ms))


class _Clock(BaseStreamer):  # type: ignore[misc]  # transformers is not typed
    """Notes the time of every token; the first call is the prompt itself."""

    def __init__(self) -> None:
        self.started, self.prompt_seen = time.perf_counter(), False
        self.tokens: list[int] = []
        self.at_ms: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        if self.prompt_seen:
            self.at_ms.append((time.perf_counter() - self.started) * 1e3)
            self.tokens.append(int(value.view(-1)[0]))
        self.prompt_seen = True

    def end(self) -> None:
        return


def _stock_model(engine: TorchPrefill) -> Any:
    weights = engine.decoder.weights
    config = _config(engine)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=engine.decoder.dtype)
    state = {
        "model.embed_tokens.weight": weights.embedding,
        "model.norm.weight": weights.norm,
        "lm_head.weight": weights.head,
    }
    for index, layer in enumerate(weights.layers):
        state |= {f"model.layers.{index}.{k}": v for k, v in _layer_state(layer, engine.bundle.geometry).items()}
    model.load_state_dict(state, assign=True)
    rotary = model.model.rotary_emb
    rotary.inv_freq = weights.inverse_frequencies
    return model.eval()


def _config(engine: TorchPrefill) -> Any:
    g: Geometry = engine.bundle.geometry
    options = {
        "vocab_size": g.vocab,
        "hidden_size": g.hidden,
        "intermediate_size": g.feed_forward,
        "num_hidden_layers": g.layers,
        "num_attention_heads": g.heads,
        "num_key_value_heads": g.kv_heads,
        "head_dim": g.head_dim_k,
        "max_position_embeddings": g.context_tokens,
        "rms_norm_eps": g.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": g.rope_theta},
        "tie_word_embeddings": engine.decoder.weights.head is engine.decoder.weights.embedding,
    }
    return transformers.AutoConfig.for_model(engine.bundle.architecture, **options)


def _layer_state(layer: LayerWeights, g: Geometry) -> dict[str, torch.Tensor]:
    rows = (g.heads * g.head_dim_k, g.kv_heads * g.head_dim_k, g.kv_heads * g.head_dim_v)
    q, k, v = layer.qkv.split(rows)
    gate, up = layer.gate_up.chunk(2)
    state = {
        "input_layernorm.weight": layer.attention_norm,
        "self_attn.q_proj.weight": q,
        "self_attn.k_proj.weight": k,
        "self_attn.v_proj.weight": v,
        "self_attn.o_proj.weight": layer.output,
        "post_attention_layernorm.weight": layer.ffn_norm,
        "mlp.gate_proj.weight": gate,
        "mlp.up_proj.weight": up,
        "mlp.down_proj.weight": layer.down,
    }
    if layer.qkv_bias is not None:
        names = (f"self_attn.{name}_proj.bias" for name in "qkv")
        state |= dict(zip(names, layer.qkv_bias.split(rows), strict=True))
    if layer.q_norm is not None and layer.k_norm is not None:
        state |= {"self_attn.q_norm.weight": layer.q_norm, "self_attn.k_norm.weight": layer.k_norm}
    return state
