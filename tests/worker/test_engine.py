"""The engine alone: exactness, faults, slots."""

import itertools
import math
import random
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.bundle import Bundle
from models.guidance import guide
from models.model import Origin
from models.samplers import SAMPLERS, step, trajectory
from models.sampling import row_generator, sample
from worker.engine import Engine
from worker.rows import RowSpec

PROMPTS = ["a red apple", "a cat face", "a dog on top of a car", "🥑", ""]


def spec(bundle: Bundle, job: str, **changes: object) -> RowSpec:
    fields = {
        "index": 0, "seed": 1, "sampler": "ddim", "steps": 4, "guidance_scale": 3.0,
        "guidance_interval": (0.0, 1.0), "context": (bundle.context.encode(["a red apple"])[0],),
        "unconditional": (bundle.context.empty,), "shape": (4, 16, 16),
    }  # fmt: skip
    return RowSpec(job=job, **{**fields, **changes})  # type: ignore[arg-type]


def origin(seed: int, *, masked: bool, spread: bool = False) -> Origin:
    """A picture to start from; `spread`: as an autoencoder gives it."""
    noise = torch.Generator().manual_seed(seed)
    mean = torch.rand(4, 16, 16, generator=noise) * 2 - 1
    std = torch.rand(4, 16, 16, generator=noise) / 10 if spread else None
    mask = torch.rand(1, 16, 16, generator=noise) > 0.5 if masked else None
    return Origin(mean, std, mask)


def random_spec(bundle: Bundle, job: str, dice: random.Random, longest: int = 5) -> RowSpec:
    """Half of them start from a picture, half of these under a mask."""
    first = dice.choice([0.0, 0.3])
    prompt, negative = bundle.context.encode([dice.choice(PROMPTS), dice.choice(["", "a blur"])])
    steps, start = dice.randint(1, longest), None
    if dice.random() < 0.5:
        start = origin(dice.randrange(99), masked=dice.random() < 0.5, spread=dice.random() < 0.5)
    return spec(
        bundle, job, seed=dice.randrange(2**53), steps=steps, origin=start,
        skipped=dice.randrange(steps) if start is not None else 0,
        sampler=dice.choice(SAMPLERS),
        guidance_scale=dice.choice([0.0, 1.0, 2.5, 7.0]),
        guidance_interval=(first, dice.choice([first, 0.6, 1.0])),
        context=(prompt,), unconditional=(negative,),
    )  # fmt: skip


def drain(engine: Engine, between: Callable[[], None] = lambda: None) -> dict[str, Tensor]:
    pictures: dict[str, Tensor] = {}
    while not engine.idle:
        report = engine.step()
        assert not report.faults
        pictures |= {f"{one.job}/{one.index}": one.picture for one in report.finished}
        between()
    return pictures


def alone(bundle: Bundle, one: RowSpec, micro_batch: int) -> Tensor:
    engine = Engine(bundle, slots=1, micro_batch=micro_batch)
    engine.admit([one])
    return drain(engine)[f"{one.job}/{one.index}"]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_engine_draws_what_the_plain_loop_draws(shared_bundle: Bundle, sampler: str) -> None:
    one = spec(shared_bundle, "job", sampler=sampler, steps=6, seed=9)
    plain = sample(
        shared_bundle.denoiser, shared_bundle.schedule, one.context[0][None],
        one.unconditional[0], [9], (4, 16, 16), sampler=sampler, steps=6, guidance_scale=3.0,
        parameterisation=shared_bundle.config.parameterisation,
    )  # type: ignore[arg-type]  # fmt: skip
    assert torch.allclose(alone(shared_bundle, one, 1), plain[0], atol=1e-4)


