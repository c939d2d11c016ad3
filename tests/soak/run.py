"""`python -m tests.soak.run`: load and faults, then the invariants; prints what it counted."""

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from app.garbage import collect
from app.jobs.connection import connect
from app.settings import Settings
from app.storage.folder import FolderStorage
from tests.models.tiny import build_tiny_bundle
from tests.soak.faults import Faults
from tests.soak.load import Load, digest
from tests.soak.plant import Plant

READY_DEADLINE_S = 240.0
END_DEADLINE_S = 300.0
RECOVERY_S = 15.0  # what is promised
LEASE_S = Settings.model_fields["lease_s"].default


def soak(
    folder: Path,
    bundle: Path,
    *,
    jobs: int,
    faults: int,
    seed: int,
    lease_s: int,
    every_s: float,
    workers: int = 3,
    recipes: int = 40,
) -> dict[str, Any]:
    """Run until so many jobs were accepted and so many faults done; what came of it.

    Between two faults are `every_s` seconds, and as many jobs as it takes to spread them.
    """
    began = time.monotonic()
    with Plant(folder, bundle, workers=workers, lease_s=lease_s) as plant:
        wait_until_ready(plant.url)
        load = Load(plant, seed, recipes)
        hurt = Faults(plant, load, seed, lease_s)
        load.start()
        while len(load.jobs) < jobs or hurt.done.total() < faults:
            time.sleep(every_s)
            done = hurt.done.total()
            if done < faults and len(load.jobs) >= jobs * done / faults:  # spread over the jobs
                hurt.one()
        hurt.wait()
        load.stop_submitting()
        load.wait_until_all_ended(END_DEADLINE_S)
        violations = [*load.violations, *hurt.violations, *_check(plant, load)]
    return {
        "seed": seed,
        "lease_s": lease_s,
        "jobs": len(load.jobs),
        "faults": hurt.done.total(),
        "faults_by_kind": dict(hurt.done),
        "ended": dict(Counter(job["status"] for job in load.ended.values())),
        "failed_because": dict(
            Counter(job["error"]["type"] for job in load.ended.values() if job.get("error"))
        ),
        "refused_and_tried_again": dict(load.refused),
        "images_fetched": load.fetched,
        "jobs_of_killed_workers": len(hurt.recoveries_s),
        "recovery_s": spread(hurt.recoveries_s),
        "recoveries_later_than_promised": sum(one > RECOVERY_S for one in hurt.recoveries_s),
        "seconds": round(time.monotonic() - began, 1),
        "disk_faults": plant.disk,
        "violations": violations,
    }


def spread(seconds: list[float], digits: int = 1) -> dict[str, float]:
    """Median, 95th percentile and the longest."""
    found = sorted(seconds) or [0.0]
    at = {"p50": len(found) // 2, "p95": int(0.95 * (len(found) - 1)), "max": len(found) - 1}
    return {name: round(found[index], digits) for name, index in at.items()}


def wait_until_ready(url: str) -> None:
    """Wait until `/readyz` says so; raises TimeoutError."""
    end = time.monotonic() + READY_DEADLINE_S
    while True:
        try:
            if httpx.get(f"{url}/readyz", timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        if time.monotonic() > end:
            raise TimeoutError(f"not ready within {READY_DEADLINE_S:.0f} s")
        time.sleep(0.1)


def _check(plant: Plant, load: Load) -> list[str]:
    """Every invariant, in calm; a sentence for each time that one is broken."""
    wait_until_ready(plant.url)
    with httpx.Client(base_url=plant.url, timeout=30) as http:
        wrong = [f"{job} ended {count} times" for job, count in load.ends.items() if count > 1]
        undisturbed = _undisturbed(http, load)
        with connect(plant.redis.url) as client:  # it must leave alone what is looked at next
            collect(client, FolderStorage(plant.images), older_than_s=0, dry_run=False)
        for job_id, before in load.ended.items():
            now = http.get(f"/v1/jobs/{job_id}").json()
            for name in ("status", "finished_at", "error"):
                if now.get(name) != before.get(name):
                    wrong.append(f"{job_id} changed after its end: {name}")
            if now["status"] == "succeeded":
                recipe = load.jobs[job_id]
                shas = [image["sha256"] for image in now["images"]]
                if shas != undisturbed[recipe]:
                    wrong.append(f"{job_id} differs from the undisturbed run of its request")
                for image in now["images"]:
                    answer = http.get(image["url"])
                    if answer.status_code != 200 or digest(answer.content) != image["sha256"]:
                        wrong.append(f"{job_id}: image {image['index']} is not there whole")
    return wrong


def _undisturbed(http: httpx.Client, load: Load) -> dict[int, list[str]]:
    """The sha256 of each request's pictures, drawn while nothing breaks."""
    drawn = {}
    for recipe in sorted(set(load.jobs.values())):
        answer = http.post("/v1/jobs", json=load.recipes[recipe], headers={"Prefer": "wait=60"})
        job = answer.json()
        while job["status"] not in ("succeeded", "failed", "canceled"):
            time.sleep(0.05)
            job = http.get(f"/v1/jobs/{job['id']}").json()
        drawn[recipe] = [image["sha256"] for image in job["images"]]
    return drawn


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak.run", description=__doc__)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--lease", type=int, default=LEASE_S, help="seconds")
    parser.add_argument("--every", type=float, default=1.0, help="seconds between faults")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="avocat-soak-") as folder:
        place = Path(folder)
        found = soak(
            place / "plant",
            build_tiny_bundle(place / "bundle"),
            jobs=options.jobs,
            faults=options.faults,
            seed=options.seed,
            lease_s=options.lease,
            every_s=options.every,
        )
    print(json.dumps(found, indent=2))
    return 1 if found["violations"] else 0


if __name__ == "__main__":
    sys.exit(main())
