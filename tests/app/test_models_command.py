"""`avocat models`, against a served application and a folder of imports."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from app.api_keys import KeyStore, Scope, new_key
from app.cli import cli
from app.jobs.fleet import ModelState, Placement
from tests.app.service import Serve, Service, listening
from tests.app.test_model_moves import write


def run(*arguments: str, **env: str) -> Result:
    return CliRunner().invoke(cli, ["models", *arguments], env=env)


async def asked(service: Service, *arguments: str, **env: str) -> Result:
    async with listening(service.app) as url:
        return await asyncio.to_thread(run, *arguments, AVOCAT_SERVER=url, **env)


async def test_list_shows_where_models_are_and_why_they_are_not(service: Service) -> None:
    damaged = Placement(model="old", state=ModelState.FAILED, detail="its files are gone")
    write(service, "w1", tiny=ModelState.LOADED, sd15=ModelState.AVAILABLE, old=damaged)
    ended = await asked(service, "list")
    assert ended.exit_code == 0, ended.output
    head, *rows, memory = ended.output.splitlines()
    assert head.split() == ["model", "state", "weights", "worker", "device", "from"]
    assert [row.split()[:2] for row in rows] == [
        ["old", "failed"],
        ["sd15", "available"],
        ["tiny", "loaded"],
    ]
    assert "its files are gone" in rows[0]
    assert "1,000 MB" in rows[1]
    assert memory == "w1: 8,000 MB free on cpu"
    ended = await asked(service, "list", "--json")
    assert [json.loads(line)["model"] for line in ended.output.splitlines()] == [
        *("old", "sd15", "tiny")
    ]


async def test_list_without_the_scope_shows_what_clients_may_know(serve: Serve) -> None:
    async with serve() as service:
        write(service, "w1", tiny=ModelState.LOADED)
        key, secret = new_key("user", scopes=[Scope.READ])
        KeyStore(service.redis).add(key)
        ended = await asked(service, "list", AVOCAT_API_KEY=secret)
        refused = await asked(service, "load", "tiny", AVOCAT_API_KEY=secret)
    assert ended.exit_code == 0, ended.output
    assert "scope 'admin'" in ended.stderr
    assert ended.stdout.splitlines()[1].split() == ["tiny", "loaded"]
    assert "w1" not in ended.output
    assert refused.exit_code == 5


async def test_load_and_unload_tell_where_it_is(service: Service) -> None:
    write(service, "w1", tiny=ModelState.LOADED)
    ended = await asked(service, "load", "tiny")
    assert (ended.exit_code, ended.output) == (0, "tiny loaded at w1 (cpu)\n")
    ended = await asked(service, "load", "nothing")
    assert ended.exit_code == 2
    assert "they have: 'tiny'" in ended.output
    write(service, "w1", tiny=ModelState.AVAILABLE)
    ended = await asked(service, "unload", "tiny", "--json")
    assert json.loads(ended.output)["loaded"] is False


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data" / "models"


def imported(folder: Path, name: str, **entry: Any) -> Path:
    (folder / name).mkdir(parents=True)
    (folder / name / "bundle.json").write_text(json.dumps({"kind": "stable_diffusion"} | entry))
    return folder / name


def test_remove_forgets_the_import_and_no_file_of_the_user(folder: Path, tmp_path: Path) -> None:
    weights = tmp_path / "sd" / "unet.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"gigabytes")
    path = imported(folder, "sd15", source=str(weights.parent))
    ended = run("remove", "sd15", AVOCAT_DATA_DIR=str(folder.parent))
    assert ended.exit_code == 0, ended.output
    assert ended.output == f"sd15 is forgotten; its files stay in {weights.parent}\n"
    assert not path.exists()
    assert weights.read_bytes() == b"gigabytes"


def test_remove_leaves_what_else_is_in_the_folder(folder: Path) -> None:
    path = imported(folder, "sd15", source="/srv/sd")
    (path / "notes.txt").write_text("mine")
    assert run("remove", "sd15", AVOCAT_DATA_DIR=str(folder.parent)).exit_code == 0
    assert [file.name for file in path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nothing", "these were: own, sd15"),
        ("own", "weights of its own, which are not deleted"),
        ("../own", "should be letters, digits"),
        ("/etc", "should be letters, digits"),
    ],
)
def test_remove_refuses_what_is_no_import(folder: Path, name: str, said: str) -> None:
    imported(folder, "sd15", source="/srv/sd")
    own = imported(folder, "own", kind="bundle")
    ended = run("remove", name, AVOCAT_DATA_DIR=str(folder.parent))
    assert ended.exit_code == 2
    assert said in ended.output
    assert (own / "bundle.json").is_file()


def test_a_damaged_import_can_be_removed(folder: Path) -> None:
    path = imported(folder, "sd15")
    (path / "bundle.json").write_text("{")
    assert run("remove", "sd15", AVOCAT_DATA_DIR=str(folder.parent)).exit_code == 0
    assert not path.exists()
