import json
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.cli import cli
from app.commands import models, programs
from app.commands.generate import numbered


def run(*arguments: str, env: Mapping[str, str] | None = None) -> str:
    ended = CliRunner().invoke(cli, list(arguments), env=env)
    assert ended.exit_code == 0, ended.output
    return ended.output


@pytest.mark.parametrize("command", ["serve", "generate", "worker", "api", "settings"])
def test_help_teaches_by_example(command: str) -> None:
    text = run(command, "--help")
    assert "Example" in text
    assert f"avocat {command}" in text


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_train_and_evaluate_hand_every_argument_on(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    became: list[str] = []
    monkeypatch.setattr(models.os, "execve", lambda _, argv, __: became.extend(argv))
    run(command, "clip", "--data", "a b", "--help", "-x")
    module = f"models.{command}"
    assert became == [sys.executable, "-m", module, "clip", "--data", "a b", "--help", "-x"]


def test_settings_as_json_masks_secrets() -> None:
    env = {
        "AVOCAT_API_KEYS": "me:hunter2",
        "AVOCAT_SIGNING_KEY": "hunter2",
        "AVOCAT_REDIS_URL": "redis://me:hunter2@redis:6379/0",
    }
    text = run("settings", "--json", env=env)
    assert "hunter2" not in text
    rows = {row["name"]: row for row in json.loads(text)}
    assert rows["redis_url"]["value"] == "redis://********@redis:6379/0"
    assert rows["port"]["value"] == 8000


def test_settings_for_people_lists_every_variable() -> None:
    text = run("settings", env={"COLUMNS": "200"})
    assert "AVOCAT_MICRO_BATCH" in text
    assert "name:secret" in text  # no emoji made of it


def test_wrong_setting_is_one_sentence() -> None:
    ended = CliRunner().invoke(cli, ["settings"], env={"AVOCAT_PORT": "abc"})
    assert ended.exit_code == 2
    assert ended.output.startswith("avocat: AVOCAT_PORT='abc': ")
    assert len(ended.output.splitlines()) == 1


def test_programs_are_of_this_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    path = programs.environment()["PYTHONPATH"].split(":")
    assert path[1:] == ["/elsewhere"]
    assert programs.environment()["PYTHONSAFEPATH"] == "1"


def test_several_pictures_are_numbered() -> None:
    assert numbered(Path("a/cat.png"), 1) == [Path("a/cat.png")]
    assert numbered(Path("a/cat.png"), 2) == [Path("a/cat-1.png"), Path("a/cat-2.png")]
