"""The short soak: six kinds of faults under load, then all invariants."""

from pathlib import Path

from tests.models.tiny import build_tiny_bundle
from tests.soak.run import soak


def test_faults_under_load_lose_nothing(tmp_path: Path) -> None:
    found = soak(
        tmp_path / "plant",
        build_tiny_bundle(tmp_path / "bundle"),
        jobs=20,
        faults=6,
        seed=7,
        lease_s=3,
        every_s=0.3,
        workers=2,
        recipes=6,
    )
    assert found["violations"] == [], found
    assert found["jobs"] >= 20
    assert found["ended"].get("succeeded", 0) >= 10, found
    assert found["recovery_s"]["max"] <= 15, found
