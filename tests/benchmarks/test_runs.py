"""Each benchmark runs and gives its lines; what they say of a tiny network means nothing."""

import os
import random
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from benchmarks import bookkeeping, cold_start, forward, gemm, gpu, page, submission
from benchmarks.__main__ import BENCHMARKS, REPOSITORY
from benchmarks.arrivals import Arrival, at_once
from benchmarks.forward import network_of
from benchmarks.subject import Plan, executed, loaded, mixed


@pytest.mark.parametrize(
    ("module", "at_least"),
    [
        (forward, [2.0]),
        (gemm, [0.65, None]),
        (bookkeeping, [0.98, None]),
        (submission, [0.5, None]),
    ],
)
def test_it_gives_its_lines(
    module: ModuleType,
    at_least: list[float | None],
    plan: Plan,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gemm, "SIDES", (64, 128))
    found = module.measure(plan)
    assert [one.at_least for one in found] == at_least
    assert all(one.low <= one.value <= one.high for one in found)
    assert all(one.value > 0 for one in found if module is not bookkeeping)


@pytest.mark.slow
def test_starts_are_timed(plan: Plan) -> None:
    found = {one.name: one.value for one in cold_start.measure(plan)}
    assert [one.rpartition(", ")[2] for one in found] == [
        *("empty data folder", "empty data folder"),
        *("as left by an earlier start", "as left by an earlier start"),
    ]
    assert all(value > 0 for value in found.values())


def test_plain_torch_is_a_copy_in_its_own_layout(plan: Plan) -> None:
    network = network_of(loaded(plan.settings).denoiser.network)
    copy = forward.plain(network)
    weight, other = network.down[0][0].conv_in.weight, copy.down[0][0].conv_in.weight
    assert torch.equal(weight, other)
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert other.is_contiguous()


def test_operations_are_counted_per_row(plan: Plan) -> None:
    network = network_of(loaded(plan.settings).denoiser.network)
    one = gemm.flops_of(network, 1)
    assert gemm.flops_of(network, 8) == 8 * one
    weights = sum(w.numel() for w in network.parameters() if w.ndim > 1)
    assert one > 2 * weights  # each weight is used at least once, in a multiply-add


def test_what_a_worker_would_choose_is_measured(plan: Plan) -> None:
    bundle, chosen = executed(plan)
    assert (chosen.name, bundle.sha256) == ("eager", loaded(plan.settings).sha256)


def test_the_gpu_loads_end_all_jobs(plan: Plan) -> None:
    jobs = [*at_once(random.Random(1), 2), Arrival(0.3, mixed(random.Random(2)))]
    for found in (gpu.together(plan, executed(plan)[0], jobs), gpu.one_by_one(plan, jobs)):
        assert len(found) == len(jobs)
        assert min(found) > 0


def environment(bundle_path: Path) -> dict[str, str]:
    return os.environ | {"AVOCAT_BUNDLE": str(bundle_path), "AVOCAT_THREADS": "1"}


@pytest.mark.load
def test_all_of_them_run(bundle_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "--show", "--seconds", "2"]
    shown = subprocess.run(
        command,
        cwd=REPOSITORY,
        env=environment(bundle_path),
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert shown.returncode == 0, shown.stderr
    assert all(f"{name}: " in shown.stderr for name in BENCHMARKS)


@pytest.mark.load
def test_results_of_a_gpu_script_can_be_read(bundle_path: Path, tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    small = ["--device", "cpu", "--rows", "2", "--slots", "4", "--seconds", "5"]
    subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--output", file, *small],
        cwd=REPOSITORY,
        env=environment(bundle_path),
        check=True,
        timeout=280,
    )
    assert {one.command for one in page.read(file)} == {*gpu.COMMANDS.values()}
