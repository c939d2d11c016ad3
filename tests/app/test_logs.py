"""What the log looks like, to people and to machines."""

import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from app import logs
from tests.app.service import Service

_log = structlog.get_logger()


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    logs.configure("warning")
    logging.captureWarnings(False)


def fail() -> None:
    secret = "a local variable"
    raise ValueError(f"it broke {len(secret)}")


def say_all() -> None:
    _log.debug("too little")
    _log.info("request", path="/v1/jobs")
    logging.getLogger("library").warning("its %s", "line")
    try:
        fail()
    except ValueError:
        _log.exception("bug")


def test_json_lines_also_of_libraries(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", as_json=True)
    say_all()
    ours, theirs, bug = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert ours.items() >= {"event": "request", "path": "/v1/jobs", "level": "info"}.items()
    assert ours["timestamp"].endswith("Z")
    assert theirs.items() >= {"event": "its line", "level": "warning", "logger": "library"}.items()
    assert "ValueError: it broke 16" in bug["exception"]
    assert "a local variable" not in str(bug)


def test_text_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info")
    say_all()
    said = capsys.readouterr().err
    first, second, *bug = said.splitlines()
    assert "[info     ] request" in first
    assert first.endswith("path=/v1/jobs")
    assert "[warning  ] its line" in second
    assert bug[-1] == "ValueError: it broke 16"
    assert "a local variable" not in said
    assert "\x1b" not in said  # no colours where no terminal is


async def test_no_client_writes_a_line_of_its_own(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    for as_json in (False, True):
        logs.configure("info", as_json=as_json)
        await service.client.get("/v1/jobs/%0A2026-01-01%20[error]%20forged%1B[2J")
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert "\x1b" not in lines[0]
        assert "forged" in lines[0]


async def test_lines_of_a_request_have_its_id(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure("info", as_json=True)
    headers = {"X-Request-Id": "of-the-client"}
    job = await service.submit(headers=headers)
    (line,) = map(json.loads, capsys.readouterr().err.splitlines())
    assert (line["request_id"], line["job_id"]) == ("of-the-client", job["id"])
    await service.client.get("/v1/models")
    (line,) = map(json.loads, capsys.readouterr().err.splitlines())
    assert "job_id" not in line  # nothing of the request before
    record = service.store.get(job["id"])
    assert record is not None
    assert record.log_fields == {"job_id": job["id"], "request_id": "of-the-client"}
