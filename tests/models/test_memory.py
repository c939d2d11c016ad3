"""How much memory a process may still take where a container may have less than the machine."""

from pathlib import Path

import pytest
import torch

from models import memory

OLD = "memory/memory"
CACHED = "anon 300\ninactive_file 400\nactive_file 100\n"
OLD_CACHED = "cache 10\ninactive_file 7\ntotal_inactive_file 400\ntotal_active_file 100\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 5 * 1024),
        ({"memory.max": "max\n", "memory.current": "900\n", "memory.stat": ""}, 5 * 1024),
        ({"memory.max": "1000\n", "memory.current": "900\n", "memory.stat": ""}, 100),
        ({"memory.max": "1000\n", "memory.current": "1100\n", "memory.stat": ""}, 0),
        ({"memory.max": "9000\n", "memory.current": "900\n", "memory.stat": ""}, 5 * 1024),
        # Copies of files are dropped when memory is wanted, so they are no less free.
        ({"memory.max": "1000\n", "memory.current": "900\n", "memory.stat": CACHED}, 600),
        (
            {
                f"{OLD}.limit_in_bytes": "1000\n",
                f"{OLD}.usage_in_bytes": "900\n",
                f"{OLD}.stat": OLD_CACHED,
            },
            600,
        ),
        (
            {
                f"{OLD}.limit_in_bytes": "9223372036854771712\n",  # version 1's word for none
                f"{OLD}.usage_in_bytes": "900\n",
                f"{OLD}.stat": OLD_CACHED,
            },
            5 * 1024,
        ),
    ],
)
def test_a_containers_limit_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: int
) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable: 5 kB\n")
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert memory.free_bytes(torch.device("cpu")) == expected
