"""The audit log: who did what, when and from where, a JSON object a line.

Lines are written by a thread of its own, so that no request waits for the disk, into a file that is
opened again when it was moved away. Prompts and secrets are not in it; prompts are if the settings
say so.
"""

import json
import logging
import os
import time
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from io import TextIOWrapper
from logging.handlers import QueueHandler, QueueListener, WatchedFileHandler
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final

import structlog

from app.jobs.origin import CURRENT
from app.settings import Settings

if TYPE_CHECKING:  # it brings FastAPI, which commands do without
    from app.auth import Caller

__all__ = ["Audit", "AuditError", "of_request", "open_audit"]

_log = structlog.get_logger()

# What a call of a route is, in words; a route under /v1/ that is not here by its own name.
_ACTIONS: Final = {
    ("POST", "/v1/jobs"): "submit",
    ("POST", "/v1/images/generations"): "submit",
    ("POST", "/v1/images/edits"): "submit",
    ("POST", "/v1/images/variations"): "submit",
    ("POST", "/v1/verify"): "verify",
    ("DELETE", "/v1/jobs/{job_id}"): "cancel",
    ("POST", "/v1/jobs/{job_id}/cancel"): "cancel",
    ("GET", "/v1/jobs"): "list jobs",
    ("GET", "/v1/jobs/{job_id}"): "look at job",
    ("GET", "/v1/jobs/{job_id}/events"): "follow job",
    ("GET", "/v1/images/{name:image}"): "fetch image",
    ("POST", "/v1/models/{name}/load"): "load model",
    ("POST", "/v1/models/{name}/unload"): "unload model",
}


class AuditError(Exception):
    """The file cannot be written."""


class Audit:
    """Takes notes; without a file, none."""

    def __init__(self, file: Path | None, *, prompts: bool = False) -> None:
        """`prompts`: whether notes of submissions hold the prompt.

        Raises:
            AuditError: the file cannot be opened.
        """
        self.prompts: Final = prompts and file is not None
        self._listener: QueueListener | None = None
        if file is None:
            return
        queue: SimpleQueue[logging.LogRecord] = SimpleQueue()
        try:
            handler = _File(file, encoding="utf-8")
        except OSError as fault:
            raise AuditError(f"cannot write {str(file)!r}: {fault.strerror or fault}") from fault
        self._handler = QueueHandler(queue)
        self._listener = QueueListener(queue, handler)
        self._file = handler
        self._listener.start()

    @property
    def on(self) -> bool:
        """Whether notes are taken."""
        return self._listener is not None

    def note(self, entry: Mapping[str, object]) -> None:
        """Write an entry down, with the time; returns at once."""
        if self._listener is None:
            return
        told = {"time": _now(), **{name: value for name, value in entry.items() if value != ""}}
        line = json.dumps(told, ensure_ascii=False)
        self._handler.enqueue(logging.makeLogRecord({"msg": line}))

    def close(self) -> None:
        """Write what is left."""
        if self._listener is not None:
            self._listener.stop()
            with suppress(OSError):  # a full disk: it was said when the line was written
                self._file.close()
            self._listener = None


class _File(WatchedFileHandler):
    """A file for its owner's eyes; when it cannot be written, the log says so once."""

    _failed = False

    def _open(self) -> "TextIOWrapper[Any]":
        def private(path: str, flags: int) -> int:
            return os.open(path, flags, 0o600)

        return open(self.baseFilename, "a", encoding="utf-8", opener=private)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.reopenIfNeeded()
            self.stream = self.stream or self._open()
            self.stream.write(record.getMessage() + "\n")
            self.stream.flush()
            self._failed = False
        except (OSError, ValueError) as fault:
            if not self._failed:
                _log.error("the audit log cannot be written", reason=str(fault))
            self._failed = True


def open_audit(settings: Settings) -> Audit:
    """The audit log that the settings name.

    Raises:
        AuditError: it cannot be written.
    """
    return Audit(settings.audit_log, prompts=settings.audit_prompts)


def of_request(
    scope: MutableMapping[str, Any], route: str, status: int | None
) -> dict[str, object] | None:
    """The note of an answered request; None where there is nothing to note."""
    if not route.startswith("/v1/"):
        return None
    state, method = scope["state"], scope["method"]
    caller: Caller | None = state.get("caller")
    client = scope.get("client")
    entry: dict[str, object] = {
        "action": _ACTIONS.get((method, route), f"{method} {route}"),
        "status": status or 0,
        "owner": caller.owner if caller is not None else "",
        "key": caller.key if caller is not None else "",
        "address": client[0] if client else "",
        "job": CURRENT.get().job_id or "",
        "image": scope.get("path_params", {}).get("name", "") if "images" in route else "",
        "request_id": state["request_id"],
        "problem": str(state.get("problem", "")),
        "prompt": state.get("prompt", "") if status != 422 else "",
    }
    return entry


def _now() -> str:
    now = time.time()
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(now))}.{int(now % 1 * 1000):03d}Z"
