"""Puts the dispatcher of an application together."""

from app.deps import Services
from app.jobs.record import JobRecord
from app.present import job_objects
from app.schemas.jobs import JobObject
from app.webhooks.call import Caller
from app.webhooks.deliveries import Deliveries
from app.webhooks.dispatcher import Dispatcher

__all__ = ["make_dispatcher"]


def make_dispatcher(services: Services) -> Dispatcher:
    """The application's dispatcher; nothing runs before its `start`."""

    async def present(record: JobRecord) -> JobObject:
        [job] = await job_objects(services, [record])
        return job

    return Dispatcher(
        Deliveries(services.redis),
        services.reader,
        Caller(services.targets, services.webhook_secrets),
        present,
        services.settings.webhook_retry_s,
        services.metrics.webhook,
    )
