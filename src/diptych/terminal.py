"""What people see in a terminal: start-up progress and a request's timeline."""

from __future__ import annotations

import sys
import time

from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from diptych.types import Parts, RequestRecord

BAR = 48
COLOURS = {
    "queue": "grey50",
    "prefill": "cyan",
    "convert": "magenta",
    "transfer": "yellow",
    "decode_queue": "grey50",
    "first_step": "green",
    "decode": "bright_green",
}


class StartProgress:
    """A bar per phase on a terminal; one line per phase where there is none."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._bars: Progress | None = None
        self._task: TaskID | None = None

    def phase(self, name: str, total: int) -> None:
        self.close()
        if not self._console.is_terminal:
            sys.stderr.write(f"{name} ...\n")
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bars = Progress(*columns, console=self._console)
        self._bars.start()
        self._task = self._bars.add_task(name, total=total)

    def advance(self) -> None:
        if self._bars is not None and self._task is not None:
            self._bars.advance(self._task)

    def close(self) -> None:
        """Leaves the bar as it stands."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None


def timeline(record: RequestRecord) -> RenderableType:
    """A request as a drawing: who did what for how long, and what was predicted."""
    return Group(_headline(record), _bars(record), _facts(record))


def _headline(record: RequestRecord) -> Text:
    route = f"{record.prefill} -> {record.decode}" if record.prefill else f"{record.decode}"
    started = time.strftime("%H:%M:%S", time.localtime(record.started_at))
    return Text(f"{record.id}  {started}  {record.placement}  {route}  {record.status}", style="bold")


def _bars(record: RequestRecord) -> Table:
    spans = _spans(record)
    total = max(sum(ms for _, ms in spans), 1e-9)
    table = Table.grid(padding=(0, 2))
    before = 0.0
    for name, ms in spans:
        start, end = round(before / total * BAR), round((before + ms) / total * BAR)
        bar = Text(" " * start) + Text("█" * max(end - start, 1 if ms > 0 else 0), style=COLOURS[name])
        table.add_row(name, f"{ms:,.1f} ms", bar)
        before += ms
    return table


def _spans(record: RequestRecord) -> list[tuple[str, float]]:
    parts = [(name, getattr(record.parts_ms, name)) for name in Parts.__struct_fields__]
    decode_ms = (record.e2e_ms or 0.0) - (record.ttft_ms or 0.0)
    return [(name, ms) for name, ms in (*parts, ("decode", decode_ms)) if ms > 0]


def _facts(record: RequestRecord) -> Text:
    finish = f", finish {record.finish}" if record.finish else ""
    predicted = record.predicted_ms
    lines = [
        f"prompt {record.prompt_tokens} tokens ({record.cached_tokens} cached), output {record.output_tokens}{finish}",
        f"KV handed over: {record.kv_tokens} tokens, {record.kv_bytes:,} bytes",
        f"TTFT {_ms(record.ttft_ms)}, ITL {_ms(record.itl_ms)}, end to end {_ms(record.e2e_ms)}",
        f"predicted: disaggregated {_ms(predicted.disaggregated)}, aggregated {_ms(predicted.aggregated)}",
    ]
    if record.recomputed:
        lines.append(f"recomputed: the handoff was given up ({record.recomputed})")
    if record.error:
        lines.append(f"error: {record.error}")
    return Text("\n".join(lines))


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f} ms"
