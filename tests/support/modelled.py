"""Requests and answers by botocore's service model: valid parameters, what makes them invalid, and strict reading."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from botocore.eventstream import EventStreamBuffer
from botocore.parsers import create_parser
from botocore.serialize import create_serializer
from botocore.validate import ParamValidator
from hypothesis import strategies as st

Overrides = Mapping[str, st.SearchStrategy[Any]]
"""By a member's name, "Shape.member" or a shape's name: what is drawn instead of the model's own values."""

TEXT = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12)
DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=4,
)
_parser, _serializer = create_parser("rest-json"), create_serializer("rest-json")


def values(shape: Any, overrides: Overrides) -> st.SearchStrategy[Any]:
    """Values that the shape allows."""
    if shape.name in overrides:
        return overrides[shape.name]
    made: dict[str, Callable[[Any, Overrides], st.SearchStrategy[Any]]] = {
        "structure": _structures,
        "list": lambda shape, o: st.lists(
            values(shape.member, o),
            min_size=shape.metadata.get("min", 0),
            max_size=min(3, shape.metadata.get("max", 3)),
        ),
        "map": lambda shape, o: st.dictionaries(
            values(shape.key, o), values(shape.value, o), min_size=shape.metadata.get("min", 0), max_size=3
        ),
        "string": lambda shape, _: _strings(shape),
        "integer": lambda shape, _: st.integers(shape.metadata.get("min", 0), shape.metadata.get("max", 1000)),
        "float": lambda shape, _: st.floats(shape.metadata.get("min", 0), shape.metadata.get("max", 1), width=32),
        "boolean": lambda *_: st.booleans(),
        "blob": lambda *_: st.binary(max_size=20),
        "timestamp": lambda *_: st.just(datetime(2026, 1, 2, tzinfo=UTC)),
    }
    return made[shape.type_name](shape, overrides)


def _strings(shape: Any) -> st.SearchStrategy[str]:
    known = shape.metadata
    if "enum" in known:
        return st.sampled_from(known["enum"])
    if "pattern" in known:
        fitting = st.from_regex(re.compile(known["pattern"], re.ASCII), fullmatch=True)
        return fitting.filter(lambda text: known.get("min", 0) <= len(text) <= min(known.get("max", 200), 200))
    return TEXT


def _structures(shape: Any, overrides: Overrides) -> st.SearchStrategy[Any]:
    if shape.metadata.get("document"):
        return st.dictionaries(TEXT, DOCUMENTS, max_size=3)

    def of(name: str) -> st.SearchStrategy[Any]:
        own = overrides.get(f"{shape.name}.{name}")
        return values(shape.members[name], overrides) if own is None else own

    kept = [name for name in shape.members if overrides.get(f"{shape.name}.{name}") is not LEFT_OUT]
    if shape.metadata.get("union"):
        return st.one_of([st.fixed_dictionaries({name: of(name)}) for name in kept])
    required = {name: of(name) for name in kept if name in shape.required_members}
    optional = {name: of(name) for name in kept if name not in required}
    return st.fixed_dictionaries(required, optional=optional)


LEFT_OUT: st.SearchStrategy[Any] = st.nothing()
"""An override: the member is never sent."""


class Place(NamedTuple):
    """A value in a JSON body: the holder and its key, and the shapes of both."""

    holder: Any
    key: Any
    shape: Any
    outer: Any


def places(body: Any, shape: Any) -> Iterator[Place]:
    """Every modelled value in a body. What is inside documents has no shape."""
    if shape.metadata.get("document"):
        return
    if shape.type_name == "structure":
        found = [Place(body, name, shape.members[name], shape) for name in body]
    elif shape.type_name == "list":
        found = [Place(body, at, shape.member, shape) for at in range(len(body))]
    elif shape.type_name == "map":
        found = [Place(body, name, shape.value, shape) for name in body]
    else:
        return
    for place in found:
        yield place
        yield from places(place.holder[place.key], place.shape)


_WRONG: dict[str, list[Any]] = {
    "structure": ["text", 7, [1], True],
    "list": ["text", 7, {"a": 1}, True],
    "map": ["text", 7, [1], True],
    "string": [7, {"a": "b"}, ["text"], True],
    "integer": ["text", {}, [1], 1.5, True],
    "float": ["text", {}, [1], True],
    "boolean": ["text", 7, {}, []],
    "blob": [7, {}, [1], True, "not base64!"],
}


