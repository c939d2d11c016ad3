"""Settings from the environment."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from app.settings import Settings


def test_defaults_need_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Settings()
    assert settings.resolved_redis_url == f"unix://{tmp_path}/data/redis/redis.sock"
    assert settings.images_dir == tmp_path / "data" / "images"
    assert settings.bundle.parts[-2:] == ("bundles", "emoji")
    assert settings.keys == ()


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVOCAT_PORT", "9000")
    monkeypatch.setenv("AVOCAT_REDIS_URL", "redis://host/1")
    monkeypatch.setenv("AVOCAT_API_KEYS", "ann:a1, bob:b2:high,")
    settings = Settings()
    assert settings.port == 9000
    assert settings.resolved_redis_url == "redis://host/1"
    assert [tuple(key) for key in settings.keys] == [("ann", "a1", False), ("bob", "b2", True)]


def test_empty_means_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REDIS_URL", "SIGNING_KEY", "BUNDLE", "API_KEYS"):
        monkeypatch.setenv(f"AVOCAT_{name}", "")
    settings = Settings()
    assert (settings.redis_url, settings.signing_key, settings.keys) == (None, None, ())
    assert settings.bundle == Settings.model_fields["bundle"].get_default(call_default_factory=True)


@pytest.mark.parametrize("keys", ["ann", "ann:", ":s3cret", "ann:s3cret:low", "a:b:high:c"])
def test_unreadable_keys_are_refused_without_telling_secrets(keys: str) -> None:
    with pytest.raises(ValidationError, match="entry 1 should be name:secret") as caught:
        Settings(api_keys=keys)  # type: ignore[arg-type]
    assert "s3cret" not in str(caught.value)


def test_threads_are_no_more_than_a_machine_has() -> None:
    with pytest.raises(ValidationError, match="less than or equal to 1024"):
        Settings(threads=99_999)


def test_one_secret_cannot_be_two_owners() -> None:
    with pytest.raises(ValidationError, match="same secret"):
        Settings(api_keys="ann:x,bob:x")  # type: ignore[arg-type]


def test_secrets_do_not_show() -> None:
    settings = Settings(
        api_keys="ann:s3cret",  # type: ignore[arg-type]
        signing_key="s3cret",  # type: ignore[arg-type]
        redis_url="redis://:s3cret@host",
    )
    assert "s3cret" not in repr(settings)


def test_every_setting_is_described() -> None:
    assert all(field.description for field in Settings.model_fields.values())
