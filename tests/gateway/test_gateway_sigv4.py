"""SigV4: AWS's published vectors, botocore's signatures, and every one-byte change of what they sign."""

from __future__ import annotations

import hashlib
import random
import string
import sys
from datetime import UTC, datetime
from typing import Any, NamedTuple
from urllib.parse import quote

import httpx
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from starlette.requests import Request

from diptych.gateway.app import build_app
from diptych.gateway.auth import Key, Keys, authenticate, sigv4
from diptych.gateway.refusals import Forbidden
from support.scripted import ScriptedService

ID, SECRET = "AKIDDIPTYCH", "s3cr3t/+key"
KEYS = Keys((Key(name="signer", access_key_id=ID, secret_access_key=SECRET),))

# AWS's Signature Version 4 test suite: its key, date, region and service, and the signatures that it publishes.
SUITE_SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
SUITE_DATE = "20150830T123600Z"
SUITE_SCOPE = "AKIDEXAMPLE/20150830/us-east-1/service/aws4_request"
UNRESERVED = "-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
TOKEN = "6e86291e8372ff2a2260956d9b8aae1d763fbf315fa00fa31553b73ebf194267"
FORM = "application/x-www-form-urlencoded"
FORM_BODY = b"Param1=value1"


class Vector(NamedTuple):
    """``target`` is the request line's, ``headers`` are those beside host and x-amz-date."""

    target: str
    signature: str
    method: str = "GET"
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""


