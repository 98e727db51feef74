"""The planner's commands, to be mounted into ``diptych`` or run as ``python -m diptych.planner``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple, get_args

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from diptych.chips import catalogue, gpu
from diptych.errors import ConfigError
from diptych.planner.candidates import Candidate, Choice, Mode, enumerate_fleets, total
from diptych.planner.outcome import Objectives
from diptych.planner.traces import Trace, load

if TYPE_CHECKING:
    from diptych.planner.explain import Sensitivity
    from diptych.planner.goodput import Evaluation
    from diptych.planner.search import Plan

app = typer.Typer(no_args_is_help=True, help="What would this fleet do?", rich_markup_mode=None)
report = typer.Typer(no_args_is_help=True, help="Reports that recompute what others claim.", rich_markup_mode=None)
bench = typer.Typer(no_args_is_help=True, help="How fast Diptych's own parts are.", rich_markup_mode=None)
app.add_typer(report, name="report")
app.add_typer(bench, name="bench")

DATA = Path("../shared/data")
out, err = Console(soft_wrap=True), Console(stderr=True, soft_wrap=True)
Json = Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.", show_default=False)]


def progress() -> Progress:
    """A bar on the terminal's error stream, gone when it is done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=err, transient=True)


@app.command()
def plan(
    model: Annotated[str, typer.Option(help="A model of the catalogue (id or alias), or a TOML file of your own.")],
    trace: Annotated[str, typer.Option(help="A file (Azure CSV, BurstGPT CSV, Mooncake JSONL, our own records), or a "
                     "mix such as poisson:rate=4,input=1024,output=128,requests=2000 or azure-conv:rate=5.")],
    slo: Annotated[str, typer.Option(help="Objectives that 90 % of the requests must meet, in milliseconds: "
                   "ttft_ms=...,itl_ms=...,e2e_ms=...")],
    chips: Annotated[str, typer.Option(help="Chips to choose from, with a format if not the default: "
                     "h100:fp8,trainium2,cs3 (formats: bf16 fp8 fp4 mxfp4 int4), and with coefficients of "
                     "your own: h100:fp8=mine.toml (see fit).")],
    budget: Annotated[float, typer.Option(help="The most that the fleet may cost, in US dollars an hour.")],
    modes: Annotated[str, typer.Option(help="Which kinds of fleet to try.")] = "aggregated,disaggregated,mixed",
    requests: Annotated[int | None, typer.Option(help="Use only the first so many requests of the trace.",
                        show_default="all")] = None,
    most: Annotated[int, typer.Option(help="Simulate a fleet that is among so many best of its kind and price.")] = 3,
    jobs: Annotated[int | None, typer.Option(help="Worker processes.", show_default="one a core")] = None,
    resume: Annotated[Path | None, typer.Option(help="Remember evaluated fleets in this file, and go on from it.",
                      show_default=False)] = None,
    json: Json = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with plots to this file.", show_default=False)] = None,
    chrome_trace: Annotated[Path | None, typer.Option(help="Write the winner's run for Perfetto to this file.",
                            show_default=False)] = None,
) -> None:  # fmt: skip
    """Finds the fleet that serves this traffic best per dollar, and says why.

    Enumerates fleets of whole machines (aggregated; prefill on one chip and decode on another; mixed), simulates
    each with the live router's own placement code, and bisects the highest rate at which 90 % of the requests meet
    every objective.

    Example: plan --model llama-3.1-70b --trace azure-conv:rate=5,requests=1000 --slo ttft_ms=1000,itl_ms=50
    --chips h100:fp8,trainium2 --budget 300
    """
    from diptych.planner import planreport  # noqa: PLC0415  each command loads only what it needs

    asked = _asked(model, trace, requests, slo, chips, budget, modes)
    with progress() as bar:
        result, changed = _search(asked, bar, most, resume, jobs)
    for line in planreport.as_text(result, changed):
        out.print(line, highlight=False)
    _write(json, planreport.to_json(planreport.as_dict(result, changed)))
    if html is not None:
        _write(html, planreport.as_page(result, asked.traffic, changed).encode())
    if chrome_trace is not None:
        _write(chrome_trace, planreport.chrome_trace(result, asked.traffic))
    planreport.refuse_unmet(result)


class _Asked(NamedTuple):
    """What a plan is for, read and checked, and the fleets that could be bought."""

    model: str
    traffic: Trace
    objectives: Objectives
    budget: float
    fleets: list[Candidate]


def _asked(
    model: str, trace: str, requests: int | None, slo: str, chips: str, budget: float, modes: str
) -> _Asked:  # fmt: skip
    """Raises ConfigError for the first of the options that cannot be."""
    objectives, choices = parse_slo(slo), parse_chips(chips, model)
    if not budget > 0:
        raise ConfigError("--budget has to be above 0 US dollars an hour")
    traffic = load(trace)
    traffic = traffic if requests is None else traffic.head(requests)
    _require_prices(choices)
    fleets = enumerate_fleets(model, choices, traffic, objectives, budget, parse_modes(modes))
    if not fleets:
        raise ConfigError(f"no fleet of {chips} for {model} costs {budget:g} USD/h or less; raise --budget")
    return _Asked(model, traffic, objectives, budget, fleets)


