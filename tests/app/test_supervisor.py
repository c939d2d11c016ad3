import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from app.supervisor import ProcessPart, Supervisor, SupervisorError


@pytest.fixture
def listener() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def part(name: str, code: str) -> ProcessPart:
    return ProcessPart(name, [sys.executable, "-c", code], os.environ, grace_s=5.0)


def readyz(listener: socket.socket, folder: Path) -> ProcessPart:
    """Answers /readyz with 200 once folder/readyz exists, on an inherited listener."""
    code = (
        "import http.server, os, socket, sys\n"
        f"os.chdir({str(folder)!r})\n"
        "server = http.server.HTTPServer(('', 0), http.server.SimpleHTTPRequestHandler, False)\n"
        f"server.socket = socket.socket(fileno={listener.fileno()})\n"
        "server.serve_forever()"
    )
    found = part("api", code)
    found.inherit = [listener.fileno()]
    return found


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def supervisor(listener: socket.socket, *parts: ProcessPart, on_ready: Callable[[], None]) -> None:
    Supervisor(parts, "127.0.0.1", listener.getsockname()[1], on_ready).run()


def test_part_that_cannot_start_ends_everything(listener: socket.socket) -> None:
    with listener, pytest.raises(SupervisorError, match=r"worker does not start \(exit code 3\)"):
        supervisor(listener, part("worker", "raise SystemExit(3)"), on_ready=stop)


def test_part_that_keeps_dying_at_start_ends_everything(listener: socket.socket) -> None:
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    with listener, pytest.raises(SupervisorError, match=r"does not start: .* signal SIGKILL"):
        supervisor(listener, part("worker", code), on_ready=stop)


def test_part_that_dies_later_is_started_again(listener: socket.socket, tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    (tmp_path / "readyz").touch()
    code = (
        f"import os, signal, time; f = open({str(starts)!r}, 'a'); f.write('x'); f.close()\n"
        f"if os.path.getsize({str(starts)!r}) > 1: os.kill(os.getppid(), signal.SIGTERM)\n"
        f"while not os.path.exists({str(tmp_path / 'ready')!r}): time.sleep(0.01)\n"
    )
    with listener:
        api = readyz(listener, tmp_path)
        ready = (tmp_path / "ready").touch
        supervisor(listener, api, part("worker", code), on_ready=ready)
    assert starts.read_text() == "xx"


def test_stop_lets_parts_end_well_and_leaves_no_process(
    listener: socket.socket, tmp_path: Path
) -> None:
    ended = tmp_path / "ended"
    code = (
        "import signal, sys, time\n"
        f"def end(*a): open({str(ended)!r}, 'a').write('worker'); sys.exit()\n"
        "signal.signal(signal.SIGTERM, end)\n"
        f"open({str(tmp_path / 'readyz')!r}, 'w').close(); time.sleep(60)"
    )
    with listener:
        api, worker = readyz(listener, tmp_path), part("worker", code)
        supervisor(listener, api, worker, on_ready=stop)
    assert ended.read_text() == "worker"
    assert api.exit_code() == -signal.SIGTERM
    assert worker.exit_code() == 0


def test_part_that_ignores_sigterm_is_killed_by_a_second_signal(
    listener: socket.socket, tmp_path: Path
) -> None:
    code = (
        "import os, signal, time\n"
        "signal.signal(signal.SIGTERM, lambda *a: os.kill(os.getppid(), signal.SIGTERM))\n"
        f"open({str(tmp_path / 'readyz')!r}, 'w').close(); time.sleep(600)"
    )
    worker = part("worker", code)
    worker.grace_s = 600.0
    with listener:
        supervisor(listener, worker, readyz(listener, tmp_path), on_ready=stop)
    assert worker.exit_code() == -signal.SIGKILL
