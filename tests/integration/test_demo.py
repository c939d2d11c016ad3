"""One command, one picture: `avocat generate` against a service, and with one of its own."""

import io
import json
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from PIL import Image

from tests.integration.service import AVOCAT, Service, avocat, environment, wait_until

REPOSITORY = Path(__file__).resolve().parents[2]
BUNDLED = REPOSITORY / "bundles" / "emoji"


def opened(file: str | Path) -> Image.Image:
    return Image.open(io.BytesIO(Path(file).read_bytes()))


@pytest.mark.slow
@pytest.mark.skipif(not BUNDLED.is_dir(), reason="there is no bundled model yet")
def test_the_bundled_model_draws_something_on_nothing(tmp_path: Path) -> None:
    file = tmp_path / "apple.png"
    ended = avocat(
        "generate", "--serve", "--seed", "1", "-o", str(file), "a red apple", timeout_s=240
    )
    assert ended.returncode == 0, ended.stderr
    picture = opened(file)
    assert picture.mode == "RGBA"
    drawn = sum(alpha > 127 for alpha in picture.getchannel("A").tobytes()) / picture.width**2
    assert 0.1 < drawn < 0.9
    assert "a red apple" in str(picture.info)


@pytest.mark.slow
def test_generate_with_a_service_of_its_own(
    tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    file = tmp_path / "demo.png"
    ended = avocat(
        "generate", "--serve", "-o", str(file), "a cat", bundle=tiny_bundle, timeout_s=240
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == f"{file}\n"
    assert opened(file).size == (64, 64)  # the largest size
    assert [path.name for path in tmp_path.iterdir()] == ["demo.png"]
    assert [process for process in psutil.process_iter() if is_of(tmp_path, process)] == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_service_of_its_own_leaves_nothing_when_it_is_ended(
    number: signal.Signals, tmp_path: Path, tiny_bundle: Path
) -> None:
    argv = [*AVOCAT, "generate", "--serve", "a cat", "-o", str(tmp_path / "cat.png")]
    env = environment({"bundle": tiny_bundle}) | {"TMPDIR": str(tmp_path)}

    def heard() -> None:
        """As in a terminal, also where the tests run under nohup."""
        signal.signal(number, signal.SIG_DFL)

    with subprocess.Popen(argv, env=env, preexec_fn=heard) as started:
        wait_until(lambda: any(tmp_path.glob("avocat-*/data/redis")), 60, "a Redis of its own")
        started.send_signal(number)
        assert started.wait(60) == 128 + number
    assert list(tmp_path.iterdir()) == []


def is_of(folder: Path, process: psutil.Process) -> bool:
    """Whether a process works in `folder` or was told to keep its temporary files there."""
    try:
        return process.environ().get("TMPDIR") == str(folder) or str(folder) in process.cwd()
    except psutil.Error:
        return False


@pytest.mark.slow
def test_generate_writes_numbered_files_and_json(service: Service, tmp_path: Path) -> None:
    ended = avocat("generate", "a fox", "-n", "2", "--seed", "5", "--size", "16x16", "--json",
                   "-o", str(tmp_path / "fox.webp"), "--server", service.url)  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    job = json.loads(ended.stdout)
    assert job["files"] == [str(tmp_path / "fox-1.webp"), str(tmp_path / "fox-2.webp")]
    assert [opened(file).format for file in job["files"]] == ["WEBP", "WEBP"]
    assert [image["seed"] for image in job["images"]] == [5, 6]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (["generate", " "], 2, "prompt"),
        (["generate", "a fox", "--size", "17x17"], 2, "17x17"),
        (["generate", "a fox", "--model", "nobody"], 2, "nobody"),
        (["generate", "a fox", "--sampler", "magic"], 2, "sampler"),
    ],
)
def test_wrong_input_is_exit_code_2(
    service: Service, tmp_path: Path, arguments: list[str], code: int, part: str
) -> None:
    ended = avocat(*arguments, "-o", str(tmp_path / "x.png"), "--server", service.url)
    assert ended.returncode == code, ended.stderr
    assert part in ended.stderr
    assert not (tmp_path / "x.png").exists()


def test_no_service_is_exit_code_3(tmp_path: Path) -> None:
    ended = avocat(
        "generate", "a fox", "-o", str(tmp_path / "x.png"), "--server", "http://127.0.0.1:9"
    )
    assert ended.returncode == 3
    assert "no Avocat service at http://127.0.0.1:9" in ended.stderr


def test_file_that_cannot_be_is_found_before_anything_is_drawn(tmp_path: Path) -> None:
    ended = avocat("generate", "a fox", "-o", str(tmp_path / "no" / "x.png"), "--serve")
    assert ended.returncode == 2
    assert "there is no folder" in ended.stderr


PROMPTS = [
    'it\'s "quoted"',
    "costs $5 $(rm) ${HOME} $$",
    "avocado 🥑 ünïcode",
    "a;b|c&d > e",
    "-x",
    "a  b",
    "#1 `ls` \\",
]


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("given", ["argument", "environment"])
def test_make_demo_hands_over_any_prompt_unchanged(
    tmp_path: Path, prompt: str, given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = tmp_path / "avocat"
    stub.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    stub.chmod(0o755)
    (tmp_path / ".run").touch()
    place = ["-C", str(REPOSITORY), "-o", f"{tmp_path}/.run", f"VENV={tmp_path}", f"BIN={tmp_path}"]
    if given == "argument":
        place.append(f"PROMPT={prompt}")
    else:
        monkeypatch.setenv("PROMPT", prompt)
    printed = subprocess.check_output(["make", "-s", *place, "demo"], text=True, timeout=30)
    assert json.loads(printed)[-2:] == ["--", prompt]
