"""Images in a bucket of a real S3 service, which checks signatures."""

import base64
import hashlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import redis

from app import keys
from app.client import Avocat
from app.jobs.store import JobStore
from app.settings import Settings
from app.storage.base import ImageStorage, StorageError
from app.storage.opening import open_storage
from tests.app.service import PNG, Serve, serving
from tests.integration import rados
from tests.integration.rados import BUCKET, Rados
from tests.integration.service import Service, avocat, wait_until
from worker.ledger import Ledger
from worker.recovery import Recovery

pytestmark = pytest.mark.skipif(
    bool(rados.MISSING), reason=f"no S3 service to test with, for want of {rados.MISSING}"
)
NAME = "01J00000000000000000000000_abc_0.png"
OTHER = "01J00000000000000000000000_abc_1.webp"


@pytest.fixture(scope="module")
def bucket() -> Iterator[Rados]:
    with rados.running() as running:
        yield running


def opened(bucket: Rados, patience_s: float = 5.0, **more: Any) -> ImageStorage:
    return open_storage(Settings(**bucket.settings(**more)), patience_s=patience_s)


@pytest.fixture
def storage(bucket: Rados) -> ImageStorage:
    return opened(bucket)


@pytest.fixture
def serve(redis_url: str, tmp_path: Path, bucket: Rados) -> Serve:
    return lambda **more: serving(redis_url, tmp_path)(**bucket.settings(**more))


def test_what_was_written_is_read_until_it_is_deleted(bucket: Rados, storage: ImageStorage) -> None:
    storage.check()
    storage.write(NAME, b"one")
    storage.write(NAME, b"two")
    assert (storage.read(NAME), storage.exists(NAME)) == (b"two", True)
    assert bucket.names() == [f"avocat/{NAME}"]
    storage.delete(NAME)
    storage.delete(NAME)
    assert not storage.exists(NAME)
    with pytest.raises(FileNotFoundError):
        storage.read(NAME)


def test_a_copy_outlives_its_original(storage: ImageStorage) -> None:
    storage.write(NAME, PNG)
    storage.copy(NAME, OTHER)
    storage.delete(NAME)
    assert storage.read(OTHER) == PNG
    with pytest.raises(FileNotFoundError):
        storage.copy(NAME, OTHER)
    storage.delete(OTHER)


def test_names_cannot_leave_the_prefix(storage: ImageStorage) -> None:
    for name in ("../x.png", "a/b.png", "x.png\n", ""):
        for use in (storage.read, storage.delete, storage.exists):
            with pytest.raises(ValueError, match="image name"):
                use(name)
        with pytest.raises(ValueError, match="image name"):
            storage.link(name, 60)


def test_a_link_gives_one_image_for_some_time(storage: ImageStorage) -> None:
    storage.write(NAME, PNG)
    storage.write(OTHER, b"a secret")
    link = storage.link(NAME, 60)
    assert link is not None
    got = httpx.get(link)
    assert (got.status_code, got.content) == (200, PNG)
    assert got.headers["content-type"] == "image/png"
    assert got.headers["cache-control"] == "private, max-age=31536000, immutable"
    assert httpx.get(link, headers={"Range": "bytes=1-3"}).content == PNG[1:4]
    assert httpx.get(link.replace(NAME, OTHER)).status_code == 403
    assert httpx.get(link.partition("?")[0]).status_code == 403
    assert httpx.put(link, content=b"another").status_code == 403
    short = storage.link(NAME, 1)
    assert short is not None
    wait_until(lambda: httpx.get(short).status_code == 403, 30, "the link's end")


def test_a_wrong_secret_is_refused_by_the_service(bucket: Rados, storage: ImageStorage) -> None:
    storage.write(NAME, PNG)
    wrong = opened(bucket, s3_secret_access_key="a wrong one")
    for use in (
        lambda: wrong.write(NAME, b"x"), lambda: wrong.read(NAME), lambda: wrong.delete(NAME),
        lambda: wrong.copy(NAME, OTHER), wrong.check,
    ):  # fmt: skip
        with pytest.raises(StorageError, match=r"SignatureDoesNotMatch|403") as refused:
            use()
        assert "wrong one" not in str(refused.value)
        assert "\n" not in str(refused.value)
    link = wrong.link(NAME, 60)
    assert link is not None
    assert httpx.get(link).status_code == 403
    assert storage.read(NAME) == PNG


