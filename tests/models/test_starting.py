"""Programs that are stopped before they have begun."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("module", ["models.train", "worker.evaluate"])
def test_ctrl_c_during_the_imports_is_no_traceback(module: str, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("import time\nprint('begun', flush=True)\ntime.sleep(100)\n")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    child = subprocess.Popen(
        [sys.executable, "-m", module, "clip"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "begun\n"
    child.send_signal(signal.SIGINT)
    assert child.communicate(timeout=60)[1] == ""
    assert child.returncode == -signal.SIGINT
