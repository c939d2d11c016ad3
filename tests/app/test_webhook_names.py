"""Webhooks to names that are slow to resolve."""

import socket
import threading

import pytest

from tests.app.service import Serve, until

SILENT = 20


async def test_names_whose_servers_are_silent_hold_up_no_others(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, over, known = [], threading.Event(), socket.getaddrinfo

    def silent(host: str, *more: object, **options: object) -> object:
        if not str(host).endswith(".test"):
            return known(host, *more, **options)  # type: ignore[arg-type]
        asked.append(host)
        over.wait(20)
        raise socket.gaierror(socket.EAI_AGAIN, "silent")

    monkeypatch.setattr(socket, "getaddrinfo", silent)
    try:
        async with serve(webhook_retry_s=60) as service:
            for number in range(SILENT):
                job = await service.submit(webhook_url=f"https://n{number}.test/")
                service.draw(job["id"])
            await until(lambda: len(set(asked)) == SILENT)
            over.set()
    finally:
        over.set()