def _search(
    asked: _Asked, bar: Progress, most: int, resume: Path | None, jobs: int | None
) -> tuple[Plan, list[Sensitivity]]:
    """The plan, and what other assumptions would change. Ctrl-C leaves what was found in ``resume``."""
    from diptych.planner import explain, search  # noqa: PLC0415  each command loads only what it needs

    def evaluated(fleets: Sequence[Candidate], what: str) -> list[Evaluation]:
        task = bar.add_task(what, total=len(fleets))
        return search.search(
            fleets, asked.traffic, asked.objectives, memory=resume, jobs=jobs, done=lambda _: bar.advance(task),
            ran=lambda n: bar.update(task, description=f"{what}, {n} simulations"),
        )  # fmt: skip

    chosen = search.promising(asked.fleets, asked.traffic, asked.objectives, most, lambda c: total(c, "price") or 1.0)
    try:
        found = evaluated(chosen, f"{len(chosen)} of {len(asked.fleets)} fleets")
        result = search.rank(asked.model, asked.traffic, asked.objectives, asked.budget, found)
        return result, explain.sensitivities(result, lambda fleets: evaluated(fleets, "other assumptions"))
    except KeyboardInterrupt:
        bar.stop()
        err.print("stopped; " + (f"the same command goes on from {resume}" if resume else NOT_KEPT), highlight=False)
        raise typer.Exit(130) from None


NOT_KEPT = "nothing was kept: with --resume FILE a plan goes on where it was stopped"


@report.command()
def announcement(
    output: Annotated[Path, typer.Option(help="The page to write.")] = Path("announcement.html"),
    model: Annotated[str, typer.Option(help="The model of the whole-fleet comparisons.")] = "llama-3.1-70b",
    data: Annotated[Path, typer.Option(help="Where traces/ lies; without it, only the mixes are used.")] = DATA,
    ttft_ms: Annotated[float, typer.Option(help="The service level's bound on the time to first token.")] = 5000.0,
    itl_ms: Annotated[float, typer.Option(help="The bound on the gap between tokens that counts as high speed.")] = 2.0,
    cs3_price: Annotated[float | None, typer.Option(help="USD/h of a CS-3 system, which nobody has published.",
                         show_default="the catalogue's assumption")] = None,
    opt_in: Annotated[float, typer.Option(help="Share of traffic that asks for the fast path; 1: invisible.")] = 1.0,
    reader: Annotated[str, typer.Option(help="The chip that reads for the wafer; try h100 or b200.")] = "trainium2",
    jobs: Annotated[int | None, typer.Option(help="Worker processes.", show_default="one a core")] = None,
    json: Json = None,
) -> None:  # fmt: skip
    """Recomputes the claims of the AWS and Cerebras announcement, and maps where disaggregation pays.

    Each claim is computed from the catalogue and from simulated fleets, with the assumption under which it holds.
    What the announcement leaves open (price, service level, opt-in or invisible, other vendors) are options.
    """
    from diptych.planner import announcement as page  # noqa: PLC0415  each command loads only what it needs
    from diptych.planner.planreport import to_json  # noqa: PLC0415  each command loads only what it needs

    questions = page.Questions(
        model=model, ttft_ms=ttft_ms, itl_ms=itl_ms, cs3_price=cs3_price, opt_in=opt_in, reader=reader
    )
    with progress() as bar:
        task = bar.add_task("fleets", total=None)
        found = page.examine(
            questions, data, jobs=jobs, count=lambda n: bar.update(task, total=n), done=lambda: bar.advance(task),
            ran=lambda traffic, n: bar.update(task, description=f"fleets, {traffic}: {n} simulations"),
        )  # fmt: skip
    _write(output, page.as_page(found).encode())
    _write(json, to_json(found))
    for claim in found.claims:
        out.print(f"[bold]{claim.claim}[/]: {claim.verdict}")
    out.print(f"written to {output}")


@app.command()
def fit(
    records: Annotated[Path, typer.Argument(help="A benchmark's records: CSV or JSON lines with prompt_tokens, "
                       "ttft_ms, itl_ms, and concurrency or batch; or aiconfigurator's CSV with --gpu.")],
    output: Annotated[Path | None, typer.Option(help="The TOML file to write.", show_default="the terminal")] = None,
    gpu_table: Annotated[bool, typer.Option("--gpu", help="Fit the GPU family to aiconfigurator's table.")] = False,
) -> None:  # fmt: skip
    """Makes coefficients from measurements; live workers' observations have the same format.

    Prefill: ttft = a + b n + c n^2. Decode: gap = a + b batch + c context. Terms that the records do not identify
    are 0 and say so. The file names what was fitted and when, and can be given to a worker as its cost.
    """
    from diptych.planner.fitting import fit_gpu, fit_records  # noqa: PLC0415  each command loads only what it needs

    text = fit_gpu(records) if gpu_table else fit_records(records)
    if output is None:
        out.print(text, highlight=False, markup=False, soft_wrap=True)
    else:
        _write(output, text.encode())


