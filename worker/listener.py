"""Listens on Redis' channels in a thread, so that cancels and new jobs are seen at once.

Messages may be lost while Redis is away; the runner also looks by itself.
"""

import json
import threading
from collections.abc import Callable

import structlog
from redis import Redis
from redis.client import PubSub
from redis.exceptions import RedisError
from rq.command import PUBSUB_CHANNEL_TEMPLATE

from app.keys import CANCELS, WAKEUPS
from worker.mail import Cancel, Letter, LoadModel, Mail, StopRequested, UnloadModel, WorkArrived

__all__ = ["Listener"]

_log = structlog.get_logger()
_POLL_S = 0.5
_OF_MODELS: dict[str, Callable[[str], Letter]] = {
    "load-model": LoadModel,
    "unload-model": UnloadModel,
}
_BACK_OFF_S = (0.1, 2.0)  # first, longest


class Listener:
    """Turns messages into mail; `on_cancel` is called at once, in the listening thread."""

    def __init__(
        self, redis: Redis, worker: str, mail: Mail, on_cancel: Callable[[str], None]
    ) -> None:
        self._redis = redis
        self._mail = mail
        self._on_cancel = on_cancel
        self._commands = PUBSUB_CHANNEL_TEMPLATE % worker
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="listener", daemon=True)

    def start(self) -> None:
        """Start listening."""
        self._thread.start()

    def stop(self) -> None:
        """Stop listening, and wait for that."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(2 * _POLL_S)

    def _run(self) -> None:
        wait_s, longest_s = _BACK_OFF_S
        while not self._stopping.is_set():
            try:
                with PubSub(self._redis.connection_pool, ignore_subscribe_messages=True) as pubsub:
                    pubsub.subscribe(CANCELS, WAKEUPS, self._commands)
                    self._mail.put(WorkArrived())  # what came before nobody told us of
                    wait_s = _BACK_OFF_S[0]
                    self._listen(pubsub)
            except RedisError:  # the runner logs that Redis is away; once is enough
                self._stopping.wait(wait_s)
                wait_s = min(2 * wait_s, longest_s)

    def _listen(self, pubsub: PubSub) -> None:
        while not self._stopping.is_set():
            message = pubsub.get_message(timeout=_POLL_S)
            if message is not None:
                self._read(message["channel"].decode(), message["data"])

    def _read(self, channel: str, data: bytes) -> None:
        if channel == WAKEUPS:
            self._mail.put(WorkArrived())
        elif channel == CANCELS:
            self._cancel(data.decode("utf-8", "replace"))
        else:
            self._command(data)

    def _cancel(self, job_id: str) -> None:
        self._on_cancel(job_id)
        self._mail.put(Cancel(job_id))

    def _command(self, data: bytes) -> None:
        """RQ's own commands, as `send_shutdown_command`'s; and ours, of app/jobs/fleet.py."""
        try:
            command = json.loads(data)
            word = str(command["command"])
            job_id, model = command.get("job_id"), command.get("model")
        except (ValueError, KeyError, TypeError, AttributeError):
            _log.warning("unreadable command ignored", channel=self._commands)
            return
        if word == "shutdown":
            self._mail.put(StopRequested())
        elif word in ("stop-job", "stop-execution") and isinstance(job_id, str):
            self._cancel(job_id)
        elif word in _OF_MODELS and isinstance(model, str):
            self._mail.put(_OF_MODELS[word](model))
