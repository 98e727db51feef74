"""Frozen settings, read from ``fleet.toml`` or taken from the defaults. Nothing here does I/O but :func:`load`.

A wrong file is refused with its line and what would be right.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from diptych.errors import ConfigError

Port = Annotated[int, Meta(ge=0, le=65535)]
Count = Annotated[int, Meta(ge=1)]
Positive = Annotated[float, Meta(gt=0)]
WorkerId = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")]
Chance = Annotated[float, Meta(ge=0, le=1)]
Transport = Literal["shm", "nixl", "mooncake", "tcp"]
Transports = Annotated[tuple[Transport, ...], Meta(min_length=1)]


class Frozen(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A settings table: immutable, and a misspelt key is an error."""


GuardrailAction = Literal["block", "anonymize", "none"]
PiiType = Literal[
    "EMAIL", "PHONE", "CREDIT_DEBIT_CARD_NUMBER", "US_SOCIAL_SECURITY_NUMBER",
    "US_INDIVIDUAL_TAX_IDENTIFICATION_NUMBER", "UK_NATIONAL_INSURANCE_NUMBER", "INTERNATIONAL_BANK_ACCOUNT_NUMBER",
    "IP_ADDRESS", "MAC_ADDRESS", "URL", "AWS_ACCESS_KEY", "AWS_SECRET_KEY",
]  # fmt: skip


class RegexSettings(Frozen, frozen=True):
    """A pattern of a guardrail, in Python's notation."""

    name: Annotated[str, Meta(min_length=1, max_length=100)]
    pattern: Annotated[str, Meta(min_length=1, max_length=500)]
    action: GuardrailAction = "block"


class GuardrailSettings(Frozen, frozen=True):
    """What may be said. ``words`` are denied; ``pii`` and ``regexes`` are denied, anonymised or only reported."""

    id: Annotated[str, Meta(pattern=r"^[a-z0-9]{1,64}$")]
    name: Annotated[str, Meta(pattern=r"^[0-9a-zA-Z_-]{1,50}$")] = "guardrail"
    description: Annotated[str, Meta(min_length=1, max_length=200)] | None = None
    version: Annotated[str, Meta(pattern=r"^[1-9][0-9]{0,7}$")] = "1"
    words: tuple[Annotated[str, Meta(min_length=1, max_length=100)], ...] = ()
    pii: dict[PiiType, GuardrailAction] = {}
    regexes: tuple[RegexSettings, ...] = ()
    blocked_input: Annotated[str, Meta(min_length=1, max_length=500)] = "Sorry, the model cannot answer this question."
    blocked_output: Annotated[str, Meta(min_length=1, max_length=500)] = "Sorry, the model cannot answer this question."


class KeySettings(Frozen, frozen=True):
    """A client's key. ``models`` are the ids that it may use, all when empty; its secrets never show in a repr.

    The reserved budgets are what the tier ``reserved`` serves; a request beyond them is served as ``default``.
    """

    name: str
    api_key_sha256: Annotated[str, Meta(pattern=r"^[0-9a-fA-F]{64}$")] | None = None
    access_key_id: str | None = None
    secret_access_key: str | None = None
    models: tuple[str, ...] = ()
    tokens_per_minute: Count | None = None
    tokens_per_day: Count | None = None
    reserved_input_tokens_per_minute: Count | None = None
    reserved_output_tokens_per_minute: Count | None = None

    def __repr__(self) -> str:
        return f"KeySettings(name={self.name!r})"


class GatewaySettings(Frozen, frozen=True):
    """Where clients connect. Port 0 takes a free one. ``region`` is the label in ARNs.

    With ``tls`` a certificate of our own is made, which clients are told to trust. Without ``keys`` only this machine
    may be served. ``invocation_log`` names a file to which every invocation is appended, with what was asked and
    answered.
    """

    host: str = "127.0.0.1"
    port: Port = 8080
    max_body_mb: Count = 25
    region: str = "us-east-1"
    tls: bool = False
    keys: tuple[KeySettings, ...] = ()
    invocation_log: str | None = None


class Prices(Frozen, frozen=True):
    """What a million tokens cost. ``cached`` are input tokens that were not read again; as ``input`` when left out."""

    currency: str = "USD"
    input: Annotated[float, Meta(ge=0)] = 0.0
    cached: Annotated[float, Meta(ge=0)] | None = None
    output: Annotated[float, Meta(ge=0)] = 0.0


