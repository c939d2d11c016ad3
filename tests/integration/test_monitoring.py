"""The shipped dashboard and alerts against the metrics of a real service."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from tests.integration.monitoring import (
    MONITORING,
    alert_queries,
    answered,
    dashboard_queries,
    faults,
    prometheus,
    series,
)
from tests.integration.service import Service, wait_until

PROMTOOL, PROMETHEUS = shutil.which("promtool"), shutil.which("prometheus")
QUERIES = [*dashboard_queries(), *alert_queries()]
# Where there is no GPU and no fault, these have nothing to say; their unit tests do.
SILENT = ('device=~"cuda.*"', 'status=~"5.."')


@pytest.fixture(scope="module")
def observed(service: Service) -> Service:
    """A service that has drawn, repeated and refused something."""
    job = {"prompt": "a red apple", "seed": 1}
    service.finished(service.submit(**job)["id"])
    assert service.http.post("/v1/jobs", json=job).json()["cached"]
    service.http.get("/nowhere")
    return service


@pytest.fixture(scope="module")
def known(observed: Service) -> dict[str, list[dict[str, str]]]:
    return series(observed.http.get("/metrics").text)


def test_every_query_names_what_there_is(known: dict[str, list[dict[str, str]]]) -> None:
    assert len(QUERIES) > 30
    assert {query: faults(query, known) for query in QUERIES if faults(query, known)} == {}


@pytest.mark.parametrize(
    "query",
    [
        "max by (priority) (avocat_queue_job)",
        "max by (prioritty) (avocat_queue_jobs)",
        'max(avocat_queue_oldest_seconds{priorty="high"}) > 60',
        'max(avocat_queue_oldest_seconds{priority="hihg"}) > 60',
        "sum(rate(avocat_images[5m]))",
        'sum(increase(avocat_http_problems_total{type="queue_full"}[5m])) > 0',
    ],
)
def test_a_misspelt_query_is_caught(query: str, known: dict[str, list[dict[str, str]]]) -> None:
    assert faults(query, known) != []


def test_every_figure_is_shown_or_watched(known: dict[str, list[dict[str, str]]]) -> None:
    """A metric that nobody looks at is a cost without a use."""
    shown = " ".join(QUERIES)
    ours = {re.sub("_(bucket|sum|count|created)$", "", name) for name in known}
    unseen = {name for name in ours if name.startswith("avocat_") and name not in shown}
    assert unseen == set()


@pytest.mark.skipif(PROMTOOL is None, reason="there is no promtool: apt install prometheus")
def test_names_follow_prometheus_practice(observed: Service) -> None:
    checked = subprocess.run(
        ["promtool", "check", "metrics"],
        input=observed.http.get("/metrics").content,
        capture_output=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.skipif(PROMTOOL is None, reason="there is no promtool: apt install prometheus")
def test_promtool_finds_no_fault(tmp_path: Path) -> None:
    for what, file in (("rules", "alerts.yml"), ("config", "prometheus.yml")):
        command = ["promtool", "check", what, str(MONITORING / file)]
        checked = subprocess.run(command, capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stdout + checked.stderr
    broken = (MONITORING / "alerts.yml").read_text().replace("max(", "mux(", 1)
    (tmp_path / "alerts.yml").write_text(broken)
    command = ["promtool", "check", "rules", str(tmp_path / "alerts.yml")]
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0


@pytest.mark.skipif(PROMTOOL is None, reason="there is no promtool: apt install prometheus")
def test_alerts_fire_when_they_should_and_only_then(tmp_path: Path) -> None:
    """`promtool test rules`: time series made up, alerts expected."""
    shutil.copy(MONITORING / "alerts.yml", tmp_path)
    (tmp_path / "tests.yml").write_text(yaml.safe_dump(alert_tests()))
    command = ["promtool", "test", "rules", "tests.yml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def alert_tests() -> dict[str, Any]:
    """Each alert, with series by which it fires after 20 minutes, and ones by which it does not."""
    priority = 'avocat_queue_oldest_seconds{priority="%s"}'
    ended = 'avocat_jobs_ended_total{status="%s"}'
    requests = 'avocat_http_requests_total{route="%s",status="%s"}'
    full = 'avocat_http_problems_total{type="queue-full"}'
    memory = 'avocat_device_memory_bytes{device="%s",kind="%s",instance="w"}'
    cases: dict[str, tuple[dict[str, str], dict[str, str]]] = {
        "AvocatPartDown": ({'up{job="avocat-api",instance="a"}': "0"}, {'up{job="other"}': "0"}),
        "AvocatNoApi": ({'up{job="avocat-worker"}': "1"}, {"avocat_redis_up": "0"}),
        "AvocatRedisUnreachable": ({"avocat_redis_up": "0"}, {"avocat_redis_up": "1"}),
        "AvocatNoWorkers": ({"avocat_workers": "0"}, {"avocat_workers": "1"}),
        "AvocatStuck": (
            {'avocat_running_jobs{priority="low"}': "1", "avocat_engine_rows_total": "5"},
            {'avocat_running_jobs{priority="low"}': "0", "avocat_engine_rows_total": "5"},
        ),
        "AvocatServerErrors": (
            {requests % ("/v1/jobs", 500): "0+6x60", requests % ("/v1/jobs", 202): "0+90x60"},
            {requests % ("/readyz", 503): "0+60x60", requests % ("/v1/jobs", 202): "0+90x60"},
        ),
        "AvocatQueueFull": ({full: "0+1x60"}, {full: "0"}),
        "AvocatHighPriorityWaits": ({priority % "high": "61"}, {priority % "normal": "61"}),
        "AvocatQueueWaits": ({priority % "low": "1801"}, {priority % "low": "1799"}),
        "AvocatJobsFail": (
            {ended % "failed": "0+6x60", ended % "succeeded": "0+94x60"},
            {ended % "failed": "0+4x60", ended % "succeeded": "0+96x60"},
        ),
        "AvocatWorkersLost": (
            {"avocat_jobs_lost_total": "0+1x60"},
            {"avocat_jobs_lost_total": "9"},
        ),
        "AvocatDeviceMemoryFull": (
            {memory % ("cuda:0", "used"): "98", memory % ("cuda:0", "total"): "100"},
            {memory % ("cpu", "used"): "98", memory % ("cpu", "total"): "100"},
        ),
        "AvocatWebhooksGivenUp": (
            {'avocat_webhook_calls_total{outcome="given_up"}': "0+1x60"},
            {'avocat_webhook_calls_total{outcome="delivered"}': "0+1x60"},
        ),
    }  # fmt: skip
    assert len(cases) == len(alert_queries())
    return {
        "rule_files": ["alerts.yml"],
        "tests": [
            one
            for name, (bad, good) in cases.items()
            for one in (firing(name, bad, fires=True), firing(name, good, fires=False))
        ],
    }


def firing(alert: str, values: dict[str, str], fires: bool) -> dict[str, Any]:
    """One case of `promtool test rules`, which counts the series of ALERTS that fire."""
    whole = {name: v if "x" in v else f"{v}x60" for name, v in values.items()}
    count = f'count(ALERTS{{alertname="{alert}",alertstate="firing"}})'
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": v} for name, v in whole.items()],
        "promql_expr_test": [
            {
                "expr": f"{count} > 0 or vector(0)",
                "eval_time": "40m",
                "exp_samples": [{"labels": "{}", "value": int(fires)}],
            }
        ],
    }


@pytest.mark.skipif(PROMETHEUS is None, reason="there is no prometheus: apt install prometheus")
def test_prometheus_answers_every_query_of_the_dashboard(observed: Service, tmp_path: Path) -> None:
    with prometheus(tmp_path, urlsplit(observed.url).port or 0) as client:
        wait_until(lambda: answered(client, "avocat_workers", 1), 60, "the first scrape")
        observed.finished(observed.submit("a green pear")["id"])
        observed.http.post("/v1/jobs", json={"prompt": "a red apple", "seed": 1})
        observed.http.get("/nowhere")
        silent = [query for query in dashboard_queries() if not answered(client, query)]
        assert silent == []
        for query in alert_queries():
            bare = re.split(r" [<>=]=? ?[\d.]+(?=$|\s)", query)[0]  # without its threshold
            bare = re.sub(r"^absent\((.*)\)$", r"\1", bare)
            if not any(part in query for part in SILENT):
                assert answered(client, bare), query
        assert not answered(client, "avocat_queue_job", 1)


def test_the_dashboard_is_whole() -> None:
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in dashboard["panels"]]
    assert len(set(places)) == len(places)
