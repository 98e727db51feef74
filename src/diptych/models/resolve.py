"""From what a person passes as ``--model`` to everything that engines and gateway need to know of it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Final

import msgspec

from diptych.errors import ConfigError
from diptych.models.cache import cache_folder, exclusive, fingerprint, replacing
from diptych.models.gguf_meta import Geometry, ModelMeta, read_meta
from diptych.models.tokenizer import build_tokenizer
from diptych.models.weights import DEFAULT_MODEL, default_gguf

_HUB_ID: Final = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_FILE: Final = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)/(?P<file>.+\.gguf)")
_TOKENIZER_VERSION: Final = 1
"""Part of the cached tokenizer's name: raise it when the conversion changes."""


class ModelBundle(msgspec.Struct, frozen=True, kw_only=True):
    """One model, ready to be served. Plain values, so that it travels to worker processes as it is.

    ``fingerprint`` is the SHA-256 of the GGUF file, in hex. ``gguf`` feeds both engines; where ``hf`` names a
    Hugging Face folder, PyTorch reads its weights there instead.
    """

    id: str
    aliases: tuple[str, ...]
    fingerprint: str
    architecture: str
    gguf: str
    hf: str | None
    tokenizer: str
    chat_template: str | None
    geometry: Geometry
    end_tokens: tuple[int, ...]
    bos_token: int | None
    eos_token: int | None

    @property
    def context_tokens(self) -> int:
        """The longest sequence, prompt and output together, that the model was made for."""
        return self.geometry.context_tokens


def resolve_model(model: str = DEFAULT_MODEL, *, gguf: str | None = None, aliases: tuple[str, ...] = ()) -> ModelBundle:
    """Finds, fetches and checks ``model``: a name, a GGUF file, a Hugging Face folder or a hub id.

    ``gguf`` is the decode engine's file where ``model`` is a Hugging Face folder or id. Raises ConfigError
    (one line, saying what would be right) and UnsupportedModel.
    """
    name, gguf_path, hf_path = _locate(model, gguf)
    meta = read_meta(gguf_path)
    template = meta.chat_template
    if hf_path is not None:
        _check_same_shape(hf_path, meta)
        template = template or _hf_template(hf_path)
    checksum = fingerprint(gguf_path)
    return ModelBundle(
        id=name,
        aliases=aliases,
        fingerprint=checksum,
        architecture=meta.architecture,
        gguf=str(gguf_path.resolve()),
        hf=None if hf_path is None else str(hf_path.resolve()),
        tokenizer=str(_tokenizer_file(gguf_path, checksum)),
        chat_template=template,
        geometry=meta.geometry,
        end_tokens=meta.end_tokens,
        bos_token=meta.bos_token,
        eos_token=meta.eos_token,
    )


def _locate(model: str, gguf: str | None) -> tuple[str, Path, Path | None]:
    """Name, GGUF file and, where there is one, Hugging Face folder."""
    path = Path(model).expanduser()
    if model == DEFAULT_MODEL:
        return model, default_gguf() if gguf is None else _gguf_path(gguf), None
    if path.is_file():
        return path.stem.lower(), path, None
    if match := _HUB_FILE.fullmatch(model):
        return Path(match["file"]).stem.lower(), _gguf_path(model), None
    if path.is_dir():
        folder = path
    elif _HUB_ID.fullmatch(model) and not path.exists() and not model.startswith("."):
        folder = _hub_folder(model)
    else:
        raise ConfigError(f"no model {model!r}: pass {DEFAULT_MODEL}, a GGUF file, a Hugging Face folder or hub id")
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{folder} has no config.json, so it is not a Hugging Face model folder")
    return path.name.lower(), _gguf_path(gguf) if gguf else _only_gguf_in(folder), folder


def _only_gguf_in(folder: Path) -> Path:
    files = sorted(folder.glob("*.gguf"))
    if len(files) != 1:
        raise ConfigError(f"{folder} holds {len(files)} GGUF files; name the decode engine's with --gguf FILE")
    return files[0]


def _gguf_path(gguf: str) -> Path:
    path = Path(gguf).expanduser()
    if path.is_file():
        return path
    if match := _HUB_FILE.fullmatch(gguf):
        from huggingface_hub import hf_hub_download  # noqa: PLC0415 (only hub ids need it)

        with _hub_errors(gguf):
            return Path(hf_hub_download(match["repo"], match["file"]))
    raise ConfigError(f"no such model file: {gguf}")


def _hub_folder(model: str) -> Path:
    from huggingface_hub import snapshot_download  # noqa: PLC0415 (only hub ids need it)

    with _hub_errors(model):
        return Path(snapshot_download(model, allow_patterns=["*.json", "*.safetensors", "*.jinja"]))


class _hub_errors:  # noqa: N801 (used as a with statement)
    """Turns whatever the hub's client raises into one line."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception):
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise ConfigError(f"{self.name} could not be fetched from the Hugging Face hub: {reason}") from error


def _check_same_shape(folder: Path, meta: ModelMeta) -> None:
    """Two files of two different models would give wrong KV: their shapes must be equal."""
    try:
        config = json.loads((folder / "config.json").read_text())
        shape = {
            "num_hidden_layers": meta.geometry.layers,
            "hidden_size": meta.geometry.hidden,
            "num_attention_heads": meta.geometry.heads,
            "num_key_value_heads": meta.geometry.kv_heads,
        }
        differing = [f"{k} is {config[k]} and {v}" for k, v in shape.items() if config.get(k, v) != v]
        kind = config.get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"{folder / 'config.json'} cannot be read: {error}") from error
    if kind != meta.architecture and not (kind == "mistral" and meta.architecture == "llama"):
        differing.insert(0, f"the model type is {kind} and {meta.architecture}")
    if differing:
        raise ConfigError(f"{folder} and the GGUF file are different models: {'; '.join(differing)}")


def _hf_template(folder: Path) -> str | None:
    file, config = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if file.is_file():
        return file.read_text()
    if not config.is_file():
        return None
    template = json.loads(config.read_text()).get("chat_template")
    return template if isinstance(template, str) else None


def _tokenizer_file(gguf: Path, checksum: str) -> Path:
    target = cache_folder("tokenizers") / f"{checksum[:32]}-{_TOKENIZER_VERSION}.json"
    if not target.exists():
        with exclusive(target), replacing(target) as scratch:
            build_tokenizer(gguf).save(str(scratch))
    return target
