"""What is refused before anything starts."""

import socket

import pytest
import typer

from app.commands.preflight import listen
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
