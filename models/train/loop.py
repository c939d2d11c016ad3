"""The loop that every part of training runs in: resume, draw, step, report, save."""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from models.train.batches import Batches
from models.train.checkpoint import Checkpoint
from models.train.progress import Budget, Metrics

Step = Callable[[Tensor, list[str], int, float], dict[str, float]]


def train(
    name: str,
    step_once: Step,
    batches: Batches,
    batch_size: int,
    budget: Budget,
    checkpoint: Checkpoint,
    weights: Path,
    between: Callable[[], None] = lambda: None,
) -> int:
    """Run `step_once(pictures, captions, step, learning_rate_scale)` until the budget is spent.

    Resumes from the checkpoint, else from `weights`; metrics go to `NAME.jsonl` beside the
    checkpoint; `between` is called after every step. Returns the number of steps done.
    """
    step, spent = checkpoint.load_or_start_from(weights)
    budget.resume(step, spent)
    metrics = Metrics(checkpoint.path.with_name(f"{name}.jsonl"), step)
    with tqdm(total=budget.total, initial=step, desc=name, unit="step") as bar:
        while not budget.done:
            pictures, captions = batches.draw(step, batch_size)
            values = step_once(pictures, captions, step, budget.learning_rate_scale())
            step = budget.advance()
            bar.update()
            rate = step * batch_size / budget.spent_s
            shown = {key: f"{value:.4f}" for key, value in values.items()}
            bar.set_postfix({**shown, "pictures_per_s": f"{rate:.0f}"})
            metrics.write(step, budget.spent_s, values)
            if checkpoint.due():
                checkpoint.save(step, budget.spent_s)
            between()
    checkpoint.save(step, budget.spent_s)
    return step
