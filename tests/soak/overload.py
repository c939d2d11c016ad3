"""`python -m tests.soak.overload`: ten times what the service can do, for five minutes.

A flood of four keys asks ten times as often as jobs can be done, and never waits. Eight polite
clients together want as much as there is, and wait for as long as `Retry-After` says. Memory of API
and worker must stay flat, accepted jobs must end in bounded time, and who waits must mostly get in.
Prints what it measured as JSON; ends with 1 if anything was violated.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.models.tiny import build_tiny_bundle
from tests.soak.plant import Plant
from tests.soak.run import spread, wait_until_ready

FLOODING, POLITE = 4, 8  # keys
# Four keys cannot fill the queue, all twelve can: that is what the cap of active jobs is for.
QUEUE_CAP, ACTIVE_CAP, SLOTS = 60, 6, 8
CALL_S = 0.03
JOB = {"prompt": "a cat", "steps": 10, "guidance_scale": 1, "cache": False}
MEASURED_S = 20.0
MOST_GROWTH = 0.05
MOST_LATENCY = 3.0  # times the time in which all that may wait is done
LEAST_TAKEN_IN = 0.5


@dataclass
class Seen:
    """What clients were answered."""

    statuses: Counter[str] = field(default_factory=Counter)
    answer_s: list[float] = field(default_factory=list)
    retry_after_s: Counter[int] = field(default_factory=Counter)
    accepted: list[tuple[str, str]] = field(default_factory=list)  # secret, job id
    waited: int = 0  # tries after a wait of Retry-After
    taken_in: int = 0  # of these
    violations: list[str] = field(default_factory=list)


class Clients:
    """Asks for jobs by many keys."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http
        self.seen = {"flood": Seen(), "polite": Seen()}

    async def submit(self, who: str, secret: str) -> float | None:
        """Ask once; None when accepted or no answer came, else the seconds to wait."""
        seen, began = self.seen[who], time.monotonic()
        headers = {"Authorization": f"Bearer {secret}"}
        try:
            answer = await self._http.post("/v1/jobs", json=JOB, headers=headers)
        except httpx.HTTPError as fault:
            seen.violations.append(f"no answer: {type(fault).__name__}")
            return None
        seen.answer_s.append(time.monotonic() - began)
        seen.statuses[str(answer.status_code)] += 1
        if answer.status_code == 202:
            seen.accepted.append((secret, answer.json()["id"]))
            return None
        seconds = int(answer.headers.get("retry-after", 0))
        if answer.status_code not in (429, 503) or not 1 <= seconds <= 60:
            seen.violations.append(f"{answer.status_code}: {answer.text[:200]}")
        seen.retry_after_s[seconds] += 1
        return float(seconds)

    async def flood(self, per_s: float, until: float) -> None:
        """So many submissions a second, whatever is answered; at most 64 under way."""
        asking: set[asyncio.Task[Any]] = set()
        began, sent = time.monotonic(), 0
        while time.monotonic() < until:
            due = int((time.monotonic() - began) * per_s) - sent
            for _ in range(max(0, min(due, 64 - len(asking)))):
                task = asyncio.create_task(self.submit("flood", f"flood-{sent % FLOODING}"))
                asking.add(task)
                task.add_done_callback(asking.discard)
                sent += 1
            await asyncio.sleep(0.02)
        await asyncio.gather(*asking)

    async def polite(self, number: int, every_s: float, until: float) -> None:
        """One job after the other; whoever is refused waits for as long as the answer says."""
        seen, secret = self.seen["polite"], f"polite-{number}"
        await asyncio.sleep(every_s * number / POLITE)
        while time.monotonic() < until:
            wait_s = await self.submit("polite", secret)
            while wait_s is not None and time.monotonic() + wait_s < until:
                await asyncio.sleep(wait_s)
                wait_s = await self.submit("polite", secret)
                seen.waited += 1
                seen.taken_in += wait_s is None
            await asyncio.sleep(every_s)


