"""The slot file's grammar: what is written is read, and nothing else is."""

from __future__ import annotations

import struct

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.engines.llamacpp.slotfile import (
    GRAMMARS,
    Grammar,
    SlotForm,
    UnknownFormError,
    first_words,
    learn,
    parse,
)

ROW_BYTES = (8, 8, 6, 6)
TOKENS = (11, 12, 13)


def form(grammar: Grammar = GRAMMARS[0], streams: int = 3) -> SlotForm:
    return SlotForm(
        version=4,
        grammar=grammar,
        extra=(0,) * grammar.extra_words,
        streams=streams,
        types=(1,) * len(ROW_BYTES),
        row_bytes=ROW_BYTES,
    )


def file_of(tokens: tuple[int, ...], grammar: Grammar = GRAMMARS[0], streams: int = 3) -> bytes:
    layout = form(grammar, streams).layout(tokens)
    image = np.random.default_rng(len(tokens)).integers(0, 256, layout.length, np.uint8)
    layout.write(image)
    return image.tobytes()


@pytest.mark.parametrize("grammar", GRAMMARS)
@pytest.mark.parametrize("streams", [1, 8])
def test_every_grammar_is_read_as_written(grammar: Grammar, streams: int) -> None:
    file = parse(file_of(TOKENS, grammar, streams))
    assert (file.form, file.tokens) == (form(grammar, streams), TOKENS)
    assert file.rows == form(grammar, streams).layout(TOKENS).rows


def test_the_documented_header_to_the_word() -> None:
    words = struct.unpack_from("<22I", file_of(TOKENS, Grammar(True, 2), 2))
    head = (0x67677371, 4, 7, 0xFFFFFFFF, 1, 3, *TOKENS, 0, 2, 3, 0, 1, 0, 1, 1, 0, 2, 1, 0, 0)
    assert words == head


def test_blocks_are_the_rows_and_nothing_else() -> None:
    layout = form().layout(TOKENS)
    image = np.zeros(layout.length, np.uint8)
    layout.write(image)
    before = image.copy()
    blocks = layout.blocks(image)
    assert [block.shape for block in blocks] == [(3, size) for size in ROW_BYTES]
    for block in blocks:
        block[:] = 255
    assert layout.wrong_at(image) is None
    assert int((image != before).sum()) == 3 * sum(ROW_BYTES)


def test_a_slot_saved_from_a_later_stream_is_read() -> None:
    data = file_of(TOKENS, streams=3)
    words = 4 * (3 + 7 + 1)
    moved = data[:words] + bytes(8) + data[words:-8]
    assert parse(moved).tokens == TOKENS


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_truncated_extended_or_flipped_files_never_pass_as_the_original(data: st.DataObject) -> None:
    original = file_of(TOKENS)
    layout = form().layout(TOKENS)
    kind = data.draw(st.sampled_from(["cut", "extend", "flip"]))
    if kind == "cut":
        changed = original[: data.draw(st.integers(0, len(original) - 1))]
    elif kind == "extend":
        changed = original + data.draw(st.binary(min_size=1, max_size=8))
    else:
        run = data.draw(st.sampled_from(layout.structure))
        at = run.offset + data.draw(st.integers(0, len(run.data) - 1))
        flipped = original[at] ^ data.draw(st.integers(1, 255))
        changed = original[:at] + bytes([flipped]) + original[at + 1 :]
        assert layout.wrong_at(np.frombuffer(changed, np.uint8)) is not None
    try:
        file = parse(changed)
    except UnknownFormError:
        return
    assert kind == "flip"
    assert (file.form, file.tokens) != (form(), TOKENS) or changed != original


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400), st.booleans())
def test_arbitrary_bytes_raise_only_the_one_error(junk: bytes, with_magic: bool) -> None:
    with pytest.raises(UnknownFormError):
        parse(struct.pack("<2I", 0x67677371, 4) + junk if with_magic else junk)


def test_transposed_v_is_refused_by_name() -> None:
    data = bytearray(file_of(TOKENS))
    v_trans = len(data) - len(file_of(TOKENS)) + 4 * (3 + 7 + 2 + 9)
    data[v_trans] = 1
    with pytest.raises(UnknownFormError, match="flash attention"):
        parse(bytes(data))


class TestLearning:
    probes = ((TOKENS, file_of(TOKENS)), ((5, 4, 3, 2, 1), file_of((5, 4, 3, 2, 1))))

    def test_a_form_from_two_probes(self) -> None:
        assert learn(self.probes, ROW_BYTES) == form()

    @pytest.mark.parametrize("row_bytes", [(8, 8, 6), (8, 8, 6, 8), (8, 8, 6, 6, 6, 6)])
    def test_a_model_of_another_shape(self, row_bytes: tuple[int, ...]) -> None:
        with pytest.raises(UnknownFormError, match="the file has 2"):
            learn(self.probes, row_bytes)

    def test_a_file_that_names_other_tokens(self) -> None:
        with pytest.raises(UnknownFormError, match="names"):
            learn([((11, 12, 14), file_of(TOKENS))], ROW_BYTES)

    def test_a_header_field_that_varies(self) -> None:
        other = bytearray(file_of((5, 4, 3, 2, 1)))
        other[4] = 5
        with pytest.raises(UnknownFormError, match="differ"):
            learn([self.probes[0], ((5, 4, 3, 2, 1), bytes(other))], ROW_BYTES)

    def test_another_sequence_id_is_not_reproduced(self) -> None:
        other = bytearray(file_of(TOKENS))
        other[4 * (3 + 7 + 2 + 2)] = 7
        with pytest.raises(UnknownFormError, match="reproduce"):
            learn([(TOKENS, bytes(other))], ROW_BYTES)

    def test_rows_of_another_type(self) -> None:
        layout = msgspec.structs.replace(form(), types=(30,) * len(ROW_BYTES)).layout(TOKENS)
        image = np.zeros(layout.length, np.uint8)
        layout.write(image)
        with pytest.raises(UnknownFormError, match="types"):
            learn([(TOKENS, image.tobytes())], ROW_BYTES)


def test_the_words_for_the_refusal() -> None:
    assert first_words(file_of(TOKENS), 3) == "67677371 4 7"
    assert first_words(b"abc") == ""