@app.command()
def validate(
    data: Annotated[Path, typer.Option(help="Where measurements/ lies.")] = DATA,
    json: Json = None,
) -> None:
    """How far the cost models are from measurements that they were not fitted to.

    Held out: one model at a time (GPU table), batches (Splitwise), prompts (Mooncake's KV transfers), the pair (EXO),
    models (CS-3, Trainium2). Rows left out are counted by rule. Exit code 1 when a target is missed.
    """
    from diptych.planner.planreport import to_json  # noqa: PLC0415  each command loads only what it needs
    from diptych.planner.validation.run import validate as run  # noqa: PLC0415  each command loads only what it needs

    scores = run(data)
    for s in scores:
        verdict = {True: "pass", False: "[bold]MISS[/]", None: "shown"}[s.passed]
        bound = f" <= {s.target:.0%}" if s.target is not None else ""
        out.print(f"{verdict} {s.table}: {s.metric}: median {s.median:.1%}, p90 {s.p90:.1%}, max {s.max:.1%}{bound} "
                  f"({s.judged_rows} judged, {s.fit_rows} fitted)", highlight=False)  # fmt: skip
        for rule, rows in s.excluded.items():
            out.print(f"       {rows} rows left out: {rule}", style="dim", highlight=False)
    _write(json, to_json(scores))
    if any(s.passed is False for s in scores):
        raise typer.Exit(1)


@bench.command()
def simulate(
    data: Annotated[Path, typer.Option(help="Where traces/mooncake_conversation.jsonl lies.")] = DATA,
    million: Annotated[bool, typer.Option(help="Also simulate a million requests.")] = True,
    simpy: Annotated[bool, typer.Option(help="Also run the plain simpy model.")] = True,
    json: Json = None,
) -> None:
    """Times the simulator: Mooncake's conversation on 16 prefill and 8 decode workers, placed by the live code."""
    from diptych.planner import bench as measuring  # noqa: PLC0415  each command loads only what it needs
    from diptych.planner.planreport import to_json  # noqa: PLC0415  each command loads only what it needs

    if not (data / measuring.TRACE).is_file():
        raise ConfigError(f"{data / measuring.TRACE}: no such trace; name its folder with --data")
    found = measuring.bench(data, million=million, simpy=simpy)
    out.print_json(to_json(found).decode())
    _write(json, to_json(found))


def parse_slo(text: str) -> Objectives:
    """``ttft_ms=1000,itl_ms=50`` -> Objectives. Raises ConfigError."""
    known = [field.name for field in msgspec.structs.fields(Objectives)]
    bounds: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        try:
            bounds[name.strip()] = float(value)
        except ValueError:
            raise ConfigError(f"--slo: {part!r} is not name=milliseconds") from None
        if name.strip() not in known or not bounds[name.strip()] > 0:
            raise ConfigError(f"--slo: {part!r} is not a bound; known are {', '.join(known)}, each above 0")
    if not bounds:
        raise ConfigError(f"--slo: give at least one of {', '.join(known)}")
    return Objectives(**bounds)


def parse_chips(text: str, model: str) -> list[Choice]:
    """``h100:fp8,cs3=my.toml`` -> chips, their formats and coefficients of one's own.

    The default format is what the weights come in: mxfp4 for gpt-oss, else bf16. Raises ConfigError.
    """
    default = "mxfp4" if catalogue.model(model).id.startswith("gpt-oss") else "bf16"
    found = []
    for part in filter(None, text.split(",")):
        left, _, fit_file = part.strip().partition("=")
        name, _, given = left.partition(":")
        catalogue.chip(name)
        if given and given not in gpu.PRECISIONS:
            raise ConfigError(f"--chips: unknown format {given!r}; known are {', '.join(gpu.PRECISIONS)}")
        found.append(Choice(name, msgspec.convert(given or default, gpu.Format), fit_file))
    if not found:
        raise ConfigError(f"--chips: name at least one of {', '.join(catalogue.chip_ids())}")
    return found


def _require_prices(choices: list[Choice]) -> None:
    for choice in choices:
        if not any(machine.price.known for machine in catalogue.chip(choice.chip).machines):
            raise ConfigError(
                f"{choice.chip}: price unknown, so no fleet of it can be held against a budget; "
                "copy its TOML file, add a price, and name the file"
            )


def parse_modes(text: str) -> list[Mode]:
    """Raises ConfigError for a mode that is not known."""
    known = get_args(Mode)
    named = [part.strip() for part in text.split(",") if part.strip()]
    modes: list[Mode] = [mode for mode in get_args(Mode) if mode in named]
    if not named or any(name not in known for name in named):
        raise ConfigError(f"--modes: {text!r}; known are {', '.join(known)}")
    return modes


def _write(path: Path | None, content: bytes) -> None:
    if path is None:
        return
    try:
        path.write_bytes(content)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None


def main() -> None:
    """``python -m diptych.planner``: ConfigError as one line and exit code 2."""
    try:
        app()
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
