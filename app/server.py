"""The HTTP server of one API process."""

import asyncio
import gc
import math
import resource
import socket
import time
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from app.patience import MOST_HEAD_BYTES, PatientProtocol

__all__ = ["Server", "allow_many_connections", "collect_seldom"]

_OBJECTS = 10_000  # made and not freed, before the youngest are looked at for cycles
_MOST_FILES = 65536
# Longer than a gateway keeps an idle connection: who closes must not be the one who is asked.
_IDLE_S = 75
_LAST_ANSWERS_S = 10  # for those who are told at the end of the grace that there is no more time


class Server(uvicorn.Server):
    """Uvicorn that ends as a part behind a gateway should.

    Told to end, it says that it is not ready, and that connections are not to be kept, but goes on
    for `delay_s`, until nobody sends it more. Then it takes no new connection, lets the followers
    of jobs go, who come again elsewhere, and has `grace_s` for the rest.
    """

    def __init__(
        self, app: FastAPI, *, delay_s: float = 0.0, grace_s: float = 0.0, **options: Any
    ) -> None:
        """`options` are uvicorn's own."""
        config = uvicorn.Config(
            app,
            http=PatientProtocol,
            access_log=False,  # the application logs requests with their ids
            log_config=None,  # its lines have the form of ours
            log_level="warning",
            server_header=False,
            timeout_graceful_shutdown=math.ceil(grace_s) + _LAST_ANSWERS_S,
            timeout_keep_alive=_IDLE_S,
            h11_max_incomplete_event_size=MOST_HEAD_BYTES,
            **options,
        )
        super().__init__(config)
        self._state = app.state
        self._delay_s, self._grace_s = delay_s, grace_s
        self._told: tuple[float, int] | None = None  # when to end, and the signal

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal begins the end; a second one leaves no time for it."""
        self._state.stopping = True
        if self._told is None and self._delay_s and not self.should_exit:
            self._told = (time.monotonic() + self._delay_s, sig)
            return
        if self._told is not None:
            self._grace_s = 0.0
        super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        if self._told is not None and not self.should_exit and time.monotonic() >= self._told[0]:
            super().handle_exit(self._told[1], None)
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._state.stopping = True
        events = self._state.services.events
        events.release_streams()
        release = asyncio.get_running_loop().call_later(self._grace_s, events.release)
        try:
            await super().shutdown(sockets)
        finally:
            release.cancel()


def collect_seldom() -> None:
    """Leave what is there now out of the search for cycles of garbage, and search the rest seldom.

    A request makes thousands of objects and hardly a cycle, and Python searches after every 700:
    that was a seventh of the time of a submission. To be called when the application is built.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_OBJECTS, *gc.get_threshold()[1:])


def allow_many_connections() -> None:
    """Let this process have as many open files as it may: each connection is one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = most == resource.RLIM_INFINITY
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (_MOST_FILES if unlimited else min(most, _MOST_FILES), most)
    )
