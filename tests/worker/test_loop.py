"""The engine's thread."""

import threading
from collections.abc import Iterator
from queue import SimpleQueue

import pytest
from torch import Tensor

from models.bundle import Bundle
from tests.worker.conftest import wait_for
from tests.worker.parts import Denoise, failing_device, with_denoiser
from tests.worker.test_engine import spec
from worker.engine import Engine
from worker.loop import EngineLoop
from worker.mail import EngineFailed, Fault, Finished, Mail


class Gate:
    """Lets the network be called one step at a time."""

    def __init__(self) -> None:
        self.calls = 0
        self._open = threading.Semaphore(0)

    def __call__(self, denoise: Denoise) -> Denoise:
        def gated(x: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
            self.calls += 1
            assert self._open.acquire(timeout=30)
            return denoise(x, timestep, context)

        return gated

    def let(self, steps: int) -> None:
        self._open.release(steps)


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def mail() -> Mail:
    return SimpleQueue()


@pytest.fixture
def loop(shared_bundle: Bundle, gate: Gate, mail: Mail) -> Iterator[EngineLoop]:
    loop = EngineLoop(Engine(with_denoiser(shared_bundle, gate), 4, 2), mail, 1)
    loop.start()
    yield loop
    gate.let(1000)
    loop.stop(10)


def test_an_evicted_row_makes_at_most_the_step_it_is_in(
    loop: EngineLoop, gate: Gate, mail: Mail, shared_bundle: Bundle
) -> None:
    loop.admit([spec(shared_bundle, "job", steps=50)])
    gate.let(3)
    wait_for(lambda: gate.calls == 4)  # it is in its fourth step
    loop.evict("job")
    loop.admit([spec(shared_bundle, "next", steps=1)])
    gate.let(2)
    assert mail.get(timeout=30).job == "next"
    assert gate.calls == 5


def test_rows_enter_between_two_steps(
    loop: EngineLoop, gate: Gate, mail: Mail, shared_bundle: Bundle
) -> None:
    loop.admit([spec(shared_bundle, "slow", steps=4)])
    wait_for(lambda: gate.calls == 1)
    loop.admit([spec(shared_bundle, "quick", steps=1, guidance_scale=1.0)])
    gate.let(1 + 2 + 1 + 1)
    assert [mail.get(timeout=30).job for _ in range(2)] == ["quick", "slow"]
    assert loop.rounds == 1 + 2 + 1 + 1


def test_what_cannot_be_admitted_comes_back_as_a_fault(
    loop: EngineLoop, mail: Mail, shared_bundle: Bundle, gate: Gate
) -> None:
    loop.admit([spec(shared_bundle, "wrong", steps=0)])
    loop.admit([spec(shared_bundle, "right", steps=1)])
    gate.let(1)
    first, second = mail.get(timeout=30), mail.get(timeout=30)
    assert isinstance(first, Fault)
    assert "steps is 0" in first.reason
    assert isinstance(second, Finished)


def test_a_device_fault_ends_the_thread_with_a_letter(shared_bundle: Bundle, mail: Mail) -> None:
    loop = EngineLoop(Engine(failing_device(shared_bundle, after=0), 4, 2), mail, 1)
    loop.start()
    loop.admit([spec(shared_bundle, "job")])
    letter = mail.get(timeout=30)
    assert isinstance(letter, EngineFailed)
    assert "device-side assert" in str(letter.fault)
    loop.stop(10)