def test_a_bucket_that_is_not_there_is_no_missing_image(bucket: Rados) -> None:
    elsewhere = opened(bucket, storage="s3://no-such-bucket")
    for use in (lambda: elsewhere.write(NAME, b"x"), lambda: elsewhere.read(NAME), elsewhere.check):
        with pytest.raises(StorageError, match="NoSuchBucket"):
            use()


def test_an_outage_is_waited_out_but_not_for_ever(bucket: Rados) -> None:
    bucket.stop()
    try:
        impatient = opened(bucket, patience_s=0.5)
        for use in (lambda: impatient.write(NAME, b"x"), lambda: impatient.read(NAME)):
            with pytest.raises(StorageError):
                use()
        begun = time.monotonic()
        with pytest.raises(StorageError):
            opened(bucket, patience_s=60).delete(NAME)  # between heartbeats of a worker
        assert time.monotonic() - begun < 10
        writing = threading.Thread(target=opened(bucket, patience_s=60).write, args=(NAME, PNG))
        writing.start()
    finally:
        bucket.start()
    writing.join(60)
    assert opened(bucket).read(NAME) == PNG


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"s3_secret_access_key": "a wrong one"}, "SignatureDoesNotMatch"),
        ({"storage": "s3://no-such-bucket"}, "NoSuchBucket"),
        ({"storage": "http://127.0.0.1/pictures"}, "AVOCAT_STORAGE"),
        ({"s3_secret_access_key": ""}, "set both"),
    ],
)
def test_serve_ends_with_a_sentence_where_images_cannot_be_kept(
    bucket: Rados, tmp_path: Path, wrong: dict[str, str], sentence: str
) -> None:
    ended = avocat("serve", data_dir=tmp_path, port="0", **bucket.settings(**wrong))
    assert ended.returncode != 0
    assert sentence in ended.stderr
    assert "Traceback" not in ended.stderr


async def test_an_image_url_leads_into_the_bucket(serve: Serve, bucket: Rados) -> None:
    async with serve(api_keys="me:secret,you:other") as service:
        service.client.headers["Authorization"] = "Bearer secret"
        job_id = (await service.submit())["id"]
        [image] = service.draw(job_id)
        url = (await service.job(job_id))["images"][0]["url"]
        del service.client.headers["Authorization"]
        led = await service.client.get(url)
        assert led.status_code == 307
        assert led.content == b""
        assert led.headers["location"].startswith(
            f"{bucket.endpoint}/{BUCKET}/avocat/{image.name}?"
        )
        assert led.headers["cache-control"].startswith("private, max-age=2")
        async with httpx.AsyncClient() as stranger:
            assert (await stranger.get(led.headers["location"])).content == PNG
        etag = f'"{hashlib.sha256(PNG).hexdigest()}"'
        head = await service.client.head(url)
        assert (head.status_code, head.headers["etag"]) == (200, etag)
        assert head.headers["content-length"] == str(len(PNG))
        again = await service.client.get(url, headers={"If-None-Match": etag})
        assert (again.status_code, again.content) == (304, b"")
        path = url.partition("?")[0]
        for key, status in (("secret", 307), ("other", 404), ("none", 401)):
            answer = await service.client.get(path, headers={"Authorization": f"Bearer {key}"})
            assert answer.status_code == status


async def test_a_link_lives_no_longer_than_the_url_that_led_to_it(serve: Serve) -> None:
    async with serve(image_url_ttl_s=20) as service:
        job_id = (await service.submit())["id"]
        service.draw(job_id)
        led = await service.client.get((await service.job(job_id))["images"][0]["url"])
        query = dict(part.split("=") for part in urlsplit(led.headers["location"]).query.split("&"))
        assert 1 <= int(query["X-Amz-Expires"]) <= 20


