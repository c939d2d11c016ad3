"""One trace for each job, from the request to the stored picture; and what is logged of it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.collector import Collector, collecting
from tests.integration.service import Service, wait_until

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PROMPT = "an unmistakable prompt"


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as running:
        yield running


@pytest.fixture(scope="module")
def traced(
    tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path, collector: Collector
) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("traced") / "data"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")  # ms; 5 s if not said
        with Service(folder, tiny_bundle, otlp_endpoint=collector.url, log_json="true") as service:
            yield service


def submit(service: Service, traceparent: str, **fields: Any) -> tuple[dict[str, Any], str]:
    """Submit a job under a caller's span; the finished job, and its request's id."""
    answer = service.http.post(
        "/v1/jobs", json={"prompt": PROMPT} | fields, headers={"traceparent": traceparent}
    )
    job = service.finished(answer.json()["id"])
    return job, str(answer.headers["x-request-id"])


def test_a_job_is_one_trace_under_its_callers(traced: Service, collector: Collector) -> None:
    job, _ = submit(traced, f"00-{TRACE}-{CALLER}-01")
    names = {"POST /v1/jobs", "job", "queue", "encode", "denoise", "store"}
    wait_until(lambda: collector.of(TRACE).keys() >= names, 30, "all spans of the job")
    spans = collector.of(TRACE)
    assert spans.keys() == names
    request, whole = spans["POST /v1/jobs"], spans["job"]
    assert (request["service"], request["parent"]) == ("avocat-api", CALLER)
    assert (whole["service"], whole["parent"]) == ("avocat-worker", request["id"])
    phases = [spans[name] for name in ("queue", "encode", "denoise", "store")]
    assert {span["parent"] for span in phases} == {whole["id"]}
    moments = [moment for span in phases for moment in (span["begin"], span["end"])]
    assert moments == sorted(moments)
    assert whole["begin"] == moments[0]
    assert whole["end"] >= moments[-1]
    assert whole["attributes"]["avocat.job.id"] == job["id"]
    assert whole["attributes"]["avocat.job.ending"] == "succeed"
    assert not whole["failed"]
    assert request["attributes"]["http.response.status_code"] == 202
    assert PROMPT not in str(collector.spans)


@pytest.mark.parametrize("traceparent", ["", f"00-{'0' * 32}-{CALLER}-01", "x" * 5000])
def test_what_is_no_traceparent_begins_a_trace_of_its_own(
    traced: Service, collector: Collector, traceparent: str
) -> None:
    answer = traced.http.post(
        "/v1/jobs", json={"prompt": "x", "steps": 1}, headers={"traceparent": traceparent}
    )
    assert answer.status_code == 202
    ids = [answer.headers["x-request-id"]]

    def roots() -> list[dict[str, Any]]:
        asked = [(one, one["attributes"].get("avocat.request.id")) for one in collector.spans]
        return [one for one, request_id in asked if request_id in ids]

    wait_until(lambda: len(roots()) == 1, 30, "the span of the request")
    assert roots()[0]["parent"] == ""
    assert roots()[0]["trace"] != TRACE


def test_a_caller_who_does_not_sample_is_heard(traced: Service, collector: Collector) -> None:
    unsampled, sampled = "1" * 32, "2" * 32
    submit(traced, f"00-{unsampled}-{CALLER}-00", steps=1)
    submit(traced, f"00-{sampled}-{CALLER}-01", steps=1)
    wait_until(lambda: "job" in collector.of(sampled), 30, "the later job's span")
    assert collector.of(unsampled) == {}


def test_a_failed_request_and_a_canceled_job_are_told(
    traced: Service, collector: Collector
) -> None:
    trace = "3" * 32
    headers = {"traceparent": f"00-{trace}-{CALLER}-01"}
    body = {"prompt": "x", "steps": 1000, "sampler": "ddpm", "n": 8}
    job = traced.http.post("/v1/jobs", json=body, headers=headers).json()
    wait_until(lambda: traced.job(job["id"])["status"] == "running", 30, "the start of the job")
    traced.http.delete(f"/v1/jobs/{job['id']}")
    wait_until(lambda: "job" in collector.of(trace), 30, "the job's span")
    assert collector.of(trace)["job"]["attributes"]["avocat.job.ending"] == "cancel"
    assert "store" not in collector.of(trace)


def log_lines(service: Service) -> list[dict[str, Any]]:
    """Every line of every part, each of which must be JSON."""
    return [json.loads(line) for line in service.log.splitlines()]


def test_lines_about_a_job_name_it_and_its_request(traced: Service, collector: Collector) -> None:
    trace = "4" * 32
    job, request_id = submit(traced, f"00-{trace}-{CALLER}-01", steps=1)
    wanted = {"request_id": request_id, "job_id": job["id"], "trace_id": trace}

    def about(event: str) -> list[dict[str, Any]]:
        return [
            one
            for one in log_lines(traced)
            if one["event"] == event and wanted.items() <= one.items()
        ]

    wait_until(lambda: bool(about("job left")), 20, "the worker's line")
    (asked,) = about("request")
    assert (asked["path"], asked["status"], asked["level"]) == ("/v1/jobs", 202, "info")
    traced.job(job["id"])
    looked = [one for one in log_lines(traced) if one.get("path") == f"/v1/jobs/{job['id']}"]
    assert {one["job_id"] for one in looked} == {job["id"]}
    assert PROMPT not in traced.log
