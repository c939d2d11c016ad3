"""The books of the storage quota: how many bytes images take, and how many are promised to jobs.

A job that is admitted is promised the most that its images can take, and has that room until it
ends; so what is accepted is always stored, and the quota is never passed. Lua for `scripts.py`.
"""

from collections.abc import Sequence
from typing import cast

from redis import Redis

from app.keys import IMAGE_BYTES, IMAGE_EXPIRY, JOB_PREFIX, PROMISED_BYTES, STORAGE_USE

__all__ = ["FORGET", "MEND", "ROOM", "Room"]

_LOOKED_AHEAD = 256  # images, the next to expire
_MENDED_AT_ONCE = 64

# store(name, bytes), promise(id, bytes), release(id): changes of the books.
# lacking(bytes, quota): how many are lacking for so many more; 0 or less where there is room.
# room_at(lacking): when images that take so much will have expired, as text; '' if not foreseen.
ROOM = f"""
local function store(name, bytes)
  local before = redis.call('HGET', '{IMAGE_BYTES}', name)
  redis.call('HSET', '{IMAGE_BYTES}', name, bytes)
  redis.call('HINCRBY', '{STORAGE_USE}', 'stored', tonumber(bytes) - tonumber(before or '0'))
end

local function promise(id, bytes)
  redis.call('HSET', '{PROMISED_BYTES}', id, bytes)
  redis.call('HINCRBY', '{STORAGE_USE}', 'promised', bytes)
end

local function release(id)
  local bytes = redis.call('HGET', '{PROMISED_BYTES}', id)
  if not bytes then return end
  redis.call('HDEL', '{PROMISED_BYTES}', id)
  redis.call('HINCRBY', '{STORAGE_USE}', 'promised', -bytes)
end

local function lacking(bytes, quota)
  local use = redis.call('HMGET', '{STORAGE_USE}', 'stored', 'promised')
  return tonumber(use[1] or '0') + tonumber(use[2] or '0') + tonumber(bytes) - tonumber(quota)
end

local function room_at(lack)
  local next = redis.call('ZRANGE', '{IMAGE_EXPIRY}', 0, {_LOOKED_AHEAD - 1}, 'WITHSCORES')
  for i = 1, #next, 2 do
    lack = lack - tonumber(redis.call('HGET', '{IMAGE_BYTES}', next[i]) or '0')
    if lack <= 0 then return next[i + 1] end
  end
  return ''
end
"""

FORGET = f"""
-- ARGV[1..] names of images that were deleted. Each is taken off the books once.
for _, name in ipairs(ARGV) do
  if redis.call('ZREM', '{IMAGE_EXPIRY}', name) == 1 then
    local bytes = redis.call('HGET', '{IMAGE_BYTES}', name)
    if bytes then
      redis.call('HDEL', '{IMAGE_BYTES}', name)
      redis.call('HINCRBY', '{STORAGE_USE}', 'stored', -bytes)
    end
  end
end
"""

MEND = f"""
-- ARGV[1] entries looked at. Takes off the books, a few at a time, what workers of an earlier
-- release left there, which know no books.
for _, name in ipairs(redis.call('HRANDFIELD', '{IMAGE_BYTES}', ARGV[1])) do
  if not redis.call('ZSCORE', '{IMAGE_EXPIRY}', name) then
    redis.call('HINCRBY', '{STORAGE_USE}', 'stored', -redis.call('HGET', '{IMAGE_BYTES}', name))
    redis.call('HDEL', '{IMAGE_BYTES}', name)
  end
end
for _, id in ipairs(redis.call('HRANDFIELD', '{PROMISED_BYTES}', ARGV[1])) do
  local status = redis.call('HGET', '{JOB_PREFIX}' .. id, 'status')
  if status ~= 'queued' and status ~= 'running' then
    redis.call('HINCRBY', '{STORAGE_USE}', 'promised', -redis.call('HGET', '{PROMISED_BYTES}', id))
    redis.call('HDEL', '{PROMISED_BYTES}', id)
  end
end
"""


class Room:
    """The books for workers, who delete what has expired."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._forget = redis.register_script(FORGET)
        self._mend = redis.register_script(MEND)

    def expired(self, now: float, most: int) -> list[bytes]:
        """Names of images past their time, the oldest first."""
        found = self._redis.zrangebyscore(IMAGE_EXPIRY, "-inf", now, start=0, num=most)
        return cast(list[bytes], found)

    def forget(self, names: Sequence[bytes]) -> None:
        """These were deleted."""
        if names:
            self._forget(args=list(names))

    def mend(self) -> None:
        """Correct a part of the books, should they be wrong."""
        self._mend(args=[_MENDED_AT_ONCE])
