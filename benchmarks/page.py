"""Where figures are kept: `results.json`, and the table of `docs/performance.md` made from it."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from benchmarks.results import Result

__all__ = ["FIRST_MARK", "LAST_MARK", "merged", "read", "table", "with_table", "write"]

FIRST_MARK: Final = "<!-- benchmarks: written by `make bench` from benchmarks/results.json -->"
LAST_MARK: Final = "<!-- end of benchmarks -->"
_HEAD = (
    "| benchmark | median | spread | at least | reached |",
    "| --- | ---: | ---: | ---: | --- |",
)
_PICTURES = (
    "![Every demanded line as a share of what is demanded](pictures/benchmarks.png)",
    "",
    "![Shares of the jobs that ended within a latency](pictures/latencies.png)",
)
_NONE = "Nothing has been measured yet."


def read(file: Path) -> list[Result]:
    """The results of a file; none where there is no file."""
    if not file.exists():
        return []
    return [Result(**entry) for entry in json.loads(file.read_text("utf-8"))]


def write(file: Path, results: Iterable[Result]) -> None:
    """Write results as a JSON list of objects."""
    entries = [asdict(one) for one in results]
    text = json.dumps(entries, indent=2, ensure_ascii=False)
    file.write_text(f"{text}\n", "utf-8")


def merged(old: Sequence[Result], new: Sequence[Result], order: Sequence[str]) -> list[Result]:
    """All lines, commands in this order: a command's new lines take the place of its old ones.

    Lines of a command that is not in `order` are dropped: nothing makes them any more.
    """
    again = {one.command for one in new}
    kept = [one for one in old if one.command not in again]
    known = [one for one in (*kept, *new) if one.command in order]
    return sorted(known, key=lambda one: order.index(one.command))


def table(results: Sequence[Result]) -> str:
    """The results as Markdown, with the machines and dates below."""
    if not results:
        return _NONE
    lines = [*_HEAD, *(_line(one) for one in results), ""]
    for machine, date in sorted({(one.machine, one.date) for one in results}):
        there = [one for one in results if (one.machine, one.date) == (machine, date)]
        commands = dict.fromkeys(f"`{one.command}`" for one in there)
        lines.append(f"- {date}, {machine}: {', '.join(commands)}")
    return "\n".join([*lines, "", *_PICTURES])


def _line(one: Result) -> str:
    least = "" if one.at_least is None else _number(one.at_least)
    reached = "" if one.at_least is None else ("yes" if one.value >= one.at_least else "**no**")
    spread = f"{_number(one.low)} to {_number(one.high)}"
    return f"| {one.name} | {_number(one.value)} {one.unit} | {spread} | {least} | {reached} |"


def _number(value: float) -> str:
    """Three significant digits, never with an exponent."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def with_table(page: str, results: Sequence[Result]) -> str:
    """The page with this table between its marks.

    Raises:
        ValueError: the page has no marks.
    """
    before, first, rest = page.partition(FIRST_MARK)
    _, last, after = rest.partition(LAST_MARK)
    if not first or not last:
        raise ValueError(f"the page should have {FIRST_MARK!r} and then {LAST_MARK!r}")
    return f"{before}{first}\n\n{table(results)}\n\n{last}{after}"
