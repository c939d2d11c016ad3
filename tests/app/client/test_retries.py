from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest

from app.client import Retries
from app.client.retries import retry_after_s

LOST = httpx.ConnectError("refused")


def test_pauses_double_and_are_spread() -> None:
    retries = Retries(count=9, first_s=1.0, most_s=4.0)
    for tried, most in ((1, 1.0), (2, 2.0), (3, 4.0), (9, 4.0)):
        pauses = [retries.pause_s(tried, LOST) or 0.0 for _ in range(200)]
        assert max(pauses) <= most
        assert most * 0.8 < max(pauses)
        assert min(pauses) < most * 0.2
    assert retries.pause_s(10, LOST) is None


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_retry_after_is_honoured(status: int) -> None:
    answer = httpx.Response(status, headers={"Retry-After": "7"})
    assert 7 <= (Retries().pause_s(1, answer) or 0) <= 8
    assert Retries(patience_s=6).pause_s(1, answer) is None


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422, 500])
def test_what_does_not_pass_is_not_tried_again(status: int) -> None:
    assert Retries().pause_s(1, httpx.Response(status)) is None


def test_what_the_service_calls_vain_is_not_tried_again() -> None:
    answer = httpx.Response(504, headers={"X-Should-Retry": "false"})
    assert Retries().pause_s(1, answer) is None


def test_retry_after_may_be_a_date() -> None:
    in_a_minute = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    found = retry_after_s(httpx.Response(503, headers={"Retry-After": in_a_minute}))
    assert found is not None
    assert 55 < found <= 60
    assert retry_after_s(httpx.Response(503, headers={"Retry-After": "soon"})) is None
    assert retry_after_s(httpx.Response(503)) is None
