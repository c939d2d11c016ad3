"""Pages of other origins: nothing unless they are named."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import pytest
from pydantic import ValidationError

from app.settings import Settings
from tests.app.service import Service

Serve = Callable[..., AbstractAsyncContextManager[Service]]
SHOP, EVIL = "https://shop.example", "https://evil.example"
ASKS = {
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,idempotency-key",
}


async def test_no_origin_is_let_in_by_default(serve: Serve) -> None:
    async with serve() as service:
        for method, path in (("GET", "/v1/models"), ("OPTIONS", "/v1/jobs"), ("GET", "/")):
            answer = await service.client.request(method, path, headers={"Origin": SHOP} | ASKS)
            assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_named_origins_may_call(serve: Serve) -> None:
    async with serve(cors_origins=f"{SHOP}, https://other.example") as service:
        asked = await service.client.options("/v1/jobs", headers={"Origin": SHOP} | ASKS)
        assert asked.status_code == 200
        assert asked.headers["Access-Control-Allow-Origin"] == SHOP
        assert "Access-Control-Allow-Credentials" not in asked.headers
        body = {"prompt": "a cat"}
        answer = await service.client.post("/v1/jobs", json=body, headers={"Origin": SHOP})
        assert answer.headers["Access-Control-Allow-Origin"] == SHOP
        assert "Location" in answer.headers["Access-Control-Expose-Headers"]
        wrong = await service.client.post("/v1/jobs", json={}, headers={"Origin": SHOP})
        assert wrong.status_code == 422
        assert wrong.headers["Access-Control-Allow-Origin"] == SHOP  # pages can read what is wrong
        large = await service.client.post(
            "/v1/jobs", content=b" " * 70_000, headers={"Origin": SHOP}
        )
        assert large.status_code == 413
        assert large.headers["Access-Control-Allow-Origin"] == SHOP


async def test_others_still_may_not(serve: Serve) -> None:
    async with serve(cors_origins=SHOP) as service:
        asked = await service.client.options("/v1/jobs", headers={"Origin": EVIL} | ASKS)
        assert asked.status_code == 400
        assert "Access-Control-Allow-Origin" not in asked.headers
        answer = await service.client.get("/v1/models", headers={"Origin": EVIL})
        assert "Access-Control-Allow-Origin" not in answer.headers


@pytest.mark.parametrize("wrong", ["shop.example", "https://a/path", "https://a b", "*,https://a"])
def test_what_is_no_origin_is_refused(wrong: str) -> None:
    with pytest.raises(ValidationError, match="cors_origins"):
        Settings(cors_origins=wrong)