class ModelSettings(Frozen, frozen=True):
    """The model served. ``source``: a known name, a GGUF file, a Hugging Face folder or a hub id.

    ``gguf`` names the decode engine's file where ``source`` is not a GGUF itself. ``aliases`` are further ids
    under which clients may ask for it, Bedrock's for instance.
    """

    source: str = "smollm2-135m"
    gguf: str | None = None
    id: str | None = None
    aliases: tuple[str, ...] = ()
    prices: Prices | None = None


class EmulatedChip(Frozen, frozen=True):
    """What a worker with ``engine = "emulated"`` behaves like: ``chips`` of ``chip`` (None: whole machines, as many as
    needed) that serve the catalogue's model ``costs_of`` in ``format``, ``speed`` times as fast.

    ``prefill_share`` is the part of its dense peak at which a wafer reads prompts, which is unpublished (None: a token
    a step, as it decodes). ``fault`` goes wrong on purpose.
    """

    chip: str | None = None
    chips: Count | None = None
    costs_of: str = "gpt-oss-120b"
    format: Literal["bf16", "fp8", "fp4", "mxfp4", "int4"] | None = None
    prefill_share: Annotated[float, Meta(gt=0, le=1)] | None = None
    speed: Positive = 1.0
    fault: str | None = None


class PrefillSettings(EmulatedChip, frozen=True):
    """A worker that reads prompts. ``device`` is PyTorch's.

    ``spin`` is GOMP_SPINCOUNT: how long idle threads spin before they sleep.
    ``nice`` is how far it gives way to decode on the same cores, from 0 (not at all) to 19.
    ``keep_mb`` bounds the KV that it keeps of what it has handed over, until the first tokens are out.
    """

    id: WorkerId = "prefill-0"
    engine: Literal["torch", "llamacpp", "emulated"] = "torch"
    device: str = "cpu"
    threads: Count = 2
    chunk_tokens: Count = 256
    prefix_cache_mb: Annotated[int, Meta(ge=0)] = 128
    active_prompts: Count = 4
    spin: int = 2000
    nice: Annotated[int, Meta(ge=0, le=19)] = 3
    keep_mb: Annotated[int, Meta(ge=0)] = 128
    transports: Transports | None = None


class DecodeSettings(EmulatedChip, frozen=True):
    """A worker that emits tokens. ``binary`` or ``address`` name a llama-server other than the built-in one;
    ``device`` is PyTorch's.

    One that says nothing for ``token_timeout_s`` to a request that runs is hung: it is killed, and started again.
    """

    id: WorkerId = "decode-0"
    engine: Literal["llamacpp", "torch", "emulated"] = "llamacpp"
    device: str = "cpu"
    slots: Count = 8
    ctx_per_request: Count = 2560
    n_batch: Count = 128
    threads: Count = 2
    landing_mb: Count = 192
    binary: str | None = None
    address: str | None = None
    spin: int = 2000
    token_timeout_s: Positive = 30.0
    transports: Transports | None = None


class FaultSettings(Frozen, frozen=True):
    """What goes wrong on purpose with each delivery of a chunk of an image, by ``seed``: for tests, soaks and
    demonstrations. Canaries are left alone, for they ask whether two engines agree, not whether a wire is good."""

    seed: int = 0
    duplicate: Chance = 0.0
    reorder: Chance = 0.0
    delay: Chance = 0.0
    drop: Chance = 0.0
    truncate: Chance = 0.0
    flip: Chance = 0.0
    cut: Chance = 0.0
    stall: Chance = 0.0
    delay_s: Positive = 0.001
    stall_s: Positive = 10.0


class HandoffSettings(Frozen, frozen=True):
    """How KV travels. ``transports``, the best first, are those of every worker that does not name its own.

    ``return``: an answer's KV goes back to the prefill worker's prefix cache, through ``return_mb`` of shared memory.
    """

    transports: Transports = ("shm",)
    returns: bool = msgspec.field(name="return", default=False)
    return_mb: Count = 64
    fault: FaultSettings | None = None


class RoutingSettings(Frozen, frozen=True):
    """``transparent`` places every request where it is predicted fastest; ``opt-in`` lets only requests that ask
    for ``latency = optimized`` use the pair.

    ``ahead`` requests more than there are slots are let into the fleet at once, so that prompts are read while every
    slot is taken; the others wait by service tier. ``reserved_slots`` are kept for the tier ``reserved``.
    """

    mode: Literal["transparent", "opt-in"] = "transparent"
    ahead: Count = 4
    reserved_slots: Annotated[int, Meta(ge=0)] = 0


