"""A wire between workers and Redis that can be cut."""

import contextlib
import socket
import threading
from pathlib import Path


class Cable:
    """Listens at `path` and passes everything on to the socket `target`, until it is cut."""

    def __init__(self, path: Path, target: Path) -> None:
        self.url = f"unix://{path}"
        self._target = target
        self._ends: set[socket.socket] = set()
        self._cut = threading.Event()
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        self._server.listen(64)
        threading.Thread(target=self._serve, daemon=True).start()

    def cut(self) -> None:
        """Break all connections; new ones are closed at once."""
        self._cut.set()
        for end in list(self._ends):
            _close(end)

    def mend(self) -> None:
        """Pass on again."""
        self._cut.clear()

    def close(self) -> None:
        """End for good."""
        self.cut()
        _close(self._server)

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._server.accept()
                self._join(near)

    def _join(self, near: socket.socket) -> None:
        far = socket.socket(socket.AF_UNIX)
        try:
            if self._cut.is_set():
                raise ConnectionError
            far.connect(str(self._target))
        except OSError:
            near.close()
            far.close()
            return
        self._ends |= {near, far}
        for one, other in ((near, far), (far, near)):
            threading.Thread(target=self._pass_on, args=(one, other), daemon=True).start()

    def _pass_on(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                other.sendall(data)
        for end in (one, other):
            self._ends.discard(end)
            _close(end)


def _close(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()
