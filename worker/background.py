"""Builds and measures runtimes beside a worker that draws with what starts at once."""

import threading
from collections.abc import Callable

import structlog

from app.jobs.models import ModelCard
from models.model import Model
from worker.mail import Built, Mail

__all__ = ["Background"]

_log = structlog.get_logger()


class Background:
    """One thread that builds one runtime."""

    def __init__(self, build: Callable[[], tuple[Model, ModelCard]]) -> None:
        """`build` gives the model in its better runtime, and the card of that; or raises."""
        self._build = build
        self._thread: threading.Thread | None = None

    def start(self, mail: Mail) -> None:
        """Begin; the result comes by mail."""
        self._thread = threading.Thread(target=self._run, args=(mail,), name="build", daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether it is at work."""
        return self._thread is not None and self._thread.is_alive()

    def wait(self, timeout_s: float) -> None:
        """Let it end: the libraries bear no end of the process in their midst."""
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _run(self, mail: Mail) -> None:
        try:
            model, card = self._build()
        except Exception as fault:  # the worker goes on as it began
            _log.error("runtime not built", reason=str(fault) or repr(fault))
        else:
            mail.put(Built(model, card))
