"""When requests arrive and how long they are: read from files, or drawn from a distribution by seed.

| form      | how it is known                                   | what it has                                |
|-----------|---------------------------------------------------|--------------------------------------------|
| azure     | header TIMESTAMP,ContextTokens,GeneratedTokens    | lengths                                    |
| burstgpt  | header Timestamp,...,Request tokens,...           | lengths; failed requests (0 tokens) left out |
| mooncake  | JSON lines with timestamp (ms) and hash_ids       | lengths, and prefixes in blocks of 512     |
| diptych   | JSON lines with started_at and prompt_tokens      | lengths, from the service's own records    |
"""

from __future__ import annotations

import csv
import math
from array import array
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import numpy as np

from diptych.errors import ConfigError

Blocks = tuple[int, ...]


class Trace(msgspec.Struct, frozen=True):
    """Requests in the order of arrival, in seconds from the first. ``blocks`` are prefix hashes, one per
    ``block_tokens`` of the prompt, or empty where the trace has none."""

    name: str
    arrival_s: array[float]
    input_tokens: array[int]
    output_tokens: array[int]
    blocks: Sequence[Blocks] = ()
    block_tokens: int = 512

    def __len__(self) -> int:
        return len(self.arrival_s)

    @property
    def span_s(self) -> float:
        return self.arrival_s[-1] - self.arrival_s[0] if len(self) else 0.0

    @property
    def rate(self) -> float:
        """Requests a second; of a burst at one moment, infinite."""
        return (len(self) - 1) / self.span_s if self.span_s > 0 else math.inf

    def at_rate(self, rate: float) -> Trace:
        """The same requests, with the gaps stretched so that ``rate`` of them arrive a second; a burst, whose gaps
        cannot be stretched, evenly."""
        if self.rate == math.inf:
            return msgspec.structs.replace(self, arrival_s=array("d", (i / rate for i in range(len(self)))))
        factor = self.rate / rate
        return msgspec.structs.replace(self, arrival_s=array("d", (t * factor for t in self.arrival_s)))

    def head(self, requests: int) -> Trace:
        """The first ``requests`` of them."""
        return msgspec.structs.replace(
            self,
            arrival_s=self.arrival_s[:requests],
            input_tokens=self.input_tokens[:requests],
            output_tokens=self.output_tokens[:requests],
            blocks=self.blocks[:requests],
        )

    def sized(self, requests: int) -> Trace:
        """So many requests: the first of them, or the trace again and again with prefixes that no round shares."""
        if requests <= len(self):
            return self.head(requests)
        times = -(-requests // len(self))
        longer = self.repeated(times).head(requests)
        if not self.blocks:
            return longer
        rounds = (tuple(block + (i << 32) for block in blocks) for i in range(times) for blocks in self.blocks)
        return msgspec.structs.replace(longer, blocks=list(islice(rounds, requests)))

    def repeated(self, times: int) -> Trace:
        """The trace again and again, each round after the last with one mean gap between."""
        step = self.span_s + (self.span_s / (len(self) - 1) if len(self) > 1 else 1.0)
        arrivals = array("d", (t + step * i for i in range(times) for t in self.arrival_s))
        blocks = list(self.blocks) * times
        return msgspec.structs.replace(
            self, arrival_s=arrivals, input_tokens=self.input_tokens * times,
            output_tokens=self.output_tokens * times, blocks=blocks,
        )  # fmt: skip


def load(spec: str) -> Trace:
    """A trace from a file, or from a description such as ``poisson:rate=4,requests=1000,input=1024,output=128``.

    Raises ConfigError with file, line and cure.
    """
    kind, _, options = spec.partition(":")
    if kind in ("poisson", "gamma", *SHAPES):
        return _drawn(kind, options)
    path = Path(spec)
    if not path.is_file():
        raise ConfigError(f"{spec}: no such trace; give a file, or one of {', '.join(('poisson', 'gamma', *SHAPES))}"
                          ":rate=...,requests=...")  # fmt: skip
    with path.open(encoding="utf-8", newline="") as file:
        first = file.readline()
    return _json_lines(path) if first.lstrip().startswith("{") else _csv(path, first)


class _Builder:
    """Collects rows, refuses what cannot be simulated, and shifts time to start at 0."""

    def __init__(self, path: Path) -> None:
        self.path, self.line = path, 0
        self.arrival, self.input, self.output = array("d"), array("q"), array("q")
        self.blocks: list[Blocks] = []

    def refuse(self, what: str, cure: str) -> NoReturn:
        raise ConfigError(f"{self.path}:{self.line}: {what}; {cure}")

    def add(self, seconds: float, prompt: float, output: float, blocks: Blocks | None = None) -> None:
        for name, value in (("time", seconds), ("prompt length", prompt), ("output length", output)):
            if not math.isfinite(value):
                self.refuse(f"{name} is {value}", "every row needs a finite number there")
            if value < 0:
                self.refuse(f"{name} is negative ({value:g})", "remove the row or mend the column")
        if self.arrival and seconds < self.arrival[-1]:
            self.refuse(f"time goes back by {self.arrival[-1] - seconds:g} s", "sort the rows by time (ties are fine)")
        if prompt < 1:
            self.refuse("the prompt has no tokens", "remove the row")
        self.arrival.append(seconds)
        self.input.append(int(prompt))
        self.output.append(max(1, int(output)))
        if blocks is not None:
            self.blocks.append(blocks)

    def trace(self) -> Trace:
        if not self.arrival:
            raise ConfigError(f"{self.path}: no requests in it; give a trace with at least one row")
        start = self.arrival[0]
        arrival = array("d", (t - start for t in self.arrival))
        return Trace(self.path.name, arrival, self.input, self.output, self.blocks)


def _csv(path: Path, first: str) -> Trace:
    header = {name.strip() for name in first.strip().split(",")}
    for form, (needed, read) in _CSV_FORMS.items():
        if needed[0] in header:
            if missing := [name for name in needed if name not in header]:
                raise ConfigError(f"{path}:1: column {missing[0]!r} is missing; {form} has {', '.join(needed)}")
            return _csv_rows(path, read)
    known = "; ".join(",".join(needed) for needed, _ in _CSV_FORMS.values())
    raise ConfigError(f"{path}:1: not a header that is known; known are {known}, and JSON lines")


def _csv_rows(path: Path, read: Callable[[dict[str, str]], tuple[float, float, float] | None]) -> Trace:
    builder = _Builder(path)
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, skipinitialspace=True)
        for record in rows:
            builder.line = rows.line_num
            try:
                row = read(record)
            except (ValueError, TypeError):
                builder.refuse("a field is missing or not a number", "mend the row or remove it")
            if row is not None:
                builder.add(*row)
    return builder.trace()


