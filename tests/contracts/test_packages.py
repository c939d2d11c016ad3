"""Which package needs what: no torch in the API, every import declared, every version pinned."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
OURS = {"app", "worker", "models", "tests"}
# They come with what is declared, which exists to bring them.
BROUGHT = {"starlette": "fastapi", "anyio": "fastapi", "pydantic-core": "pydantic"}
# One module, many distributions: which one is found first is chance.
BROUGHT |= dict.fromkeys(
    [
        *("opentelemetry-api", "opentelemetry-proto", "opentelemetry-semantic-conventions"),
        *("opentelemetry-exporter-otlp-common", "opentelemetry-exporter-otlp-proto-common"),
        "opentelemetry-exporter-http-transport",
    ],
    "opentelemetry-sdk",
)


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[<>=!~\[; ]", name, maxsplit=1)[0]).lower()


def declared(*extras: str) -> set[str]:
    lists = [PROJECT["dependencies"], *(PROJECT["optional-dependencies"][e] for e in extras)]
    return {normal(requirement) for found in lists for requirement in found}


def imported(package: str) -> set[str]:
    """Distributions whose modules a package of ours imports, anywhere in its files."""
    modules = set()
    for file in (REPOSITORY / package).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules.add(node.module.partition(".")[0])
    owners = packages_distributions()
    foreign = modules - OURS - set(sys.stdlib_module_names)
    names = {normal(owners.get(module, [module])[0]) for module in foreign}
    return {BROUGHT.get(name, name) for name in names}


@pytest.mark.parametrize(
    ("package", "extras"),
    [
        ("app", ["s3", "tracing"]),
        ("worker", ["worker", "onnx", "openvino"]),
        ("models", ["worker", "train", "sd"]),
    ],
)
def test_every_import_is_declared(package: str, extras: list[str]) -> None:
    assert imported(package) - declared(*extras) <= {"sentence-transformers"}  # train brings it


def test_every_dependency_is_pinned() -> None:
    lines = (REPOSITORY / "constraints.txt").read_text().split()
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    pinned = {normal(line) for line in lines}
    assert declared(*PROJECT["optional-dependencies"]) <= pinned
    assert {"torch==2.13.0", "torchvision==0.28.0"} <= set(lines)


def test_the_api_loads_no_torch_and_no_models() -> None:
    code = (
        "import sys, app.main\n"
        "print(sorted(set(sys.modules) & {'torch', 'numpy', 'open_clip', 'models', 'worker'}))"
    )
    shown = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=REPOSITORY)
    assert shown.strip() == "[]"


def test_import_contracts_hold() -> None:
    tool = Path(sys.executable).with_name("lint-imports")
    ended = subprocess.run([tool, "--no-cache"], capture_output=True, text=True, cwd=REPOSITORY)
    assert ended.returncode == 0, ended.stdout
