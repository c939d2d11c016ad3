"""`GET /v1/images/{name}`: bytes, conditions, ranges, signatures."""

import hashlib
import time
from urllib.parse import parse_qs, urlsplit

import pytest

from app import keys
from tests.app.service import PNG, Serve, Service

SHA = hashlib.sha256(PNG).hexdigest()


async def drawn(service: Service) -> str:
    """The signed URL of a fresh picture."""
    job_id = (await service.submit())["id"]
    service.draw(job_id)
    return str((await service.job(job_id))["images"][0]["url"])


async def test_the_signed_url_gives_the_bytes(service: Service) -> None:
    answer = await service.client.get(await drawn(service))
    assert (answer.status_code, answer.content) == (200, PNG)
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["etag"] == f'"{SHA}"'
    assert answer.headers["cache-control"] == "private, max-age=31536000, immutable"
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["content-length"] == str(len(PNG))


async def test_head_is_get_without_the_bytes(service: Service) -> None:
    url = await drawn(service)
    got = await service.client.get(url)
    head = await service.client.head(url, headers={"range": "bytes=0-9"})
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == got.headers["content-length"]
    assert head.headers["etag"] == got.headers["etag"]


@pytest.mark.parametrize(
    ("value", "first", "last"),
    [
        ("bytes=0-9", 0, 9),
        ("bytes=5-", 5, len(PNG) - 1),
        ("bytes=-7", len(PNG) - 7, len(PNG) - 1),
        (f"bytes=0-{len(PNG) * 9}", 0, len(PNG) - 1),
        (f"bytes=-{len(PNG) * 9}", 0, len(PNG) - 1),
        ("Bytes=3-3", 3, 3),
    ],
)
async def test_ranges(service: Service, value: str, first: int, last: int) -> None:
    answer = await service.client.get(await drawn(service), headers={"range": value})
    assert (answer.status_code, answer.content) == (206, PNG[first : last + 1])
    assert answer.headers["content-range"] == f"bytes {first}-{last}/{len(PNG)}"
    assert answer.headers["etag"] == f'"{SHA}"'


@pytest.mark.parametrize(
    "value", ["bytes=9-3", "bytes=-", "lines=0-1", "bytes=0-1,4-5", "bytes=x-"]
)
async def test_ranges_not_understood_are_ignored(service: Service, value: str) -> None:
    answer = await service.client.get(await drawn(service), headers={"range": value})
    assert (answer.status_code, answer.content) == (200, PNG)


@pytest.mark.parametrize("value", [f"bytes={len(PNG)}-", "bytes=-0"])
async def test_a_range_behind_the_end(service: Service, value: str) -> None:
    answer = await service.client.get(await drawn(service), headers={"range": value})
    assert answer.status_code == 416
    assert answer.headers["content-range"] == f"bytes */{len(PNG)}"
    assert answer.json()["type"] == "/problems/range-not-satisfiable"


async def test_if_range(service: Service) -> None:
    url = await drawn(service)
    for tag, status in ((f'"{SHA}"', 206), ('"other"', 200)):
        headers = {"range": "bytes=0-1", "if-range": tag}
        assert (await service.client.get(url, headers=headers)).status_code == status


@pytest.mark.parametrize(
    ("value", "status"),
    [(f'"{SHA}"', 304), (f'"x", W/"{SHA}"', 304), ("*", 304), ('"x"', 200), (SHA, 200)],
)
async def test_if_none_match(service: Service, value: str, status: int) -> None:
    url = await drawn(service)
    headers = (
        {"if-none-match": value, "range": "bytes=0-1"}
        if status == 304
        else {"if-none-match": value}
    )
    answer = await service.client.get(url, headers=headers)
    assert answer.status_code == status
    assert answer.headers["etag"] == f'"{SHA}"'
    assert (answer.content == b"") is (status == 304)