VANILLA = "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"
POSTED = "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"
ONE = "my-header1"
HASHED = ("x-amz-content-sha256", hashlib.sha256(FORM_BODY).hexdigest())
VECTORS = {
    "get-vanilla": Vector("/", VANILLA),
    "get-vanilla-query": Vector("/", VANILLA),
    "get-vanilla-empty-query-key": Vector(
        "/?Param1=value1", "a67d582fa61cc504c4bae71f336f98b97f1ea3c7a6bfe1b6e45aec72011b9aeb"
    ),
    "get-vanilla-query-order-key": Vector(
        "/?Param1=value2&Param1=Value1", "eedbc4e291e521cf13422ffca22be7d2eb8146eecf653089df300a15b2382bd1"
    ),
    "get-vanilla-query-order-key-case": Vector(
        "/?Param2=value2&Param1=value1", "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500"
    ),
    "get-vanilla-query-order-encoded": Vector(
        "/?Param-3=Value3&Param=Value2&%E1%88%B4=Value1",
        "371d3713e185cc334048618a97f809c9ffe339c62934c032af5a0e595648fcac",
    ),
    "get-vanilla-query-unreserved": Vector(
        f"/?{UNRESERVED}={UNRESERVED}", "9c3e54bfcdf0b19771a7f523ee5669cdf59bc7cc0884027167c21bb143a40197"
    ),
    "get-vanilla-utf8-query": Vector("/?ሴ=bar", "2cdec8eed098649ff3a119c94853b13c643bcf08f8b0a1d91e12c9027818dd04"),
    "get-unreserved": Vector(f"/{UNRESERVED}", "07ef7494c76fa4850883e2b006601f940f8a34d404d0cfa977f52a65bbf5f24f"),
    "get-utf8": Vector("/ሴ", "8318018e0b0f223aa2bbf98705b62bb787dc9c0e678f255a891fd03141be5d85"),
    "get-space": Vector("/example space/", "652487583200325589f1fba4c7e578f72c47cb61beeca81406b39ddec1366741"),
    "get-header-key-duplicate": Vector(
        "/",
        "c9d5ea9f3f72853aea855b47ea873832890dbdd183b4468f858259531a5138ea",
        headers=((ONE, "value2"), (ONE, "value2"), (ONE, "value1")),
    ),
    "get-header-value-order": Vector(
        "/",
        "08c7e5a9acfcfeb3ab6b2185e75ce8b1deb5e634ec47601a50643f830c755c01",
        headers=((ONE, "value4"), (ONE, "value1"), (ONE, "value3"), (ONE, "value2")),
    ),
    "get-header-value-trim": Vector(
        "/",
        "acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736",
        headers=((ONE, " value1"), ("my-header2", ' "a   b   c"')),
    ),
    "get-vanilla-with-session-token": Vector(
        "/",
        "07ec1639c89043aa0e3e2de82b96708f198cceab042d4a97044c66dd9f74e7f8",
        headers=(("x-amz-security-token", TOKEN),),
    ),
    "post-vanilla": Vector("/", POSTED, "POST"),
    "post-vanilla-query": Vector(
        "/?Param1=value1", "28038455d6de14eafc1f9222cf5aa6f1a96197d7deb8263271d420d138af7f11", "POST"
    ),
    "post-header-key-sort": Vector(
        "/", "c5410059b04c1ee005303aed430f6e6645f61f4dc9e1461ec8f8916fdf18852c", "POST", ((ONE, "value1"),)
    ),
    "post-header-value-case": Vector(
        "/", "cdbc9802e29d2942e5e10b5bccfdd67c5f22c7c4e8ae67b53629efa58b974b7d", "POST", ((ONE, "VALUE1"),)
    ),
    "post-x-www-form-urlencoded": Vector(
        "/",
        "d3875051da38690788ef43de4db0d8f280229d82040bfac253562e56c3f20e0b",
        "POST",
        (("content-type", FORM), ("content-length", "13"), HASHED),
        FORM_BODY,
    ),
    "post-x-www-form-urlencoded-parameters": Vector(
        "/",
        "328d1b9eaadca9f5818ef05e8392801e091653bafec24fcab71e7344e7f51422",
        "POST",
        (("content-type", f"{FORM}; charset=utf-8"), ("content-length", "13"), HASHED),
        FORM_BODY,
    ),
    "get-slash-normalized": Vector("//", VANILLA),
    "get-slash-unnormalized": Vector("//", "c88bcd3d312d75078c0cd961d6deae3f4c754924b01669efcfcb439fd5e5b76e"),
    "get-slashes-normalized": Vector("//example//", "9a624bd73a37c9a373b5312afbebe7a714a789de108f0bdfe846570885f57e84"),
    "get-slashes-unnormalized": Vector(
        "//example//", "87cca117541a147f6df867677d98a7d80dff226d2bfca9e4ffa899665623c7e5"
    ),
    "get-slash-dot-slash-normalized": Vector("/./", VANILLA),
    "get-slash-dot-slash-unnormalized": Vector(
        "/./", "68714168e6557f8f2de0ef956fc24dc2593a4bd2961f8df51898d8a134695145"
    ),
    "get-slash-pointless-dot-normalized": Vector(
        "/./example", "ef75d96142cf21edca26f06005da7988e4f8dc83a165a80865db7089db637ec5"
    ),
    "get-slash-pointless-dot-unnormalized": Vector(
        "/./example", "beb03f223f7deae4146464f06e29eebbee9c8afbe15c290cf07aa8b119e14cff"
    ),
    "get-relative-normalized": Vector("/example/..", VANILLA),
    "get-relative-unnormalized": Vector(
        "/example/..", "eca7ead57bb5aa5c8e28007acd4ff04e1ff9a0ff3b237ec1554a184887ff9282"
    ),
    "get-relative-relative-normalized": Vector("/example1/example2/../..", VANILLA),
    "get-relative-relative-unnormalized": Vector(
        "/example1/example2/../..", "dc33e0856fd4baca4d7aa2146c38958283844764f38c74252a333df5e613003b"
    ),
}


class Sent(NamedTuple):
    """A request on the wire."""

    method: str
    target: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes

    def admitted(self) -> bool:
        path, _, query = self.target.partition(b"?")
        scope = {
            "type": "http",
            "method": self.method,
            "path": path.decode("latin-1"),
            "query_string": query,
            "headers": list(self.headers),
        }
        try:
            authenticate(KEYS, Request(scope), self.body)
        except Forbidden:
            return False
        return True


