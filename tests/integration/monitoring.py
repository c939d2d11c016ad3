"""Queries of PromQL held against real figures: by their names and labels, and by Prometheus."""

import json
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.deploy.gateway import free_port

MONITORING = Path(__file__).parents[2] / "deploy" / "monitoring"

# Prometheus adds these itself.
_SCRAPED = {"instance", "job"}
_METRIC = re.compile(r"\b((?:avocat|process|up)\w*)\s*(?:\{([^}]*)\})?")
_MATCHER = re.compile(r"(\w+)\s*(=~|!~|!=|=)\s*\"([^\"]*)\"")
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)")


def dashboard_queries() -> list[str]:
    """Every query of the dashboard, with a range in place of Grafana's variable."""
    panels = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
    found = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    return [query.replace("$__rate_interval", "1m") for query in found]


def alert_queries() -> list[str]:
    """The condition of every alert."""
    groups = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]
    return [rule["expr"] for group in groups for rule in group["rules"]]


def series(*texts: str) -> dict[str, list[dict[str, str]]]:
    """Label sets by the name of their samples."""
    found: dict[str, list[dict[str, str]]] = {"up": [{}]}
    for text in texts:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                found.setdefault(sample.name, []).append(sample.labels)
    return found


def faults(query: str, known: dict[str, list[dict[str, str]]]) -> list[str]:
    """What a query names that is not among the series: metrics, labels, values of labels."""
    told, labels = [], set(_SCRAPED)
    for name, matchers in _METRIC.findall(query):
        if name not in known:
            told.append(f"no metric is named {name}")
        labels |= {label for one in known.get(name, []) for label in one}
        for label, how, value in _MATCHER.findall(matchers):
            values = {one.get(label) for one in known.get(name, [])}
            if label not in _SCRAPED and values <= {None}:
                told.append(f"{name} has no label {label}")
            elif label not in _SCRAPED and how == "=" and value not in values:
                told.append(f"{name} has no {label} {value!r}")
    for group in _GROUPING.findall(query):
        wrong = {label.strip() for label in group.split(",") if label.strip()} - labels
        told += [f"no metric of the query has a label {label}" for label in wrong]
    return told


@contextmanager
def prometheus(folder: Path, target: int) -> Iterator[httpx.Client]:
    """A real Prometheus that scrapes this port of this machine four times a second."""
    config = {
        "global": {"scrape_interval": "250ms", "scrape_timeout": "250ms"},
        "scrape_configs": [
            {
                "job_name": "avocat-api",
                "static_configs": [{"targets": [f"127.0.0.1:{target}"]}],
            }
        ],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))
    port = free_port()
    command = [
        *("prometheus", f"--config.file={folder}/prometheus.yml"),
        *(f"--storage.tsdb.path={folder}/data", f"--web.listen-address=127.0.0.1:{port}"),
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stderr=log, cwd=folder)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
            yield client
    finally:
        process.terminate()
        process.wait()


def answer(client: httpx.Client, query: str) -> list[Any]:
    """What Prometheus answers to a query now; nothing while it is starting."""
    try:
        response = client.get("/api/v1/query", params={"query": query})
    except httpx.TransportError:
        return []
    if response.status_code == httpx.codes.SERVICE_UNAVAILABLE:
        return []
    assert response.status_code == httpx.codes.OK, f"{query}: {response.text}"
    return list(response.json()["data"]["result"])


def answered(client: httpx.Client, query: str, within_s: float = 30.0) -> bool:
    """Whether Prometheus has an answer to the query in time."""
    until = time.monotonic() + within_s
    while not answer(client, query):
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True
