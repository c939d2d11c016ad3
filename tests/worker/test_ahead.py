"""An engine that asks for the next round before it has looked at the last one, as on a GPU."""

import random
from collections.abc import Callable

import pytest
import torch

from models.bundle import Bundle
from tests.worker.test_engine import alone, drain, random_spec, spec
from tests.worker.test_memory import CUDA, with_room_for
from worker import engine as module
from worker.engine import Engine


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Engine]:
    """Makes engines that work ahead on CPU too."""

    def make(bundle: Bundle, slots: int, micro_batch: int, **more: object) -> Engine:
        engine = Engine(bundle, slots, micro_batch, **more)  # type: ignore[arg-type]
        monkeypatch.setattr(engine, "_ahead", module._AHEAD)
        return engine

    return make


def test_pictures_are_those_of_rows_alone(
    shared_bundle: Bundle, ahead: Callable[..., Engine]
) -> None:
    dice = random.Random(5)
    specs = [random_spec(shared_bundle, f"{i}", dice) for i in range(12)]
    engine = ahead(shared_bundle, 5, 4)
    for one in specs:
        engine.admit([one])
    pictures = drain(engine)
    for one in specs:
        assert torch.equal(pictures[f"{one.job}/0"], alone(shared_bundle, one, 4))


def test_what_a_step_tells_is_of_one_round(
    shared_bundle: Bundle, ahead: Callable[..., Engine]
) -> None:
    engine = ahead(shared_bundle, 2, 2)
    engine.admit([spec(shared_bundle, "job", steps=3, guidance_scale=1.0)])
    reports = [engine.step() for _ in range(3)]
    assert [(one.calls, one.asked, one.advanced) for one in reports] == [(1, 1, 1)] * 3
    assert [len(one.finished) for one in reports] == [0, 0, 1]
    assert engine.idle


def test_an_evicted_job_is_not_told_of(shared_bundle: Bundle, ahead: Callable[..., Engine]) -> None:
    engine = ahead(shared_bundle, 2, 2)
    for job in ("one", "two"):
        engine.admit([spec(shared_bundle, job, steps=2, guidance_scale=1.0)])
    assert not engine.step().finished  # both are drawn, and not looked at
    assert not engine.idle
    engine.evict("one")
    assert [one.job for one in engine.step().finished] == ["two"]
    assert engine.idle


@pytest.mark.parametrize("steps", [1, 4])
def test_a_broken_row_is_told_of_once_and_leaves(
    shared_bundle: Bundle, ahead: Callable[..., Engine], steps: int
) -> None:
    broken = spec(shared_bundle, "broken", steps=steps, context=(torch.full((16,), torch.nan),))
    good = spec(shared_bundle, "good", steps=5, seed=3)
    engine = ahead(shared_bundle, 4, 4)
    engine.admit([broken])
    engine.admit([good])
    report = engine.step()
    assert [(one.job, one.reason) for one in report.faults] == [
        ("broken", f"step 1 of {steps} gave values that are no numbers")
    ]
    assert torch.equal(drain(engine)["good/0"], alone(shared_bundle, good, 4))


def test_what_was_drawn_before_memory_ran_out_is_told_first(
    shared_bundle: Bundle, ahead: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = ahead(shared_bundle, 4, 2)
    engine.admit([spec(shared_bundle, "first", steps=2, guidance_scale=1.0)])
    engine.admit([spec(shared_bundle, "second", steps=9, guidance_scale=1.0)])
    engine.step()  # "first" is drawn, and not looked at
    small = with_room_for(shared_bundle, 1, CUDA)
    for row in engine._rows:
        row.denoiser = small.denoiser
    report = engine.step()
    assert report.shrunk
    assert [one.job for one in report.finished] == ["first"]
