"""The commands as a user runs them: help that teaches, files that are written, one line for what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from diptych.chips import catalogue
from diptych.chips.worker import Worker, cost_model
from diptych.errors import ConfigError
from diptych.planner.commands import app
from diptych.planner.fitting import fit_records, read

PLAN = [
    "plan", "--model", "llama-3.1-70b", "--trace", "poisson:rate=5,input=3000,output=60,requests=200",
    "--slo", "ttft_ms=2500,itl_ms=60", "--chips", "trainium2", "--budget", "72",
    "--modes", "aggregated,disaggregated", "--most", "1", "--jobs", "1",
]  # fmt: skip


def run(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def change(option: str, value: str) -> list[str]:
    changed = list(PLAN)
    changed[changed.index(option) + 1] = value
    return changed


@pytest.mark.parametrize(
    ("command", "teaches"),
    [
        (["plan"], "--budget"), (["report", "announcement"], "--cs3-price"), (["fit"], "prompt_tokens"),
        (["validate"], "Held out"), (["bench", "simulate"], "--million"),
    ],
)  # fmt: skip
def test_help_teaches(command: list[str], teaches: str):
    result = run(*command, "--help")
    assert result.exit_code == 0
    assert teaches in result.output


def test_a_plan_is_found_explained_and_written(tmp_path: Path):
    files = {name: tmp_path / name for name in ("plan.json", "plan.html", "trace.json", "memory.jsonl")}
    result = run(*PLAN, "--json", str(files["plan.json"]), "--html", str(files["plan.html"]), "--chrome-trace",
                 str(files["trace.json"]), "--resume", str(files["memory.jsonl"]))  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "Best per dollar" in result.output
    assert "weakest input" in result.output
    plan = json.loads(files["plan.json"].read_text())
    assert plan["met"]
    best = plan["fleets"][0]
    assert best["max_goodput_rps"] > 0
    assert best["usd_per_hour"] <= 72
    assert 0.9 <= best["run"]["attainment"] <= 1
    assert {f["mode"] for f in plan["fleets"]} >= {"aggregated", "disaggregated"}
    page = files["plan.html"].read_text()
    assert page.count("<svg") == 5
    assert "nan" not in page.lower().replace("nanometer", "")
    events = json.loads(files["trace.json"].read_text())["traceEvents"]
    assert {e["name"] for e in events} >= {"prefill", "decode"}
    assert all(e["dur"] > 0 for e in events)
    before = files["memory.jsonl"].read_bytes()
    again = run(*PLAN, "--resume", str(files["memory.jsonl"]), "--json", str(files["plan.json"]))
    assert again.exit_code == 0
    assert files["memory.jsonl"].read_bytes() == before  # nothing was evaluated again
    assert json.loads(files["plan.json"].read_text())["fleets"][0]["max_goodput_rps"] == best["max_goodput_rps"]


def test_a_search_goes_on_after_a_line_cut_short(tmp_path: Path):
    memory, few = tmp_path / "memory.jsonl", ["--resume"]
    assert run(*change("--budget", "36"), *few, str(memory)).exit_code == 0
    whole = memory.read_bytes()
    memory.write_bytes(whole[: len(whole) * 2 // 3])
    assert run(*change("--budget", "36"), *few, str(memory)).exit_code == 0
    assert memory.read_bytes().count(b"\n") >= whole.count(b"\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (change("--model", "llama-9"), "no model 'llama-9'"),
        (change("--chips", "h1000"), "no chip 'h1000'"),
        (change("--chips", "h100:fp3"), "unknown format 'fp3'"),
        (change("--chips", "b300"), "b300: price unknown"),
        (change("--slo", "ttft=5"), "known are ttft_ms"),
        (change("--slo", "ttft_ms=-5"), "each above 0"),
        (change("--slo", "soon"), "not name=milliseconds"),
        (change("--slo", ""), "give at least one"),
        (change("--budget", "1"), "raise --budget"),
        (change("--budget", "0"), "has to be above 0"),
        (change("--trace", "nowhere.jsonl"), "no such trace"),
        ([*PLAN, "--modes", "sideways"], "known are aggregated"),
        (change("--chips", "h100=nowhere.toml"), "no such file of coefficients"),
        (["plan", *change("--model", "llama-3.1-405b")[1:-8], "--chips", "cs3", "--budget", "10", "--slo", "itl_ms=1"],
         "raise --budget"),
        (change("--slo", "ttft_ms=0.001"), "No fleet within 72 USD/h keeps 90 %"),
        (["validate", "--data", "/nowhere"], "no such table"),
        (["bench", "simulate", "--data", "/nowhere"], "no such trace"),
        (["fit", "/nowhere.csv"], "cannot be read"),
        (["report", "announcement", "--opt-in", "0"], "--opt-in is a share"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_sentence(arguments: list[str], message: str):
    result = run(*arguments)
    assert isinstance(result.exception, ConfigError), result.output
    assert message in str(result.exception)
    assert "\n" not in str(result.exception)


def test_a_plan_that_cannot_be_met_says_what_is_the_best_that_can():
    result = run(*change("--slo", "ttft_ms=0.001"))
    assert "The nearest is" in str(result.exception)
    assert "TTFT p90" in str(result.exception)


def test_as_a_module_errors_are_one_line_and_exit_code_2():
    found = subprocess.run(
        [sys.executable, "-m", "diptych.planner", *change("--model", "llama-9")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 2
    assert found.stderr.startswith("error: no model 'llama-9'")
    assert found.stderr.count("\n") == 1


CSV = "prompt_tokens,prefill_ms,itl_ms,batch,context_tokens\n" + "".join(
    f"{n},{20 + 0.05 * n + 1e-6 * n * n},{8 + 0.2 * b + 1e-4 * b * n},{b},{b * n}\n"
    for n in (100, 500, 2000, 8000) for b in (1, 4, 16)
)  # fmt: skip


def test_fitting_a_csv_gives_a_worker(tmp_path: Path):
    table, fitted = tmp_path / "bench.csv", tmp_path / "mine.toml"
    table.write_text(CSV)
    assert run("fit", str(table), "--output", str(fitted)).exit_code == 0
    cost = cost_model(Worker(chip="h100", model="llama-3.1-8b", chips=1, fit=str(fitted)))
    assert cost.prefill_s(4000) == pytest.approx(0.020 + 0.2 + 0.016, rel=0.01)
    assert cost.decode_s(8, 8 * 1000) == pytest.approx(0.008 + 0.0016 + 0.0008, rel=0.01)
    assert cost.kind == "published"  # measured coefficients on published memory


def test_fitting_our_own_records_counts_who_ran_beside(tmp_path: Path):
    records = [
        {"id": str(i), "status": "finished", "decode": "d0", "started_at": 10.0 * i + offset, "prompt_tokens": n,
         "output_tokens": 11, "ttft_ms": 50 + 0.1 * n, "itl_ms": 10.0, "e2e_ms": 50 + 0.1 * n + 100,
         "parts_ms": {"prefill": 40 + 0.1 * n}}
        for i, n in enumerate((100, 400, 900)) for offset in (0.0, 0.01)
    ]  # fmt: skip
    file = tmp_path / "records.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in records))
    seen = read(file)
    assert {o.batch for o in seen} == {2}
    assert seen[0].context_tokens == pytest.approx(2 * (100 + 5.5))
    assert seen[0].prefill_s == pytest.approx(0.05)
    assert "fixed = { value = 40" in fit_records(file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (CSV.replace("itl_ms", "gap"), ":1: column 'itl_ms' is missing"),
        (CSV.replace("\n500,", "\nmany,", 1), ":5: a field is missing"),
        (CSV.replace("\n500,", "\n-5,", 1), ":5: a field is missing"),
        ("\n".join(CSV.splitlines()[:3]), "give at least 3"),
        ('{"id": 1}\n{"id"', ":2: not a JSON object"),
    ],
)
def test_records_that_cannot_be_fitted_are_refused(tmp_path: Path, text: str, message: str):
    file = tmp_path / "bench"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        fit_records(file)


def test_a_chip_of_ones_own_is_a_file(tmp_path: Path):
    source = Path(catalogue.__file__).parent / "catalogue/chips/h100.toml"
    mine = tmp_path / "mine.toml"
    mine.write_text(source.read_text().replace('id = "h100"', 'id = "mine"'))
    result = run(*change("--chips", f"{mine}:fp8"), "--modes", "aggregated", "--requests", "200")
    assert result.exit_code == 0, result.output
