"""What a producer says that it wrote: pieces with their digests, and one digest over them all.

A piece is one chunk of tokens over all images of the target, in the images' order (K layers, then V
layers). Its digest is XXH3-128 over those bytes; the whole digest is XXH3-128 over the encoded list of
pieces, so pieces cannot be exchanged, left out or doubled unseen. This guards against faults; against
forgery there are tickets, private directories and encrypted connections.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import xxhash

from diptych.errors import CorruptKV, StaleWrite
from diptych.handoff.ticket import Ticket


class Piece(msgspec.Struct, frozen=True, array_like=True):
    """Tokens ``token_start`` .. ``token_start + tokens`` over all images, and the digest of their bytes."""

    token_start: int
    tokens: int
    digest: bytes


class Seal(msgspec.Struct, frozen=True, kw_only=True):
    """A finished handoff as its producer saw it. ``epoch`` is the ticket's."""

    handoff_id: str
    epoch: int
    tokens: int
    kv_bytes: int
    pieces: tuple[Piece, ...]
    digest: bytes


def whole_digest(pieces: Sequence[Piece]) -> bytes:
    """The digest over a list of pieces, in the order given."""
    return xxhash.xxh3_128(msgspec.msgpack.encode(list(pieces))).digest()


def make_seal(handoff_id: str, epoch: int, region_bytes: int, pieces: Sequence[Piece]) -> Seal:
    """The seal of these pieces, put in the order of their tokens."""
    ordered = tuple(sorted(pieces, key=lambda piece: piece.token_start))
    tokens = sum(piece.tokens for piece in ordered)
    return Seal(
        handoff_id=handoff_id,
        epoch=epoch,
        tokens=tokens,
        kv_bytes=region_bytes,
        pieces=ordered,
        digest=whole_digest(ordered),
    )


def check_seal(seal: Seal, ticket: Ticket) -> None:
    """That the seal is this ticket's, its counts agree, and its pieces cover the tokens with no gap or
    overlap.

    Raises StaleWrite for another handoff's or epoch's seal, CorruptKV for everything else.
    """
    if (seal.handoff_id, seal.epoch) != (ticket.handoff_id, ticket.epoch):
        raise StaleWrite(f"the seal of handoff {seal.handoff_id} is of another handoff or epoch")
    if (seal.tokens, seal.kv_bytes) != (ticket.tokens, ticket.kv_bytes):
        counts = f"{seal.tokens} of {ticket.tokens} tokens, {seal.kv_bytes} of {ticket.kv_bytes} bytes"
        raise CorruptKV(f"sealed {counts}")
    reached = 0
    for piece in seal.pieces:
        if piece.token_start != reached or piece.tokens <= 0 or piece.token_start % ticket.form.unit_tokens:
            raise CorruptKV(f"pieces cover tokens up to {reached}, then one starts at {piece.token_start}")
        reached += piece.tokens
    if reached != ticket.tokens:
        raise CorruptKV(f"pieces cover {reached} of {ticket.tokens} tokens")
    if seal.digest != whole_digest(seal.pieces):
        raise CorruptKV("the digest over the list of pieces differs")