async def test_bytes_come_from_the_api_where_that_is_asked_for(serve: Serve) -> None:
    async with serve() as service:
        job_id = (await service.submit())["id"]
        service.draw(job_id)
        url = (await service.job(job_id))["images"][0]["url"]
        file = await service.client.get(f"{url}&download=true")
        assert (file.status_code, file.content) == (200, PNG)
        assert file.headers["content-disposition"] == "attachment"
    async with serve(s3_links="false") as service:
        job_id = (await service.submit())["id"]
        service.draw(job_id)
        answer = await service.client.get((await service.job(job_id))["images"][0]["url"])
        assert (answer.status_code, answer.content) == (200, PNG)
        assert "bucket" not in (await service.client.get("/")).headers["content-security-policy"]


async def test_the_page_may_show_pictures_of_the_bucket(serve: Serve, bucket: Rados) -> None:
    async with serve() as service:
        policy = (await service.client.get("/")).headers["content-security-policy"]
        assert f"img-src 'self' data: {bucket.endpoint};" in policy
    async with serve(s3_public_endpoint="https://pictures.example.org") as service:
        policy = (await service.client.get("/")).headers["content-security-policy"]
        assert "img-src 'self' data: https://pictures.example.org;" in policy
        job_id = (await service.submit())["id"]
        service.draw(job_id)
        led = await service.client.get((await service.job(job_id))["images"][0]["url"])
        assert led.headers["location"].startswith(f"https://pictures.example.org/{BUCKET}/avocat/")


async def test_a_repeat_is_copied_within_the_bucket(serve: Serve, bucket: Rados) -> None:
    async with serve() as service:
        first = (await service.submit(seed=7))["id"]
        service.draw(first)
        again = (
            await service.client.post("/v1/jobs", json={"prompt": "a red apple", "seed": 7})
        ).json()
        assert (again["status"], again["cached"]) == ("succeeded", True)
        assert len([name for name in bucket.names() if again["id"] in name]) == 1


async def test_a_service_that_is_away_is_no_lost_picture(
    serve: Serve, bucket: Rados, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.deps._STORAGE_PATIENCE_S", 0.5)
    async with serve() as service:
        job_id = (await service.submit())["id"]
        [image] = service.draw(job_id)
        url = (await service.job(job_id))["images"][0]["url"] + "&download=true"
        bucket.stop()
        try:
            away = await service.client.get(url)
        finally:
            bucket.start()
        assert (away.status_code, away.json()["type"]) == (503, "/problems/unavailable")
        assert bucket.endpoint not in away.text
        service.storage.delete(image.name)
        lost = await service.client.get(url)
        assert (lost.status_code, lost.json()["type"]) == (404, "/problems/image-not-found")


def test_the_whole_service_keeps_its_images_in_a_bucket(
    bucket: Rados, tiny_bundle: Path, tmp_path: Path
) -> None:
    for name in bucket.names():
        bucket.store().delete(name)
    with Service(tmp_path / "data", tiny_bundle, **bucket.settings()) as service:
        with Avocat(service.url) as client:
            (picture,) = client.generate("a red apple", steps=2)
            assert picture.data.startswith(b"\x89PNG")
            bucket.stop()  # a job that is drawn while the bucket is away is not lost
            job = client.submit("a green pear", steps=2)
            wait_until(lambda: client.get(job).progress.step == 2, 60, "the drawing")
            bucket.start()
            assert client.download(client.wait(job, timeout_s=60).images[0]).startswith(b"\x89PNG")
        asked = {"prompt": "a yellow lemon", "steps": 2}
        answer = service.http.post("/v1/images/generations", json=asked).json()
        assert base64.b64decode(answer["data"][0]["b64_json"]).startswith(b"\x89PNG")
        assert len(bucket.names()) == 3
        assert not list((tmp_path / "data").rglob("*.png"))


def test_expired_images_leave_the_bucket(bucket: Rados, redis_url: str) -> None:
    storage = opened(bucket)
    for name in (NAME, OTHER):
        storage.write(name, PNG)
    with redis.Redis.from_url(redis_url) as connection:
        connection.zadd(keys.IMAGE_EXPIRY, {NAME: time.time() - 1, OTHER: time.time() + 60})
        books = Ledger(connection, "w", 15)
        sweep = Recovery(connection, JobStore(connection), books, storage)
        bucket.stop()
        try:
            assert sweep.expire_images() == 0  # still listed, so that it is tried again
        finally:
            bucket.start()
        assert sweep.expire_images() == 1
    assert f"avocat/{NAME}" not in bucket.names()
    assert f"avocat/{OTHER}" in bucket.names()
