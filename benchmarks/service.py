"""Jobs per second and latency through the whole service, with 1, 4 and 16 jobs in flight.

python -m benchmarks.service --jobs 32
"""

import argparse
import json
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from app.commands.own_service import own_service

IN_FLIGHT = (1, 4, 16)


def latency_s(http: httpx.Client, seed: int, fields: dict[str, object]) -> float:
    """Seconds from submission to the finished job, as a client sees it."""
    started = time.perf_counter()
    body = {"prompt": "a red apple", "seed": seed, "cache": False} | fields
    job = http.post("/v1/jobs", json=body, headers={"Prefer": "wait=60"}).raise_for_status().json()
    while job["finished_at"] is None:
        time.sleep(0.05)
        job = http.get(f"/v1/jobs/{job['id']}").raise_for_status().json()
    if job["status"] != "succeeded":
        raise RuntimeError(f"job {job['id']} {job['status']}: {job['error']}")
    return time.perf_counter() - started


def measure(
    http: httpx.Client, in_flight: int, jobs: int, fields: dict[str, object]
) -> dict[str, float]:
    """One row of figures."""
    started = time.perf_counter()
    with ThreadPoolExecutor(in_flight) as pool:
        found = sorted(pool.map(lambda seed: latency_s(http, seed, fields), range(jobs)))
    took_s = time.perf_counter() - started
    return {
        "in_flight": in_flight,
        "jobs_per_s": jobs / took_s,
        "p50_s": statistics.median(found),
        "p95_s": found[min(len(found) - 1, int(0.95 * len(found)))],
    }


def main() -> None:
    """Start a service, warm it up, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=32, help="jobs per measurement")
    parser.add_argument("--steps", type=int, help="denoising steps (default: the model's)")
    parser.add_argument("--json", action="store_true", help="one JSON line per measurement")
    options = parser.parse_args()
    fields = {"steps": options.steps} if options.steps else {}
    with own_service() as url, httpx.Client(base_url=url, timeout=120) as http:
        latency_s(http, 0, fields)
        with Progress(console=Console(stderr=True)) as bar:
            rows = [
                measure(http, in_flight, options.jobs, fields)
                for in_flight in bar.track(IN_FLIGHT, description="measuring")
            ]
    if options.json:
        print("\n".join(map(json.dumps, rows)))
        return
    table = Table("in flight", "jobs/s", "p50 s", "p95 s", title=f"{options.jobs} jobs each")
    for row in rows:
        table.add_row(str(row["in_flight"]), *(f"{row[k]:.2f}" for k in list(row)[1:]))
    Console().print(table)


if __name__ == "__main__":
    main()
