"""Plots as SVG text."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = NDArray[np.float64]
COLOURS = ("#0b6e99", "#d9730d", "#5a7d2b", "#8a3ffc", "#b0413e", "#5f6368")
MODE_COLOURS = {"aggregated": COLOURS[1], "disaggregated": COLOURS[0], "mixed": COLOURS[2]}


class Figure:
    """One drawing of ``columns`` panels side by side; ``svg()`` gives it as text."""

    def __init__(self, columns: int = 1, height: float = 3.2) -> None:
        from matplotlib.figure import Figure as Canvas  # noqa: PLC0415  0.3 s to import, and only reports draw

        self._canvas = Canvas(figsize=(4.6 * columns, height), layout="constrained")
        self.panels: list[Axes] = [self._canvas.add_subplot(1, columns, i + 1) for i in range(columns)]
        for panel in self.panels:
            panel.spines[["top", "right"]].set_visible(False)
            panel.grid(alpha=0.25)

    def svg(self) -> str:
        import matplotlib as mpl  # noqa: PLC0415  as above

        text = io.StringIO()
        with mpl.rc_context({"svg.hashsalt": "diptych", "svg.fonttype": "none"}):
            self._canvas.savefig(text, format="svg", metadata={"Date": None})
        return text.getvalue().partition("<svg")[1] + text.getvalue().partition("<svg")[2]


def distributions(series: Sequence[tuple[str, Floats, Floats]]) -> str:
    """Cumulative shares of TTFT and of the gap between tokens; each series is (name, ttft_ms, itl_ms)."""
    figure = Figure(2)
    for column, (panel, what) in enumerate(zip(figure.panels, ("TTFT, ms", "gap between tokens, ms"), strict=True)):
        for colour, (name, *values) in zip(COLOURS, series, strict=False):
            ordered = np.sort(values[column][np.isfinite(values[column])])
            panel.plot(np.maximum(ordered, 1e-3), np.linspace(0, 1, len(ordered)), color=colour, label=name)
        panel.set(xscale="log", xlabel=what, ylabel="share of requests")
    figure.panels[0].legend(frameon=False, fontsize=8)
    return figure.svg()


def over_time(times: Floats, reading: Floats, writing: Floats) -> str:
    """Utilisation of both sides over the run."""
    figure = Figure(2)
    figure.panels[0].fill_between(times, reading, color=COLOURS[0], alpha=0.7)
    figure.panels[0].set(xlabel="s", ylabel="share of readers busy", ylim=(0, 1.05))
    figure.panels[1].fill_between(times, writing, color=COLOURS[1], alpha=0.7)
    figure.panels[1].set(xlabel="s", ylabel="sequences in a decode worker")
    return figure.svg()


def against_load(curves: Sequence[tuple[str, Sequence[float], Sequence[float]]], target: float) -> str:
    """Attainment against the rate offered; each curve is (name, rates, attainments)."""
    figure = Figure()
    panel = figure.panels[0]
    for colour, (name, rates, shares) in zip(COLOURS, curves, strict=False):
        panel.plot(rates, shares, marker="o", markersize=3, color=colour, label=name)
    panel.axhline(target, color="#999999", linewidth=0.8)
    panel.set(xlabel="requests/s offered", ylabel="share inside every objective", ylim=(0, 1.03))
    panel.legend(frameon=False, fontsize=8)
    return figure.svg()


def cost(bars: Sequence[tuple[str, str, float]]) -> str:
    """Price of a million output tokens; each bar is (name, mode, USD)."""
    figure = Figure(2, height=0.4 * len(bars) + 1.2)
    panel, empty = figure.panels
    empty.remove()
    panel.barh([name for name, _, _ in bars][::-1], [usd for _, _, usd in bars][::-1],
               color=[MODE_COLOURS[mode] for _, mode, _ in bars][::-1])  # fmt: skip
    panel.set(xlabel="USD per million output tokens at max goodput")
    return figure.svg()


def pareto(points: Sequence[tuple[str, float, float]]) -> str:
    """Goodput per dollar against speed per user; each point is (mode, tokens/s/user, requests/s per USD/h)."""
    figure = Figure()
    panel = figure.panels[0]
    for mode, colour in MODE_COLOURS.items():
        own = [(speed, value) for m, speed, value in points if m == mode]
        if own:
            panel.scatter([x for x, _ in own], [y for _, y in own], s=14, color=colour, alpha=0.7, label=mode)
    front: list[tuple[float, float]] = []
    for _, speed, value in sorted(points, key=lambda p: (-p[1], -p[2])):
        if not front or value > front[-1][1]:
            front.append((speed, value))
    panel.step([x for x, _ in front], [y for _, y in front], where="post", color="#444444", linewidth=0.9)
    panel.set(xscale="log", xlabel="output tokens/s per user (median)", ylabel="requests/s per USD/h")
    panel.legend(frameon=False, fontsize=8)
    return figure.svg()


def heat(rows: Sequence[float], columns: Sequence[float], values: Floats, labels: tuple[str, str, str]) -> str:
    """A map with 1.0 as its middle; ``labels`` are of rows, columns and the value."""
    figure = Figure()
    panel = figure.panels[0]
    panel.grid(visible=False)
    shown = np.log2(np.maximum(values, 2.0**-3))
    panel.imshow(shown, cmap="RdYlBu", vmin=-2, vmax=2, aspect="auto", origin="lower")
    panel.set_xticks(range(len(columns)), [f"{c:g}" for c in columns])
    panel.set_yticks(range(len(rows)), [f"{r:g}" for r in rows])
    for i in range(len(rows)):
        for j in range(len(columns)):
            text = f"{values[i, j]:.2f}" if np.isfinite(values[i, j]) else "-"
            panel.text(j, i, text, ha="center", va="center", fontsize=7)
    panel.set(ylabel=labels[0], xlabel=labels[1], title=labels[2])
    panel.title.set_fontsize(9)
    return figure.svg()
