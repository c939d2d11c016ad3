"""Jobs that are asked for while everything breaks, and what became of them."""

import hashlib
import json
import random
import threading
import time
from collections import Counter
from typing import Any

import httpx
import redis

from app import keys
from tests.soak.plant import Plant

OUTSTANDING = 24
LOOK_S, FETCH_S = 0.4, 0.1  # whoever looks more often leaves the service less of the machine
TERMINAL = ("succeeded", "failed", "canceled")


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Load:
    """Submits until `stop`, cancels a few, fetches pictures all the time."""

    def __init__(self, plant: Plant, seed: int, recipes: int) -> None:
        self._plant, self._seed = plant, seed
        self._random = random.Random(seed)
        self.recipes = [self._recipe(number) for number in range(recipes)]
        self.jobs: dict[str, int] = {}  # accepted: id -> recipe
        self.ended: dict[str, dict[str, Any]] = {}  # as they were when first seen at their end
        self.ends: Counter[str] = Counter()  # announced ends by job
        self.refused: Counter[str] = Counter()
        self.violations: list[str] = []
        self.fetched = 0
        self._stop = threading.Event()
        self._redis = redis.Redis.from_url(plant.redis.url, socket_timeout=2)
        self._threads = [
            threading.Thread(target=work, daemon=True)
            for work in (self._submit, self._follow, self._fetch, self._listen)
        ]

    def _recipe(self, number: int) -> dict[str, Any]:
        return {
            "prompt": f"picture {number}",
            "seed": 1000 + number,
            "n": self._random.choice((1, 1, 2, 3)),
            "steps": self._random.randrange(4, 40),
            "sampler": self._random.choice(("ddpm", "ddim", "dpmpp_2m")),
            "output_format": self._random.choice(("png", "webp")),
            "priority": self._random.choice(("low", "normal")),
            "cache": False,
        }

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop_submitting(self) -> None:
        """No more jobs; the rest goes on until all have ended."""
        self._stop.set()
        self._threads[0].join()

    def wait_until_all_ended(self, deadline_s: float) -> None:
        end = time.monotonic() + deadline_s
        while len(self.ended) < len(self.jobs):
            left = sorted(set(self.jobs) - set(self.ended))
            if time.monotonic() > end:
                raise TimeoutError(f"{len(left)} jobs never ended: {left[:5]}")
            time.sleep(0.1)

    def held_by(self, worker: str) -> dict[str, bytes]:
        """Running jobs of a worker with their executions."""
        found = {}
        for job_id in set(self.jobs) - set(self.ended):
            try:
                named, status, execution = self._redis.hmget(
                    keys.job(job_id), "worker", "status", "execution"
                )
            except redis.RedisError:
                return found
            if status == b"running" and named == worker.encode() and execution:
                found[job_id] = execution
        return found

    def wait_until_taken(self, job_id: str, execution: bytes, deadline_s: float) -> bool:
        """Wait until a job is no more with this execution."""
        end = time.monotonic() + deadline_s
        while time.monotonic() < end:
            try:
                status, now = self._redis.hmget(keys.job(job_id), "status", "execution")
                if status != b"running" or now != execution:
                    return True
            except redis.RedisError:
                pass
            time.sleep(0.02)
        return False

    def some_image(self, chance: random.Random) -> dict[str, Any] | None:
        """An image of a job that has succeeded."""
        done = [job for job in list(self.ended.values()) if job["status"] == "succeeded"]
        return chance.choice(chance.choice(done)["images"]) if done else None

    def submit(self, http: httpx.Client, recipe: int, key: str) -> str | None:
        """Submit once, however often that has to be tried; None when told to stop before."""
        while True:
            try:
                answer = http.post(
                    "/v1/jobs", json=self.recipes[recipe], headers={"Idempotency-Key": key}
                )
                if answer.status_code in (200, 202):
                    return str(answer.json()["id"])
                self.refused[str(answer.status_code)] += 1
                if "retry-after" not in answer.headers or answer.status_code != 503:
                    self.violations.append(f"refused: {answer.status_code} {answer.text[:200]}")
            except httpx.HTTPError as fault:
                self.refused[type(fault).__name__] += 1
            if self._stop.wait(0.05):
                return None

    def _submit(self) -> None:
        number = 0
        with httpx.Client(base_url=self._plant.url, timeout=10) as http:
            while not self._stop.is_set():
                if len(self.jobs) - len(self.ended) >= OUTSTANDING:
                    self._stop.wait(0.02)
                    continue
                number += 1
                recipe = self._random.randrange(len(self.recipes))
                job_id = self.submit(http, recipe, f"soak-{self._seed}-{number}")
                if job_id is not None:
                    self.jobs[job_id] = recipe
                if job_id is not None and self._random.random() < 0.04:
                    try:
                        http.delete(f"/v1/jobs/{job_id}")
                    except httpx.HTTPError as fault:
                        self.refused[type(fault).__name__] += 1

    def _follow(self) -> None:
        with httpx.Client(base_url=self._plant.url, timeout=10) as http:
            while True:
                for job_id in list(self.jobs):
                    if job_id in self.ended:
                        continue
                    try:
                        answer = http.get(f"/v1/jobs/{job_id}")
                    except httpx.HTTPError:
                        continue
                    if answer.status_code == 404:
                        self.violations.append(f"{job_id} was accepted, and is gone")
                        self.ended[job_id] = {"status": "lost"}
                    elif answer.status_code == 200 and answer.json()["status"] in TERMINAL:
                        self.ended[job_id] = answer.json()
                time.sleep(LOOK_S)

    def _fetch(self) -> None:
        chance = random.Random(self._seed + 1)
        with httpx.Client(base_url=self._plant.url, timeout=10) as http:
            while True:
                time.sleep(FETCH_S)
                image = self.some_image(chance)
                if image is None:
                    continue
                try:
                    answer = http.get(image["url"])
                except httpx.HTTPError:
                    continue
                self.fetched += 1
                if answer.status_code == 200 and digest(answer.content) != image["sha256"]:
                    self.violations.append(f"wrong bytes of {image['url']}")

    def _listen(self) -> None:
        while True:
            try:
                with self._redis.pubsub(ignore_subscribe_messages=True) as events:
                    events.subscribe(keys.EVENTS)
                    while True:
                        message = events.get_message(timeout=1.0)
                        if message is not None:
                            self._count(json.loads(message["data"]))
            except redis.RedisError:
                time.sleep(0.05)

    def _count(self, event: dict[str, Any]) -> None:
        if event["kind"] == "status" and event["status"] in TERMINAL:
            self.ends[event["job_id"]] += 1
