"""The loop that every part of training runs in: resume, draw, step, report, save."""

import math
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from models.errors import ModelError
from models.train import parallel
from models.train.batches import Batch, Batches
from models.train.checkpoint import Checkpoint
from models.train.progress import Budget, Metrics, TrainingState

Step = Callable[[Batch, int, float], dict[str, float]]


def train(
    name: str,
    step_once: Step,
    batches: Batches,
    batch_size: int,
    budget: Budget,
    checkpoint: Checkpoint,
    weights: Path | None,
    between: Callable[[], None] = lambda: None,
) -> TrainingState:
    """Run `step_once(batch, step, learning_rate_scale)` until the budget is spent.

    `step` there is the number of the draw: under torchrun each process makes its own, of
    `batch_size` pictures. Resumes from the checkpoint, else from `weights`; metrics go to
    `NAME.jsonl` beside the checkpoint, and `between` is called after every step, both by the first
    process alone. Returns how far the run is.

    Raises:
        ModelError: the checkpoint or the weights are of another run, or damaged; the loss is not
            finite any more, of which nothing is saved.
    """
    state = checkpoint.load_or_start_from(weights)
    budget.resume(state)
    first = parallel.rank() == 0
    metrics = Metrics(checkpoint.path.with_name(f"{name}.jsonl"), state.step) if first else None
    with tqdm(
        total=budget.total, initial=state.step, desc=name, unit="step", disable=not first
    ) as bar:
        size = parallel.world_size()
        stream = batches.stream(batch_size, state.step * size + parallel.rank(), size)
        while not budget.done and not budget.paused:
            draw, batch = next(stream)
            values = step_once(batch, draw, budget.learning_rate_scale())
            if not all(math.isfinite(value) for value in values.values()):
                raise ModelError(
                    f"the loss of step {budget.step + 1} is not finite, so nothing of it is saved: "
                    f"train with a lower learning rate, or on other pictures"
                )
            budget.advance(batch_size * size)
            if metrics is None:
                continue
            bar.update()
            shown = {key: f"{value:.4f}" for key, value in values.items()}
            bar.set_postfix({**shown, "pictures_per_s": f"{budget.pictures_per_s:.0f}"})
            metrics.write(budget.step, budget.spent_s, values)
            if checkpoint.due():
                checkpoint.save(budget.state)
            between()
    if first:
        checkpoint.save(budget.state)
    return budget.state
