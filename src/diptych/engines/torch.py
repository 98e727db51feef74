"""The prefill engine on PyTorch: reads prompts chunk by chunk and hands each chunk's KV to a sink."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Sequence
from typing import Final, Literal

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from diptych.engines.prefix_cache import BLOCK_TOKENS, PrefixCache
from diptych.engines.protocol import Description, KVSink, LandedKV
from diptych.engines.torch_model import Decoder, KVBuffers
from diptych.engines.torch_ops import Ops, PortableOps
from diptych.engines.torch_weights import load_weights
from diptych.errors import ConfigError, ContextExceeded, InvalidRequest
from diptych.handoff import forms
from diptych.handoff.contract import Geometry
from diptych.models.resolve import ModelBundle

Dtype = Literal["bf16", "f16", "f32"]
_TORCH_DTYPE: Final = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
# numpy has no bfloat16, so its bits travel as u16; what they mean is in the KV form.
_EXPORT: Final = {"bf16": torch.uint16, "f16": torch.float16, "f32": torch.float32}
_MIB: Final = 1 << 20


class TorchConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How the engine runs. ``threads`` 0 leaves PyTorch's own choice; ``device`` is any PyTorch device."""

    device: str = "cpu"
    dtype: Dtype = "bf16"
    threads: int = 0
    chunk_tokens: int = 256
    prefix_cache_mib: int = 128


class TorchPrefill:
    """A PrefillEngine. Steps of several prompts may be interleaved, but on one thread at a time."""

    def __init__(self, bundle: ModelBundle, config: TorchConfig | None = None) -> None:
        self.bundle, self.config = bundle, config or TorchConfig()
        if self.config.threads:
            torch.set_num_threads(self.config.threads)
        dtype = _TORCH_DTYPE[self.config.dtype]
        try:
            torch.empty(1, device=self.config.device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"PyTorch cannot use device {self.config.device!r}: {reason}") from error
        weights = load_weights(bundle, dtype, self.config.device)
        self.decoder = Decoder(weights, bundle.geometry, _ops(dtype, self.config.device))
        self.cache = PrefixCache(self.config.prefix_cache_mib * _MIB)

    def describe(self) -> Description:
        """The engine, and the form of the arrays that it gives to a sink: per layer [head, token, dim]."""
        g = self.bundle.geometry
        cached = Geometry(layers=g.layers, kv_heads=g.kv_heads, head_dim_k=g.head_dim_k, head_dim_v=g.head_dim_v)
        return Description(
            engine="torch",
            build=f"torch {torch.__version__}",
            device=self.config.device,
            model=self.bundle.id,
            fingerprint=self.bundle.fingerprint,
            form=forms.hugging_face(cached, self.bundle.fingerprint, self.config.dtype),
            slots=1,
            context_tokens=self.bundle.context_tokens,
        )

    def prefill(self, prompt: Sequence[int], sink: KVSink) -> Generator[int, None, int]:
        """See PrefillEngine. Raises ContextExceeded or InvalidRequest before the first chunk is computed."""
        tokens = self._checked(prompt)
        kv = self.decoder.new_buffers(len(prompt))
        cached = self.cache.restore(prompt, kv)
        if cached:
            sink.write(0, *self._export(kv, 0, cached))
            yield cached
        for start, stop in chunk_bounds(cached, len(prompt), self.config.chunk_tokens):
            self.decoder.extend(tokens[start:stop], start, kv)
            sink.write(start, *self._export(kv, start, stop))
            yield stop
        self.cache.store(prompt, kv)
        return cached

    def cached_tokens(self, prompt: Sequence[int]) -> int:
        """Tokens at the start of ``prompt`` whose KV need not be computed again."""
        return self.cache.match(prompt)

    def lacking(self, tokens: Sequence[int]) -> tuple[int, int]:
        """Whole blocks that the prefix cache does not hold; see KeepsKV."""
        whole = len(tokens) // BLOCK_TOKENS * BLOCK_TOKENS if self.cache.limit_bytes else 0
        return min(whole, self.cache.match(tokens)), whole

    def keep(self, tokens: Sequence[int], start: int, landed: LandedKV) -> int:
        """See KeepsKV."""
        kv = self.decoder.new_buffers(landed.tokens)
        host = KVBuffers(kv.keys.cpu(), kv.values.cpu())
        landed.admit([layer.view(torch.uint8).numpy() for plane in (host.keys, host.values) for layer in plane])
        kv = KVBuffers(host.keys.to(kv.keys.device), host.values.to(kv.values.device))
        self.cache.store(tokens, kv, start)
        return self.cache.match(tokens)

    def next_logits(self, prompt: Sequence[int]) -> NDArray[np.float32]:
        """Logits [vocab] of the token after ``prompt``, computed in chunks and without the prefix cache."""
        tokens = self._checked(prompt)
        kv = self.decoder.new_buffers(len(prompt))
        *before, last = chunk_bounds(0, len(prompt), self.config.chunk_tokens)
        for start, stop in before:
            self.decoder.extend(tokens[start:stop], start, kv)
        logits: NDArray[np.float32] = self.decoder.logits(tokens[slice(*last)], last[0], kv).cpu().numpy()
        return logits

    def close(self) -> None:
        """Lets go of the prefix cache."""
        self.cache.clear()

    def _checked(self, prompt: Sequence[int]) -> torch.Tensor:
        geometry = self.bundle.geometry
        if not prompt:
            raise InvalidRequest("the prompt is empty")
        if len(prompt) > geometry.context_tokens:
            raise ContextExceeded(f"{len(prompt)} prompt tokens; the model's context is {geometry.context_tokens}")
        if min(prompt) < 0 or max(prompt) >= geometry.vocab:
            raise InvalidRequest(f"a token of the prompt lies outside the vocabulary of {geometry.vocab}")
        return torch.tensor(prompt, dtype=torch.int64)

    def _export(
        self, kv: KVBuffers, start: int, stop: int
    ) -> tuple[list[NDArray[np.generic]], list[NDArray[np.generic]]]:
        """Per layer views [kv_heads, tokens, dim] of the keys and values, without a copy on a CPU."""
        kind = _EXPORT[self.config.dtype]
        keys, values = (p[:, :, start:stop].cpu().view(kind).numpy() for p in (kv.keys, kv.values))
        return list(keys), list(values)


def _ops(dtype: torch.dtype, device: str) -> Ops:
    from diptych.engines import torch_ops_cpu

    return torch_ops_cpu.CpuOps() if torch_ops_cpu.supported(dtype, device) else PortableOps()


def chunk_bounds(start: int, stop: int, chunk: int) -> list[tuple[int, int]]:
    """Cuts [start, stop) into chunks of ``chunk`` tokens, the last of half to one and a half as many.

    Whole chunks have one shape in every prompt, so their kernels are ready; a stub would be all overhead.
    """
    if start == stop:
        return []
    count = max(1, round((stop - start) / chunk))
    return list(itertools.pairwise([*range(start, start + count * chunk, chunk), stop]))
