"""The HTTP server of one API process."""

import resource
import socket
from typing import Any

import uvicorn
from fastapi import FastAPI

__all__ = ["Server", "allow_many_connections"]

_MOST_FILES = 65536


class Server(uvicorn.Server):
    """Uvicorn that lets the followers of jobs go when it is told to end."""

    def __init__(self, app: FastAPI, **options: Any) -> None:
        """`options` are uvicorn's own."""
        config = uvicorn.Config(
            app,
            access_log=False,  # the application logs requests with their ids
            log_level="warning",
            server_header=False,
            timeout_graceful_shutdown=10,
            **options,
        )
        super().__init__(config)
        self._events = app.state.services.events

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Streams would go on until they are cut off; so they end, and clients come again elsewhere.
        self._events.release()
        await super().shutdown(sockets)


def allow_many_connections() -> None:
    """Let this process have as many open files as it may: each connection is one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = most == resource.RLIM_INFINITY
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (_MOST_FILES if unlimited else min(most, _MOST_FILES), most)
    )
