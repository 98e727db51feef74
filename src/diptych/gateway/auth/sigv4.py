"""AWS Signature Version 4, checked. Pure.

    canonical request = method, path, query, headers, names of the headers, hash of the body
    string to sign    = algorithm, date, scope (date/region/service/aws4_request), hash of the canonical request
    signature         = HMAC(HMAC(HMAC(HMAC("AWS4" + secret, date), region), service), "aws4_request")(string to sign)

The path is signed as it was sent and quoted once more, so the raw path is what counts. HTTP/2 clients sign
``:authority`` where others sign ``host``.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import string
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

import msgspec

from diptych.gateway.intake import natural

ALGORITHM = "AWS4-HMAC-SHA256"
SKEW = timedelta(minutes=5)
EMPTY_HASH = hashlib.sha256(b"").hexdigest()
SERVICES = frozenset({"bedrock", "bedrock-mantle"})
_ASCII = string.punctuation
_HEADER = re.compile(
    rf"{ALGORITHM}\s+Credential=(?P<credential>[^,\s]+),\s*SignedHeaders=(?P<headers>[^,\s]+),"
    r"\s*Signature=(?P<signature>[0-9a-f]{64})"
)


class Signed(msgspec.Struct, frozen=True):
    """A request as it was signed. ``headers`` are by lower-case name; ``query`` are the pairs as sent.

    ``raw_path`` and ``query`` hold the bytes of the wire, each as one character (latin-1).
    """

    method: str
    raw_path: str
    query: Sequence[tuple[str, str]]
    headers: Mapping[str, str]
    body_hash: str


class Claim(msgspec.Struct, frozen=True):
    """What a client says about its signature."""

    access_key_id: str
    date: str
    region: str
    service: str
    signed_headers: tuple[str, ...]
    signature: str
    amz_date: str
    lifetime: timedelta | None = None

    @property
    def scope(self) -> str:
        return f"{self.date}/{self.region}/{self.service}/aws4_request"


def claim_of_header(authorization: str, amz_date: str) -> Claim | None:
    """The claim of an Authorization header; None when it is malformed."""
    found = _HEADER.fullmatch(authorization.strip())
    parts = found["credential"].split("/") if found else []
    if not found or len(parts) != 5 or parts[4] != "aws4_request":
        return None
    access_key_id, date, region, service, _ = parts
    headers = tuple(found["headers"].split(";"))
    return Claim(access_key_id, date, region, service, headers, found["signature"], amz_date)


def claim_of_query(query: Mapping[str, str]) -> Claim | None:
    """The claim of a presigned URL, its values unquoted; None when it is malformed."""
    parts = query.get("X-Amz-Credential", "").split("/")
    lifetime, signature = natural(query.get("X-Amz-Expires", "")), query.get("X-Amz-Signature", "")
    if query.get("X-Amz-Algorithm") != ALGORITHM or len(parts) != 5 or lifetime is None or not signature:
        return None
    headers = tuple(query.get("X-Amz-SignedHeaders", "").split(";"))
    seconds = timedelta(seconds=min(lifetime, 604_800))
    return Claim(parts[0], parts[1], parts[2], parts[3], headers, signature, query.get("X-Amz-Date", ""), seconds)


def time_problem(claim: Claim, now: datetime) -> str | None:
    """Why the claim is not of this time, or None."""
    try:
        signed_at = datetime.strptime(claim.amz_date, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    except ValueError:
        return "Date must be in ISO-8601 'basic format', such as 20260102T030405Z, in X-Amz-Date."
    if claim.amz_date[:8] != claim.date:
        return "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP."
    if now - signed_at > (SKEW if claim.lifetime is None else claim.lifetime):
        return f"Signature expired: {claim.amz_date} is now earlier than {now - SKEW:%Y%m%dT%H%M%SZ}."
    if signed_at - now > SKEW:
        return f"Signature not yet current: {claim.amz_date} is still later than {now + SKEW:%Y%m%dT%H%M%SZ}."
    return None


def is_genuine(claim: Claim, request: Signed, secret: str) -> bool:
    """Whether the signature was made with ``secret`` over this request. Takes the same time either way.

    Some clients sign a path as they send it, some without its empty and dot segments. Either counts; what is routed is
    the path as sent.
    """
    tidy = normalized(request.raw_path)
    forms = [request] if tidy == request.raw_path else [request, msgspec.structs.replace(request, raw_path=tidy)]
    claimed = claim.signature.encode()
    matches = [hmac.compare_digest(_signature(claim, form, secret), claimed) for form in forms]
    return any(matches)


def _signature(claim: Claim, request: Signed, secret: str) -> bytes:
    canonical = canonical_request(claim, request)
    text = "\n".join((ALGORITHM, claim.amz_date, claim.scope, hashlib.sha256(canonical.encode()).hexdigest()))
    key = f"AWS4{secret}".encode()
    for part in (claim.date, claim.region, claim.service, "aws4_request"):
        key = _hmac(key, part)
    return _hmac(key, text).hex().encode()


def normalized(path: str) -> str:
    """The path without empty and dot segments."""
    kept: list[str] = []
    for segment in path.split("/"):
        if segment == "..":
            del kept[-1:]
        elif segment not in ("", "."):
            kept.append(segment)
    return "/" + "/".join(kept) + ("/" if kept and path.endswith("/") else "")


def canonical_request(claim: Claim, request: Signed) -> str:
    """The text whose hash was signed."""
    headers = "".join(f"{name}:{_header(request, name)}\n" for name in claim.signed_headers)
    query = [(_as_bytes(name, _ASCII), _as_bytes(value, _ASCII)) for name, value in request.query]
    return "\n".join(
        (
            request.method,
            _as_bytes(request.raw_path, "/-_.~"),
            "&".join(f"{name}={value}" for name, value in sorted(query)),
            headers,
            ";".join(claim.signed_headers),
            request.body_hash,
        )
    )


def _as_bytes(text: str, safe: str) -> str:
    """Quoted byte by byte, but for what is safe."""
    return quote(text.encode("latin-1"), safe=safe)


def _header(request: Signed, name: str) -> str:
    value = request.headers.get("host" if name == ":authority" else name, "")
    return " ".join(value.split())


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.new(key, text.encode(), hashlib.sha256).digest()