async def test_the_bare_path_needs_the_owner(serve: Serve) -> None:
    async with serve(api_keys="ann:a,bob:b") as service:
        ann, bob = {"authorization": "Bearer a"}, {"authorization": "Bearer b"}
        job_id = (await service.submit(headers=ann))["id"]
        [image] = service.draw(job_id)
        path = f"/v1/images/{image.name}"
        for headers, status in ((ann, 200), (bob, 404), ({}, 401)):
            assert (await service.client.get(path, headers=headers)).status_code == status
        job = (await service.client.get(f"/v1/jobs/{job_id}", headers=ann)).json()
        assert (await service.client.get(job["images"][0]["url"])).status_code == 200


async def test_tampered_urls_are_refused(service: Service) -> None:
    url, other = await drawn(service), await drawn(service)
    path, query = urlsplit(url).path, parse_qs(urlsplit(url).query)
    expires, signature = query["expires"][0], query["signature"][0]
    for tampered in (
        f"{urlsplit(other).path}?expires={expires}&signature={signature}",
        f"{path}?expires={int(expires) + 1}&signature={signature}",
        f"{path}?expires={expires}&signature={'0' * 64}",
        f"{path}?expires={expires}&signature=%C3%A9",
        f"{path}?expires={expires}",
        f"{path}?signature={signature}",
        f"{path}?expires=-1&signature={signature}",
    ):
        answer = await service.client.get(tampered)
        assert answer.status_code == 403, tampered
        assert answer.json()["type"] == "/problems/signature-invalid"


async def test_urls_expire(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    url = await drawn(service)
    now = time.time()
    monkeypatch.setattr("app.signing.time.time", lambda: now + 3590)
    assert (await service.client.get(url)).status_code == 200
    monkeypatch.setattr("app.signing.time.time", lambda: now + 3601)
    answer = await service.client.get(url)
    assert (answer.status_code, answer.json()["type"]) == (403, "/problems/signature-expired")


async def test_a_fresh_look_gives_a_fresh_url(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = await drawn(service)
    job_id = urlsplit(url).path.rpartition("/")[2].partition("_")[0]
    now = time.time()
    monkeypatch.setattr("app.signing.time.time", lambda: now + 7200)
    fresh = (await service.job(job_id))["images"][0]["url"]
    assert fresh != url
    assert (await service.client.get(fresh)).status_code == 200


async def test_all_processes_sign_alike(serve: Serve) -> None:
    async with serve() as one, serve() as other:
        url = await drawn(one)
        assert (await other.client.get(url)).status_code == 200
        assert one.redis.exists(keys.SIGNING_KEY)
    async with serve(signing_key="mine") as third:
        assert (await third.client.get(url)).status_code == 403


async def test_a_file_that_cannot_be_read_now_is_not_called_lost(service: Service) -> None:
    image = service.draw((await service.submit())["id"])[0]
    path = service.storage.path(image.name)
    path.rename(path.with_name("aside"))
    path.mkdir()  # root may read every file, but nobody a folder
    url = f"/v1/images/{image.name}"
    answer = await service.client.get(url)
    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == "5"
    path.rmdir()
    path.with_name("aside").rename(path)
    assert (await service.client.get(url)).status_code == 200


async def test_a_damaged_file_is_never_sent(service: Service) -> None:
    url = await drawn(service)
    path = service.storage.path(urlsplit(url).path.rpartition("/")[2])
    path.write_bytes(PNG[:-1])
    assert (await service.client.get(url)).status_code == 404
    path.unlink()
    answer = await service.client.get(url)
    assert (answer.status_code, answer.json()["type"]) == (404, "/problems/image-not-found")
    assert str(path.parent) not in answer.text


async def test_images_of_an_unfinished_attempt_are_not_served(service: Service) -> None:
    job_id = (await service.submit())["id"]
    service.take(job_id)
    service.storage.write(f"{job_id}_e1_0.png", PNG)
    assert (await service.client.get(f"/v1/images/{job_id}_e1_0.png")).status_code == 404
