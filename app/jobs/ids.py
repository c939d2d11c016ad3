"""Job ids: ULIDs, which sort by time and carry 80 random bits."""

import functools
import math
import re
import secrets

__all__ = ["is_job_id", "made_at", "new_job_id"]

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford's base 32
_PAIRS = [first + second for first in _ALPHABET for second in _ALPHABET]
_JOB_ID = re.compile(rf"[0-7][{_ALPHABET}]{{25}}")


def new_job_id(now: float) -> str:
    """A fresh id for a job made at `now` (unix seconds)."""
    number = (int(now * 1000) << 80) | secrets.randbits(80)
    return "".join([_PAIRS[number >> shift & 1023] for shift in range(120, -1, -10)])


def is_job_id(text: str) -> bool:
    """Whether `text` has the form of an id; what has not, need not be looked up."""
    return _JOB_ID.fullmatch(text) is not None


def made_at(job_id: str) -> float:
    """Unix seconds at which an id was made; infinity for what is no id."""
    if not is_job_id(job_id):
        return math.inf
    return functools.reduce(lambda n, sign: n * 32 + _ALPHABET.index(sign), job_id[:10], 0) / 1000
