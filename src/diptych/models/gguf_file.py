"""The container of a GGUF file: its metadata and where each tensor lies. No tensor is read.

The layout (GGUF versions 2 and 3, little-endian):

    'GGUF' | u32 version | u64 tensors | u64 keys | keys x (string name, u32 type, value)
    | tensors x (string name, u32 dims, dims x u64 size, u32 type, u64 offset) | padding | data
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeAlias

import msgspec

from diptych.errors import ConfigError

Value: TypeAlias = "bool | int | float | str | list[Value]"

_SCALARS: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_DEFAULT_ALIGNMENT = 32


class TensorInfo(msgspec.Struct, frozen=True, array_like=True):
    """One tensor: ``shape`` with the rows first (as PyTorch counts), ``offset`` and ``bytes`` in the file."""

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int
    bytes: int


class GgufFile(msgspec.Struct, frozen=True):
    """What the header says. Arrays are left out of ``metadata`` unless the reader was asked for them."""

    path: str
    metadata: dict[str, Value]
    tensors: dict[str, TensorInfo]
    array_lengths: dict[str, int]


def read_gguf(path: Path | str, arrays: tuple[str, ...] = ()) -> GgufFile:
    """Reads the header of ``path``, and the named metadata ``arrays``.

    Raises ConfigError for a file that is missing, is not a GGUF, or is shorter than its header says.
    """
    path = Path(path)
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _parse(path, data, arrays)
    except FileNotFoundError:
        raise ConfigError(f"no such model file: {path}") from None
    except (OSError, ValueError) as error:  # an empty file cannot be mapped
        raise ConfigError(f"{path} cannot be read as a GGUF file: {error}") from error
    except (struct.error, IndexError, KeyError, OverflowError, MemoryError) as error:
        raise ConfigError(f"{path} is truncated or damaged: its GGUF header does not parse") from error


def _parse(path: Path, data: mmap.mmap, arrays: tuple[str, ...]) -> GgufFile:
    if data[:4] != b"GGUF":
        raise ConfigError(f"{path} is not a GGUF file: it begins with {data[:4]!r}")
    cursor = _Cursor(data, 4)
    version = cursor.scalar("I")
    if version not in (2, 3):
        raise ConfigError(f"{path} has GGUF version {version}; versions 2 and 3 are read")
    tensor_count, key_count = cursor.scalar("Q"), cursor.scalar("Q")
    metadata: dict[str, Value] = {}
    lengths: dict[str, int] = {}
    for _ in range(key_count):
        key, kind = cursor.string(), cursor.scalar("I")
        if kind != _ARRAY:
            metadata[key] = cursor.value(kind)
        elif key in arrays:
            metadata[key] = cursor.array()
        else:
            lengths[key] = cursor.skip_array()
    tensors = _tensors(cursor, tensor_count, int(str(metadata.get("general.alignment", _DEFAULT_ALIGNMENT))))
    end = max((info.offset + info.bytes for info in tensors.values()), default=cursor.at)
    if end > len(data):
        raise ConfigError(f"{path} is truncated: it holds {len(data):,} bytes of {end:,}")
    return GgufFile(str(path), metadata, tensors, lengths)


def _tensors(cursor: _Cursor, count: int, alignment: int) -> dict[str, TensorInfo]:
    entries = []
    for _ in range(count):
        name, dims = cursor.string(), cursor.scalar("I")
        sizes = cursor.scalars("Q", dims)
        kind, offset = cursor.scalar("I"), cursor.scalar("Q")
        entries.append((name, tuple(reversed(sizes)), kind, offset))
    start = -(-cursor.at // alignment) * alignment
    size_of = _tensor_bytes()
    return {
        name: TensorInfo(name, shape, kind, start + offset, size_of(shape, kind))
        for name, shape, kind, offset in entries
    }


def _tensor_bytes() -> Callable[[tuple[int, ...], int], int]:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType  # noqa: PLC0415 (it loads numpy)

    def size_of(shape: tuple[int, ...], kind: int) -> int:
        block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        elements = 1
        for size in shape:
            elements *= size
        return int(elements // block * block_bytes)

    return size_of


class _Cursor:
    """Reads forward through the mapped header; leaving the file is a struct.error or an IndexError."""

    def __init__(self, data: mmap.mmap, at: int) -> None:
        self.data, self.at = data, at

    def scalar(self, code: str) -> int:
        return int(self.scalars(code, 1)[0])

    def scalars(self, code: str, count: int) -> tuple[int, ...]:
        layout = struct.Struct(f"<{count}{code}")
        values: tuple[int, ...] = layout.unpack_from(self.data, self.at)
        self.at += layout.size
        return values

    def string(self) -> str:
        length = self.scalar("Q")
        begin = self._advance(length)
        return self.data[begin : self.at].decode("utf-8", "surrogateescape")

    def value(self, kind: int) -> Value:
        return self.string() if kind == _STRING else self.scalars(_SCALARS[kind], 1)[0]

    def array(self) -> list[Value]:
        kind, count = self.scalar("I"), self.scalar("Q")
        if kind == _STRING:
            return [self.string() for _ in range(count)]
        return list(self.scalars(_SCALARS[kind], count))

    def skip_array(self) -> int:
        kind, count = self.scalar("I"), self.scalar("Q")
        if kind != _STRING:
            self._advance(struct.calcsize(f"<{_SCALARS[kind]}") * count)
            return count
        unpack, data, at = struct.Struct("<Q").unpack_from, self.data, self.at
        for _ in range(count):
            at += 8 + unpack(data, at)[0]
        self.at = at
        return count

    def _advance(self, length: int) -> int:
        begin, self.at = self.at, self.at + length
        if self.at > len(self.data):
            raise IndexError(length)
        return begin
