"""Pages for people work without any outside host."""

import json
import re
from pathlib import Path

import pytest

import app
from app import keys
from app.main import create_app
from app.settings import Settings
from tests.app.service import CARD, Service
from worker import problems

WEB = Path(app.__file__).parent / "web"


@pytest.mark.parametrize("path", ["/", "/docs"])
async def test_no_outside_host(service: Service, path: str) -> None:
    page = await service.client.get(path)
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert "//" not in re.sub(r"(?m)^\s*//.*$", "", page.text)


async def test_the_reference_finds_its_files(service: Service) -> None:
    page = (await service.client.get("/docs")).text
    files = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(files) == 3
    for file in [*files, "/openapi.json"]:
        assert (await service.client.get(file)).status_code == 200
    assert "'/openapi.json'" in page
    assert '"validatorUrl": null' in page


async def test_the_playground_finds_its_files(service: Service) -> None:
    page = await service.client.get("/")
    files = set(re.findall(r'(?:src|href)="([^"#]+)"', page.text)) | {"assets/gallery.js"}
    for file in files:
        answer = await service.client.get(f"/{file}")
        assert answer.status_code == 200, file
        if file.startswith("assets/"):
            assert answer.headers["cache-control"] == "no-cache"
            assert "etag" in answer.headers
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "unsafe" not in page.headers["content-security-policy"]
    assert (await service.client.get("/assets/nothing.js")).json()["type"] == "/problems/not-found"


def test_the_playground_has_words_for_every_problem_it_may_meet() -> None:
    code = (WEB / "api.js").read_text()
    known = set(re.findall(r'^  "?([a-z-]+)"?: \[', code, re.MULTILINE))
    paths = create_app(Settings()).openapi()["paths"]
    used = [paths[path] for path in paths if path.startswith(("/v1/jobs", "/v1/models"))]
    answers = set(re.findall(r"/problems/([a-z-]+)", json.dumps(used)))
    endings = set(re.findall(r'_problem\("([a-z-]+)"', Path(problems.__file__).read_text()))
    assert len(answers) > 8
    assert len(endings) > 5
    assert answers | endings <= known


async def test_the_reference_names_the_sizes_of_this_server(service: Service) -> None:
    document = (await service.client.get("/openapi.json")).json()
    schemas = document["components"]["schemas"]
    sizes = [*CARD.sizes, None]
    assert schemas["JobCreate"]["properties"]["size"]["anyOf"] == [{"enum": sizes}]
    images = schemas["ImageGeneration"]["properties"]["size"]["anyOf"]
    assert images == [{"enum": ["auto", *sizes]}]
    form = create_app(Settings()).openapi()  # what is not known of a server is left open
    assert "enum" not in str(form["components"]["schemas"]["JobCreate"]["properties"]["size"])


async def test_the_reference_is_there_without_models(service: Service) -> None:
    service.redis.delete(keys.MODELS)
    document = (await service.client.get("/openapi.json")).json()
    assert "pattern" in str(document["components"]["schemas"]["JobCreate"]["properties"]["size"])
