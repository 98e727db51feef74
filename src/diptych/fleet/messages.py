"""What crosses between the service and a worker: one tagged struct per message, MessagePack on the wire.

    service -> prefill worker:  Hello Ping Prefill Again Cancel      <- Welcome Pong Sealed Failed
    service -> decode worker:   Hello Ping Offer Decode Canary Cancel <- Welcome Pong Offered Tokens CanaryResult
                                                                         Failed, or several Together; both: Dropped
    the way back (giveback.py): to prefill TakeBack Keep <- Wanted Kept; to decode GiveBack <- GivenBack
``id`` is the request's id; a reply carries the id of what it answers.
"""

from __future__ import annotations

import msgspec

from diptych import errors
from diptych.engines.protocol import Description
from diptych.handoff.seal import Seal
from diptych.types import Sampling, TokenChunk

CANARY = "canary-"
"""How the request ids of canaries begin."""


class Message(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Base of all: the tag is the class name."""


class Hello(Message, frozen=True):
    """Asks who is there; the first message of a connection."""


class Ping(Message, frozen=True):
    """Heartbeat; a worker drops the requests of a client that it has not heard for a while."""


class Prefill(Message, frozen=True):
    """Compute the KV of ``prompt`` and write it where ``ticket`` says; ``keep`` it afterwards, until Cancel."""

    id: str
    prompt: tuple[int, ...]
    ticket: bytes
    keep: bool = False


class Again(Message, frozen=True):
    """Write the KV that is kept of the handoff ``kept`` once more, where ``ticket`` says. It is kept on."""

    id: str
    prompt: tuple[int, ...]
    ticket: bytes
    kept: str


class Offer(Message, frozen=True):
    """Asks the decode worker for a place where the KV of ``tokens`` tokens may land by ``transport``; waits while it
    is full."""

    id: str
    tokens: int
    transport: str = "shm"


class Decode(Message, frozen=True):
    """Emit tokens after ``prompt`` + ``given``, which another worker emitted before it was lost; with ``seal``, from
    the KV of all but the last token of ``prompt`` that landed under this id."""

    id: str
    prompt: tuple[int, ...]
    sampling: Sampling
    seal: Seal | None = None
    given: tuple[int, ...] = ()


class Canary(Message, frozen=True):
    """Compare the landed KV with the engine's own reading of ``prompt``; for qualification."""

    id: str
    prompt: tuple[int, ...]
    seal: Seal


class TakeBack(Message, frozen=True):
    """Asks a prefill worker what it lacks of the KV of ``tokens``, and where that may land by ``transport``."""

    id: str
    tokens: tuple[int, ...]
    transport: str


class GiveBack(Message, frozen=True):
    """Has a decode worker write the KV of ``tokens`` from ``start`` on where ``ticket`` says, when it is idle."""

    id: str
    tokens: tuple[int, ...]
    start: int
    ticket: bytes


class Keep(Message, frozen=True):
    """Has a prefill worker prove what came back and put it into its prefix cache."""

    id: str
    seal: Seal


class Cancel(Message, frozen=True):
    """Stop and free everything that belongs to this id. Unknown ids are ignored: it may be over already."""

    id: str


class Welcome(Message, frozen=True):
    """Who answers. ``instance`` differs after every restart; ``transports`` are its own, the best first."""

    worker: str
    role: str
    instance: str
    description: Description
    pid: int
    host: str
    transports: tuple[str, ...] = ("shm",)


class Pong(Message, frozen=True):
    """Answer to a heartbeat."""


class Dropped(Message, frozen=True):
    """Answer to anything but Hello from a client that this worker does not know: it was silent for too long, or this
    worker is another than it thinks. Nothing that it asked for before is under way any more."""


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


class Wanted(Message, frozen=True):
    """Tokens ``start`` to ``stop`` may come back by ``ticket``; an empty one: too few are lacking, or no room."""

    id: str
    ticket: bytes
    start: int
    stop: int


class GivenBack(Message, frozen=True):
    """What was asked to be given back is written."""

    id: str
    seal: Seal


class Kept(Message, frozen=True):
    """The first ``tokens`` tokens are in the prefix cache."""

    id: str
    tokens: int


class Tokens(Message, frozen=True, gc=False):
    """One chunk of one request; ``recomputed`` stands on the first chunk after a handoff that was given up."""

    id: str
    chunk: TokenChunk
    recomputed: str | None = None


class Together(Message, frozen=True):
    """What a worker had to say to one client at one moment, such as the tokens of all streams of one engine step."""

    messages: tuple[Answer, ...]


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


ToWorker = Hello | Ping | Prefill | Again | Offer | Decode | Canary | TakeBack | GiveBack | Keep | Cancel
Answer = Welcome | Pong | Dropped | Offered | Sealed | Wanted | GivenBack | Kept | Tokens | CanaryResult | Failed
FromWorker = Answer | Together

_encoder = msgspec.msgpack.Encoder()
encode = _encoder.encode
decode_to_worker = msgspec.msgpack.Decoder(ToWorker).decode
decode_from_worker = msgspec.msgpack.Decoder(FromWorker).decode
