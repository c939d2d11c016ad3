"""Bitwise equality: a row alone, and in hundreds of random mixtures, all the way to its picture."""

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.bundle import Bundle
from tests.worker.test_engine import alone, drain, random_spec, spec
from worker.card import fingerprint
from worker.engine import Engine
from worker.rows import RowSpec

MIXTURES = {1: 60, 2: 60, 3: 40, 8: 40}  # for each size of a micro-batch
LONGEST = 9


def pool(bundle: Bundle, dice: random.Random) -> list[RowSpec]:
    """Rows of every kind, half of them from a picture; two go a bundle's whole way and more."""
    rows = [random_spec(bundle, str(i), dice, LONGEST) for i in range(22)]
    assert {(one.origin is not None, one.origin is not None and one.origin.mask is not None)
            for one in rows} == {(False, False), (True, False), (True, True)}  # fmt: skip
    long = [spec(bundle, "25", steps=25, seed=5), spec(bundle, "50", steps=50, sampler="ddpm")]
    return [*rows, *long]


def mixture(engine: Engine, rows: Sequence[RowSpec], dice: random.Random) -> dict[str, Tensor]:
    """Let rows come in at any step, and strangers be evicted among them."""
    late = list(rows)
    engine.admit([late.pop()])

    def between() -> None:
        if late and dice.random() < 0.4:
            engine.admit([late.pop()])
        if dice.random() < 0.1:
            engine.admit([replace(rows[0], job="stranger", seed=dice.randrange(99))])
        if dice.random() < 0.1:
            engine.evict("stranger")

    pictures = drain(engine, between)
    while late:
        engine.admit([late.pop()])
        pictures |= drain(engine, between)
    return pictures


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_hundreds_of_mixtures_change_no_bit(shared_bundle: Bundle, size: int) -> None:
    dice = random.Random(size)
    rows = pool(shared_bundle, dice)
    expected = {row.job: alone(shared_bundle, row, size) for row in rows}
    seen = 0
    for number in range(MIXTURES[size]):
        chosen = dice.sample(rows if number % 15 == 0 else rows[:-2], dice.randint(2, 6))
        engine = Engine(shared_bundle, slots=dice.choice([1, 2, 4, 7, 16]), micro_batch=size)
        pictures = mixture(engine, chosen, dice)
        for row in chosen:
            assert torch.equal(pictures[f"{row.job}/0"], expected[row.job])
            seen += 1
    assert seen >= 2 * MIXTURES[size]


def test_varying_shapes_are_close_and_call_for_no_more_than_needed(shared_bundle: Bundle) -> None:
    dice = random.Random(1)
    rows = [replace(row, guidance_scale=1.0) for row in pool(shared_bundle, dice)[:5]]
    engine = Engine(shared_bundle, slots=8, micro_batch=8, exact=False)
    engine.admit(rows)
    pictures = drain(engine)
    for row in rows:
        exact = alone(shared_bundle, row, 8)
        assert torch.allclose(pictures[f"{row.job}/0"], exact, atol=1e-3)


def test_varying_shapes_have_a_fingerprint_of_their_own(shared_bundle: Bundle) -> None:
    exact = fingerprint(shared_bundle, 8, "eager 1")
    assert fingerprint(shared_bundle, 8, "eager 1", exact=True) == exact
    assert fingerprint(shared_bundle, 8, "eager 1", exact=False) != exact