class Memory:
    """Resident bytes of processes, once a second."""

    def __init__(self, pids: dict[str, int | None]) -> None:
        self._processes = {name: psutil.Process(pid) for name, pid in pids.items()}
        self.bytes: dict[str, list[int]] = {name: [] for name in pids}

    async def watch(self, until: float) -> None:
        while time.monotonic() < until:
            for name, process in self._processes.items():
                self.bytes[name].append(process.memory_info().rss)
            await asyncio.sleep(1)

    def growth(self) -> dict[str, float]:
        """Of the last tenth over the first, as a share."""
        found = {}
        for name, sizes in self.bytes.items():
            tenth = max(1, len(sizes) // 10)
            first, last = sum(sizes[:tenth]), sum(sizes[-tenth:])
            found[name] = round(last / first - 1, 4)
        return found


async def capacity(http: httpx.AsyncClient) -> float:
    """Jobs done in a second while the queue is never empty."""
    clients, began = Clients(http), time.monotonic()
    done_before = 0
    while time.monotonic() - began < 2 * MEASURED_S:
        if not done_before and time.monotonic() - began > MEASURED_S:
            done_before = await _done(http)
        for number in range(POLITE):
            await clients.submit("polite", f"polite-{number}")
        await asyncio.sleep(0.3)
    return (await _done(http) - done_before) / MEASURED_S


async def _done(http: httpx.AsyncClient) -> int:
    count = 0
    for number in range(POLITE):
        cursor = ""
        while cursor is not None:
            page = await http.get(
                f"/v1/jobs?status=succeeded&limit=100{cursor and f'&cursor={cursor}'}",
                headers={"Authorization": f"Bearer polite-{number}"},
            )
            count += len(page.json()["data"])
            cursor = page.json().get("next_cursor")
    return count


async def latencies(http: httpx.AsyncClient, accepted: list[tuple[str, str]]) -> list[float]:
    """Seconds from submission to end of each job; waits until all have ended."""
    found = []
    for secret, job_id in accepted:
        headers = {"Authorization": f"Bearer {secret}"}
        while True:
            job = (await http.get(f"/v1/jobs/{job_id}", headers=headers)).json()
            if job["finished_at"] is not None:
                break
            await asyncio.sleep(0.2)
        if job["status"] != "succeeded":
            raise AssertionError(f"{job_id} ended as {job['status']}: {job['error']}")
        created, ended = (datetime.fromisoformat(job[at]) for at in ("created_at", "finished_at"))
        found.append((ended - created).total_seconds())
    return found


async def overload(plant: Plant, seconds: float, times: float, warm_up_s: float) -> dict[str, Any]:
    """Hold the load, and look at everything."""
    limits = httpx.Limits(max_connections=128)
    async with httpx.AsyncClient(base_url=plant.url, timeout=60, limits=limits) as http:
        per_s = await capacity(http)
        clients = Clients(http)
        start = time.monotonic()
        until = start + warm_up_s + seconds
        pids = {"api": plant.api.pid if plant.api else None, "worker": plant.workers[0].pid}
        memory = Memory(pids)

        async def remember() -> None:
            await asyncio.sleep(warm_up_s)
            await memory.watch(until)

        await asyncio.gather(
            clients.flood(times * per_s, until),
            *(clients.polite(number, POLITE / per_s, until) for number in range(POLITE)),
            remember(),
        )
        accepted = [one for seen in clients.seen.values() for one in seen.accepted]
        took = await latencies(http, accepted)
    return report(clients, memory, took, per_s, warm_up_s + seconds)


def report(
    clients: Clients, memory: Memory, took: list[float], per_s: float, seconds: float
) -> dict[str, Any]:
    """The figures, and in `violations` what is not as it should be."""
    flood, polite = clients.seen["flood"], clients.seen["polite"]
    asked = flood.statuses.total() + polite.statuses.total()
    bound_s = MOST_LATENCY * (QUEUE_CAP + SLOTS) / per_s
    violations = [*flood.violations, *polite.violations][:20]
    for name, growth in memory.growth().items():
        if growth > MOST_GROWTH:
            violations.append(f"memory of the {name} grew by {growth:.1%}")
    if max(took) > bound_s:
        violations.append(f"a job took {max(took):.1f} s, more than {bound_s:.1f} s")
    share = polite.taken_in / polite.waited if polite.waited else None
    if share is None or share < LEAST_TAKEN_IN:
        violations.append(f"of those who waited {share} were taken in")
    return {
        "seconds": seconds,
        "capacity_per_s": round(per_s, 2),
        "asked_per_s": round(asked / seconds, 1),
        "times_capacity": round(asked / seconds / per_s, 1),
        "flood": dict(flood.statuses),
        "polite": dict(polite.statuses),
        "waited": polite.waited,
        "taken_in_after_the_wait": round(share, 3) if share is not None else None,
        "retry_after_s": dict(sorted((flood.retry_after_s + polite.retry_after_s).items())),
        "answer_s": spread(flood.answer_s + polite.answer_s, digits=3),
        "job_s": spread(took),
        "job_bound_s": round(bound_s, 1),
        "memory_mb": {name: round(sizes[-1] / 1e6, 1) for name, sizes in memory.bytes.items()},
        "memory_growth": memory.growth(),
        "violations": violations,
    }


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak.overload", description=__doc__)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--times", type=float, default=10)
    parser.add_argument("--warm-up", type=float, default=60)
    options = parser.parse_args()
    secrets = [f"flood-{i}" for i in range(FLOODING)] + [f"polite-{i}" for i in range(POLITE)]
    with tempfile.TemporaryDirectory(prefix="avocat-overload-") as folder:
        plant = Plant(
            Path(folder) / "plant",
            build_tiny_bundle(Path(folder) / "bundle"),
            workers=1,
            lease_s=60,  # nothing dies here, and a busy machine makes workers late
            call_s=CALL_S,
            queue_cap=str(QUEUE_CAP),
            max_active_jobs_per_key=str(ACTIVE_CAP),
            slots=str(SLOTS),
            api_keys=",".join(f"{secret}:{secret}" for secret in secrets),
        )
        with plant:
            wait_until_ready(plant.url)
            found = asyncio.run(overload(plant, options.seconds, options.times, options.warm_up))
    print(json.dumps(found, indent=2))
    return 1 if found["violations"] else 0


if __name__ == "__main__":
    sys.exit(main())
