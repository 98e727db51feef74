"""Weights from either kind of source are the same weights, whatever they are stored as."""

from __future__ import annotations

import math
from pathlib import Path

import gguf
import msgspec
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants

from diptych.engines.torch import TorchConfig, TorchPrefill
from diptych.engines.torch_generate import StockModel
from diptych.engines.torch_weights import _gguf_source, _inverse_frequencies
from diptych.errors import ConfigError, UnsupportedModel
from diptych.models.gguf_file import read_gguf
from diptych.models.resolve import ModelBundle, resolve_model
from diptych.models.tiny import ARCHITECTURES, Architecture, write_tiny_gguf

EXACT = TorchConfig(dtype="f32", threads=1, prefix_cache_mib=0)
PROMPT = [5, 77, 200, 3, 41, 300, 18]


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_hugging_face_folder_gives_the_same_logits(
    tmp_path: Path, tiny_bundles: dict[Architecture, ModelBundle], kind: Architecture
) -> None:
    from_gguf = TorchPrefill(tiny_bundles[kind], EXACT)
    folder = tmp_path / "hf"
    StockModel(from_gguf).model.save_pretrained(folder)
    bundle = resolve_model(str(folder), gguf=tiny_bundles[kind].gguf)
    found = TorchPrefill(bundle, EXACT).next_logits(PROMPT)
    np.testing.assert_allclose(found, from_gguf.next_logits(PROMPT), atol=1e-5)


def test_a_folder_without_weights(tmp_path: Path, tiny_bundles: dict[Architecture, ModelBundle]) -> None:
    bundle = msgspec.structs.replace(tiny_bundles["llama"], hf=str(tmp_path))
    with pytest.raises(ConfigError, match="safetensors"):
        TorchPrefill(bundle, EXACT)
    (tmp_path / "model.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(ConfigError, match="cannot be read"):
        TorchPrefill(bundle, EXACT)


def stored(path: Path, values: np.ndarray, kind: GGMLQuantizationType) -> Path:
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_tensor("t", quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_every_kind_is_unpacked_as_gguf_does(
    tmp_path: Path, tiny_bundles: dict[Architecture, ModelBundle], name: str
) -> None:
    kind = GGMLQuantizationType[name]
    values = np.random.default_rng(1).normal(size=(700, 256)).astype(np.float32)
    path = stored(tmp_path / "t.gguf", values, kind)
    found = _gguf_source(str(path), tiny_bundles["qwen2"].geometry, torch.float32)("t")
    theirs = gguf.GGUFReader(path).tensors[0]
    assert found is not None
    np.testing.assert_array_equal(found.numpy(), quants.dequantize(theirs.data, kind).reshape(700, 256))


def test_a_kind_that_is_not_read_is_named(
    tmp_path: Path, tiny_bundles: dict[Architecture, ModelBundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = stored(tmp_path / "t.gguf", np.zeros((4, 256), np.float32), GGMLQuantizationType.F16)

    def refuse(*_: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(quants, "dequantize", refuse)
    with pytest.raises(UnsupportedModel, match="F16"):
        _gguf_source(str(path), tiny_bundles["qwen2"].geometry, torch.float32)("t")


def test_a_missing_tensor_is_named(tiny_bundles: dict[Architecture, ModelBundle]) -> None:
    shape = msgspec.structs.replace(tiny_bundles["llama"].geometry, layers=4)
    with pytest.raises(UnsupportedModel, match=r"blk\.3"):
        TorchPrefill(msgspec.structs.replace(tiny_bundles["llama"], geometry=shape), EXACT)


def test_long_context_factors_and_scaling(tiny_bundles: dict[Architecture, ModelBundle]) -> None:
    geometry = msgspec.structs.replace(tiny_bundles["llama"].geometry, rope_theta=1e4, rope_scale=2.0)
    found = _inverse_frequencies(geometry, torch.full((16,), 8.0))
    expected = [1e4 ** (-2 * i / 32) / 8 / 2 for i in range(16)]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_the_stock_model_shares_the_engine_s_memory(tiny_bundles: dict[Architecture, ModelBundle]) -> None:
    engine = TorchPrefill(tiny_bundles["qwen2"], EXACT)
    stock = StockModel(engine).model
    ours = {t.untyped_storage().data_ptr() for t in vars(engine.decoder.weights.layers[0]).values() if t is not None}
    theirs = {p.untyped_storage().data_ptr() for p in stock.model.layers[0].parameters()}
    assert theirs <= ours


def test_weights_of_a_file_take_no_more_than_their_elements(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "m.gguf")
    elements = sum(math.prod(info.shape) for info in read_gguf(path).tensors.values())
    engine = TorchPrefill(resolve_model(str(path)), TorchConfig(threads=1))
    assert engine.decoder.weights.bytes == 2 * elements
