"""The file of results, the table made from it, and the plots."""

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import __main__ as program
from benchmarks import page, plots
from benchmarks.__main__ import PAGE, RESULTS, command_of
from benchmarks.results import Result

GOOD = Result("a ÷ b", 2.5, 2.0, 3.0, "times", 2.0, "a machine", "2026-11-23", "run a")
SHORT = replace(GOOD, name="c", value=0.5, at_least=0.95, command="run c")
TOLD = replace(GOOD, name="d", value=1234.5, at_least=None, command="run c", date="2026-11-22")


def test_results_are_a_list_of_objects(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    page.write(file, [GOOD, TOLD])
    [first, second] = json.loads(file.read_text("utf-8"))
    assert list(first) == [field.name for field in fields(Result)]
    assert (first["value"], first["at_least"], second["at_least"]) == (2.5, 2.0, None)
    assert page.read(file) == [GOOD, TOLD]
    assert page.read(tmp_path / "none.json") == []


def test_new_lines_take_the_place_of_those_of_their_command() -> None:
    faster = replace(GOOD, name="a ÷ b, renamed", value=3.0)
    gone = replace(GOOD, command="run nothing")
    kept = page.merged([SHORT, GOOD, gone, TOLD], [faster], ["run a", "run c"])
    assert kept == [faster, SHORT, TOLD]


def test_the_table_says_what_was_reached_where_and_when() -> None:
    lines = page.table([GOOD, SHORT, TOLD]).splitlines()
    assert "| a ÷ b | 2.5 times | 2 to 3 | 2 | yes |" in lines
    assert "| c | 0.5 times | 2 to 3 | 0.95 | **no** |" in lines
    assert "| d | 1234 times | 2 to 3 |  |  |" in lines
    assert "- 2026-11-22, a machine: `run c`" in lines
    assert "- 2026-11-23, a machine: `run a`, `run c`" in lines


def test_only_what_is_between_the_marks_changes() -> None:
    text = f"before\n{page.FIRST_MARK}\nold\n{page.LAST_MARK}\nafter\n"
    new = page.with_table(text, [GOOD])
    assert new.startswith("before\n")
    assert new.endswith("after\n")
    assert ("a ÷ b" in new, "old" in new) == (True, False)
    assert page.with_table(new, [GOOD]) == new
    with pytest.raises(ValueError, match="should have"):
        page.with_table("no marks", [GOOD])


def test_the_page_shows_the_results_that_are_kept() -> None:
    text = PAGE.read_text("utf-8")
    assert page.with_table(text, page.read(RESULTS)) == text


def test_plots_are_pictures(tmp_path: Path) -> None:
    series = {"Avocat, 1.2": [0.1, 0.3, 0.2], "static batches, 1.2": [1.0, 2.0]}
    files = [
        plots.draw_results([GOOD, SHORT, TOLD], tmp_path / "new"),
        plots.draw_latencies(series, tmp_path / "new"),
    ]
    for file in files:
        with Image.open(file) as picture:
            assert picture.format == "PNG"
            assert min(picture.size) > 100


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the place of the repository's files."""
    monkeypatch.setattr(program, "RESULTS", tmp_path / "results.json")
    monkeypatch.setattr(program, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(program, "PICTURES", tmp_path)
    (tmp_path / "page.md").write_text(f"{page.FIRST_MARK}\n{page.LAST_MARK}\n", "utf-8")
    return tmp_path


def test_results_of_another_machine_are_merged(kept: Path) -> None:
    page.write(kept / "gpu.json", [replace(GOOD, command="python -m benchmarks.gpu --only sd")])
    page.write(kept / "results.json", [replace(SHORT, command=command_of("forward"))])
    assert program.main(["--merge", str(kept / "gpu.json")]) == 0
    assert [one.name for one in page.read(kept / "results.json")] == ["c", "a ÷ b"]
    assert "a ÷ b" in (kept / "page.md").read_text("utf-8")
    assert (kept / "benchmarks.png").exists()


def test_an_unknown_name_is_answered_with_those_there_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        program.main(["forwards"])
    assert "there is no forwards; there are forward, gemm, " in capsys.readouterr().err


def test_figures_of_a_busy_machine_are_not_kept(
    kept: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(program, "busy_share", lambda: 0.5)
    assert program.main(["forward"]) == 1
    assert "50% of the processor" in capsys.readouterr().err
    assert not (kept / "results.json").exists()
