"""What `avocat serve` says, and how soon, when it cannot start: nothing is started before."""

import socket
import time
from pathlib import Path

import pytest

from tests.integration.service import avocat

PROMPT_S = 15.0


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Enough of a bundle for what is checked before anything is loaded."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "bundle.json").write_text("{}")
    return folder


def refusal(tmp_path: Path, **settings: str | Path) -> str:
    """The one sentence `avocat serve` ends with."""
    started = time.monotonic()
    given = {"data_dir": tmp_path / "data", "port": "0"} | settings
    ended = avocat("serve", **given)
    assert ended.returncode != 0
    assert time.monotonic() - started < PROMPT_S
    assert ended.stdout == ""
    lines = [line for line in ended.stderr.splitlines() if not line.startswith("Starting")]
    assert len(lines) == 1, ended.stderr
    return lines[0]


def test_taken_port(tmp_path: Path, bundle: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        sentence = refusal(tmp_path, bundle=bundle, port=str(port))
    assert sentence.startswith(f"avocat: port {port} on 127.0.0.1 is taken")


def test_folder_that_cannot_be_written(tmp_path: Path, bundle: Path) -> None:
    (tmp_path / "file").touch()
    sentence = refusal(tmp_path, bundle=bundle, data_dir=tmp_path / "file" / "data")
    assert "cannot write to the data folder" in sentence
    assert "AVOCAT_DATA_DIR" in sentence


def test_missing_bundle(tmp_path: Path) -> None:
    sentence = refusal(tmp_path, bundle=tmp_path / "nothing")
    assert f"no model bundle at '{tmp_path / 'nothing'}'" in sentence
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("name", "value", "part"),
    [
        ("port", "abc", "AVOCAT_PORT='abc'"),
        ("port", "70000", "less than or equal to 65535"),
        ("log_level", "loud", "'debug', 'info', 'warning' or 'error'"),
        ("api_keys", "no-secret", "entry 1 should be name:secret"),
        ("host", "nowhere.invalid", "AVOCAT_HOST='nowhere.invalid'"),
    ],
)
def test_wrong_setting(tmp_path: Path, bundle: Path, name: str, value: str, part: str) -> None:
    assert part in refusal(tmp_path, **{"bundle": bundle, name: value})


def test_wrong_secret_is_not_repeated(tmp_path: Path, bundle: Path) -> None:
    assert "hunter2" not in refusal(tmp_path, bundle=bundle, api_keys="hunter2")


def test_redis_of_the_settings_is_not_there(tmp_path: Path, bundle: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    url = f"redis://:hunter2@127.0.0.1:{port}/0"
    sentence = refusal(tmp_path, bundle=bundle, redis_url=url)
    assert "the Redis of AVOCAT_REDIS_URL cannot be used" in sentence
    assert "hunter2" not in sentence


def test_redis_address_is_none(tmp_path: Path, bundle: Path) -> None:
    sentence = refusal(tmp_path, bundle=bundle, redis_url="localhost")
    assert "AVOCAT_REDIS_URL" in sentence
