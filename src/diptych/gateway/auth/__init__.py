"""Who asks. :func:`authenticate` is the way in; keys come from the configuration."""

from __future__ import annotations

from diptych.gateway.auth.authenticate import authenticate
from diptych.gateway.auth.keys import Key, Keys

__all__ = ["Key", "Keys", "authenticate"]
