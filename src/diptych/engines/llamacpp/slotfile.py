"""llama.cpp's slot file (the state of one sequence), to the byte. Pure.

Little-endian u32 unless said otherwise::

    'ggsq' | version | W | W words that hold the tokens | streams
    for each stream:  cells                                          0 for a stream without this sequence
                      cells x (position, 1, sequence id)
                      v_trans | layers | extra words
                      K: layers x (type i32 | row bytes u64 | cells x row)
                      V: layers x (type i32 | row bytes u64 | cells x row)

Two details differ between builds and are the :class:`Grammar`: whether the tokens stand alone or in an
envelope (0xffffffff, 1, count, tokens, 0), and how many words follow the layer count. A build's form is
learned from files that it wrote itself (:func:`learn`): they must fit exactly one grammar to their last byte,
and the writer must reproduce them. Nothing is guessed; a form that does not fit is refused.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]

MAGIC = 0x67677371
F16 = 1
ENVELOPE = 0xFFFFFFFF
LAYER_HEADER = struct.Struct("<iQ")


class UnknownFormError(ValueError):
    """The bytes are not a slot file of a known grammar. Says where they stop to fit."""


class Grammar(msgspec.Struct, frozen=True):
    """What differs between builds of llama.cpp."""

    enveloped: bool
    extra_words: int


GRAMMARS = tuple(Grammar(enveloped, extra) for enveloped in (True, False) for extra in (2, 0))


class Run(NamedTuple):
    """Structural bytes (everything that is not a row) and where they stand."""

    offset: int
    data: bytes


class Layout(msgspec.Struct, frozen=True):
    """Where everything of a slot file stands. ``rows`` are (offset, row bytes): K of every layer, then V."""

    tokens: int
    structure: tuple[Run, ...]
    rows: tuple[tuple[int, int], ...]
    length: int

    def blocks(self, image: Bytes) -> list[Bytes]:
        """Views of ``image``, one [tokens, row bytes] per layer: K of every layer in order, then V."""
        return [
            image[offset : offset + self.tokens * row_bytes].reshape(self.tokens, row_bytes)
            for offset, row_bytes in self.rows
        ]

    def write(self, image: Bytes) -> None:
        """Puts every structural byte into ``image``, which must have ``length`` bytes or more."""
        for offset, data in self.structure:
            image[offset : offset + len(data)] = np.frombuffer(data, np.uint8)

    def wrong_at(self, image: Bytes) -> int | None:
        """Offset of the first run of structural bytes in ``image`` that is not as written, or None."""
        if len(image) < self.length:
            return len(image)
        for offset, data in self.structure:
            if image[offset : offset + len(data)].tobytes() != data:
                return offset
        return None


class SlotForm(msgspec.Struct, frozen=True, kw_only=True):
    """The slot file of one build, server configuration and model, for any tokens. ``rows`` as in Layout, no
    offsets.
    """

    version: int
    grammar: Grammar
    extra: tuple[int, ...]
    streams: int
    types: tuple[int, ...]
    row_bytes: tuple[int, ...]

    def layout(self, tokens: Sequence[int]) -> Layout:
        """Every structural byte and the place of every row of a file that holds ``tokens``, as the first
        stream.
        """
        count = len(tokens)
        runs = [Run(0, self._head(tokens))]
        cursor = len(runs[0].data)
        rows = []
        for kind, row_bytes in zip(self.types, self.row_bytes, strict=True):
            runs.append(Run(cursor, LAYER_HEADER.pack(kind, row_bytes)))
            rows.append((cursor + LAYER_HEADER.size, row_bytes))
            cursor += LAYER_HEADER.size + count * row_bytes
        trailer = bytes(4 * (self.streams - 1))
        runs.append(Run(cursor, trailer))
        return Layout(count, tuple(runs), tuple(rows), cursor + len(trailer))

    def longest(self, tokens: int) -> int:
        """Bytes of a file with ``tokens`` tokens."""
        return self.layout(range(tokens)).length

    def _head(self, tokens: Sequence[int]) -> bytes:
        count = len(tokens)
        ids = np.asarray(tokens, "<u4")
        words = np.concatenate(([ENVELOPE, 1, count], ids, [0])).astype("<u4") if self.grammar.enveloped else ids
        cells = np.zeros((count, 3), "<u4")
        cells[:, 0] = np.arange(count)
        cells[:, 1] = 1
        start = struct.pack("<3I", MAGIC, self.version, len(words)) + words.tobytes()
        middle = struct.pack("<2I", self.streams, count) + cells.tobytes()
        return start + middle + struct.pack(f"<{2 + len(self.extra)}I", 0, len(self.types) // 2, *self.extra)


class SlotFile(msgspec.Struct, frozen=True):
    """A slot file taken apart: its form, its tokens, and where the rows stand (as in Layout)."""

    form: SlotForm
    tokens: tuple[int, ...]
    rows: tuple[tuple[int, int], ...]


class _Reader:
    """A cursor over the bytes. Raises UnknownFormError instead of reading past the end."""

    def __init__(self, data: memoryview) -> None:
        self.data, self.at = data, 0

    def skip(self, count: int) -> int:
        start = self.at
        if count > len(self.data) - start:
            raise UnknownFormError(f"{count} bytes are expected at byte {start}, {len(self.data) - start} are left")
        self.at += count
        return start

    def words(self, count: int) -> tuple[int, ...]:
        start = self.skip(4 * count)
        return struct.unpack_from(f"<{count}I", self.data, start)

    def layer(self) -> tuple[int, int]:
        kind, row_bytes = LAYER_HEADER.unpack_from(self.data, self.skip(LAYER_HEADER.size))
        return kind, row_bytes


def parse(data: bytes | memoryview) -> SlotFile:
    """The one reading of a slot file. Raises UnknownFormError where no grammar fits to the byte, or more than
    one does.
    """
    readings: list[SlotFile] = []
    misfits: list[str] = []
    for grammar in GRAMMARS:
        try:
            readings.append(_read(_Reader(memoryview(data)), grammar))
        except UnknownFormError as misfit:
            misfits.append(str(misfit))
    if len(readings) != 1:
        raise UnknownFormError("; ".join(misfits) if not readings else "the file fits more than one grammar")
    return readings[0]


def learn(probes: Sequence[tuple[Sequence[int], bytes]], row_bytes: tuple[int, ...]) -> SlotForm:
    """The form of a build, from files that it wrote for known tokens. Raises UnknownFormError.

    Two probes of different length and content show that nothing else in the header depends on them.
    ``row_bytes`` are the model's: a token's K in every layer, then its V.
    """
    forms = {_form_of(tokens, data) for tokens, data in probes}
    if len(forms) != 1:
        raise UnknownFormError("two probes of the same build differ in form")
    (form,) = forms
    if form.row_bytes != row_bytes or set(form.types) != {F16}:
        kinds, sizes = sorted(set(form.types)), sorted(set(form.row_bytes))
        raise UnknownFormError(
            f"the model has {len(row_bytes) // 2} layers of f16 rows of {sorted(set(row_bytes))} bytes, "
            f"the file has {len(form.types) // 2} of types {kinds} and {sizes} bytes"
        )
    return form


def first_words(data: bytes, count: int = 24) -> str:
    """The header's words in hex, for the message that refuses an unknown form."""
    count = min(count, len(data) // 4)
    return " ".join(f"{word:x}" for word in struct.unpack_from(f"<{count}I", data))


def _form_of(tokens: Sequence[int], data: bytes) -> SlotForm:
    file = parse(data)
    if file.tokens != tuple(tokens):
        raise UnknownFormError(f"the probe held the tokens {list(tokens)}, the file names {list(file.tokens)}")
    layout = file.form.layout(tokens)
    if layout.length != len(data) or layout.wrong_at(np.frombuffer(data, np.uint8)) is not None:
        raise UnknownFormError("the writer does not reproduce the probe")
    return file.form


def _read(reader: _Reader, grammar: Grammar) -> SlotFile:
    magic, version, word_count = reader.words(3)
    if magic != MAGIC:
        raise UnknownFormError(f"the magic is {magic:#x}, not {MAGIC:#x}")
    tokens = _read_tokens(reader, grammar, word_count)
    (streams,) = reader.words(1)
    found = [part for part in _read_streams(reader, streams, grammar, len(tokens)) if part is not None]
    if len(found) != 1 or reader.at != len(reader.data):
        raise UnknownFormError(
            f"{len(found)} streams hold cells and {len(reader.data) - reader.at} bytes are left over"
        )
    extra, layers = found[0]
    form = SlotForm(
        version=version,
        grammar=grammar,
        extra=extra,
        streams=streams,
        types=tuple(kind for kind, _, _ in layers),
        row_bytes=tuple(row_bytes for _, row_bytes, _ in layers),
    )
    return SlotFile(form, tokens, tuple((offset, row_bytes) for _, row_bytes, offset in layers))


def _read_tokens(reader: _Reader, grammar: Grammar, word_count: int) -> tuple[int, ...]:
    words = reader.words(word_count)
    if not grammar.enveloped:
        if ENVELOPE in words:
            raise UnknownFormError("the tokens stand in an envelope")
        return words
    tokens = words[3:-1]
    if word_count < 4 or words[:3] != (ENVELOPE, 1, len(tokens)) or words[-1] != 0:
        raise UnknownFormError(f"the tokens' envelope is {[f'{word:x}' for word in words[:4]]}")
    return tokens


Stream = tuple[tuple[int, ...], list[tuple[int, int, int]]]


def _read_streams(reader: _Reader, streams: int, grammar: Grammar, tokens: int) -> Iterator[Stream | None]:
    if not 1 <= streams <= len(reader.data) // 4:
        raise UnknownFormError(f"{streams} streams")
    for _ in range(streams):
        (cells,) = reader.words(1)
        yield _read_cells(reader, cells, grammar, tokens) if cells else None


def _read_cells(reader: _Reader, cells: int, grammar: Grammar, tokens: int) -> Stream:
    if cells != tokens:
        raise UnknownFormError(f"{cells} cells for {tokens} tokens")
    meta = np.frombuffer(reader.data, "<u4", 3 * cells, reader.skip(12 * cells)).reshape(cells, 3)
    if (meta[:, 0] != np.arange(cells)).any() or (meta[:, 1] != 1).any():
        raise UnknownFormError("the cells are not one sequence at positions 0, 1, 2, ...")
    v_trans, layer_count, *extra = reader.words(2 + grammar.extra_words)
    if v_trans != 0:
        raise UnknownFormError("V is stored transposed: the server must run with flash attention on")
    if not 1 <= layer_count <= len(reader.data) // LAYER_HEADER.size:
        raise UnknownFormError(f"{layer_count} layers")
    layers = []
    for _ in range(2 * layer_count):
        kind, row_bytes = reader.layer()
        layers.append((kind, row_bytes, reader.skip(cells * row_bytes)))
    return tuple(extra), layers
