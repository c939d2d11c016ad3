"""`python -m benchmarks`: measure, and write `results.json`, `docs/performance.md` and its plots.

Figures from a busy machine or a quick run are only shown, never kept.
"""

import argparse
import importlib
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from rich.console import Console
from rich.table import Table

from app import logs
from app.settings import Settings
from benchmarks import page, plots
from benchmarks.gpu import COMMANDS as GPU_COMMANDS
from benchmarks.results import Result, busy_share
from benchmarks.subject import Plan, loaded
from worker.capacity import with_capacity

REPOSITORY: Final = Path(__file__).resolve().parent.parent
RESULTS: Final = REPOSITORY / "benchmarks" / "results.json"
PAGE: Final = REPOSITORY / "docs" / "performance.md"
PICTURES: Final = REPOSITORY / "docs" / "pictures"
BUSY: Final = 0.2  # share of the processor that others may take


class _Times(NamedTuple):
    """Seconds to measure for, starting not counted; None: in so few nothing could be told."""

    full: float
    quick: float | None


BENCHMARKS: Final = {
    "forward": _Times(25, 3),
    "gemm": _Times(20, 4),
    "diffusers_loop": _Times(40, 6),
    "bookkeeping": _Times(30, 3),
    "service": _Times(75, 10),
    "load": _Times(340, None),
    "submission": _Times(40, 3),
    "eta": _Times(42, None),
    "stable_diffusion": _Times(65, None),
    "cold_start": _Times(40, None),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what was asked for; 0 if all could be measured."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.names if name not in BENCHMARKS]:
        parser.error(f"there is no {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    if options.merge:
        _keep(page.read(options.merge), PICTURES)
        return 0
    keep = not options.quick and not options.show
    share = busy_share()
    if share > BUSY:
        said = f"{share:.0%} of the processor is taken by other programs"
        if keep:
            print(
                f"{said}: figures would be wrong; --show measures without keeping", file=sys.stderr
            )
            return 1
        print(f"{said}: take no figure below for good", file=sys.stderr)
    logs.configure("warning")
    found, failed = _measured(options, PICTURES if keep else None)
    _show(found)
    if keep:
        _keep(found, PICTURES)
    if failed:
        print(f"not measured: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    names = ", ".join(BENCHMARKS)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {names} (default: all)")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="rough and short, without what takes long; keeps nothing",
    )
    parser.add_argument("--show", action="store_true", help="show the figures, keep nothing")
    parser.add_argument("--seconds", type=float, help="for each benchmark, instead of its own time")
    parser.add_argument("--merge", type=Path, metavar="FILE", help="keep results made elsewhere")
    return parser


def _measured(options: argparse.Namespace, pictures: Path | None) -> tuple[list[Result], list[str]]:
    """Results, and the names of benchmarks that failed; one failure does not end the others."""
    found: list[Result] = []
    failed: list[str] = []
    with tempfile.TemporaryDirectory(prefix="avocat-bench-") as folder:
        settings = Settings(data_dir=Path(folder))
        settings = with_capacity(settings, loaded(settings))
        for name in options.names or BENCHMARKS:
            times = BENCHMARKS[name]
            if options.quick and times.quick is None and not options.names:
                continue
            seconds = options.seconds or (options.quick and times.quick) or times.full
            began = time.monotonic()
            try:
                plan = Plan(seconds, settings, command_of(name), pictures)
                found += importlib.import_module(f"benchmarks.{name}").measure(plan)
            except Exception:
                traceback.print_exc()
                failed.append(name)
            print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr)
    return found, failed


def command_of(name: str) -> str:
    """The command that measures one benchmark again."""
    return f"python -m benchmarks {name}"


def _keep(found: Sequence[Result], pictures: Path) -> None:
    order = [*map(command_of, BENCHMARKS), *GPU_COMMANDS.values()]
    results = page.merged(page.read(RESULTS), found, order)
    page.write(RESULTS, results)
    PAGE.write_text(page.with_table(PAGE.read_text("utf-8"), results), "utf-8")
    plots.draw_results(results, pictures)


def _show(found: Sequence[Result]) -> None:
    shown = Table("benchmark", "median", "spread", "at least")
    for one in found:
        least = "" if one.at_least is None else f"{one.at_least:g}"
        spread = f"{one.low:.3g} to {one.high:.3g}"
        shown.add_row(one.name, f"{one.value:.3g} {one.unit}", spread, least)
    Console().print(shown)


if __name__ == "__main__":
    sys.exit(main())
