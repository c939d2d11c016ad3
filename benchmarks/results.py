"""What every benchmark shares: one line of figures, how it is measured, and on what machine."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

__all__ = [
    "Result",
    "busy_share",
    "interleaved",
    "machine",
    "ratios",
    "result",
    "spread",
]

FEW = 4  # rounds; where there is no time for more, the first one counts too
_RUNTIMES = ("torch", "onnxruntime", "openvino")


@dataclass(frozen=True)
class Result:
    """One line of the table. `value` is the median over the rounds of one run.

    A tenth of the rounds lies below `low`, and a tenth above `high`.
    """

    name: str
    value: float
    low: float
    high: float
    unit: str
    at_least: float | None  # None: told, not demanded
    machine: str
    date: str
    command: str


def result(
    name: str,
    rounds: Sequence[float],
    *,
    unit: str,
    at_least: float | None,
    command: str,
    on: str | None = None,
) -> Result:
    """The line of a benchmark that gave one figure a round, measured now, here or `on` a machine.

    Raises:
        ValueError: there was no round.
    """
    low, value, high = spread(rounds)
    today = datetime.now(UTC).date().isoformat()
    return Result(name, value, low, high, unit, at_least, on or machine(), today, command)


def spread(rounds: Sequence[float]) -> tuple[float, float, float]:
    """First decile, median and last decile, interpolated between the rounds.

    Raises:
        ValueError: there was no round.
    """
    if not rounds:
        raise ValueError("no round was measured")
    if len(rounds) == 1:
        return rounds[0], rounds[0], rounds[0]
    deciles = statistics.quantiles(rounds, n=10, method="inclusive")
    return deciles[0], statistics.median(rounds), deciles[-1]


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Round by round: what slows one round of a busy machine slows both sides of it.

    Raises:
        ValueError: the sides have not the same number of rounds.
    """
    return [a / b for a, b in zip(above, below, strict=True)]


def interleaved(sides: Mapping[str, Callable[[], float]], seconds: float) -> dict[str, list[float]]:
    """Call all sides in turn, in alternating order, as often as `seconds` allow; once at least.

    Each call returns what it measured; that of the first round is not counted where others can be.
    """
    began, done = time.perf_counter(), 0
    found: dict[str, list[float]] = {name: [] for name in sides}
    while done == 0 or (time.perf_counter() - began) * (done + 1) / done <= seconds:
        for name in list(sides)[:: 1 if done % 2 == 0 else -1]:
            found[name].append(sides[name]())
        done += 1
    return found if done < FEW else {name: of[1:] for name, of in found.items()}


def machine(device: str | None = None) -> str:
    """Processor, memory, and the versions that decide the speed; `device`: of a GPU, its name."""
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    parts = [_processor(), f"{cores} cores", f"{memory:.0f} GiB"]
    return "; ".join([*([device] if device else []), ", ".join(parts), ", ".join(_versions())])


def busy_share(seconds: float = 2.0) -> float:
    """The share of all processors that is taken now, by whatever runs beside this process."""
    before = _processor_times()
    time.sleep(seconds)
    idle, total = (now - then for now, then in zip(_processor_times(), before, strict=True))
    return 1 - idle / total if total else 0.0


def _processor_times() -> tuple[int, int]:
    """Idle and all time since the machine was started; zeros where the system does not tell."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0, 0
    times = [int(word) for word in stat.read_text("ascii").splitlines()[0].split()[1:9]]
    return times[3] + times[4], sum(times)


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text("utf-8").splitlines() if cpuinfo.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.machine()


def _versions() -> Iterator[str]:
    yield f"Python {platform.python_version()}"
    for package in _RUNTIMES:
        try:
            yield f"{package} {metadata.version(package)}"
        except metadata.PackageNotFoundError:
            continue
