"""Jobs through the whole service: HTTP, Redis, RQ, the engine, the folder of images."""

import io
import json
import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest
from PIL import Image

from tests.integration.service import Service, wait_until

pytestmark = pytest.mark.slow

MIXED: list[dict[str, Any]] = [
    {
        "prompt": f"thing number {index}",
        "seed": 1000 + index,
        "sampler": ("ddpm", "ddim", "dpmpp_2m")[index % 3],
        "steps": (3, 5, 8, 20)[index % 4],
        "guidance_scale": (1.0, 2.5, 7.0)[index % 3],
    }
    | ({"negative_prompt": "a dog"} if index % 5 == 0 else {})
    for index in range(16)
]


def draw(service: Service, request: dict[str, Any]) -> list[bytes]:
    return service.pictures(service.finished(service.submit(**request, cache=False)["id"]))


def test_prompt_becomes_a_png_with_alpha(service: Service) -> None:
    job = service.finished(service.submit("a red apple", seed=7, cache=False)["id"])
    [picture] = service.pictures(job)
    image = Image.open(io.BytesIO(picture))
    assert (image.format, image.mode) == ("PNG", "RGBA")
    assert f"{image.width}x{image.height}" == job["request"]["size"]
    assert job["progress"]["fraction"] == 1.0


def test_every_size_of_the_model_can_be_drawn(service: Service) -> None:
    [model] = service.http.get("/v1/models").json()["data"]
    for size in model["sizes"]:
        [picture] = draw(service, {"prompt": "a key", "size": size, "seed": 1})
        width, height = map(int, size.split("x"))
        assert Image.open(io.BytesIO(picture)).size == (width, height)


def test_sixteen_strangers_at_once_change_no_byte(service: Service) -> None:
    alone = [draw(service, request) for request in MIXED]
    jobs = [service.submit(**request, cache=False) for request in MIXED]
    together = [service.pictures(service.finished(job["id"])) for job in jobs]
    # The pixels: the files carry their own job's recipe, which is the same here.
    assert together == alone


def test_n_pictures_are_those_of_the_next_seeds(service: Service) -> None:
    many = draw(service, {"prompt": "a cat", "seed": 40, "n": 3})
    singles = [draw(service, {"prompt": "a cat", "seed": seed})[0] for seed in (40, 41, 42)]
    assert [pixels(picture) for picture in many] == [pixels(picture) for picture in singles]


def pixels(picture: bytes) -> bytes:
    return Image.open(io.BytesIO(picture)).tobytes()


def test_running_job_is_canceled_between_two_steps(service: Service) -> None:
    job = service.submit("a long river", steps=1000, sampler="ddpm", n=8)
    wait_until(lambda: service.job(job["id"])["progress"]["step"] > 0, 60, "the first step")
    service.http.post(f"/v1/jobs/{job['id']}/cancel").raise_for_status()
    ended = service.finished(job["id"], deadline_s=10)
    assert ended["status"] == "canceled"
    assert ended["images"] == []
    assert ended["progress"]["step"] < 1000


def test_rq_info_shows_the_worker_and_the_queues(service: Service) -> None:
    redis = f"unix://{service.settings['data_dir']}/redis/redis.sock"
    options = ["-u", redis, "-S", "rq.serializers.JSONSerializer"]
    command = [sys.executable, "-m", "rq.cli", "info", *options]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert shown.returncode == 0, shown.stderr
    assert "1 workers" in shown.stdout
    assert "normal" in shown.stdout


def odd_prompts(count: int) -> list[str]:
    """Prompts from every plane of Unicode, and the classics; seeded."""
    draw = random.Random(2)
    classics = [
        *("🥑" * 1000, "\u202eright to left", "\x00", "\ud800", " ", "%s%n", "../../etc/passwd"),
        *("<script>", "'; --", "a\u0300" * 400, "\ufeff", "\U0010ffff", "𝔞 𝔠𝔞𝔱"),
    ]
    return classics + [
        "".join(
            chr(draw.randrange(plane << 16, (plane + 1) << 16)) for _ in range(draw.randint(1, 40))
        )
        for plane in (at % 17 for at in range(count))
    ]


def test_odd_prompts_break_nothing(service: Service) -> None:
    worker = service.part("-m worker").pid

    def status(prompt: str) -> int:
        body = json.dumps({"prompt": prompt, "steps": 1})  # escapes lone surrogates
        headers = {"Content-Type": "application/json"}
        response = service.http.post("/v1/jobs", content=body, headers=headers)
        if response.status_code == 202:
            ended = service.finished(response.json()["id"])
            assert ended["status"] == "succeeded", ended
        return response.status_code

    with ThreadPoolExecutor(8) as pool:
        statuses = set(pool.map(status, odd_prompts(200)))
    assert statuses == {202, 422}
    assert psutil.pid_exists(worker)


def test_api_process_stays_small(service: Service) -> None:
    api = service.part("app.cli api")
    assert api.memory_info().rss < 150 * 2**20
    assert not any("torch" in os.path.basename(found.path) for found in api.memory_maps())
