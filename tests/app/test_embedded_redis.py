import stat
from pathlib import Path

import pytest
import redis

from app.embedded_redis import EmbeddedRedis, EmbeddedRedisError, redis_executable


def test_keeps_what_it_was_given_over_a_restart(tmp_path: Path) -> None:
    for expected in (None, b"1"):
        server = EmbeddedRedis(tmp_path / "redis")
        server.start()
        try:
            with redis.Redis.from_url(server.url) as client:
                assert client.get("key") == expected
                client.set("key", "1")
        finally:
            server.stop()


def test_stop_leaves_no_socket_and_no_process(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path)
    server.start()
    assert stat.S_IMODE(server.socket.stat().st_mode) == 0o700
    server.stop()
    assert not server.socket.exists()
    assert not server.running


def test_never_evicts_and_appends_to_a_file(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path)
    server.start()
    try:
        with redis.Redis.from_url(server.url) as client:
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
            assert client.config_get("appendonly") == {"appendonly": "yes"}
    finally:
        server.stop()


def test_folder_longer_than_a_socket_path_may_be(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path / ("x" * 60) / ("y" * 60))
    url = server.url
    for _ in range(2):  # clients keep the address over a restart
        server.start()
        try:
            with redis.Redis.from_url(url) as client:
                assert client.ping()
        finally:
            server.stop()
    assert not Path(url.removeprefix("unix://")).parent.parent.exists()


def test_damaged_file_is_reported_in_redis_own_words(tmp_path: Path) -> None:
    (tmp_path / "appendonly.aof").write_text("not an append-only file")
    server = EmbeddedRedis(tmp_path)
    with pytest.raises(EmbeddedRedisError, match="did not start"):
        server.start()


def test_no_server_anywhere_names_the_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EmbeddedRedisError, match="AVOCAT_REDIS_URL"):
        redis_executable()
