"""A request's key, by whichever proof the client sent: a signature, a presigned URL, or a bearer token."""

from __future__ import annotations

import hashlib
import secrets
from base64 import b64decode
from collections.abc import Mapping
from datetime import UTC, datetime
from urllib.parse import unquote

from starlette.requests import Request

from diptych.gateway.auth import sigv4
from diptych.gateway.auth.keys import Key, Keys
from diptych.gateway.refusals import Forbidden

_SHORT_TERM = "bedrock-api-key-"
_SHORT_TERM_HOST = "bedrock.amazonaws.com"
_DUMMY_SECRET = secrets.token_hex(20)

MISSING = Forbidden("MissingAuthenticationTokenException", "Missing Authentication Token")
BAD_KEY = Forbidden("AccessDeniedException", "Authentication failed: Please make sure your API Key is valid.")
UNKNOWN = Forbidden("UnrecognizedClientException", "The security token included in the request is invalid.")
MALFORMED = Forbidden(
    "IncompleteSignatureException",
    "The Authorization header needs Credential, SignedHeaders and Signature of AWS4-HMAC-SHA256.",
    status=400,
)
MISMATCH = Forbidden(
    "InvalidSignatureException",
    "The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key "
    "and signing method. Consult the service documentation for details.",
)


def bearer_key(keys: Keys, http: Request) -> Key | None:
    """The key of a bearer token or x-api-key; None when the request has neither. Raises Forbidden."""
    scheme, _, token = http.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        token = http.headers.get("x-api-key", "")
    token = token.strip()
    if not token:
        return None
    if token.startswith(_SHORT_TERM):
        return _short_term(keys, token)
    key = keys.by_api_key(token)
    if key is None:
        raise BAD_KEY
    return key


def authenticate(keys: Keys, http: Request, body: bytes) -> Key:
    """The key of a signed request. Raises Forbidden, in AWS's words."""
    query = _query(http)
    values = {name: unquote(value) for name, value in query}
    presigned = "X-Amz-Signature" in values
    authorization = http.headers.get("authorization", "")
    if not presigned and not authorization:
        raise MISSING
    amz_date = http.headers.get("x-amz-date", "")
    claim = sigv4.claim_of_query(values) if presigned else sigv4.claim_of_header(authorization, amz_date)
    if claim is None:
        raise MALFORMED
    signed = sigv4.Signed(
        method=http.method,
        raw_path=http.scope["path"],
        query=[pair for pair in query if pair[0] != "X-Amz-Signature"],
        headers=_headers(http),
        body_hash=_body_hash(http, body),
    )
    return _checked(keys, claim, signed, {"host", ":authority"})


def _checked(keys: Keys, claim: sigv4.Claim, signed: sigv4.Signed, hosts: set[str]) -> Key:
    if claim.service not in sigv4.SERVICES:
        message = f"Credential should be scoped to correct service: 'bedrock', not '{claim.service}'."
        raise Forbidden("InvalidSignatureException", message)
    if not hosts & set(claim.signed_headers):
        raise Forbidden("InvalidSignatureException", "'Host' or ':authority' must be a 'SignedHeader'.")
    if problem := sigv4.time_problem(claim, datetime.now(UTC)):
        raise Forbidden("InvalidSignatureException", problem)
    key = keys.by_access_key(claim.access_key_id)
    genuine = sigv4.is_genuine(claim, signed, (key and key.secret_access_key) or _DUMMY_SECRET)
    if key is None:
        raise UNKNOWN
    if not genuine:
        raise MISMATCH
    return key


def _short_term(keys: Keys, token: str) -> Key:
    """A short-term key is a presigned request, good for at most twelve hours."""
    try:
        url = b64decode(token.removeprefix(_SHORT_TERM), validate=True).decode("ascii")
    except ValueError:  # not Base64, or not ASCII before or after it
        raise BAD_KEY from None
    host, _, raw_query = url.partition("/?")
    query = _pairs(raw_query)
    claim = sigv4.claim_of_query({name: unquote(value) for name, value in query})
    if claim is None or host != _SHORT_TERM_HOST or ("Action", "CallWithBearerToken") not in query:
        raise BAD_KEY
    signed = sigv4.Signed(
        method="POST",
        raw_path="/",
        query=[pair for pair in query if pair[0] not in ("X-Amz-Signature", "Version")],
        headers={"host": host},
        body_hash=sigv4.EMPTY_HASH,
    )
    return _checked(keys, claim, signed, {"host"})


def _query(http: Request) -> list[tuple[str, str]]:
    return _pairs(http.scope["query_string"].decode("latin-1"))


def _pairs(raw: str) -> list[tuple[str, str]]:
    """Names and values as they were sent, still quoted."""
    parts = [pair.partition("=") for pair in raw.split("&") if pair]
    return [(name, value) for name, _, value in parts]


def _headers(http: Request) -> Mapping[str, str]:
    joined: dict[str, str] = {}
    for raw_name, raw_value in http.headers.raw:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        joined[name] = f"{joined[name]},{value}" if name in joined else value
    return joined


def _body_hash(http: Request, body: bytes) -> str:
    """The hash that the client declares must be the body's own."""
    own = hashlib.sha256(body).hexdigest()
    declared = http.headers.get("x-amz-content-sha256")
    if declared is not None and declared != own:
        raise MISMATCH
    return own
