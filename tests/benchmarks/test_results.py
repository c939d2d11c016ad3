"""Statistics of a line, and how its sides are called."""

import random
import statistics

import pytest

from benchmarks import results
from benchmarks.results import busy_share, interleaved, machine, ratios, result, spread


def test_the_spread_goes_from_the_first_to_the_last_decile() -> None:
    rounds = [float(number) for number in range(101)]
    random.Random(1).shuffle(rounds)
    assert spread(rounds) == (10.0, 50.0, 90.0)


@pytest.mark.parametrize("rounds", [[2.0], [2.0, 3.0], [5.0, 1.0, 2.5]])
def test_the_median_lies_within_the_spread_of_few_rounds(rounds: list[float]) -> None:
    low, value, high = spread(rounds)
    assert min(rounds) <= low <= value <= high <= max(rounds)
    assert value == statistics.median(rounds)


def test_no_round_is_no_result() -> None:
    with pytest.raises(ValueError, match="no round"):
        result("x", [], unit="s", at_least=None, command="c")


def test_ratios_are_taken_round_by_round() -> None:
    # The second round was ten times as slow for both: that must not be seen.
    assert ratios([4.0, 40.0], [2.0, 20.0]) == [2.0, 2.0]
    with pytest.raises(ValueError, match="shorter"):
        ratios([1.0, 2.0], [1.0])


class Clock:
    """Time that passes only when a side is called."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.calls: list[str] = []

    def side(self, name: str, seconds: float) -> float:
        self.calls.append(name)
        self.now_s += seconds
        return seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(results.time, "perf_counter", lambda: clock.now_s)
    return clock


def test_sides_are_called_in_alternating_order(clock: Clock) -> None:
    sides = {"a": lambda: clock.side("a", 1.0), "b": lambda: clock.side("b", 2.0)}
    found = interleaved(sides, seconds=12.0)
    assert "".join(clock.calls) == "ab" + "ba" + "ab" + "ba"
    assert found == {"a": [1.0] * 3, "b": [2.0] * 3}  # the first round is not counted


@pytest.mark.parametrize(("seconds", "rounds"), [(0.0, 1), (3.0, 1), (9.0, 3)])
def test_the_first_round_counts_where_there_are_few(
    clock: Clock, seconds: float, rounds: int
) -> None:
    found = interleaved({"a": lambda: clock.side("a", 3.0)}, seconds)
    assert found == {"a": [3.0] * rounds}


def test_rounds_end_before_the_time_is_over(clock: Clock) -> None:
    found = interleaved({"a": lambda: clock.side("a", 3.0)}, seconds=20.0)
    assert (len(found["a"]), clock.now_s) == (5, 18.0)


def test_a_line_names_the_machine_and_the_versions() -> None:
    line = result("x", [1.0], unit="s", at_least=None, command="c")
    assert line.machine == machine()
    assert " cores, " in line.machine
    assert "torch 2" in line.machine
    assert machine("H200").startswith("H200; ")


def test_the_busy_share_is_a_share() -> None:
    assert 0.0 <= busy_share(0.05) <= 1.0
