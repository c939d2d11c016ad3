"""What is told of a job while it is drawn, through the whole service."""

import base64
import io
import json
from typing import Any

import pytest
from httpx_sse import connect_sse
from openai import OpenAI
from PIL import Image

from tests.integration.service import Service

pytestmark = pytest.mark.slow

# Long enough to be seen on its way.
SLOW = {"steps": 120, "sampler": "ddpm", "seed": 11, "cache": False}


def picture(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def followed(service: Service, job_id: str) -> list[tuple[str, Any]]:
    path = f"/v1/jobs/{job_id}/events?previews=4"
    with connect_sse(service.http, "GET", path) as source:
        return [(event.event, json.loads(event.data)) for event in source.iter_sse()]


def test_a_job_and_its_previews(service: Service) -> None:
    unseen = service.pictures(service.finished(service.submit("a red apple", **SLOW)["id"]))
    events = followed(service, service.submit("a red apple", **SLOW)["id"])
    names = [name for name, _ in events]
    steps = [data["step"] for name, data in events if name == "progress"]
    previews = [data for name, data in events if name == "preview"]
    assert (names[0], names[-1]) == ("status", "succeeded")
    assert steps == sorted(set(steps))
    assert previews
    for preview in previews:
        shown = picture(base64.b64decode(preview["data_url"].partition(",")[2]))
        assert (shown.format, shown.size) == ("PNG", (16, 16))
    assert service.pictures(events[-1][1]) == unseen  # watching changes no byte


def test_the_openai_client_streams_what_the_service_draws(service: Service) -> None:
    with OpenAI(base_url=f"{service.url}/v1", api_key="any", max_retries=0) as client:
        wish = {"prompt": "a red apple", "extra_body": SLOW}
        stream = client.images.generate(**wish, stream=True, partial_images=3)
        *partial, completed = list(stream)
        whole = client.images.generate(**wish)
    assert [event.type for event in partial] == ["image_generation.partial_image"] * 3
    assert [event.partial_image_index for event in partial] == [0, 1, 2]
    assert len({event.b64_json for event in (*partial, completed)}) == 4
    assert completed.type == "image_generation.completed"
    assert completed.b64_json == whole.data[0].b64_json
    assert picture(base64.b64decode(completed.b64_json)).size == (16, 16)