@pytest.fixture
def suite(monkeypatch: pytest.MonkeyPatch) -> None:
    """The suite's key, its service and its day."""

    class Then(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.strptime(SUITE_DATE, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)

    key = Key(name="suite", access_key_id="AKIDEXAMPLE", secret_access_key=SUITE_SECRET)
    monkeypatch.setattr(f"{__name__}.KEYS", Keys((key,)))
    monkeypatch.setattr("diptych.gateway.auth.sigv4.SERVICES", {"service"})
    monkeypatch.setattr(sys.modules[authenticate.__module__], "datetime", Then)


def published(vector: Vector, signature: str) -> Sent:
    headers = [("host", "example.amazonaws.com"), ("x-amz-date", SUITE_DATE), *vector.headers]
    names = ";".join(sorted({name for name, _ in headers}))
    proof = f"AWS4-HMAC-SHA256 Credential={SUITE_SCOPE}, SignedHeaders={names}, Signature={signature}"
    raw = tuple((name.encode(), value.encode()) for name, value in [*headers, ("authorization", proof)])
    return Sent(vector.method, vector.target.encode(), raw, vector.body)


@pytest.mark.usefixtures("suite")
@pytest.mark.parametrize("name", VECTORS)
def test_a_published_vector_is_admitted_and_no_other_signature(name: str) -> None:
    vector = VECTORS[name]
    assert published(vector, vector.signature).admitted()
    flipped = vector.signature[:-1] + ("0" if vector.signature[-1] != "0" else "1")
    assert not published(vector, flipped).admitted()


@pytest.mark.parametrize("case", ["/", "/a", "/a/", "//a//b//", "/a/./b/../c/", "/../..", "/.", "/a/..", "/..a/.b"])
def test_paths_are_tidied_as_botocore_does(case: str) -> None:
    signer = SigV4Auth(Credentials(ID, SECRET), "bedrock", "us-east-1")
    assert quote(sigv4.normalized(case), safe="/~") == signer._normalize_url_path(case)


LETTERS = string.ascii_letters + string.digits + ":._~ -+%?#&=@é界🙂"


def drawn(draw: random.Random) -> Sent:
    """A request as botocore signs it: ids, ARNs, literal slashes, queries, headers of several bytes, any body."""
    name = "".join(draw.choices(LETTERS, k=draw.randint(1, 12)))
    arn = f"arn:aws:bedrock:us-east-1:000000000000:inference-profile/us.{name}"
    model = draw.choice((quote(name, safe=""), quote(arn, safe=""), quote(arn, safe="/:"), f"a/b/{quote(name)}"))
    path = f"/model/{model}/{draw.choice(('converse', 'invoke', 'count-tokens'))}"
    pairs = [f"k{draw.randint(0, 3)}={quote(draw.choice(LETTERS), safe='')}" for _ in range(draw.randint(0, 3))]
    target = path + ("?" + "&".join(pairs) if pairs else "")
    body = draw.randbytes(draw.randint(0, 60))
    meta = " ".join("".join(draw.choices(LETTERS[:70] + "é", k=3)) for _ in range(3))
    headers = {"content-type": "application/json", "x-amz-meta": meta, "host": f"h{draw.randint(0, 9)}:8080"}
    request = AWSRequest(method="POST", url=f"http://{headers['host']}{target}", data=body, headers=headers)
    SigV4Auth(Credentials(ID, SECRET), "bedrock", "us-east-1").add_auth(request)
    wire = tuple((key.lower().encode(), str(value).encode("latin-1")) for key, value in request.headers.items())
    return Sent("POST", target.encode("ascii"), wire, body)


def changed(text: bytes, at: int, draw: random.Random) -> bytes:
    """Another printable byte at that place."""
    other = draw.choice([byte for byte in range(0x21, 0x7F) if byte != text[at]])
    return text[:at] + bytes((other,)) + text[at + 1 :]


def places(sent: Sent) -> list[tuple[str, int, int]]:
    """(part, header, byte) of everything that is signed, the signature included."""
    signed = [("header", number, at) for number, (_, value) in enumerate(sent.headers) for at in range(len(value))]
    return [
        *(("target", 0, at) for at in range(1, len(sent.target))),
        *(("body", 0, at) for at in range(len(sent.body))),
        *signed,
    ]


def with_change(sent: Sent, place: tuple[str, int, int], draw: random.Random) -> Sent:
    part, number, at = place
    if part != "header":
        return sent._replace(**{part: changed(getattr(sent, part), at, draw)})
    headers = list(sent.headers)
    name, value = headers[number]
    headers[number] = (name, changed(value, at, draw))
    return sent._replace(headers=tuple(headers))


LONG = (pytest.mark.soak, pytest.mark.timeout(1800))


@pytest.mark.parametrize(("signatures", "changes"), [(1000, 8), pytest.param(1000, 0, marks=LONG)])
def test_botocores_signatures_are_admitted_and_every_one_byte_change_is_refused(signatures: int, changes: int) -> None:
    """``changes`` of each are tried; 0 stands for all of them."""
    draw = random.Random(11)
    for _ in range(signatures):
        sent = drawn(draw)
        assert sent.admitted(), sent
        found = places(sent)
        for place in draw.sample(found, changes) if changes else found:
            assert not with_change(sent, place, draw).admitted(), (sent, place)


@pytest.mark.parametrize("number", range(6))
def test_a_byte_more_or_less_is_refused(number: int) -> None:
    draw = random.Random(number)
    sent = drawn(draw)
    for at in range(1, len(sent.target)):
        assert not sent._replace(target=sent.target[:at] + b"x" + sent.target[at:]).admitted()
    assert not sent._replace(body=sent.body + b"\0").admitted()
    assert not sent._replace(method="GET").admitted()
    for name, _ in sent.headers:
        fewer = tuple(pair for pair in sent.headers if pair[0] != name)
        assert not sent._replace(headers=fewer).admitted(), name


ODD = (
    {"X-Amz-Signature": "é" * 64},
    {"X-Amz-Expires": "9" * 5000},
    {"X-Amz-Expires": "²"},
    {"X-Amz-Expires": "-1"},
    {"X-Amz-Date": "99991231T235959Z", "X-Amz-Credential": f"{ID}/99991231/us-east-1/bedrock/aws4_request"},
    {"X-Amz-Date": "00010101T000000Z", "X-Amz-Credential": f"{ID}/00010101/us-east-1/bedrock/aws4_request"},
    {"X-Amz-Credential": "////"},
    {"X-Amz-SignedHeaders": "host;é;\0"},
)


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: next(iter(odd)))
async def test_an_odd_presigned_url_is_refused(odd: dict[str, str]) -> None:
    today = datetime.now(UTC)
    query = {
        "X-Amz-Algorithm": sigv4.ALGORITHM,
        "X-Amz-Credential": f"{ID}/{today:%Y%m%d}/us-east-1/bedrock/aws4_request",
        "X-Amz-Date": f"{today:%Y%m%dT%H%M%SZ}",
        "X-Amz-Expires": "60",
        "X-Amz-SignedHeaders": "host",
        "X-Amz-Signature": "0" * 64,
        **odd,
    }
    app = build_app(ScriptedService(), keys=KEYS)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
        answer = await client.get("/foundation-models", params=query)
    assert answer.status_code in (400, 403), answer.text


@pytest.mark.parametrize("token", [b"bedrock-api-key-\xe9", b"\xe9", b"bedrock-api-key-QQ"])
async def test_an_odd_bearer_token_is_refused(token: bytes) -> None:
    app = build_app(ScriptedService(), keys=KEYS)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
        answer = await client.get("/foundation-models", headers={b"authorization": b"Bearer " + token})
    assert answer.status_code == 403
