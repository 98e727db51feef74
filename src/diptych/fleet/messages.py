"""What crosses between the service and a worker: one tagged struct per message, MessagePack on the wire.

    service -> prefill worker:  Hello Ping Prefill Cancel            <- Welcome Pong Sealed Failed
    service -> decode worker:   Hello Ping Offer Decode Canary Cancel <- Welcome Pong Offered Tokens CanaryResult
                                                                        Failed, or several Together
``id`` is the request's id; a reply carries the id of what it answers.
"""

from __future__ import annotations

import msgspec

from diptych import errors
from diptych.engines.protocol import Description
from diptych.handoff.seal import Seal
from diptych.types import Sampling, TokenChunk


class Message(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Base of all: the tag is the class name."""


class Hello(Message, frozen=True):
    """Asks who is there; the first message of a connection."""


class Ping(Message, frozen=True):
    """Heartbeat; a worker drops the requests of a client that it has not heard for a while."""


class Prefill(Message, frozen=True):
    """Compute the KV of ``prompt`` and write it where ``ticket`` says."""

    id: str
    prompt: tuple[int, ...]
    ticket: bytes


class Offer(Message, frozen=True):
    """Asks the decode worker for a place to land the KV of ``tokens`` tokens; waits while it is full."""

    id: str
    tokens: int


class Decode(Message, frozen=True):
    """Emit tokens after ``prompt``; with ``seal``, from the KV that landed under this id."""

    id: str
    prompt: tuple[int, ...]
    sampling: Sampling
    seal: Seal | None = None


class Canary(Message, frozen=True):
    """Compare the landed KV with the engine's own reading of ``prompt``; for qualification."""

    id: str
    prompt: tuple[int, ...]
    seal: Seal


class Cancel(Message, frozen=True):
    """Stop and free everything that belongs to this id. Unknown ids are ignored: it may be over already."""

    id: str


class Welcome(Message, frozen=True):
    """Who answers. ``instance`` differs after every restart; ``kv_form`` is what this worker makes or wants."""

    worker: str
    role: str
    instance: str
    description: Description
    pid: int
    host: str


class Pong(Message, frozen=True):
    """Answer to a heartbeat."""


class Offered(Message, frozen=True):
    """The landing place as a signed ticket, and how long the offer waited for room."""

    id: str
    ticket: bytes
    waited_ms: float


class Sealed(Message, frozen=True):
    """The prompt's KV is written. Milliseconds as the worker measured them: ``prefill_ms`` from the first chunk
    to the last with other prompts' turns between, ``compute_ms`` this prompt's own, ``tail_ms`` the conversion
    that was left after the last computed chunk."""

    id: str
    seal: Seal
    cached_tokens: int
    queue_ms: float
    prefill_ms: float
    compute_ms: float
    convert_ms: float
    tail_ms: float


class Tokens(Message, frozen=True, gc=False):
    """One chunk of one request; ``recomputed`` stands on the first chunk after a handoff that was given up."""

    id: str
    chunk: TokenChunk
    recomputed: str | None = None


class Together(Message, frozen=True):
    """What a worker had to say to one client at one moment, such as the tokens of all streams of one engine step."""

    messages: tuple[FromWorker, ...]


class CanaryResult(Message, frozen=True):
    """One canary: divergence of the next-token distributions in nats, the top-1 tokens, and the worst rows.

    ``kl`` is KL(decode engine's own prefill || landed KV) over the whole vocabulary; ``gap`` the log-probability
    gap of the two best tokens of the engine's own; row errors are relative, |a - b| / |b| per K or V row.
    """

    id: str
    kl: float
    top1_own: int
    top1_landed: int
    gap: float
    k_row_error: float
    v_row_error: float
    own_prefill_ms: float


class Failed(Message, frozen=True):
    """The request is over with an error of the tree; ``kind`` is the class's name."""

    id: str
    kind: str
    text: str
    reason: str = ""

    @classmethod
    def of(cls, request_id: str, error: BaseException) -> Failed:
        known = error if isinstance(error, errors.DiptychError) else errors.EngineError(repr(error))
        return cls(request_id, type(known).__name__, str(known), getattr(known, "reason", ""))

    def error(self) -> errors.DiptychError:
        """The error to raise on this side of the wire."""
        found = getattr(errors, self.kind, None)
        known = isinstance(found, type) and issubclass(found, errors.DiptychError)
        kind: type[errors.DiptychError] = found if known else errors.EngineError  # type: ignore[assignment]  # checked above
        error = kind.__new__(kind)
        Exception.__init__(error, self.text)
        if isinstance(error, errors.HandoffError) and self.reason:
            error.reason = self.reason
        return error


ToWorker = Hello | Ping | Prefill | Offer | Decode | Canary | Cancel
FromWorker = Welcome | Pong | Offered | Sealed | Tokens | CanaryResult | Failed | Together

_encoder = msgspec.msgpack.Encoder()
encode = _encoder.encode
decode_to_worker = msgspec.msgpack.Decoder(ToWorker).decode
decode_from_worker = msgspec.msgpack.Decoder(FromWorker).decode
