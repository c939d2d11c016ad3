"""Which requests are repeats of one another: an earlier job's pictures may answer the later one."""

import hashlib
import json

from app import __version__, keys
from app.jobs.record import JobRequest

__all__ = ["repeat_key"]

# All other fields decide the bytes, those to come too, until they are named here.
_INDECISIVE = {"priority", "cache", "webhook_url"}


def repeat_key(owner: str, request: JobRequest, fingerprint: str) -> str:
    """The Redis key under which a job's pictures are found again.

    `fingerprint` is of the model that draws. The owner is part of the key: nobody is given the
    pictures of another, nor could tell from the time an answer takes what others have asked for.
    """
    decisive = request.model_dump(mode="json", exclude=_INDECISIVE)
    parts = [fingerprint, __version__, decisive]  # the version is written into pictures, too
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return keys.repeat(owner, digest)
