"""Memory that runs out: the rows begin anew in less of it, and their pictures are the same."""

import itertools
import json
import os
import random
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from app.jobs.recipe import Recipe
from app.jobs.record import JobStatus
from app.settings import Settings
from app.storage.folder import FolderStorage
from models.bundle import Bundle
from tests.models.tiny import build_tiny_bundle
from tests.worker.conftest import Jobs, WorkerThread
from tests.worker.parts import Denoise, slowed, with_denoiser
from tests.worker.test_engine import alone, drain, random_spec, spec
from worker import start
from worker.capacity import SIZES, most_rows, with_capacity
from worker.card import fingerprint
from worker.engine import Engine
from worker.memory import check_fits, free_bytes, ran_out
from worker.transfers import fetch

# Each as its library words it.
CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
CPU = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 8 bytes")
_Fail = type("Fail", (Exception,), {"__module__": "onnxruntime.capi.onnxruntime_pybind11_state"})
ONNX = _Fail("[ONNXRuntimeError] : 1 : FAIL : Failed to allocate memory for requested buffer of 8")
ERRORS = [CUDA, CPU, MemoryError(), RuntimeError("std::bad_alloc"), ONNX]


def with_room_for(
    bundle: Bundle, rows: int, error: Exception, times: int = 10**9, after: int = 0
) -> Bundle:
    """Calls of the network with more than that many rows fail, so many times after the first."""
    left, calls = [times], itertools.count()

    def change(denoise: Denoise) -> Denoise:
        def small(x: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
            if next(calls) >= after and len(x) > rows and left[0] > 0:
                left[0] -= 1
                raise error
            return denoise(x, timestep, context)

        return small

    return with_denoiser(bundle, change)


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_rows_begin_anew_in_smaller_batches(shared_bundle: Bundle, error: Exception) -> None:
    assert ran_out(error)
    dice = random.Random(1)
    specs = [random_spec(shared_bundle, str(i), dice) for i in range(9)]
    engine = Engine(with_room_for(shared_bundle, 3, error), slots=16, micro_batch=8)
    engine.admit(specs)
    pictures = drain(engine)
    assert (engine.slots, engine.micro_batch) == (2, 2)
    assert all(torch.equal(pictures[f"{one.job}/0"], alone(shared_bundle, one, 2)) for one in specs)


def test_fewer_slots_are_tried_before_smaller_batches(shared_bundle: Bundle) -> None:
    dice = random.Random(2)
    specs = [random_spec(shared_bundle, str(i), dice) for i in range(6)]
    engine = Engine(with_room_for(shared_bundle, 1, CUDA, times=2), slots=16, micro_batch=2)
    engine.admit(specs)
    reports = [engine.step() for _ in range(3)]
    assert [one.shrunk for one in reports] == [True, True, False]
    assert (engine.slots, engine.micro_batch) == (4, 2)
    pictures = {f"{one.job}/{one.index}": one.picture for one in reports[2].finished}
    pictures |= drain(engine)
    assert all(torch.equal(pictures[f"{one.job}/0"], alone(shared_bundle, one, 2)) for one in specs)


def test_rows_that_ran_on_their_way_lose_nothing(shared_bundle: Bundle) -> None:
    """It runs out in the middle, when rows have drawn noise and some have left."""
    calls = [0]

    def change(denoise: Denoise) -> Denoise:
        def now_and_then(x: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
            calls[0] += 1
            if calls[0] in (13, 31):
                raise CUDA
            return denoise(x, timestep, context)

        return now_and_then

    dice = random.Random(3)
    specs = [random_spec(shared_bundle, str(i), dice) for i in range(24)]
    engine = Engine(with_denoiser(shared_bundle, change), slots=8, micro_batch=2)
    engine.admit(specs)
    pictures = drain(engine)
    assert engine.slots == 2
    assert all(torch.equal(pictures[f"{one.job}/0"], alone(shared_bundle, one, 2)) for one in specs)


def test_no_row_is_finished_twice_when_there_is_no_room_for_its_picture(
    shared_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two rows are done in one step; the second one's copy has no room."""
    copies = itertools.count(1)

    def cramped(values: Tensor) -> Tensor:
        if next(copies) == 2:
            raise CUDA
        return fetch(values)

    engine = Engine(shared_bundle, slots=8, micro_batch=2)
    specs = [spec(shared_bundle, job, steps=1, guidance_scale=1.0) for job in "ab"]
    engine.admit(specs)
    monkeypatch.setattr("worker.engine.fetch", cramped)
    reports = [engine.step() for _ in range(2)]
    assert [one.shrunk for one in reports] == [True, False]
    assert [[row.job for row in one.finished] for one in reports] == [[], ["a", "b"]]
    assert engine.idle


def test_a_faster_runtime_that_comes_after_batches_got_smaller_is_not_used(
    shared_bundle: Bundle,
) -> None:
    engine = Engine(with_room_for(shared_bundle, 3, CUDA), slots=4, micro_batch=4)
    engine.admit([spec(shared_bundle, "before")])
    assert engine.step().shrunk
    engine.switch(with_room_for(shared_bundle, 0, RuntimeError("it takes 4 rows")))
    engine.admit([spec(shared_bundle, "after")])
    assert drain(engine).keys() == {"before/0", "after/0"}


def test_without_room_for_one_row_the_engine_ends(shared_bundle: Bundle) -> None:
    engine = Engine(with_room_for(shared_bundle, 0, CPU), slots=2, micro_batch=2)
    engine.admit([random_spec(shared_bundle, "job", random.Random(1))])
    assert engine.step().shrunk
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator"):
        engine.step()


def test_other_errors_are_no_lack_of_memory(shared_bundle: Bundle) -> None:
    wrong = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    assert not ran_out(wrong)
    assert not ran_out(ValueError("out of memory"))
    assert not ran_out(_Fail("Got invalid dimensions for input: x"))
    engine = Engine(with_room_for(shared_bundle, 0, wrong), slots=4, micro_batch=2)
    engine.admit([random_spec(shared_bundle, "job", random.Random(1))])
    with pytest.raises(RuntimeError, match="mat1"):
        engine.step()


def test_jobs_of_a_worker_out_of_memory_succeed(
    start_worker: Callable[..., WorkerThread],
    shared_bundle: Bundle,
    jobs: Jobs,
    settings: Settings,
) -> None:
    cramped = slowed(with_room_for(shared_bundle, 1, CUDA, after=8), 0.002)  # two are at start
    asked = [jobs.submit(n=3, seed=10 * i, output_format="png") for i in range(4)]
    worker = start_worker(cramped)
    records = [jobs.ended(job) for job in asked]
    assert {record.status for record in records} == {JobStatus.SUCCEEDED}
    assert {record.attempts for record in records} == {1}
    names = [image.name for record in records for image in record.images]
    told = {_fingerprint(FolderStorage(settings.images_dir), name) for name in names}
    assert told == {fingerprint(shared_bundle, 1, "eager 1")}
    assert worker.runner.fault is None


def _fingerprint(storage: FolderStorage, name: str) -> str:
    text = Image.open(BytesIO(storage.read(name))).text["avocat"]  # type: ignore[attr-defined]
    return Recipe.model_validate_json(text).fingerprint


def test_a_bundle_too_big_for_the_device_is_refused_with_the_sizes(tmp_path: Path) -> None:
    bundle = build_tiny_bundle(tmp_path)
    check_fits(bundle, torch.device("cpu"))
    os.truncate(next(bundle.rglob("*.safetensors")), 2**42)  # sparse
    with pytest.raises(ValueError, match=r"4398\.0 GB of weights, but cpu has only [\d.]+ [GM]B"):
        start.make_runner(Settings(bundle=bundle, data_dir=tmp_path), None, "w", "cpu")  # type: ignore[arg-type]


def test_a_bundle_that_could_not_come_back_is_refused_with_both_sizes(tmp_path: Path) -> None:
    settings = Settings(bundle=build_tiny_bundle(tmp_path), data_dir=tmp_path, model_memory_mb=2)
    with pytest.raises(ValueError, match=r"MEMORY_MB is 2, but .* has 3\.\d MB .*set at least 4"):
        start.make_runner(settings, None, "w", "cpu")  # type: ignore[arg-type]


def test_free_memory_is_a_part_of_what_there_is() -> None:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < free_bytes(torch.device("cpu")) <= total


@pytest.mark.parametrize(
    ("seconds", "peak", "rows"),
    [
        (lambda size: 1.0, lambda size: 1, SIZES[-1]),  # padding is free
        (lambda size: size, lambda size: 1, 2),  # a lone row would pay for all
        (lambda size: max(1.0, size / 16), lambda size: 1, 16),
        (lambda size: 1.0, lambda size: size, 8),  # the memory ends first
    ],
)
def test_as_many_rows_as_cost_a_lone_one_little(
    seconds: Callable[[int], float], peak: Callable[[int], int], rows: int
) -> None:
    assert most_rows(lambda size: (seconds(size), peak(size)), lambda: 10) == rows


def test_rows_that_do_not_fit_are_no_fault_unless_none_do() -> None:
    def call(most: int) -> Callable[[int], tuple[float, int]]:
        def one(size: int) -> tuple[float, int]:
            if size > most:
                raise CUDA
            return 1.0, 0

        return one

    assert most_rows(call(4), lambda: 1) == 4
    with pytest.raises(torch.OutOfMemoryError):
        most_rows(call(1), lambda: 1)


def test_a_given_number_wins(shared_bundle: Bundle, tmp_path: Path) -> None:
    def found(**given: int) -> tuple[int, int]:
        settings = with_capacity(Settings(data_dir=tmp_path, **given), shared_bundle)
        return settings.slots, settings.micro_batch

    assert found() == (8, 1)
    assert found(slots=16) == (16, 1)
    assert found(micro_batch=2) == (8, 2)
    assert found(micro_batch=16) == (16, 16)
    assert found(slots=3, micro_batch=4) == (3, 4)
    assert json.dumps(found())  # numbers
