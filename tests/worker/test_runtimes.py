"""Ways to execute the network: the same pictures, the fastest chosen, the choice kept."""

import errno
import json
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models.bundle import Bundle
from tests.worker.test_engine import alone, drain, random_spec
from worker.engine import Engine
from worker.runtimes import choice
from worker.runtimes.choice import Measured, dtype_of, is_ready, with_runtime
from worker.runtimes.networks import BUILDERS, Plan, available, example
from worker.streams import Streams

RUNTIMES = ["eager", "onnxruntime", "openvino"]
ROWS = 2


def executed(bundle: Bundle, wanted: str, cache: Path) -> tuple[Bundle, Measured]:
    if wanted not in (*available(torch.device("cpu")), "auto"):
        pytest.skip(f"{wanted} is not installed")
    return with_runtime(bundle, wanted=wanted, rows=ROWS, streams=Streams(), cache=cache)


@pytest.mark.parametrize("wanted", [*RUNTIMES, "mixed-bf16"])
def test_rows_are_exact_in_every_runtime(lively: Bundle, wanted: str, tmp_path: Path) -> None:
    bundle, measured = executed(lively, wanted, tmp_path)
    rounded = wanted.endswith("-bf16")
    assert (measured.name, measured.difference < (0.1 if rounded else 1e-4)) == (wanted, True)
    dice = random.Random(7)
    specs = [random_spec(bundle, str(i), dice) for i in range(9)]
    together = Engine(bundle, slots=5, micro_batch=ROWS)
    together.admit(specs)
    pictures = drain(together)
    for one in specs:
        assert torch.equal(pictures[f"{one.job}/0"], alone(bundle, one, ROWS))
        eager = alone(lively, one, ROWS)
        assert torch.allclose(pictures[f"{one.job}/0"], eager, atol=0.1 if rounded else 1e-3)


@pytest.mark.parametrize("wanted", [*RUNTIMES[1:], "openvino-bf16", "mixed-bf16", "eager-bf16"])
def test_a_later_start_draws_the_same_bits(lively: Bundle, wanted: str, tmp_path: Path) -> None:
    arguments = example(lively.denoiser.network, ROWS, torch.device("cpu"))
    first, later = (
        executed(lively, wanted, tmp_path)[0].denoiser.network(*arguments) for _ in range(2)
    )
    assert torch.equal(first, later)


@pytest.mark.parametrize("wanted", ["onnxruntime", "openvino"])
def test_an_answer_is_not_written_over_by_the_next(
    lively: Bundle, wanted: str, tmp_path: Path
) -> None:
    """Nor are fewer rows than were built for answered as if they were all."""
    network = executed(lively, wanted, tmp_path)[0].denoiser.network
    x, timestep, context = example(lively.denoiser.network, ROWS, torch.device("cpu"))
    first = network(x, timestep, context)
    kept = first.clone()
    assert not torch.equal(network(-x, timestep, context), kept)
    assert torch.equal(first, kept)
    with pytest.raises(ValueError, match="are computed"):
        network(x[:1], timestep[:1], context[:1])


def test_a_runtime_of_two_formats_uses_the_exact_one_where_noise_prevails(
    lively: Bundle, tmp_path: Path
) -> None:
    """Row by row, whatever else is in the batch."""
    network = executed(lively, "mixed-bf16", tmp_path)[0].denoiser.network
    exact, fast = (
        executed(lively, name, tmp_path)[0].denoiser.network
        for name in ("onnxruntime", "openvino-bf16")
    )
    x, _, context = example(lively.denoiser.network, ROWS, torch.device("cpu"))
    border = int((lively.schedule.alphas_cumprod >= choice._NOISY).sum())
    times = {border: exact, border - 1: fast}
    for one, other in [(border, border), (border - 1, border - 1), (border, border - 1)]:
        timestep = torch.tensor([one, other])
        wanted = [times[t](x, timestep, context)[i] for i, t in enumerate((one, other))]
        assert torch.equal(network(x, timestep, context), torch.stack(wanted))


