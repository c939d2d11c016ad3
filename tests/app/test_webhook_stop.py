"""Webhooks that a process was just taking when it was stopped."""

import asyncio
import time

import pytest

from app import keys
from app.webhooks.deliveries import Deliveries, Due
from tests.app.service import Serve, until


async def test_what_was_being_taken_at_the_end_is_due_at_once(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    take, taken = Deliveries.take, list[Due]()

    async def slow(self: Deliveries, most: int, hold_s: float) -> list[Due]:
        found = await take(self, most, hold_s)
        taken.extend(found)
        await asyncio.sleep(0.2 if found else 0)
        return found

    monkeypatch.setattr(Deliveries, "take", slow)
    async with serve(webhook_retry_s=60) as service:
        job = await service.submit(webhook_url="https://example.org/")
        service.draw(job["id"])
        await until(lambda: taken)
    assert float(service.redis.zscore(keys.WEBHOOKS_DUE, job["id"]) or 0) <= time.time()
    assert service.redis.hget(keys.WEBHOOK_ATTEMPTS, job["id"]) == b"0"
