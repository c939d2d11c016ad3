"""Clients that send slowly, over real sockets."""

import asyncio
import time
from contextlib import suppress
from pathlib import Path

import pytest

from app.patience import PatientProtocol
from tests.app.service import Service, listening

HEAD = b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PatientProtocol, "head_s", 0.5)
    monkeypatch.setattr(PatientProtocol, "body_s", 0.5)


async def trickle(url: str, sent: bytes, pieces: bytes) -> tuple[bytes, float]:
    """Send at once, then a byte each 50 ms; all that is answered, and after how long."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    began = time.monotonic()
    writer.write(sent)
    answer = asyncio.create_task(_until_closed(reader))
    for byte in pieces * 100:
        if answer.done():
            break
        writer.write(bytes([byte]))
        await asyncio.sleep(0.05)
    data = await asyncio.wait_for(answer, 10)
    writer.close()
    return data, time.monotonic() - began


async def _until_closed(reader: asyncio.StreamReader) -> bytes:
    """All that comes; a byte sent to who has closed meanwhile is answered by a reset."""
    data = b""
    with suppress(ConnectionResetError):
        while part := await reader.read(65536):
            data += part
    return data


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET /heal", HEAD + b"X-A: ", HEAD + b"Content-Length: 100\r\n\r\n{"],
    ids=["nothing", "line", "header", "body"],
)
async def test_a_slow_request_is_answered_408_and_closed(service: Service, sent: bytes) -> None:
    async with listening(service.app) as url:
        answer, seconds = await trickle(url, sent, b"a")
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"/problems/request-timeout" in answer
    assert 0.4 < seconds < 5


async def test_a_slow_second_request_of_a_kept_connection(service: Service) -> None:
    whole = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    async with listening(service.app) as url:
        answer, _ = await trickle(url, whole + b"GET /heal", b"a")
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"HTTP/1.1 408 " in answer


async def test_who_waits_for_an_answer_is_not_cut_off(service: Service, tmp_path: Path) -> None:
    job = (await service.submit())["id"]
    ask = b"GET /v1/jobs/" + job.encode() + b"/events HTTP/1.1\r\nHost: x\r\n\r\n"
    async with listening(service.app) as url:
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(ask)
        await asyncio.sleep(1.5)
        service.draw(job)
        answer = await asyncio.wait_for(reader.readuntil(b"succeeded"), 10)
        assert answer.startswith(b"HTTP/1.1 200 ")
        writer.close()


async def test_a_kept_connection_may_rest_longer(service: Service) -> None:
    ask = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    async with listening(service.app) as url:
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        for _ in range(2):
            writer.write(ask)
            assert b" 200 " in await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
            await asyncio.sleep(1.2)
        writer.close()


async def test_many_slow_clients_do_not_shut_others_out(service: Service) -> None:
    async with listening(service.app) as url:
        slow = [asyncio.create_task(trickle(url, HEAD, b"a")) for _ in range(100)]
        await asyncio.sleep(0.2)
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert b" 200 " in await asyncio.wait_for(reader.read(), 5)
        writer.close()
        answers = await asyncio.gather(*slow)
    assert all(answer.startswith(b"HTTP/1.1 408 ") for answer, _ in answers)
