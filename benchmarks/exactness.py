"""Are pictures bitwise equal alone and in any mixture here, and what would varying shapes bring?

    python -m benchmarks.exactness --device cuda --mixtures 100

Draws random mixtures of the bundled model's rows with one fixed batch shape, as workers do, and
compares every picture with the one its row gives alone; then draws the same rows with shapes that
vary (`AVOCAT_EXACT=0`). Ends with 1 where a bit differs that should not.
"""

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from app import logs
from app.settings import Settings
from benchmarks.subject import Plan, executed, loaded, mixed, row_specs
from models.bundle import Bundle
from worker.capacity import with_capacity
from worker.engine import Engine
from worker.rows import RowSpec

COMMAND: Final = "python -m benchmarks.exactness"
ROWS: Final = 24  # different ones
LONE: Final = 4  # rows drawn one by one for the gain of a lone row


def main() -> int:
    """Compare, and say what was found."""
    options = _options()
    logs.configure("warning")
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    with tempfile.TemporaryDirectory(prefix="avocat-exact-") as folder:
        settings = Settings(data_dir=Path(folder), device=options.device, runtime=options.runtime)
        settings = with_capacity(settings, loaded(settings))
        plan = Plan(60, settings, COMMAND)
        bundle, chosen = executed(plan)
        size = settings.micro_batch
        print(f"{plan.device}, {chosen.name} {chosen.version}, batches of {size} rows")
        dice = random.Random(options.seed)
        rows = [row_specs(bundle, mixed(dice), str(i))[0] for i in range(ROWS)]
        different = _mixtures(bundle, rows, size, options.mixtures, dice)
        _price(executed(plan, wanted="eager")[0], rows, size)
    return 1 if different else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--runtime", default="auto", help="as AVOCAT_RUNTIME")
    parser.add_argument("--mixtures", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def _mixtures(
    bundle: Bundle, rows: Sequence[RowSpec], size: int, count: int, dice: random.Random
) -> int:
    """How many pictures of random mixtures differ from those of their rows alone."""
    alone = {row.job: drawn(bundle, [row], size)[row.job] for row in rows}
    compared = different = 0
    for _ in range(count):
        chosen = dice.sample(rows, dice.randint(2, 12))
        for job, picture in drawn(bundle, chosen, size, late=dice).items():
            compared += 1
            different += not torch.equal(picture, alone[job])
    print(f"{compared} pictures of {count} mixtures: {different} differ from the row alone")
    return different


def _price(bundle: Bundle, rows: Sequence[RowSpec], size: int) -> None:
    """Seconds with shapes that vary against the fixed one, and the largest difference."""
    for name, groups in (("one row at a time", [[row] for row in rows[:LONE]]), ("all", [rows])):
        ratios, gap = [], 0.0
        for group in groups:
            seconds, pictures = zip(
                *(_timed(bundle, group, size, exact) for exact in (True, False)), strict=True
            )
            ratios.append(seconds[0] / seconds[1])
            fixed, varying = pictures
            gap = max(gap, *(float((fixed[job] - varying[job]).abs().max()) for job in fixed))
        print(
            f"AVOCAT_EXACT=0, eager, {name}: {statistics.median(ratios):.2f} times as fast, "
            f"largest difference {gap:.2g} of values in [-1, 1]"
        )


def _timed(
    bundle: Bundle, rows: Sequence[RowSpec], size: int, exact: bool
) -> tuple[float, dict[str, Tensor]]:
    drawn(bundle, rows[:1], size, exact=exact)  # what is done only once
    began = time.perf_counter()
    pictures = drawn(bundle, rows, size, exact=exact)
    return time.perf_counter() - began, pictures


def drawn(
    bundle: Bundle,
    rows: Sequence[RowSpec],
    size: int,
    *,
    exact: bool = True,
    late: random.Random | None = None,
) -> dict[str, Tensor]:
    """The pictures of rows by job; with `late` they come in at random steps."""
    engine = Engine(bundle, max(2, size), size, exact=exact)
    waiting = list(rows)
    pictures: dict[str, Tensor] = {}
    while waiting or not engine.idle:
        while waiting and (late is None or engine.idle or late.random() < 0.3):
            engine.admit([waiting.pop()])
        for one in engine.step().finished:
            pictures[one.job] = one.picture.cpu()
    return pictures


if __name__ == "__main__":
    sys.exit(main())
