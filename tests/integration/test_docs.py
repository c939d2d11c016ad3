"""The examples of the documents, run as they stand against a real service."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.service import Service, avocat, environment

REPOSITORY = Path(__file__).resolve().parents[2]
ADDRESS = "http://127.0.0.1:8000"
TOOLS = {"sh": ("curl", "jq"), "python": (), "js": ("node",)}


def program(document: str, language: str, service: Service) -> str:
    """All blocks of one language, in their order."""
    text = (REPOSITORY / "docs" / document).read_text()
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert blocks, f"{document} has no {language}"
    return "\n".join(blocks).replace(ADDRESS, service.url)


@pytest.mark.parametrize(
    ("document", "language"),
    [
        *(("api.md", language) for language in ("sh", "python", "js")),
        *(("clients.md", language) for language in ("python", "sh")),
    ],
)
def test_examples_run(service: Service, tmp_path: Path, document: str, language: str) -> None:
    missing = [tool for tool in TOOLS[language] if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"examples in {language} need {missing[0]}, which is not on this machine")
    code = program(document, language, service)
    (tmp_path / "avocat").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m app.cli "$@"\n')
    (tmp_path / "avocat").chmod(0o755)
    secret = avocat("webhook-secret", data_dir=service.settings["data_dir"])
    (tmp_path / "webhook-secret.txt").write_text(secret.stdout)
    command = {
        "sh": ["bash", "-euo", "pipefail", "-c", code],
        "python": [sys.executable, "-c", code],
        "js": ["node", "--input-type=module", "-e", code],
    }[language]
    variables = environment({"server": service.url}) | {"PYTHONPATH": str(REPOSITORY)}
    ended = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False,
        env=variables | {"PATH": f"{tmp_path}:{variables['PATH']}"},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_every_route_of_the_reference_has_examples(service: Service) -> None:
    """A route that the OpenAPI document has and the page does not would be hard to find."""
    text = (REPOSITORY / "docs" / "api.md").read_text()
    for path, methods in service.http.get("/openapi.json").json()["paths"].items():
        shown = re.sub(r"\{\w+\}", "{}", path)
        named = re.sub(r"\{\w+\}", "{}", text)
        for method in methods:
            assert f"`{method.upper()} {shown}`" in named, (method, path)