def counted(bundle: Bundle) -> tuple[Bundle, list[int]]:
    """The bundle with a denoiser that notes the batch size of each call."""
    sizes: list[int] = []

    def denoiser(x: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        sizes.append(len(x))
        return bundle.denoiser(x, timestep, context)

    return replace(bundle, denoiser=denoiser), sizes  # type: ignore[arg-type]


def test_the_network_sees_one_batch_shape(shared_bundle: Bundle) -> None:
    bundle, sizes = counted(shared_bundle)
    engine = Engine(bundle, slots=5, micro_batch=4)
    engine.admit([random_spec(bundle, str(i), random.Random(i)) for i in range(9)])
    drain(engine)
    assert set(sizes) == {4}


@pytest.mark.parametrize(
    ("changes", "forwards"),
    [
        ({"guidance_scale": 1.0}, 5),
        ({"guidance_scale": 3.0}, 10),
        ({"guidance_scale": 3.0, "guidance_interval": (0.0, 0.5)}, 8),
        ({"guidance_scale": 3.0, "guidance_interval": (0.6, 0.7)}, 5),
    ],
)
def test_rows_without_guidance_take_one_forward(
    shared_bundle: Bundle, changes: dict[str, object], forwards: int
) -> None:
    bundle, sizes = counted(shared_bundle)
    alone(bundle, spec(bundle, "job", steps=5, **changes), 1)
    assert sum(sizes) == forwards


def test_a_guided_row_and_its_twin_share_a_forward(shared_bundle: Bundle) -> None:
    bundle, sizes = counted(shared_bundle)
    alone(bundle, spec(bundle, "job", steps=5), 2)
    assert sizes == [2] * 5


def test_rows_of_several_shapes_have_calls_of_their_own(shared_bundle: Bundle) -> None:
    seen: list[tuple[int, ...]] = []

    def denoiser(x: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        seen.append(tuple(x.shape))
        return torch.tanh(x) * context.mean(1).reshape(-1, 1, 1, 1)

    bundle = replace(shared_bundle, denoiser=denoiser)  # type: ignore[arg-type]
    shapes = [(4, 8, 24), (4, 16, 16), (4, 24, 8)]
    specs = [spec(bundle, str(i), shape=shapes[i % 3], seed=i, steps=2 + i) for i in range(7)]
    engine = Engine(bundle, slots=7, micro_batch=2)
    engine.admit(specs)
    pictures = drain(engine)
    assert {shape[1:] for shape in seen} == set(shapes)
    assert {shape[0] for shape in seen} == {2}
    assert all(torch.equal(pictures[f"{one.job}/0"], alone(bundle, one, 2)) for one in specs)


def test_contexts_that_do_not_fit_together_are_refused(shared_bundle: Bundle) -> None:
    engine = Engine(shared_bundle, slots=1, micro_batch=1)
    with pytest.raises(ValueError, match=r"context is \(16,\), \(16,\); this bundle takes \(16,\)"):
        engine.admit([spec(shared_bundle, "job", context=(torch.zeros(16), torch.zeros(16)))])


def test_a_broken_row_leaves_alone(shared_bundle: Bundle) -> None:
    good = spec(shared_bundle, "good", steps=5, seed=3)
    broken = spec(shared_bundle, "broken", context=(torch.full((16,), torch.nan),))
    engine = Engine(shared_bundle, slots=4, micro_batch=2)
    engine.admit([broken])
    engine.admit([good])
    report = engine.step()
    assert [fault.job for fault in report.faults] == ["broken"]
    assert "step 1 of 4" in report.faults[0].reason
    assert torch.equal(drain(engine)["good/0"], alone(shared_bundle, good, 2))


def test_rows_beyond_the_slots_wait_in_order(shared_bundle: Bundle) -> None:
    engine = Engine(shared_bundle, slots=2, micro_batch=2)
    engine.admit([spec(shared_bundle, "job", index=i, steps=1, seed=i) for i in range(5)])
    batches = []
    while not engine.idle:
        batches.append([one.index for one in engine.step().finished])
    assert batches == [[0], [1], [2], [3], [4]]  # a guided row fills the two of a call
    assert engine.free == 2


def test_the_job_with_the_least_work_left_goes_first(shared_bundle: Bundle) -> None:
    engine = Engine(shared_bundle, slots=8, micro_batch=2)
    for job, rows, steps in (("long", 1, 9), ("pair", 2, 3), ("middle", 1, 5)):
        engine.admit([spec(shared_bundle, job, index=i, steps=steps) for i in range(rows)])
    engine.step()
    engine.admit([spec(shared_bundle, "short", steps=1, guidance_scale=1.0)])
    ended = []
    while not engine.idle:
        ended += [one.job for one in engine.step().finished]
    assert ended == ["short", "middle", "pair", "pair", "long"]


def test_priority_counts_for_more_than_work(shared_bundle: Bundle) -> None:
    engine = Engine(shared_bundle, slots=3, micro_batch=2)
    for steps, priority in enumerate(("low", "normal", "high"), start=1):
        engine.admit([spec(shared_bundle, priority, steps=9 * steps, priority=priority)])
    ended = []
    while not engine.idle:
        ended += [one.job for one in engine.step().finished]
    assert ended == ["high", "normal", "low"]


def test_a_row_that_is_due_goes_before_shorter_ones(shared_bundle: Bundle) -> None:
    engine = Engine(shared_bundle, slots=3, micro_batch=2)
    now = time.monotonic()
    for job, steps, due_s in (("short", 1, math.inf), ("long", 9, now), ("later", 5, now + 60)):
        engine.admit([spec(shared_bundle, job, steps=steps, due_s=due_s)])
    ended = []
    while not engine.idle:
        ended += [one.job for one in engine.step().finished]
    assert ended == ["long", "short", "later"]


def test_evicted_rows_are_gone_before_the_next_step(shared_bundle: Bundle) -> None:
    engine = Engine(shared_bundle, slots=2, micro_batch=2)
    for job in ("one", "two", "three"):
        engine.admit([spec(shared_bundle, job, steps=3, guidance_scale=1.0)])
    engine.step()
    engine.evict("one")
    engine.evict("nobody")
    assert engine.step().advanced == 2
    assert engine.steps_done() == {"two": 2, "three": 1}


def test_admission_is_all_or_nothing(shared_bundle: Bundle) -> None:
    engine = Engine(shared_bundle, slots=2, micro_batch=2)
    wrong = spec(shared_bundle, "job", index=1, context=(torch.zeros(3),))
    with pytest.raises(ValueError, match=r"\(3,\); this bundle takes \(16,\)"):
        engine.admit([spec(shared_bundle, "job"), wrong])
    with pytest.raises(ValueError, match="it must be from 1 to 1000"):
        engine.admit([spec(shared_bundle, "job"), spec(shared_bundle, "job", steps=1001)])
    assert engine.idle


def test_seeds_up_to_the_largest_are_taken(shared_bundle: Bundle) -> None:
    last = 2**53 - 1 + 7
    picture = alone(shared_bundle, spec(shared_bundle, "job", seed=last), 2)
    assert not torch.equal(picture, alone(shared_bundle, spec(shared_bundle, "job"), 2))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_row_starts_where_strength_says(shared_bundle: Bundle, sampler: str) -> None:
    """x_t = √ᾱ x_0 + √(1-ᾱ) ε at the first timestep that is left, and then the sampler's steps."""
    start = origin(3, masked=False)
    one = spec(shared_bundle, "job", sampler=sampler, steps=6, seed=9, origin=start, skipped=2)
    way = trajectory(
        shared_bundle.schedule, sampler, 6, skipped=2,  # type: ignore[arg-type]
        parameterisation=shared_bundle.config.parameterisation,
    )  # fmt: skip
    noise = row_generator(9)
    abar = way.alphas_cumprod[0]
    x = abar.sqrt() * start.mean + (1 - abar).sqrt() * torch.randn(4, 16, 16, generator=noise)
    x, denoised = x.float()[None], torch.zeros(1, 4, 16, 16)
    for i, timestep in enumerate(way.timesteps):
        said = [shared_bundle.denoiser(x, timestep[None], context[0][None])
                for context in (one.context, one.unconditional)]  # fmt: skip
        fresh = torch.randn(1, 4, 16, 16, generator=noise) if way.needs_noise[i] else torch.zeros(1)
        guided = guide(*said, torch.tensor([3.0]))
        x, denoised = step(x, guided, denoised, fresh, way.coefficients[i : i + 1])
    assert len(way) == 4
    assert torch.allclose(alone(shared_bundle, one, 1), x[0], atol=1e-4)


def test_what_a_mask_keeps_is_the_picture_to_the_bit(shared_bundle: Bundle) -> None:
    start = origin(4, masked=True)
    assert start.mask is not None
    for skipped in (0, 2):
        one = spec(shared_bundle, "job", steps=5, origin=start, skipped=skipped)
        picture = alone(shared_bundle, one, 2)
        kept = ~start.mask.expand(4, -1, -1)
        assert torch.equal(picture[kept], start.mean[kept])
        assert not torch.equal(picture[~kept], start.mean[~kept])


def test_a_preview_shows_what_is_kept(shared_bundle: Bundle) -> None:
    start = origin(4, masked=True)
    assert start.mask is not None
    engine = Engine(shared_bundle, slots=1, micro_batch=1)
    engine.admit([spec(shared_bundle, "job", steps=4, origin=start, skipped=1)])
    engine.preview("job", 1)
    snapshots = [seen for _ in range(6) for seen in engine.step().snapshots]
    kept = ~start.mask.expand(4, -1, -1)
    assert torch.equal(snapshots[0].denoised[kept], start.mean[kept])
    assert not torch.equal(snapshots[0].denoised[~kept], start.mean[~kept])


def test_guidance_acts_on_shares_of_the_whole_way(shared_bundle: Bundle) -> None:
    bundle, sizes = counted(shared_bundle)
    one = spec(bundle, "job", steps=5, guidance_interval=(0.0, 0.5), skipped=1)
    alone(bundle, replace(one, origin=origin(1, masked=False)), 1)
    assert sum(sizes) == 2 * 2 + 2


def test_pictures_of_another_shape_and_ways_without_a_step_are_refused(
    shared_bundle: Bundle,
) -> None:
    engine = Engine(shared_bundle, slots=1, micro_batch=1)
    one = spec(shared_bundle, "job", steps=5, origin=origin(1, masked=False))
    with pytest.raises(ValueError, match=r"\(4, 8, 8\) cannot start from \(4, 16, 16\)"):
        engine.admit([replace(one, shape=(4, 8, 8))])
    with pytest.raises(ValueError, match="5 steps left out of 5"):
        engine.admit([replace(one, skipped=5)])
    assert engine.idle


class _OfTwoParts:
    """A denoiser of two networks, which notes the parts of all its calls."""

    def __init__(self, denoiser: Callable[..., Tensor]) -> None:
        self._denoiser = denoiser
        self.calls: list[set[int]] = []

    def part(self, timestep: float) -> int:
        return int(timestep >= 500)

    def __call__(self, x: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        self.calls.append({self.part(t) for t in timestep.tolist()})
        return self._denoiser(x, timestep, context)


def test_rounds_stay_in_one_part_of_a_network(shared_bundle: Bundle) -> None:
    """No call is of two parts, few rounds change the part, and pictures do not know of it."""
    denoiser = _OfTwoParts(shared_bundle.denoiser)
    bundle = replace(shared_bundle, denoiser=denoiser)  # type: ignore[arg-type]
    dice = random.Random(3)
    specs = [random_spec(bundle, f"{i}", dice) for i in range(12)]
    engine = Engine(bundle, slots=8, micro_batch=2)
    engine.admit(specs)
    pictures = drain(engine)
    assert all(len(parts) == 1 for parts in denoiser.calls)
    changes = sum(a != b for a, b in itertools.pairwise(denoiser.calls))
    assert 2 <= changes < len(denoiser.calls) / 6
    for spec in specs:
        assert torch.equal(pictures[f"{spec.job}/0"], alone(shared_bundle, spec, 2))
