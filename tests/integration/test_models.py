"""An imported model in a service that runs: seen, loaded, drawn with, unloaded, forgotten."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from models.stable_diffusion.__main__ import main as import_main
from tests.integration.service import Service, avocat, wait_until
from tests.models.tiny_diffusers import build_pipeline

pytestmark = pytest.mark.filterwarnings("ignore")
DEADLINE_S = 300.0


@pytest.fixture
def service(tmp_path: Path, tiny_bundle: Path) -> Iterator[Service]:
    with Service(tmp_path / "data", tiny_bundle) as running:
        yield running


def listed(service: Service) -> dict[str, Any]:
    ended = avocat("models", "list", "--json", server=service.url)
    assert ended.returncode == 0, ended.stderr
    return {row["model"]: row for row in map(json.loads, ended.stdout.splitlines())}


def models(service: Service) -> dict[str, bool]:
    return {one["id"]: one["loaded"] for one in service.http.get("/v1/models").json()["data"]}


def test_an_import_is_served_without_a_restart(service: Service, tmp_path: Path) -> None:
    source = build_pipeline(tmp_path / "stable-diffusion", "sd1")
    data_dir = service.settings["data_dir"]
    assert models(service) == {"tiny": True}
    into = Path(data_dir) / "models"
    assert import_main([str(source), "--name", "sd", "--into", str(into)]) == 0
    wait_until(lambda: "sd" in models(service), DEADLINE_S, "the import")
    assert models(service) == {"sd": False, "tiny": True}
    assert (listed(service)["sd"]["state"], listed(service)["sd"]["source"]) == (
        *("available", str(source)),
    )
    jobs = [service.submit("a red apple", model=name, steps=4) for name in ("sd", "tiny")]
    for job in jobs:
        assert len(service.pictures(service.finished(job["id"], DEADLINE_S))) == 1
    both = {"sd": True, "tiny": True}
    wait_until(lambda: models(service) == both, DEADLINE_S, "the word that it is loaded")
    assert len(service.parts) == 3  # Redis, the API, and one worker for both

    ended = avocat("models", "unload", "sd", server=service.url)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("sd available at ")
    ended = avocat("models", "load", "sd", server=service.url)
    assert ended.stdout.startswith("sd loaded at "), ended.stderr

    unet = source / "unet" / "diffusion_pytorch_model.safetensors"
    before = unet.read_bytes()
    ended = avocat("models", "remove", "sd", data_dir=data_dir)
    assert ended.returncode == 0, ended.stderr
    wait_until(lambda: "sd" not in models(service), DEADLINE_S, "the removal")
    assert unet.read_bytes() == before
    answer = service.http.post("/v1/jobs", json={"prompt": "a red apple", "model": "sd"})
    assert answer.status_code == 404