class Deadlines(Frozen, frozen=True):
    """Seconds that each phase of a handoff may take before it counts as failed; ``queue_s`` is the wait before it.

    ``resume_s`` is how long a request whose decode worker died waits for another one, ``kept_s`` how long at most a
    prefill worker keeps KV that it has handed over.
    """

    queue_s: Positive = 300.0
    offer_s: Positive = 60.0
    prefill_s: Positive = 120.0
    heartbeat_s: Positive = 1.0
    lost_after_s: Positive = 4.0
    start_s: Positive = 120.0
    resume_s: Positive = 30.0
    kept_s: Positive = 120.0


class ContinuitySettings(Frozen, frozen=True):
    """What is done so that a stream survives its decode worker.

    The prefill worker keeps a request's KV until its first ``keep_tokens`` tokens are out (0: not at all); a seeded
    stream is replayed where at most ``replay_tokens`` of it were sent.
    """

    keep_tokens: Annotated[int, Meta(ge=0)] = 8
    replay_tokens: Annotated[int, Meta(ge=0)] = 256


class FleetSettings(Frozen, frozen=True):
    """Everything that ``fleet.toml`` can say."""

    gateway: GatewaySettings = GatewaySettings()
    model: ModelSettings = ModelSettings()
    prefill: tuple[PrefillSettings, ...] = (PrefillSettings(),)
    decode: tuple[DecodeSettings, ...] = (DecodeSettings(),)
    handoff: HandoffSettings = HandoffSettings()
    routing: RoutingSettings = RoutingSettings()
    deadlines: Deadlines = Deadlines()
    guardrails: tuple[GuardrailSettings, ...] = ()
    continuity: ContinuitySettings = ContinuitySettings()

    @property
    def workers(self) -> tuple[PrefillSettings | DecodeSettings, ...]:
        return (*self.prefill, *self.decode)

    def __post_init__(self) -> None:
        ids = [worker.id for worker in self.workers]
        twice = sorted({name for name in ids if ids.count(name) > 1})
        if twice:
            raise ValueError(f"worker ids must differ; {', '.join(twice)} is used twice")
        for one in self.workers:
            if (one.engine == "emulated") != (one.chip is not None):
                raise ValueError(f'{one.id}: engine = "emulated" and chip = "..." belong together')
        for worker in self.decode:
            if worker.engine == "llamacpp" and worker.n_batch < worker.slots:
                raise ValueError(
                    f"{worker.id}: n_batch = {worker.n_batch} is less than its {worker.slots} slots, of which each "
                    "needs a token of every batch"
                )
        rails = [guardrail.id for guardrail in self.guardrails]
        if len(set(rails)) < len(rails):
            raise ValueError("the ids of [[guardrails]] must differ")
        if not self.decode:
            raise ValueError("at least one [[decode]] worker is needed")
        for either in self.workers:
            _check_engine(either)


def _check_engine(worker: PrefillSettings | DecodeSettings) -> None:
    """That no setting is given which the worker's engine would ignore."""
    if worker.engine == "llamacpp" and worker.device != "cpu":
        raise ValueError(f'{worker.id}: device is a setting of engine = "torch"; llamacpp runs on the CPU here')
    if isinstance(worker, DecodeSettings) and worker.engine == "torch" and (worker.binary or worker.address):
        raise ValueError(f'{worker.id}: binary and address are settings of engine = "llamacpp"')


def load(path: Path) -> FleetSettings:
    """The settings in a TOML file. Raises ConfigError with file, line and cure."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path}: cannot be read: {exc}") from exc
    try:
        return msgspec.convert(tomllib.loads(text), FleetSettings)
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError(f"{path}: not valid TOML: {exc}") from exc
    except msgspec.ValidationError as exc:
        raise ConfigError(f"{path}:{_line_of(str(exc), text)}: {exc}") from exc


def _line_of(message: str, text: str) -> int:
    """The line that msgspec's message is about, by its path (``$.decode[0].slots``) or unknown field."""
    path = re.findall(r"[.`]([A-Za-z_]\w*)(?:\[(\d+)\])?", message.replace("`$", "`"))
    unknown = re.search(r"unknown field `(\w+)`", message)
    keys = [(name, int(index or 0)) for name, index in path if not unknown or name != unknown[1]]
    if unknown:
        keys.append((unknown[1], 0))
    line = 1
    lines = text.splitlines()
    for name, index in keys:
        line = _find(lines, line, name, index) or line
    return line


def _find(lines: list[str], start: int, name: str, index: int) -> int | None:
    """The ``index``-th line from ``start`` on that opens table ``name`` or sets key ``name``."""
    opens = re.compile(rf"^\s*(\[+\s*([\w.]+\.)?{name}\s*\]|{name}\s*=)")
    hits = [number for number, line in enumerate(lines, 1) if number >= start and opens.match(line)]
    return hits[index] if index < len(hits) else None
