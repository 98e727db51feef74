"""Every error that Diptych raises on purpose, as one tree.

DiptychError
├── ConfigError            a flag, a file or a model that cannot be used      -> exit code 2, one line
│   └── UnsupportedModel   the model's architecture or geometry is not served
├── RequestError           the client can mend it                             -> 4xx
│   ├── InvalidRequest     a field is missing, malformed or out of range
│   ├── ModelNotFound      no model of that id is served
│   ├── ContextExceeded    prompt and output do not fit into the context
│   └── Overloaded         no room now; try again                             -> 429
├── WorkerError            a part of the fleet failed                         -> 5xx
│   ├── WorkerLost         the process or the connection is gone
│   ├── EngineError        the engine said no
│   └── DeadlineExceeded   a phase took longer than it may
└── HandoffError           the KV may not be used; the request is recomputed
    ├── IncompatibleForms  no conversion exists from the one form to the other
    ├── CorruptKV          count, length, header or digest differ
    ├── StaleWrite         a ticket, lease or epoch that is no longer in force
    ├── LandingFull        the landing area has no room for it now
    └── TransportLost      the connection that carried it broke, or never came about

The gateway maps the tree to each dialect's shapes; nothing below it knows a status code.
"""

from __future__ import annotations


class DiptychError(Exception):
    """Root of the tree. The text is a sentence for whoever has to act on it."""


class ConfigError(DiptychError):
    """A flag, a file or a model that cannot be used. Says what would be right."""


class UnsupportedModel(ConfigError):
    """The model's architecture or geometry is not one that Diptych serves."""


class RequestError(DiptychError):
    """The client can mend the request."""


class InvalidRequest(RequestError):
    """A field is missing, malformed or out of range."""


class ModelNotFound(RequestError):
    """No model of that id is served."""


class ContextExceeded(RequestError):
    """Prompt and output do not fit into the model's context."""


class Overloaded(RequestError):
    """There is no room for the request now."""


class WorkerError(DiptychError):
    """A part of the fleet failed while it worked on the request."""


class WorkerLost(WorkerError):
    """The worker's process or connection is gone."""


class EngineError(WorkerError):
    """The engine refused or failed."""


class DeadlineExceeded(WorkerError):
    """A phase took longer than its deadline."""


class HandoffError(DiptychError):
    """The KV of this handoff may not be used. ``reason`` is the label under which it is counted."""

    reason = "handoff"


class IncompatibleForms(HandoffError):
    """No conversion plan exists. Names the property in the way and both values."""

    reason = "incompatible_forms"

    def __init__(self, name: str, source: object, target: object) -> None:
        super().__init__(f"KV forms differ in {name}: the source has {source!r}, the target wants {target!r}")
        self.name, self.source, self.target = name, source, target


class CorruptKV(HandoffError):
    """What arrived is not what was sent: count, length, header or digest differ."""

    reason = "corrupt_kv"


class StaleWrite(HandoffError):
    """A ticket, lease or epoch that is no longer in force."""

    reason = "stale_write"


class LandingFull(HandoffError):
    """The landing area has no room for this handoff now."""

    reason = "landing_full"


class TransportLost(HandoffError):
    """The connection between two workers that carried the KV broke, or never came about."""

    reason = "transport_lost"
