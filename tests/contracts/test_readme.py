"""What the README says is so: its commands exist, its table of settings is the code's.

Write the table anew with: python -m tests.contracts.test_readme
"""

import re
from pathlib import Path

from typer.main import get_command

from app.cli import cli
from app.commands.settings import markdown

REPOSITORY = Path(__file__).resolve().parents[2]
README = REPOSITORY / "README.md"
TABLE = re.compile(r"(<!-- settings:[^\n]*-->\n).*?(<!-- /settings -->)", re.DOTALL)


def with_table(text: str) -> str:
    return TABLE.sub(lambda found: f"{found[1]}\n{markdown()}\n{found[2]}", text)


def test_table_of_settings_is_that_of_the_code() -> None:
    text = README.read_text()
    assert "AVOCAT_PORT" in text
    assert with_table(text) == text


def test_every_avocat_command_exists_and_is_named() -> None:
    named = set(re.findall(r"\bavocat ([a-z-]+)", README.read_text()))
    assert named == set(get_command(cli).commands)


def test_every_make_target_exists() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    used = re.findall(r"\bmake ((?:[a-z]+ ?)+)", README.read_text())
    targets = {target for words in used for target in words.split()}
    assert {"demo", "serve", "test", "lint", "types", "bench"} <= targets
    missing = [target for target in targets if f"\n{target}:" not in makefile]
    assert missing == []


def test_every_linked_file_exists() -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]+)\)", README.read_text())
    assert [link for link in links if not (REPOSITORY / link).exists()] == []


if __name__ == "__main__":
    README.write_text(with_table(README.read_text()))