def wrongs(place: Place) -> list[tuple[str, Any]]:
    """What would be wrong there: (kind, value). None stands for the member's absence."""
    shape, known, value = place.shape, place.shape.metadata, place.holder[place.key]
    found = [("type", wrong) for wrong in _WRONG.get(shape.type_name, []) if not known.get("document")]
    if place.outer.type_name == "structure" and place.key in place.outer.required_members:
        found.append(("missing", None))
    if "enum" in known:
        found.append(("enum", "no-such-value"))
    if shape.type_name in ("integer", "float"):
        found += [("range", known[end] + by) for end, by in (("min", -1), ("max", 1)) if end in known]
    if shape.type_name == "string" and known.get("min"):
        found.append(("range", ""))
    if shape.type_name == "list" and known.get("min"):
        found.append(("range", []))
    if shape.type_name == "list" and known.get("max", 1000) <= 20 and value:
        found.append(("range", value[:1] * (known["max"] + 1)))
    if shape.type_name == "structure" and not known.get("document") and isinstance(value, dict):
        found.append(("unknown", {**value, "noSuchMember": 1}))
    if known.get("union"):
        found.append(("union", {}))
    return found


def spoiled(body: Any, shape: Any, choose: Callable[[list[Any]], Any]) -> tuple[Any, str]:
    """The body with one thing wrong, and what that is."""
    body = copy.deepcopy(body)
    place = choose([place for place in places(body, shape) if wrongs(place)])
    kind, wrong = choose(wrongs(place))
    if wrong is None:
        del place.holder[place.key]
    else:
        place.holder[place.key] = wrong
    return body, f"{place.outer.name}.{place.key}: {kind} {wrong!r}"[:200]


def serialized(operation: Any, parameters: dict[str, Any]) -> dict[str, Any]:
    """The HTTP request as botocore makes it. Asserts that botocore finds the parameters valid."""
    report = ParamValidator().validate(parameters, operation.input_shape)
    assert not report.has_errors(), report.generate_report()
    made: dict[str, Any] = _serializer.serialize_to_request(parameters, operation)
    return made


def read(operation: Any, status: int, headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
    """The answer as botocore parses it. Asserts that it has what the model promises."""
    shape = operation.output_shape
    if shape.event_stream_name:
        events(shape.members[shape.event_stream_name], body)
        return {}
    parsed: dict[str, Any] = _parser.parse({"status_code": status, "headers": headers, "body": body}, shape)
    parsed.pop("ResponseMetadata")
    check(parsed, shape)
    return parsed


def events(shape: Any, body: bytes) -> list[str]:
    """The names of a stream's events, each checked against its shape."""
    buffer, names = EventStreamBuffer(), []
    buffer.add_data(body)
    for event in buffer:
        name = event.headers.get(":event-type") or event.headers[":exception-type"]
        parser = _parser._event_stream_parser
        parsed = parser.parse({"status_code": 200, "headers": event.headers, "body": event.payload}, shape)
        if event.headers[":message-type"] == "event":
            check(parsed[name], shape.members[name])
        names.append(name)
    assert names
    return names


OURS_TO_NAME = frozenset({"modelArn", "modelId"})
"""Bedrock's ids all name a provider; a model that is served under a name of its own has none, nor has its ARN."""


def check(value: Any, shape: Any, path: str = "") -> None:
    """Required members, types, ranges, enumerations and patterns."""
    report = ParamValidator().validate(value, shape)
    assert not report.has_errors(), report.generate_report()
    for place in places(value, shape):
        known, found = place.shape.metadata, place.holder[place.key]
        if "enum" in known:
            assert found in known["enum"], (place.outer.name, place.key, found)
        if "pattern" in known and "$" not in known["pattern"] and place.key not in OURS_TO_NAME:
            assert re.fullmatch(known["pattern"], found), (place.outer.name, place.key, found)
        if place.shape.type_name == "structure" and known.get("union"):
            assert len(found) == 1, (place.outer.name, place.key, found)


def error_of(operation: Any, status: int, headers: Mapping[str, str], body: bytes) -> str:
    """The name of the error. Asserts that the operation's model has it, with this HTTP code and a message."""
    parsed = _parser.parse({"status_code": status, "headers": headers, "body": body}, operation.output_shape)
    code = parsed["Error"]["Code"]
    modelled = {shape.name: shape.metadata["error"]["httpStatusCode"] for shape in operation.error_shapes}
    assert modelled.get(code) == status, (code, status, body)
    assert len(parsed["Error"]["Message"]) > 5
    return str(code)
