"""Every Redis key, channel, queue and fixed lifetime of Avocat.

Keys are not hashed to one slot: Redis Cluster is not supported, Sentinel and replicas are.
"""

import hashlib

__all__ = [
    "API_KEYS",
    "API_KEYS_USED",
    "CANCELS",
    "COME_AGAIN",
    "EVENTS",
    "GENERATE",
    "IMAGE_BYTES",
    "IMAGE_EXPIRY",
    "JOB_PREFIX",
    "MODELS",
    "PROMISED_BYTES",
    "QUEUES",
    "RQ_QUEUES",
    "RQ_RESULT_TTL_S",
    "RQ_WORKERS",
    "RQ_WORKER_PREFIX",
    "SIGNING_KEY",
    "STORAGE_USE",
    "WAKEUPS",
    "WEBHOOKS_DUE",
    "WEBHOOKS_PARKED_PREFIX",
    "WEBHOOK_ATTEMPTS",
    "WEBHOOK_SECRET",
    "WORKER_MODEL",
    "WORKER_SPEED_PREFIX",
    "WORKER_STANDING",
    "daily",
    "idempotency",
    "job",
    "model_claim",
    "owner_active",
    "owner_jobs",
    "rate",
    "repeat",
    "rq_canceled",
    "rq_commands",
    "rq_job",
    "rq_queue",
    "rq_running",
    "stored_input",
    "turns",
    "webhooks_parked",
    "worker_speed",
]

# RQ: queue names in the order workers serve them, and the function every job names.
QUEUES = ("high", "normal", "low")
GENERATE = "worker.tasks.generate"
RQ_QUEUES = "rq:queues"
RQ_WORKERS = "rq:workers"
# Ours among the fields of a worker's hash: the model it was started with (which the release before
# reads), its Standing as JSON (app/jobs/fleet.py), and for each loaded model what a call of its
# network costs, JSON {"slots", "micro_batch", "seconds_per_call"}, under `worker_speed(model)`.
RQ_WORKER_PREFIX = "rq:worker:"
WORKER_MODEL = "model"
WORKER_STANDING = "standing"
WORKER_SPEED_PREFIX = "speed:"
# RQ's own finished entry is only for `rq info`: ours is the record that clients read.
RQ_RESULT_TTL_S = 3600

# hash: model name -> ModelCard JSON; written by workers at start, never expires.
MODELS = "avocat:models"
# zset: image name -> unix seconds after which it may be deleted.
IMAGE_EXPIRY = "avocat:images:expiry"
# hash: image name -> bytes; hash: job id -> bytes promised to its images; hash: the sums of both,
# `stored` and `promised`. See app.jobs.room.
IMAGE_BYTES = "avocat:images:bytes"
PROMISED_BYTES = "avocat:images:promised"
STORAGE_USE = "avocat:images:use"
# string: the key of image URL signatures where the settings give none.
SIGNING_KEY = "avocat:signing-key"

# string: unix seconds for which the last submission was put off that found the queues full.
COME_AGAIN = "avocat:come-again"

# zset: job id -> unix seconds at which its webhook is due; hash: job id -> calls so far.
WEBHOOKS_DUE = "avocat:webhooks:due"
WEBHOOK_ATTEMPTS = "avocat:webhooks:attempts"
# zset per host with as many calls as it may have: job id -> when it is due if no call of the host's
# ends before, as in WEBHOOKS_DUE.
WEBHOOKS_PARKED_PREFIX = "avocat:webhooks:parked:"
# string: base64 of the key of webhook signatures where the settings give none.
WEBHOOK_SECRET = "avocat:webhooks:secret"  # noqa: S105 - where it is, not what

# hash: key id -> StoredKey JSON, revoked ones too; hash: key id -> unix seconds of its last use.
API_KEYS = "avocat:api-keys"
API_KEYS_USED = "avocat:api-keys:used"

# Channels. CANCELS: a job id. WAKEUPS: a queue name. EVENTS: JSON, one of
# {"kind": "status", "job_id", "status"}, {"kind": "progress", "steps": {job id: [attempt, step]}},
# {"kind": "preview", "job_id", "attempt", "step", "index", "data_url"}.
EVENTS = "avocat:events"
CANCELS = "avocat:cancels"
WAKEUPS = "avocat:wakeups"

JOB_PREFIX = "avocat:job:"
OWNER_PREFIX = "avocat:owner:"
# hash per queue: model -> start tag of its last job taken; model, line feed, owner -> end of the
# owner's last job there. In forwards of the network. Gone when the queue was empty.
TURNS_PREFIX = "avocat:turns:"


def job(job_id: str) -> str:
    """Hash: the job's record; expires `retention_s` after the job ends."""
    return f"{JOB_PREFIX}{job_id}"


def owner_jobs(owner: str) -> str:
    """Zset: job id -> created_at, for listing."""
    return f"{OWNER_PREFIX}{owner}:jobs"


def owner_active(owner: str) -> str:
    """Set: ids of the owner's queued and running jobs."""
    return f"{OWNER_PREFIX}{owner}:active"


def stored_input(owner: str, sha256: str) -> str:
    """String: name of a file that a job of the owner's started from; expires with that job."""
    return f"{OWNER_PREFIX}{owner}:input:{sha256}"


def idempotency(owner: str, key: str) -> str:
    """String: JSON {"body_sha256", "job_id"}; expires after `idempotency_ttl_s`."""
    return f"avocat:idem:{owner}:{hashlib.sha256(key.encode()).hexdigest()}"


def repeat(owner: str, digest: str) -> str:
    """String: id of the owner's newest job with the pictures of `digest`; expires with it."""
    return f"avocat:repeat:{owner}:{digest}"


def turns(queue: str) -> str:
    """Hash: what each owner of waiting jobs has had of a queue."""
    return f"{TURNS_PREFIX}{queue}"


def webhooks_parked(share: str) -> str:
    """Zset: webhooks of a host or an owner that wait for a place; expires soon after the last."""
    return f"{WEBHOOKS_PARKED_PREFIX}{share}"


def worker_speed(model: str) -> str:
    """Field of a worker's hash: what a call of that model's network costs."""
    return f"{WORKER_SPEED_PREFIX}{model}"


def model_claim(model: str) -> str:
    """String: name of the worker that is about to load the model; expires when it falls silent."""
    return f"avocat:model-claim:{model}"


def rate(owner: str) -> str:
    """Zset: the submissions of the last 60 s; expires with the last of them."""
    return f"avocat:rate:{owner}"


def daily(key_id: str, day: str) -> str:
    """String: pictures that a key asked for on that day (UTC, YYYY-MM-DD); gone two days later."""
    return f"avocat:daily:{key_id}:{day}"


def rq_job(job_id: str) -> str:
    """Hash: RQ's view of the job; the same id as ours."""
    return f"rq:job:{job_id}"


def rq_queue(queue: str) -> str:
    """List: ids of waiting jobs, next one first."""
    return f"rq:queue:{queue}"


def rq_running(queue: str) -> str:
    """Zset: RQ's registry of started jobs; a member ends in `:` and the execution."""
    return f"rq:wip:{queue}"


def rq_commands(worker: str) -> str:
    """Channel: RQ's commands to a worker, JSON {"command"}; of ours "load-model" and
    "unload-model", with "model".
    """
    return f"rq:pubsub:{worker}"


def rq_canceled(queue: str) -> str:
    """Zset: RQ's registry of canceled jobs."""
    return f"rq:canceled:{queue}"
