import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from app.cli import cli
from app.client import Job
from app.commands import models, programs
from app.commands.targets import Target
from app.commands.watching import half_blocks
from tests.app.client.playing import JOB

IMAGE = {
    **{"index": 0, "url": "/v1/images/x", "seed": 7, "width": 16, "height": 16, "bytes": 2},
    **{"content_type": "image/png", "clip_score": None, "sha256": "ab"},
}


def run(*arguments: str, env: Mapping[str, str] | None = None) -> str:
    ended = CliRunner().invoke(cli, list(arguments), env=env)
    assert ended.exit_code == 0, ended.output
    return ended.output


@pytest.mark.parametrize("command", ["serve", "generate", "verify", "worker", "api", "settings"])
def test_help_teaches_by_example(command: str) -> None:
    text = run(command, "--help")
    assert "Example" in text
    assert f"avocat {command}" in text


@pytest.mark.parametrize(
    ("command", "module"), [("train", "models.train"), ("evaluate", "worker.evaluate")]
)
def test_train_and_evaluate_hand_every_argument_on(
    command: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    became: list[str] = []
    monkeypatch.setattr(models.os, "execve", lambda _, argv, __: became.extend(argv))
    run(command, "clip", "--data", "a b", "--help", "-x")
    assert became == [sys.executable, "-m", module, "clip", "--data", "a b", "--help", "-x"]


def test_settings_as_json_masks_secrets() -> None:
    env = {
        "AVOCAT_API_KEYS": "me:hunter2",
        "AVOCAT_SIGNING_KEY": "hunter2",
        "AVOCAT_REDIS_URL": "redis://me:hunter2@redis:6379/0",
        "AVOCAT_MODERATION_URL": "https://me:hunter2@judge.example/v1/moderations",
        "AVOCAT_S3_ENDPOINT": "https://s3.example",
    }
    text = run("settings", "--json", env=env)
    assert "hunter2" not in text
    rows = {row["name"]: row for row in json.loads(text)}
    assert rows["redis_url"]["value"] == "redis://********@redis:6379/0"
    assert rows["s3_endpoint"]["value"] == "https://s3.example"
    assert rows["port"]["value"] == 8000
    text = run("settings", env={"AVOCAT_REDIS_URL": "redis://redis/0?db=1&password=hunter2&x=1"})
    assert "hunter2" not in text


def test_settings_for_people_lists_every_variable() -> None:
    text = run("settings", env={"COLUMNS": "200"})
    assert "AVOCAT_MICRO_BATCH" in text
    assert "name:secret" in text  # no emoji made of it


def test_wrong_setting_is_one_sentence() -> None:
    ended = CliRunner().invoke(cli, ["settings"], env={"AVOCAT_PORT": "abc"})
    assert ended.exit_code == 2
    assert ended.output.startswith("avocat: AVOCAT_PORT='abc': ")
    assert len(ended.output.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("--guidance-scale", "nan"),
        ("--guidance-scale", "inf"),
        ("--strength", "nan"),
        ("--lora", "style:nan"),
        ("--lora", "style:1e999"),
        ("--size", "64x64", "--negative-prompt", "\udcff"),
        ("--api-key", "a\nb"),
    ],
)
def test_what_no_request_can_say_is_one_sentence(arguments: tuple[str, ...]) -> None:
    away = ("--server", "http://127.0.0.1:1")
    ended = CliRunner().invoke(cli, ["generate", "a fox", *arguments, *away])
    assert ended.exit_code == 2, ended.output
    assert isinstance(ended.exception, SystemExit)


@pytest.mark.parametrize("limit", ["--per-minute", "--active", "--per-day"])
def test_limits_beyond_what_is_counted_exactly_are_none(limit: str) -> None:
    ended = CliRunner().invoke(cli, ["keys", "create", "shop", limit, "9" * 23])
    assert (ended.exit_code, limit in ended.output) == (2, True)


@pytest.mark.parametrize("given", [b"\xff\xfe\n", b"a fox\n\x89PNG"])
def test_prompts_that_are_no_text_are_one_sentence(given: bytes, tmp_path: Path) -> None:
    ended = CliRunner().invoke(cli, ["generate", "-", "-o", f"{tmp_path}/out/"], input=given)
    assert (ended.exit_code, "not text in UTF-8" in ended.output) == (2, True)


@pytest.mark.parametrize("form", ["> /dev/full", "--json > /dev/full"])
def test_output_to_a_full_place_is_one_sentence(form: str) -> None:
    line = f"{sys.executable} -m app.cli settings {form}"
    ended = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr == "avocat: cannot write the output: No space left on device\n"


def test_output_in_another_encoding_is_told() -> None:
    env = os.environ | {"PYTHONIOENCODING": "ascii"}
    argv = [sys.executable, "-m", "app.cli", "settings"]
    ended = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_programs_are_of_this_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    path = programs.environment()["PYTHONPATH"].split(":")
    assert path[1:] == ["/elsewhere"]
    assert programs.environment()["PYTHONSAFEPATH"] == "1"


def test_pictures_get_names(tmp_path: Path) -> None:
    job = Job.model_validate(JOB | {"images": [IMAGE, IMAGE | {"index": 1, "seed": 8}]})
    one = Target(f"{tmp_path}/cat.webp", None, prompts=1)
    assert one.picture_format == "webp"
    assert one.file(job, job.images[1], 1) == tmp_path / "cat-2.webp"
    several = Target(f"{tmp_path}/new/", "jpeg", prompts=2)
    assert several.file(job, job.images[0], 12) == tmp_path / "new" / "012-a-red-apple-7.jpg"


@pytest.mark.parametrize(
    ("output", "wanted", "prompts", "part"),
    [
        ("a.tiff", None, 1, "should end in .png"),
        ("a.png", "webp", 1, "should end in .webp, or"),
        ("a.png", None, 2, "need a folder"),
        ("no/a.png", None, 1, "no folder 'no'"),
    ],
)
def test_names_that_cannot_be(
    output: str, wanted: str | None, prompts: int, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit):
        Target(output, wanted, prompts)
    assert part in capsys.readouterr().err


def test_a_picture_in_characters() -> None:
    picture = Image.new("RGBA", (8, 8), (255, 0, 0, 255))
    picture.paste((0, 0, 0, 0), (4, 0, 8, 8))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    text = half_blocks(buffer.getvalue(), columns=4)
    assert text.plain == "\n".join(["▀▀▀▀"] * 2)
    colours = [str(span.style) for span in text.spans]
    assert colours[0] == "#ff0000 on #ff0000"
    assert colours[2] == "#999999 on #999999"  # the board under what is transparent
