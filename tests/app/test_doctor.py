"""`avocat doctor` on set-ups that have something."""

import hashlib
import json
import shutil
import socket
from pathlib import Path

import pytest
import redis

from app.doctor import Verdict, examine
from app.settings import Settings
from tests.integration.service import avocat


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "weights").write_bytes(b"weights")
    files = {"weights": hashlib.sha256(b"weights").hexdigest()}
    (folder / "bundle.json").write_text(json.dumps({"name": "tiny", "files": files}))
    return folder


@pytest.fixture
def settings(redis_url: str, tmp_path: Path, bundle: Path) -> Settings:
    return Settings(redis_url=redis_url, data_dir=tmp_path / "data", bundle=bundle, port=0)


def found(settings: Settings, check: str) -> tuple[Verdict, str]:
    [one] = [one for one in examine(settings) if one.check == check]
    assert bool(one.fix) is (one.verdict is not Verdict.OK)
    return one.verdict, one.found


def test_a_sound_set_up_has_no_fault_and_leaves_nothing(settings: Settings) -> None:
    findings = list(examine(settings))
    assert {one.check for one in findings if one.verdict is not Verdict.OK} == {"workers"}
    assert [path for path in settings.images_dir.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("harm", ["missing", "damaged", "no-config", "bad-config", "outside"])
def test_a_harmed_bundle(settings: Settings, bundle: Path, harm: str) -> None:
    match harm:
        case "missing":
            (bundle / "weights").unlink()
        case "damaged":
            (bundle / "weights").write_bytes(b"weightz")
        case "no-config":
            (bundle / "bundle.json").unlink()
        case "bad-config":
            (bundle / "bundle.json").write_text("[]")
        case "outside":
            (bundle / "bundle.json").write_text('{"files": {"../x": "0"}}')
    assert found(settings, "bundle")[0] is Verdict.FAULT


def test_storage_that_cannot_be_written(settings: Settings) -> None:
    settings.data_dir.mkdir()
    settings.images_dir.write_text("a file where the folder should be")
    assert found(settings, "storage")[0] is Verdict.FAULT


def test_a_taken_port(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        changed = settings.model_copy(update={"port": taken.getsockname()[1]})
        taken.close()
        assert found(changed, "port")[0] is Verdict.OK
    with socket.create_server(("127.0.0.1", changed.port), backlog=0):
        verdict, said = found(changed, "port")
    assert verdict is Verdict.FAULT
    assert str(changed.port) in said


@pytest.mark.parametrize(
    ("check", "option", "value"),
    [
        ("eviction", "maxmemory-policy", "allkeys-lru"),
        ("persistence", "appendonly", "no"),
        ("persistence", "appendfsync", "no"),
    ],
)
def test_a_redis_that_may_lose_jobs(
    settings: Settings, redis_url: str, check: str, option: str, value: str
) -> None:
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        before = client.config_get(option)[option]
        client.config_set(option, value)
        try:
            verdict, said = found(settings, check)
        finally:
            client.config_set(option, before)
    assert verdict is Verdict.WARNING
    assert option in said


@pytest.mark.parametrize(
    ("share", "verdict"), [(2, Verdict.OK), (1.05, Verdict.WARNING), (0.5, Verdict.FAULT)]
)
def test_a_redis_whose_memory_is_full(
    settings: Settings, redis_url: str, share: float, verdict: Verdict
) -> None:
    with redis.Redis.from_url(redis_url) as client:
        used = int(client.info("memory")["used_memory"])
        client.config_set("maxmemory", int(used * share))
        try:
            assert found(settings, "memory")[0] is verdict
        finally:
            client.config_set("maxmemory", 0)
    assert found(settings, "memory")[0] is Verdict.OK


def test_nothing_is_claimed_of_what_a_managed_redis_does_not_tell(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: redis.Redis, name: str) -> None:
        raise redis.ResponseError("unknown command 'CONFIG'")

    monkeypatch.setattr(redis.Redis, "config_get", refuse)
    assert "does not tell" in found(settings, "persistence")[1]


def test_a_clock_that_differs(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis.Redis, "time", lambda self: (1_000_000, 0))
    assert found(settings, "clock")[0] is Verdict.FAULT


def test_the_command_ends_with_what_scripts_may_rely_on(
    bundle: Path, tmp_path: Path, redis_url: str
) -> None:
    given = {"data_dir": tmp_path / "data", "bundle": bundle, "port": "0"}
    sound = avocat("doctor", "--json", redis_url=redis_url, **given)
    assert sound.returncode == 0, sound.stdout
    assert {one["verdict"] for one in json.loads(sound.stdout)} == {"ok", "warning"}
    assert avocat("doctor", "--strict", redis_url=redis_url, **given).returncode == 1
    shutil.rmtree(bundle)
    away = avocat("doctor", redis_url="redis://127.0.0.1:1/0", **given)
    assert away.returncode == 1
    assert "fix: start it, or correct AVOCAT_REDIS_URL" in away.stdout
    assert "bundle.json is missing" in away.stdout
