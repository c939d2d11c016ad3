"""The RQ worker as RQ sees it: born, beating, dead; what `rq info` shows."""

import time
from collections.abc import Sequence

from redis import Redis
from redis.client import Pipeline
from rq import worker_registration
from rq.worker import BaseWorker, WorkerStatus

from app.jobs.fleet import Standing
from app.keys import QUEUES, WORKER_MODEL, WORKER_STANDING
from worker.ledger import Held, Ledger
from worker.rq_json import GenerateJob, GenerateQueue, JSONSerializer

__all__ = ["NameTaken", "RegisteredWorker"]

_NAME_RETRY_S = 0.5


class NameTaken(Exception):
    """Two live workers cannot have one name."""


class RegisteredWorker(BaseWorker):
    """An RQ worker that holds many executions, with a lease of `lease_s` seconds."""

    def __init__(self, redis: Redis, *, name: str, model: str, lease_s: int) -> None:
        """Asks Redis for this connection's address; registers nothing yet."""
        super().__init__(
            [GenerateQueue(queue, connection=redis, serializer=JSONSerializer) for queue in QUEUES],
            name=name,
            connection=redis,
            job_class=GenerateJob,
            queue_class=GenerateQueue,
            serializer=JSONSerializer,
        )
        self.model = model
        self.lease_s = lease_s
        self._shown: Standing | None = None

    def _set_connection(self, connection: Redis) -> Redis:
        """Keep the connection's short time limits: nothing here blocks in Redis."""
        return connection

    def register(self, standing: Standing) -> None:
        """Register, waiting for the lease of a lost worker of the same name to run out.

        `standing`: what others may know of its models.

        Raises:
            NameTaken: a live worker has this name.
        """
        until = time.monotonic() + self.lease_s + 1
        while True:
            try:
                self.register_birth()  # type: ignore[no-untyped-call]
            except ValueError as fault:
                if time.monotonic() >= until:
                    raise NameTaken(f"another worker is named {self.name!r}") from fault
                time.sleep(_NAME_RETRY_S)
            else:
                break
        self._write_presence(standing)

    def beat(self, ledger: Ledger, held: Sequence[Held], standing: Standing) -> bool:
        """Renew every lease; register again if Redis has forgotten this worker.

        Returns:
            Whether it had not.
        """
        self.executions = {one.execution.id: one.execution for one in held}
        known = ledger.beat(held, self._beat)
        if not known:
            with self.connection.pipeline() as pipe:
                pipe.hset(self.key, mapping=self.serialize())
                worker_registration.register(self, pipe)
                for one in held:
                    pipe.sadd(self.executions_key, one.execution.composite_key)
                pipe.execute()
            self._write_presence(standing)
        else:
            self.show_models(standing, again=True)
        return known

    def _beat(self, pipe: Pipeline) -> None:
        self.heartbeat(self.lease_s, pipeline=pipe)
        state = WorkerStatus.BUSY if self.executions else WorkerStatus.IDLE
        self.set_state(state, pipeline=pipe)

    def _write_presence(self, standing: Standing) -> None:
        with self.connection.pipeline() as pipe:
            pipe.hset(self.key, WORKER_MODEL, self.model)
            self._beat(pipe)
            pipe.execute()
        self.show_models(standing, again=True)

    def show_models(self, standing: Standing, *, again: bool = False) -> None:
        """Write which models are where, if that changed since it was last written, or `again`."""
        if again or self._shown is None or standing.models != self._shown.models:
            self.connection.hset(self.key, WORKER_STANDING, standing.model_dump_json())
            self._shown = standing

    def show_state(self, held: Sequence[Held]) -> None:
        """Write whether the worker is busy, if that changed since it was last written."""
        state = WorkerStatus.BUSY if held else WorkerStatus.IDLE
        if self.get_state() != state:
            self.set_state(state)
