"""Pages for people work without any outside host."""

import re

import pytest

from tests.app.service import Service


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


async def test_the_front_page_leads_to_the_reference(service: Service) -> None:
    assert 'href="docs"' in (await service.client.get("/")).text
