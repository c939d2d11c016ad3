"""Calls side by side: order, faults, and pictures that do not know of it."""

import random
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from models.bundle import Bundle
from tests.worker.conftest import wait_for
from tests.worker.parts import with_denoiser
from tests.worker.test_engine import alone, drain, random_spec
from worker.capacity import streams
from worker.engine import Engine
from worker.runtimes.choice import with_runtime
from worker.runtimes.networks import available
from worker.streams import Streams

CPU = torch.device("cpu")
Denoise = Callable[[Tensor, Tensor, Tensor], Tensor]


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize("parts", [0, 1, 2, 5, 7])
def test_answers_keep_the_order_of_what_was_asked(count: int, parts: int) -> None:
    asked = [torch.tensor(part) for part in range(parts)]
    answers = Streams(count).map(lambda part: part + 1, [(part,) for part in asked])
    assert [int(one) for one in answers] == [int(part) + 1 for part in asked]


def test_two_calls_run_at_a_time() -> None:
    both = threading.Barrier(2)  # broken unless two wait at it

    def call(part: Tensor) -> Tensor:
        both.wait(30)
        return part

    assert len(Streams(2).map(call, [(torch.zeros(1),)] * 4)) == 4


@pytest.mark.parametrize("broken", [0, 1])
def test_a_fault_in_any_stream_comes_out_once_all_have_ended(broken: int) -> None:
    ended: list[int] = []

    def call(part: Tensor) -> Tensor:
        if int(part) == broken:
            raise RuntimeError(f"part {broken}")
        ended.append(int(part))
        return part

    streams = Streams(2)
    with pytest.raises(RuntimeError, match=f"part {broken}"):
        streams.map(call, [(torch.tensor(part),) for part in range(2)])
    assert ended == [1 - broken]
    assert len(streams.map(torch.neg, [(torch.zeros(1),)] * 2)) == 2  # and it goes on


@pytest.mark.parametrize("runtime", available(CPU))
def test_pictures_are_those_of_one_stream(
    shared_bundle: Bundle, runtime: str, tmp_path: Path
) -> None:
    if runtime == "compile":
        pytest.skip("takes minutes to build; only by name")
    bundle, _ = with_runtime(
        shared_bundle, wanted=runtime, rows=1, streams=Streams(2), cache=tmp_path
    )
    dice = random.Random(11)
    specs = [random_spec(bundle, str(i), dice) for i in range(12)]
    expected = {one.job: alone(bundle, one, 1) for one in specs}
    for slots in (1, 3, 8):
        engine = Engine(bundle, slots=slots, micro_batch=1, streams=Streams(2))
        engine.admit(specs)
        pictures = drain(engine)
        assert all(torch.equal(pictures[f"{job}/0"], one) for job, one in expected.items())


def test_memory_that_ends_in_the_other_stream_lets_rows_begin_anew(shared_bundle: Bundle) -> None:
    dice = random.Random(12)
    specs = [random_spec(shared_bundle, str(i), dice) for i in range(4)]
    expected = {one.job: alone(shared_bundle, one, 1) for one in specs}
    own, faults = threading.current_thread(), []

    def change(denoise: Denoise) -> Denoise:
        def full(x: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
            if threading.current_thread() is not own and not faults:
                faults.append(torch.OutOfMemoryError("out of memory"))
                raise faults[0]
            return denoise(x, timestep, context)

        return full

    tight = with_denoiser(shared_bundle, change)
    engine = Engine(tight, slots=4, micro_batch=1, streams=Streams(2))
    engine.admit(specs)
    pictures = drain(engine)
    assert faults
    assert engine.slots == 2
    assert all(torch.equal(pictures[f"{job}/0"], one) for job, one in expected.items())


def test_two_streams_where_a_row_is_a_batch_and_there_are_cores(shared_bundle: Bundle) -> None:
    assert streams(shared_bundle, 1, 8) == 2
    assert streams(shared_bundle, 1, 1) == 1
    assert streams(shared_bundle, 2, 8) == 1
    on_gpu: Any = SimpleNamespace(context=SimpleNamespace(device=torch.device("cuda:0")))
    assert streams(on_gpu, 1, 8) == 1


def test_what_is_computed_at_once_is_counted(shared_bundle: Bundle) -> None:
    engine = Engine(shared_bundle, slots=3, micro_batch=1, streams=Streams(2))
    dice = random.Random(13)
    engine.admit([random_spec(shared_bundle, str(i), dice) for i in range(3)])
    report = engine.step()
    assert engine.at_once == report.room == 2
    assert report.calls == report.asked <= 2


def test_the_next_round_is_under_way_before_the_last_is_looked_at(shared_bundle: Bundle) -> None:
    begun: list[float] = []

    def change(denoise: Denoise) -> Denoise:
        def counted(x: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
            begun.append(float(timestep))
            return denoise(x, timestep, context)

        return counted

    bundle = with_denoiser(shared_bundle, change)
    dice = random.Random(14)
    first, second, third = [
        replace(
            random_spec(bundle, name, dice), steps=5, guidance_scale=3.0, origin=None, skipped=0
        )
        for name in "abc"
    ]
    engine = Engine(bundle, slots=3, micro_batch=1, streams=Streams(2))
    engine.admit([first])
    assert engine.step().asked <= 2
    assert len(begun) <= 2  # a lone job has one round at a time
    engine.admit([second, third])
    engine.step()
    wait_for(lambda: len(begun) == 2 + 2 + 2)  # a round that no step has asked the end of
    engine.evict("b")  # its calls may be under way
    pictures = drain(engine)
    assert pictures.keys() == {"a/0", "c/0"}
    assert torch.equal(pictures["a/0"], alone(shared_bundle, first, 1))
    assert torch.equal(pictures["c/0"], alone(shared_bundle, third, 1))


def test_a_slow_call_keeps_one_stream_and_no_other() -> None:
    gate, calls = threading.Event(), list[int]()

    def call(part: Tensor) -> Tensor:
        if int(part) == 0:
            gate.wait(30)
        calls.append(int(part))
        return part

    streams = Streams(2)
    one, two = (streams.start(call, [(torch.tensor(i),), (torch.tensor(i + 1),)]) for i in (0, 2))
    assert [int(part) for part in two()] == [2, 3]
    assert calls == [1, 2, 3]  # in the order in which they were begun
    gate.set()
    assert [int(part) for part in one()] == [0, 1]


def test_closed_streams_have_ended() -> None:
    """What a library keeps for a thread is let go of before the process may end."""
    streams = Streams(3)
    assert streams.map(torch.neg, [(torch.ones(1),)] * 3) == [torch.full((1,), -1.0)] * 3
    threads = [thread for thread in threading.enumerate() if thread.name == "stream"]
    assert len(threads) >= 3
    streams.close()
    assert not any(thread.is_alive() for thread in streams._threads)
