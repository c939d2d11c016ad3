"""Heads of requests that are too large or none at all, over real sockets."""

import asyncio

import pytest

from app.middleware import MOST_HEADERS
from app.patience import MOST_HEAD_BYTES
from tests.app.service import Service, listening

GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"


async def answer_to(service: Service, sent: bytes) -> bytes:
    """All that is answered until the server closes the connection."""
    async with listening(service.app) as url:
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(sent)
        data = await asyncio.wait_for(reader.read(), 20)
        writer.close()
        return data


@pytest.mark.parametrize(
    "sent",
    [
        GET + b"".join(b"X-%d: 1\r\n" % i for i in range(MOST_HEADERS)) + b"\r\n",
        GET + b"X-Long: " + b"a" * MOST_HEAD_BYTES + b"\r\n\r\n",
        GET + b"X-Endless: " + b"a" * (MOST_HEAD_BYTES + 99),
        b"GET /" + b"a" * MOST_HEAD_BYTES + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /?" + b"a" * MOST_HEAD_BYTES + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
    ids=["many", "long", "endless", "path", "query"],
)
async def test_a_head_that_is_too_large_is_431_and_the_end(service: Service, sent: bytes) -> None:
    answer = await answer_to(service, sent)
    assert answer.startswith(b"HTTP/1.1 431 "), answer[:100]
    assert b"/problems/headers-too-large" in answer
    assert b"application/problem+json" in answer


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA b: 1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
        b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
async def test_what_is_no_request_or_means_two_things_is_400(service: Service, sent: bytes) -> None:
    answer = await answer_to(service, sent)
    assert answer.split(b" ")[1] in (b"400", b"501"), answer[:100]
    assert b"/problems/bad-request" in answer


async def test_as_large_as_it_may_be(service: Service) -> None:
    more = b"".join(b"X-%d: 1\r\n" % i for i in range(MOST_HEADERS - 3))
    long = b"X-Long: " + b"a" * (MOST_HEAD_BYTES - 2048) + b"\r\n"
    answer = await answer_to(service, GET + b"Connection: close\r\n" + more + long + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 200 "), answer[:100]
