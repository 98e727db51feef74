"""Reading GGUF headers: what is there, and every way in which a file can be bad."""

from __future__ import annotations

import contextlib
from pathlib import Path

import gguf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diptych.errors import ConfigError, UnsupportedModel
from diptych.models.gguf_file import read_gguf
from diptych.models.gguf_meta import read_meta
from diptych.models.tiny import ARCHITECTURES, Architecture


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_the_header_is_what_the_gguf_package_reads(tiny_files: dict[Architecture, Path], kind: Architecture) -> None:
    ours = read_gguf(tiny_files[kind], ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type"))
    theirs = gguf.GGUFReader(tiny_files[kind])
    for key, value in ours.metadata.items():
        assert value == theirs.fields[key].contents()
    assert set(ours.metadata) | set(ours.array_lengths) == {k for k in theirs.fields if not k.startswith("GGUF.")}
    assert ours.array_lengths["tokenizer.ggml.merges"] == len(theirs.fields["tokenizer.ggml.merges"].data)
    for tensor in theirs.tensors:
        info = ours.tensors[tensor.name]
        assert (info.shape, info.offset, info.bytes) == (
            tuple(int(n) for n in reversed(tensor.shape)),
            tensor.data_offset,
            tensor.n_bytes,
        )


@pytest.mark.parametrize(("kind", "pairing"), [("llama", "interleaved"), ("qwen2", "half"), ("qwen3", "half")])
def test_meaning(tiny_files: dict[Architecture, Path], kind: Architecture, pairing: str) -> None:
    meta = read_meta(tiny_files[kind])
    g = meta.geometry
    assert (meta.architecture, g.rope_pairing) == (kind, pairing)
    assert (g.layers, g.kv_heads, g.vocab, g.context_tokens) == (3, 2, 384, 4096)
    assert g.head_dim_k == g.head_dim_v == (128 if kind == "qwen3" else 32)
    assert g.kv_bytes_per_token() == 3 * 2 * 2 * g.head_dim_k * 2
    assert meta.end_tokens == (0, 2)
    assert meta.eos_token == 2
    assert meta.bos_token is None
    assert "im_start" in str(meta.chat_template)


def small(path: Path, architecture: str = "llama", **changes: object) -> Path:
    """A header with a vocabulary and one tensor; ``changes`` are added to the metadata."""
    writer = gguf.GGUFWriter(path, architecture)
    values: dict[str, object] = {
        "block_count": 1,
        "context_length": 64,
        "embedding_length": 64,
        "feed_forward_length": 64,
        "attention.head_count": 2,
        "attention.layer_norm_rms_epsilon": 1e-5,
    }
    for key, value in (values | changes).items():
        if isinstance(value, list):
            writer.add_array(f"{architecture}.{key}", value)
        elif isinstance(value, str):
            writer.add_string(f"{architecture}.{key}", value)
        elif isinstance(value, float):
            writer.add_float32(f"{architecture}.{key}", value)
        elif value is not None:
            writer.add_uint32(f"{architecture}.{key}", int(str(value)))
    writer.add_token_list(["a", "<|eot_id|>", "<|im_end|>"])
    writer.add_token_types([1, 3, 1])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_defaults_and_end_tokens(tmp_path: Path) -> None:
    meta = read_meta(small(tmp_path / "m.gguf"))
    assert meta.geometry.head_dim_k == 32
    assert meta.geometry.kv_heads == 2
    assert meta.geometry.rope_theta == 10_000.0
    assert meta.end_tokens == (1,)  # the third token is spelled like one but is not a control token


@pytest.mark.parametrize(
    ("architecture", "changes", "names"),
    [
        ("gemma3", {}, "gemma3"),
        ("llama", {"expert_count": 8}, "mixture"),
        ("llama", {"rope.scaling.type": "yarn"}, "yarn"),
        ("llama", {"rope.dimension_count": 16}, "part of each head"),
        ("llama", {"attention.head_count_kv": [1, 2]}, "head_count_kv"),
        ("llama", {"embedding_length": None}, "embedding_length"),
    ],
)
def test_models_that_are_not_served_are_refused_by_name(
    tmp_path: Path, architecture: str, changes: dict[str, object], names: str
) -> None:
    with pytest.raises(UnsupportedModel, match=names):
        read_meta(small(tmp_path / "m.gguf", architecture, **changes))


def test_linear_scaling_is_read(tmp_path: Path) -> None:
    path = small(tmp_path / "m.gguf", **{"rope.scaling.type": "linear", "rope.scaling.factor": 4.0})
    assert read_meta(path).geometry.rope_scale == 4.0


def test_missing_empty_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such model file"):
        read_gguf(tmp_path / "nowhere.gguf")
    for name, content in {
        "empty": b"",
        "text": b"hello, I am not a model",
        "old": b"GGUF\x01\0\0\0" + bytes(64),
    }.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ConfigError) as caught:
            read_gguf(path)
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)


def test_a_folder_is_not_a_model_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        read_gguf(tmp_path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0.0, 0.999))
def test_truncation_is_always_noticed(tiny_files: dict[Architecture, Path], tmp_path: Path, share: float) -> None:
    whole = tiny_files["llama"].read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ConfigError):
        read_meta(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 12_000), bit=st.integers(0, 7))
def test_a_flipped_bit_in_the_header_is_an_error_or_read(
    tiny_files: dict[Architecture, Path], tmp_path: Path, at: int, bit: int
) -> None:
    """Never another exception, never a hang, never more memory than the file is long."""
    damaged = bytearray(tiny_files["qwen2"].read_bytes())
    damaged[at] ^= 1 << bit
    path = tmp_path / "flipped.gguf"
    path.write_bytes(damaged)
    with contextlib.suppress(ConfigError):
        read_meta(path)
