"""`docs/security.md` names tests that are there."""

import ast
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (REPOSITORY / "docs/security.md").read_text())


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_a_named_test_is_there(file: str, name: str) -> None:
    tree = ast.parse((REPOSITORY / file).read_text("utf-8"))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    assert name in {node.name for node in ast.walk(tree) if isinstance(node, kinds)}


def test_every_line_of_the_threat_model_names_one() -> None:
    text = (REPOSITORY / "docs/security.md").read_text().partition("## Threat model")[2]
    rows = [line for line in text.splitlines() if line.startswith("| ")][2:]
    assert len(rows) >= 25
    assert all("::test_" in row for row in rows)
