"""RQ without pickle and without calling what a queue names.

A queue is data. With stock RQ, whoever can write to Redis runs code in every worker: arguments are
unpickled, the function and the callbacks are imported by name, webhooks are sent anywhere.
"""

import json
from typing import Any, NoReturn

import rq.serializers
from rq import Queue
from rq.job import Job
from rq.serializers import JSONSerializer

from app.keys import GENERATE

# RQ looks these up at each call that forgets to pass the serializer on.
for _name in ("PickleSerializer", "DefaultSerializer"):
    setattr(rq.serializers, _name, JSONSerializer)
rq.serializers.SERIALIZER_ALIASES["pickle"] = JSONSerializer

__all__ = ["GenerateJob", "GenerateQueue", "JSONSerializer", "NotOurJob"]


class NotOurJob(ValueError):
    """A queue entry that this worker must not run."""


class GenerateJob(Job):
    """An RQ job that can name only `worker.tasks.generate`, and never calls anything."""

    def check(self) -> None:
        """Refuse whatever the API would not have enqueued.

        Raises:
            NotOurJob: another function, an instance, other arguments, or data that is no JSON.
        """
        try:
            function, instance, args, kwargs = json.loads(self.data)
        except (ValueError, TypeError, AttributeError, RecursionError) as fault:
            raise NotOurJob("its data is not the JSON of a call") from fault
        if function != GENERATE or instance is not None:
            raise NotOurJob(f"it names {function!r}; only {GENERATE!r} is run here")
        if args != [self.id] or kwargs:
            raise NotOurJob(f"its arguments are {args!r} and {kwargs!r}, not its own id")

    def restore(self, raw_data: Any) -> None:
        """Read the hash, without its callbacks, webhooks and meta."""
        dropped = (b"meta", b"webhooks", b"repeats_left", b"rate_limit_key")
        kept = {
            name: value
            for name, value in raw_data.items()
            if name not in dropped and not name.endswith(b"_callback_name")
        }
        super().restore(kept)

    @property
    def func(self) -> NoReturn:
        """Never resolved: the engine draws, RQ only keeps the books."""
        raise NotOurJob(f"job {self.id!r} is drawn by the engine; its function is not called")

    def send_webhooks(self, status: Any, *, exc_string: str | None = None) -> None:
        """RQ's webhooks go wherever the hash says; ours are not sent by RQ."""


class GenerateQueue(Queue):
    """A queue of such jobs."""

    job_class = GenerateJob
