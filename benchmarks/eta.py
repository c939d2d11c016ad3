"""Estimates of the time left against the time it took, in a load of mixed jobs."""

import random
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import httpx

from app.commands.own_service import own_service
from benchmarks.results import Result, result, spread
from benchmarks.service import service_settings
from benchmarks.subject import PROMPTS, Plan, executed

__all__ = ["Estimate", "errors", "measure", "mixed_bodies"]

JOBS: Final = 200
SHORTEST, LONGEST = 4, 50  # steps
LOOK_EVERY_S: Final = 1.0
ASKING = 4  # connections that submit
SOON_S: Final = 0.5  # what is as good as done is not judged


@dataclass(frozen=True)
class Estimate:
    """What was said of a job, and when (unix seconds)."""

    job_id: str
    said_at: float
    eta_s: float


def measure(plan: Plan) -> list[Result]:
    """Relative errors of `eta_seconds`, as submitted and while they wait and run."""
    _, chosen = executed(plan)
    with (
        service_settings(plan, chosen.name),
        own_service() as url,
        httpx.Client(base_url=url, timeout=60.0) as http,
    ):
        _warm_up(http)
        said = _submitted(http, _bodies_for(http, plan.seconds))
        first = {one.job_id for one in said}
        later, ended = _watched(http, first)
    return [
        # Of a burst the first ones cannot know who will go before them or share their batch.
        _line(plan, "in the answer to the submission", errors(said, ended), at_least=None),
        _line(plan, "in a look each second", errors(later, ended), at_least=0.7),
    ]


def errors(said: list[Estimate], ended: dict[str, float]) -> list[float]:
    """|said - took| / took of each estimate whose job then took a while."""
    found = []
    for one in said:
        took = ended[one.job_id] - one.said_at
        if took >= SOON_S:
            found.append(abs(one.eta_s - took) / took)
    return found


def _line(plan: Plan, when: str, found: list[float], at_least: float | None) -> Result:
    low, middle, high = spread(found)
    return result(
        f"ETA {when}: 1 - median relative error, {JOBS} mixed jobs ({len(found)} estimates)",
        [1 - high, 1 - middle, 1 - low],
        unit="share",
        at_least=at_least,
        command=plan.command,
    )


def mixed_bodies(count: int, longest: int, seed: int = 0) -> list[dict[str, Any]]:
    """Jobs of all kinds: pictures, candidates, steps, samplers, guidance, priority."""
    dice = random.Random(seed)
    found = []
    for number in range(count):
        n = dice.choice([1, 1, 1, 2, 4, 8])
        body: dict[str, Any] = {
            "prompt": dice.choice(PROMPTS),
            "n": n,
            "seed": number,
            "cache": False,
            "steps": dice.randint(min(SHORTEST, longest), longest),
            "sampler": dice.choice(["ddpm", "ddim", "dpmpp_2m"]),
            "guidance_scale": dice.choice([1.0, 3.0, 5.0]),
            "guidance_interval": dice.choice([[0.0, 1.0], [0.2, 0.8]]),
            "priority": dice.choice(["normal", "normal", "low"]),
        }
        if dice.random() < 0.2:
            body["best_of"] = dice.randint(n, 8)
        found.append(body)
    return found


def _bodies_for(http: httpx.Client, seconds: float) -> list[dict[str, Any]]:
    """As many steps as fill the time: one job tells what a step costs."""
    began = time.perf_counter()
    _finished(http, {"prompt": "a red apple", "n": 8, "steps": 10, "cache": False})
    per_row_step = (time.perf_counter() - began) / 80
    mean_rows = 3.5
    affordable = seconds / (JOBS * mean_rows * per_row_step)
    return mixed_bodies(JOBS, longest=max(2, min(LONGEST, round(2 * affordable))))


def _warm_up(http: httpx.Client) -> None:
    _finished(http, {"prompt": "a red apple", "steps": 10})


def _finished(http: httpx.Client, body: dict[str, Any]) -> None:
    http.post("/v1/jobs", json=body, headers={"Prefer": "wait=60"}).raise_for_status()


def _submitted(http: httpx.Client, bodies: list[dict[str, Any]]) -> list[Estimate]:
    with ThreadPoolExecutor(ASKING) as pool:
        return list(pool.map(lambda body: _submit(http, body), bodies))


def _submit(http: httpx.Client, body: dict[str, Any]) -> Estimate:
    job = http.post("/v1/jobs", json=body).raise_for_status().json()
    return Estimate(job["id"], time.time(), job["eta_seconds"])


def _watched(http: httpx.Client, mine: set[str]) -> tuple[list[Estimate], dict[str, float]]:
    """Look at all jobs each second until they are over; what was said, and when each ended."""
    said: list[Estimate] = []
    ended: dict[str, float] = {}
    while len(ended) < len(mine):
        for job in _listed(http):
            if job["id"] not in mine or job["id"] in ended:
                continue
            if job["finished_at"] is not None:
                ended[job["id"]] = datetime.fromisoformat(job["finished_at"]).timestamp()
            else:
                said.append(Estimate(job["id"], time.time(), job["eta_seconds"]))
        time.sleep(LOOK_EVERY_S)
    return said, ended


def _listed(http: httpx.Client) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    cursor: dict[str, str] = {}
    while True:
        page = http.get("/v1/jobs", params={"limit": 100} | cursor).raise_for_status().json()
        found += page["data"]
        if page["next_cursor"] is None:
            return found
        cursor = {"cursor": page["next_cursor"]}