def test_pictures_decide_whether_bfloat16_is_chosen(
    lively: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, named = executed(lively, "openvino-bf16", tmp_path)
    assert 1e-5 < named.difference < 0.1
    assert named.levels > 0
    known = [
        Measured("eager", "1", 1.0, 0.0, levels=0.0, wide=False),
        Measured("onnxruntime", "1", 0.5, 1e-5, levels=0.0, wide=False),
        Measured("openvino-bf16", "1", 0.2, 0.05, levels=30.0, wide=False),
        Measured("mixed-bf16", "1+1", 0.3, 0.05, levels=3.0, wide=False),
    ]
    monkeypatch.setattr(choice, "available", lambda device: [one.name for one in known])
    monkeypatch.setattr(choice, "_measure", lambda *_: known)
    built = {one.name: BUILDERS["eager"] for one in known}
    monkeypatch.setattr(choice, "BUILDERS", built)
    assert executed(lively, "auto", tmp_path)[1].name == "mixed-bf16"
    known[3] = replace(known[3], levels=7.0)
    assert executed(lively, "auto", tmp_path / "again")[1].name == "onnxruntime"


def test_the_number_format_is_told_by_the_name() -> None:
    names = (
        "openvino-bf16 1.0",
        "mixed-bf16 1.0+2.0",
        "openvino 1.0",
        "compile-fp16 2.1",
        "graphs 2",
    )
    formats = ["bfloat16", "float32, bfloat16", "float32", "float16", "float32"]
    assert [*map(dtype_of, names)] == formats


def test_what_cannot_be_built_is_left_out_unless_it_is_asked_for(
    lively: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a compiler is missing."""

    def broken(plan: Plan) -> nn.Module:
        raise RuntimeError("no C compiler found")

    offer(monkeypatch, 0.0)
    monkeypatch.setitem(choice.BUILDERS, "openvino", broken)  # type: ignore[arg-type]
    assert executed(lively, "auto", tmp_path)[1].name == "eager"
    with pytest.raises(RuntimeError, match="no C compiler"):
        executed(lively, "openvino", tmp_path)


def test_what_has_to_be_compiled_is_never_there_at_once(
    lively: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = [
        Measured("eager", "1", 1.0, 0.0, levels=0.0, wide=False),
        Measured("graphs-fp16", "1", 0.5, 0.01, levels=2.0, wide=False),
        Measured("compile-fp16", "1", 0.2, 0.01, levels=2.0, wide=False),
    ]
    monkeypatch.setattr(choice, "available", lambda device: [one.name for one in known])
    monkeypatch.setattr(choice, "_read", lambda file: known)

    def ready(wanted: str) -> bool:
        return is_ready(lively, wanted=wanted, rows=ROWS, streams=Streams(), cache=tmp_path)

    assert [*map(ready, ("auto", "compile-fp16", "graphs-fp16", "eager"))] == [
        *(False, False, True, True)
    ]
    known[2] = replace(known[2], levels=20.0)
    assert ready("auto")


def fake(difference: float) -> type[nn.Module]:
    """A runtime that is not slower than nothing, and wrong by `difference`."""

    class Fake(nn.Module):
        def __init__(self, plan: Plan) -> None:
            super().__init__()
            self.network = plan.network
            self.known: dict[tuple[int, float], Tensor] = {}

        def forward(self, x: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
            key = len(x), float(timestep[0])
            if key not in self.known:
                self.known[key] = self.network(x, timestep, context) + difference
            return self.known[key]

    return Fake


def offer(monkeypatch: pytest.MonkeyPatch, difference: float) -> None:
    offered = {"eager": BUILDERS["eager"], "openvino": fake(difference)}
    monkeypatch.setattr(choice, "BUILDERS", offered)
    monkeypatch.setattr(choice, "available", lambda device: list(offered))
    monkeypatch.setattr(choice, "_version", lambda name: "1")


def test_the_fastest_is_chosen_and_the_choice_is_kept(
    lively: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(monkeypatch, difference=0.0)
    assert executed(lively, "auto", tmp_path)[1].name == "openvino"
    monkeypatch.setattr(choice, "_measure", lambda *_: pytest.fail("it was measured again"))
    bundle, measured = executed(lively, "auto", tmp_path)
    assert measured.name == "openvino"
    assert type(bundle.denoiser.network).__name__ == "Fake"


def test_another_picture_is_never_chosen(
    lively: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(monkeypatch, difference=0.01)
    assert executed(lively, "auto", tmp_path)[1].name == "eager"
    with pytest.raises(ValueError, match=r"differs from eager by 0\.01"):
        with_runtime(lively, wanted="openvino", rows=ROWS, streams=Streams(), cache=tmp_path)


def test_a_runtime_that_is_not_here_is_named(
    lively: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "available", lambda device: ["eager"])
    with pytest.raises(ValueError, match="'openvino' cannot run here; these can: auto, eager"):
        with_runtime(lively, wanted="openvino", rows=ROWS, streams=Streams(), cache=tmp_path)


def test_what_an_earlier_release_measured_is_measured_again(lively: Bundle, tmp_path: Path) -> None:
    """It did not look at pictures: that a runtime paints others could not be known."""
    executed(lively, "openvino-bf16", tmp_path)
    [kept] = tmp_path.glob("*.json")
    entries = json.loads(kept.read_text())
    kept.write_text(
        json.dumps([{k: v for k, v in one.items() if k != "levels"} for one in entries])
    )
    assert executed(lively, "openvino-bf16", tmp_path)[1].levels > 0
    assert all("levels" in one for one in json.loads(kept.read_text()))


def test_a_read_only_or_damaged_cache_does_no_harm(lively: Bundle, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert executed(lively, "auto", file / "below")[1].difference < 1e-4
    _, first = executed(lively, "eager", tmp_path)
    [kept] = tmp_path.glob("*.json")
    kept.write_text('[{"name": "eager"')
    assert executed(lively, "eager", tmp_path)[1].name == first.name


@pytest.mark.parametrize(
    "kept",
    [
        b"[]",
        b"{}",
        b"[1]",
        b"\xff",
        b'[{"name": "eager", "version": "1", "seconds": "1", "difference": 0, "levels": 0}]',
        b'[{"name": "other", "version": "1", "seconds": 1, "difference": 0, "levels": 0}]',
    ],
)
def test_a_damaged_measurement_is_made_again(lively: Bundle, tmp_path: Path, kept: bytes) -> None:
    executed(lively, "eager", tmp_path)
    [file] = tmp_path.glob("*.json")
    file.write_bytes(kept)
    assert executed(lively, "eager", tmp_path)[1].name == "eager"
    assert json.loads(file.read_bytes())[0]["version"] == torch.__version__


@pytest.mark.parametrize("damage", [lambda data: data[:-999], lambda data: data[::-1]])
def test_a_damaged_export_is_made_again(
    lively: Bundle, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    executed(lively, "onnxruntime", tmp_path)
    [file] = tmp_path.glob(f"*-torch{torch.__version__}.onnx")
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    executed(lively, "onnxruntime", tmp_path)
    assert file.read_bytes() == whole
    kept = file.stat().st_mtime_ns
    executed(lively, "onnxruntime", tmp_path)
    assert file.stat().st_mtime_ns == kept


def test_a_full_disk_is_said_where_a_file_is_needed(
    lively: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: Path, *_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    if "onnxruntime" not in available(torch.device("cpu")):
        pytest.skip("onnxruntime is not installed")
    monkeypatch.setattr(Path, "write_bytes", full)
    monkeypatch.setattr(Path, "write_text", full)
    assert executed(lively, "eager", tmp_path)[1].name == "eager"
    with pytest.raises(
        ValueError, match=r"\.onnx cannot be written: No space left on device; AVOC"
    ):
        executed(lively, "onnxruntime", tmp_path)


def test_signals_are_heard_after_another_thread_let_openvino_go(
    bundle_path: Path, tmp_path: Path
) -> None:
    """Its plugin changes the stack that signals use, in a way that outlives the plugin."""
    code = f"""
import os, signal, threading
from pathlib import Path
from models.bundle import load_bundle
from worker.runtimes.networks import BUILDERS, Plan
network = load_bundle({str(bundle_path)!r}).denoiser.network
held = [BUILDERS["openvino"](Plan(network, 1, 1, Path({str(tmp_path)!r}, "network.onnx")))]
thread = threading.Thread(target=held.clear)
thread.start(), thread.join()
signal.signal(signal.SIGTERM, lambda *_: print("heard"))
os.kill(os.getpid(), signal.SIGTERM)
"""
    if "openvino" not in available(torch.device("cpu")):
        pytest.skip("openvino is not installed")
    # As the interpreter's own handler of faults, signal handlers run on the other stack.
    command = [sys.executable, "-X", "faulthandler", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "heard\n"), done.stderr
