"""The announced card, and what names the bits of a picture."""

from dataclasses import replace
from pathlib import Path

import pytest
import redis
import torch

from app import keys
from app.jobs.fleet_reader import read_fleet
from app.jobs.models import ModelCard
from app.settings import Settings
from models.bundle import Bundle
from models.samplers import UNDISTILLED
from tests.models.tiny import build_tiny_bundle
from worker.card import announce, fingerprint, model_card
from worker.start import make_runner


@pytest.fixture
def card(shared_bundle: Bundle) -> ModelCard:
    return model_card(shared_bundle, 2, "eager 1")


def announced(client: redis.Redis) -> dict[str, bool]:
    cards = [ModelCard.model_validate_json(raw) for raw in client.hvals(keys.MODELS)]
    return {card.name: card.is_default for card in cards}


def live(client: redis.Redis, model: str) -> None:
    client.sadd(keys.RQ_WORKERS, f"rq:worker:{model}")
    client.hset(f"rq:worker:{model}", "model", model)


def test_the_card_says_what_the_bundle_can(card: ModelCard) -> None:
    assert (card.name, card.native_size, card.native) == ("tiny", (16, 16), "16x16")
    assert card.sizes == ("16x16", "32x32", "64x64")
    assert (card.max_steps, card.context_length, card.channels) == (1000, 16, 4)
    assert card.samplers == UNDISTILLED
    assert "lcm" not in card.samplers
    assert len(card.bundle_sha256) == 64


def test_the_fingerprint_names_what_decides_the_bits(shared_bundle: Bundle) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        usual = fingerprint(shared_bundle, 2, "eager 1")
        assert usual == fingerprint(shared_bundle, 2, "eager 1")
        others = {
            fingerprint(shared_bundle, 4, "eager 1"),
            fingerprint(shared_bundle, 2, "eager 2"),
            fingerprint(replace(shared_bundle, sha256="0"), 2, "eager 1"),
        }
        torch.set_num_threads(2)
        others.add(fingerprint(shared_bundle, 2, "eager 1"))
    finally:
        torch.set_num_threads(before)
    assert len(others | {usual}) == 5


def test_a_worker_with_the_preset_serves_a_model_of_its_own(
    client: redis.Redis, settings: Settings, tmp_path: Path
) -> None:
    path = build_tiny_bundle(tmp_path / "bundle", turbo=True)
    eager = settings.model_copy(update={"bundle": path, "runtime": "eager"})
    usual, turbo = (
        make_runner(eager.model_copy(update={"preset": preset}), client, f"w{i}", "cpu")
        ._roster.residents.popitem()[1]
        .card
        for i, preset in enumerate(("", "turbo"))
    )
    assert (usual.name, turbo.name) == ("tiny", "tiny-turbo")
    assert (turbo.default_steps, turbo.default_guidance_scale) == (3, 1.0)
    assert turbo.fingerprint != usual.fingerprint


def test_the_first_model_is_the_default(client: redis.Redis, card: ModelCard) -> None:
    announce(client, card)
    announce(client, card.model_copy(update={"name": "second"}))
    assert announced(client) == {"tiny": False, "second": True}  # nobody serves tiny now


def test_a_default_that_is_served_stays(client: redis.Redis, card: ModelCard) -> None:
    live(client, "tiny")
    announce(client, card)
    announce(client, card.model_copy(update={"name": "second"}))
    announce(client, card)
    assert announced(client) == {"tiny": True, "second": False}
    assert read_fleet(client).served == {"tiny"}
