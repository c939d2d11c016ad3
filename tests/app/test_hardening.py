"""What keeps a browser, and whoever reads answers, from being led astray."""

import re
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import httpx
import pytest

from tests.app.service import Service

Serve = Callable[..., AbstractAsyncContextManager[Service]]
PATHS = ["/", "/docs", "/openapi.json", "/v1/models", "/v1/jobs", "/nothing", "/assets/api.js"]


@pytest.mark.parametrize("path", PATHS)
async def test_every_answer_has_the_headers_that_harden_it(service: Service, path: str) -> None:
    answer = await service.client.get(path)
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["X-Frame-Options"] == "DENY"
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert "frame-ancestors 'none'" in policy
    assert "server" not in answer.headers


async def test_the_playground_runs_no_script_but_its_own(service: Service) -> None:
    answer = await service.client.get("/")
    policy = answer.headers["Content-Security-Policy"]
    assert "unsafe-inline" not in policy
    assert "unsafe-eval" not in policy
    assert not re.search(r"<script(?![^>]*\bsrc=)", answer.text)
    assert not re.search(r"\bon\w+=\"", answer.text)


async def test_an_image_is_no_page(service: Service) -> None:
    job = await service.submit()
    [image] = service.draw(job["id"])
    answer = await service.client.get(f"/v1/images/{image.name}")
    assert answer.headers["Content-Type"] == "image/png"
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")


@pytest.mark.parametrize(
    "value", ["a\r\nSet-Cookie: x=1", "a\nb", "ü" * 10, "x" * 65, "<script>", "a b", "%0d%0aX: 1"]
)
async def test_nothing_of_a_request_becomes_a_header(service: Service, value: str) -> None:
    given = {b"X-Request-Id": value.encode(), b"Idempotency-Key": value.encode()}
    request = httpx.Request("POST", "http://test/v1/jobs", headers=[], json={"prompt": "a cat"})
    request.headers = httpx.Headers([*request.headers.raw, *given.items()])
    answer = await service.client.send(request)
    raw = b"\n".join(name + value for name, value in answer.headers.raw)
    assert value.encode() not in raw
    assert "set-cookie" not in answer.headers
    assert re.fullmatch(r"[A-Za-z0-9._~-]{1,64}", answer.headers["X-Request-Id"])


@pytest.mark.parametrize("host", ["evil.example", "evil.example\r\nX: y", "a" * 300, ""])
async def test_the_host_header_leads_nowhere(service: Service, host: str) -> None:
    """Addresses in answers are paths: a forged Host is in none of them."""
    job = await service.submit()
    service.draw(job["id"])
    answer = await service.client.get(f"/v1/jobs/{job['id']}", headers={"Host": host.encode()})
    assert answer.status_code == 200
    assert answer.json()["images"][0]["url"].startswith("/v1/images/")
    assert "evil" not in answer.text


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("caf\u00e9", "cafe\u0301"),  # composed and not
        ("a\u200bb", "ab"),
        ("\u212b", "\u00c5"),
    ],
)
async def test_texts_that_look_alike_stay_apart(service: Service, first: str, second: str) -> None:
    """What is stored is what was sent: nothing is normalised behind a client's back."""
    jobs = [await service.submit(prompt=text, metadata={"k": text}) for text in (first, second)]
    assert [job["request"]["prompt"] for job in jobs] == [first, second]
    assert [job["metadata"]["k"] for job in jobs] == [first, second]
