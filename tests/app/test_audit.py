"""The audit log: who did what; and what is not in it."""

import json
import stat
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from app.audit import Audit, AuditError
from tests.app.service import Service

Serve = Callable[..., AbstractAsyncContextManager[Service]]
ANN = {"Authorization": "Bearer hush-hush"}


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


async def test_who_did_what_from_where(serve: Serve, tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    async with serve(api_keys="ann:hush-hush", audit_log=file) as service:
        job = await service.submit(ANN | {"X-Request-Id": "r-1"}, prompt="a secret cat")
        [image] = service.draw(job["id"])
        url = (await service.job_as(job["id"], ANN))["images"][0]["url"]
        assert (await service.client.get(url)).status_code == 200
        await service.client.get(f"/v1/images/{image.name}", headers=ANN)
        await service.client.delete(f"/v1/jobs/{job['id']}", headers=ANN)
        await service.client.get("/v1/jobs", headers={"Authorization": "Bearer guess"})
        await service.client.get("/healthz")
        await service.client.get("/v1/nowhere")
    told = lines(file)
    kept = [(one["action"], one["status"], one.get("owner"), one.get("job")) for one in told]
    assert kept == [
        ("submit", 202, "ann", job["id"]),
        ("look at job", 200, "ann", job["id"]),
        ("fetch image", 200, None, None),  # by the signed URL: anybody
        ("fetch image", 200, "ann", None),
        ("cancel", 200, "ann", job["id"]),
        ("list jobs", 401, None, None),
    ]
    assert told[0]["request_id"] == "r-1"
    assert told[0]["key"] == "ann"
    assert told[2]["image"] == image.name
    assert told[5]["problem"] == "unauthorized"
    assert all(one["address"] and one["time"].endswith("Z") for one in told)
    text = file.read_text("utf-8")
    assert "secret cat" not in text
    assert "hush-hush" not in text
    assert "signature" not in text
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/images/generations"])
async def test_prompts_where_they_are_wanted(serve: Serve, tmp_path: Path, path: str) -> None:
    file = tmp_path / "audit.jsonl"
    async with serve(audit_log=file, audit_prompts=True, sync_timeout_s=1) as service:
        await service.client.post(path, json={"prompt": "eine Katze 🥑 {}"})
    assert [one["prompt"] for one in lines(file)] == ["eine Katze 🥑 {}"]


async def test_a_file_that_was_moved_away_is_begun_anew(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    audit = Audit(file)
    audit.note({"action": "one"})
    while not file.read_text("utf-8"):
        pass
    file.rename(tmp_path / "audit.1")
    audit.note({"action": "two"})
    audit.close()
    assert [one["action"] for one in lines(tmp_path / "audit.1")] == ["one"]
    assert [one["action"] for one in lines(file)] == ["two"]


async def test_a_disk_that_is_full_disturbs_no_request(serve: Serve) -> None:
    async with serve(audit_log=Path("/dev/full")) as service:
        for _ in range(3):
            await service.submit()


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(AuditError, match="nowhere"):
        Audit(tmp_path / "nowhere" / "audit.jsonl")


async def test_many_notes_are_all_kept_in_order(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "a")
    for i in range(2000):
        audit.note({"action": "x", "i": i})
    audit.close()
    assert [one["i"] for one in lines(tmp_path / "a")] == list(range(2000))
