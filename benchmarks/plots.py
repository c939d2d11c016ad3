"""The plots of `docs/performance.md`, as PNG."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.results import Result

__all__ = ["draw_latencies", "draw_results"]

_DOTS_PER_INCH = 120
_GOOD, _SHORT = "#2f7d32", "#b3541e"


def draw_results(results: Sequence[Result], folder: Path) -> Path:
    """Each demanded line as a share of what is demanded, with its spread → `benchmarks.png`."""
    shown = [(one, one.at_least) for one in results if one.at_least is not None][::-1]
    figure = Figure(figsize=(9, 1 + 0.45 * len(shown)), layout="constrained")
    axes = figure.subplots()
    for place, (one, least) in enumerate(shown):
        colour = _GOOD if one.value >= least else _SHORT
        axes.plot([one.low / least, one.high / least], [place, place], color=colour, linewidth=2)
        axes.plot(one.value / least, place, "o", color=colour)
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_yticks(range(len(shown)), [_short(one.name) for one, _ in shown])
    axes.set_xlim(left=0)
    axes.set_xlabel("measured ÷ demanded (right of the line: reached)")
    return _saved(figure, folder / "benchmarks.png")


def draw_latencies(series: Mapping[str, Sequence[float]], folder: Path) -> Path:
    """The share of jobs that ended within a latency, one curve a server → `latencies.png`."""
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, latencies in series.items():
        shares = [(i + 1) / len(latencies) for i in range(len(latencies))]
        style = "-" if name.startswith("Avocat") else "--"
        axes.step(sorted(latencies), shares, style, where="post", label=name)
    axes.set_xscale("log")
    axes.set_xlabel("seconds from when a job came to its picture")
    axes.set_ylabel("share of the jobs")
    axes.legend()
    return _saved(figure, folder / "latencies.png")


def _short(name: str) -> str:
    return name if len(name) <= 60 else f"{name[:59]}…"


def _saved(figure: Figure, file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=_DOTS_PER_INCH, metadata={"Software": None})
    return file