def _azure(record: dict[str, str]) -> tuple[float, float, float]:
    seconds = datetime.fromisoformat(record["TIMESTAMP"]).timestamp()
    return seconds, float(record["ContextTokens"]), float(record["GeneratedTokens"])


def _burstgpt(record: dict[str, str]) -> tuple[float, float, float] | None:
    prompt, output = float(record["Request tokens"]), float(record["Response tokens"])
    return None if prompt == 0 or output == 0 else (float(record["Timestamp"]), prompt, output)


_CSV_FORMS: dict[str, tuple[tuple[str, ...], Callable[[dict[str, str]], tuple[float, float, float] | None]]] = {
    "an Azure trace": (("TIMESTAMP", "ContextTokens", "GeneratedTokens"), _azure),
    "a BurstGPT trace": (("Timestamp", "Request tokens", "Response tokens"), _burstgpt),
}


def _json_lines(path: Path) -> Trace:
    builder = _Builder(path)
    for record in _objects(path, builder):
        try:
            if "input_length" in record or "timestamp" in record:
                blocks = tuple(record["hash_ids"]) if "hash_ids" in record else None
                builder.add(record["timestamp"] / 1e3, record["input_length"], record["output_length"], blocks)
            else:
                builder.add(record["started_at"], record["prompt_tokens"], record["output_tokens"])
        except KeyError as error:
            builder.refuse(f"key {error} is missing", "a line has timestamp, input_length, output_length "
                           "(Mooncake) or started_at, prompt_tokens, output_tokens (diptych)")  # fmt: skip
        except TypeError:
            builder.refuse("a value is not a number", "mend the line or remove it")
    if builder.blocks and len(builder.blocks) != len(builder.arrival):
        raise ConfigError(f"{path}: some lines have hash_ids and some have none; give all of them or none")
    return builder.trace()


def _objects(path: Path, builder: _Builder) -> Iterator[dict[str, Any]]:
    decode = msgspec.json.Decoder(dict[str, Any]).decode
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                builder.line = number
                try:
                    yield decode(line.replace(b"NaN", b"null"))
                except msgspec.DecodeError:
                    builder.refuse("not a JSON object", "mend the line or remove it")


SHAPES: dict[str, tuple[float, float, float, float]] = {
    "azure-conv": (1020, 4142, 129, 601),
    "mooncake-synthetic": (11587, 66456, 69, 768),
    "agentic": (96300, 200000, 213, 1500),
    "chat": (600, 4000, 200, 1000),
}
"""Name -> median and 99th percentile of prompt and output tokens. The first two are of the public traces of those
names; "agentic" has the medians that SemiAnalysis gives for agentic coding (its 99th percentiles are assumed);
"chat" is assumed."""


def _drawn(kind: str, options: str) -> Trace:
    """Poisson or gamma arrivals; lengths constant, or log-normal through a median and a 99th percentile."""
    given = _options(kind, options)
    rate, requests = given.pop("rate", 1.0), int(given.pop("requests", 1000.0))
    rng = np.random.default_rng(int(given.pop("seed", 0.0)))
    shape = 1.0 / given.pop("cv", 1.0) ** 2
    if rate <= 0 or requests < 1:
        raise ConfigError(f"{kind}: rate and requests have to be above 0")
    gaps = rng.gamma(shape, 1.0 / (rate * shape), requests)
    gaps[0] = 0.0
    if kind in SHAPES:
        prompt, output = (
            _lognormal(rng, requests, *SHAPES[kind][:2]),
            _lognormal(rng, requests, *SHAPES[kind][2:]),
        )
    else:
        prompt = np.full(requests, int(given.pop("input", 1024.0)))
        output = np.full(requests, int(given.pop("output", 128.0)))
    if given:
        raise ConfigError(
            f"{kind}: unknown option {next(iter(given))!r}; known are rate, requests, seed, cv, input, output"
        )
    return Trace(kind, array("d", np.cumsum(gaps)), array("q", prompt.tolist()), array("q", output.tolist()))


def _options(kind: str, options: str) -> dict[str, float]:
    given = {}
    for part in filter(None, options.split(",")):
        name, _, value = part.partition("=")
        try:
            given[name] = float(value)
        except ValueError:
            raise ConfigError(f"{kind}: {part!r} is not name=number") from None
    return given


def _lognormal(rng: np.random.Generator, n: int, median: float, p99: float) -> np.ndarray[Any, np.dtype[np.int64]]:
    sigma = math.log(p99 / median) / 2.3263478740408408
    drawn: np.ndarray[Any, np.dtype[np.int64]] = np.maximum(1, np.rint(median * np.exp(sigma * rng.standard_normal(n))))
    return drawn.astype(np.int64)
