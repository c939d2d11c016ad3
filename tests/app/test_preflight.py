"""What is refused before anything starts."""

import socket

import pytest
import typer

from app.commands.preflight import listen, take_address
from app.settings import Settings


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_strangers_need_keys(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended:
        listen(Settings(host=host, port=0))
    assert ended.value.exit_code == 2
    said = capsys.readouterr().err
    assert "AVOCAT_API_KEYS=" in said
    assert "AVOCAT_ALLOW_ANONYMOUS=true" in said


@pytest.mark.parametrize(
    "settings",
    [
        Settings(host="127.0.0.1", port=0),
        Settings(host="localhost", port=0),
        Settings(host="127.3.2.1", port=0),
        Settings(host="::1", port=0),
        Settings(host="0.0.0.0", port=0, api_keys="ann:secret"),  # type: ignore[arg-type]
        Settings(host="0.0.0.0", port=0, allow_anonymous=True),
    ],
)
def test_others_may_listen(settings: Settings) -> None:
    with listen(settings) as listener:
        # Else asyncio would leave Nagle's delay on for its connections.
        assert listener.proto == socket.IPPROTO_TCP


def test_a_replica_that_starts_refuses_connections_and_keeps_none_waiting() -> None:
    """Else a gateway would send it requests that are answered when it has started."""
    with take_address(Settings(host="127.0.0.1", port=0)) as starting:
        port = starting.getsockname()[1]
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
        starting.listen()
        socket.create_connection(("127.0.0.1", port)).close()


def test_a_port_that_is_taken_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with listen(Settings(host="127.0.0.1", port=0)) as first:
        port = first.getsockname()[1]
        with pytest.raises(typer.Exit):
            take_address(Settings(host="127.0.0.1", port=port))
    assert f"port {port} on 127.0.0.1 is taken" in capsys.readouterr().err
