"""All Lua that changes jobs: each script is one atomic step of the state machine.

Records keep what a script needs to close them (`owner`, `retention_s`), so workers need no
settings of the API's. Scripts build the owner's keys from `OWNER_PREFIX`.
"""

from app.jobs.room import ROOM
from app.keys import (
    CANCELS,
    EVENTS,
    IMAGE_EXPIRY,
    OWNER_PREFIX,
    TURNS_PREFIX,
    WAKEUPS,
    WEBHOOKS_DUE,
)

__all__ = [
    "ANSWER",
    "CANCEL",
    "FINISH",
    "OLDEST",
    "PROGRESS",
    "REQUEUE",
    "START",
    "SUBMIT",
    "WISH",
]

# announce(id, status): one status event.
# close(key, id, status, now): make a job terminal; returns when it expires.
_SHARED = (
    ROOM
    + f"""
local function announce(id, status)
  redis.call('PUBLISH', '{EVENTS}',
    cjson.encode({{kind = 'status', job_id = id, status = status}}))
end

local function close(key, id, status, now)
  local kept = redis.call('HMGET', key, 'owner', 'retention_s', 'request', 'inputs')
  local owner, retention = '{OWNER_PREFIX}' .. kept[1], tonumber(kept[2])
  local expires_at = string.format('%.6f', tonumber(now) + retention)
  redis.call('HSET', key, 'status', status, 'finished_at', now, 'expires_at', expires_at)
  redis.call('EXPIRE', key, math.ceil(retention))
  redis.call('SREM', owner .. ':active', id)
  -- With nothing active left, every listed job expires within the retention.
  if redis.call('SCARD', owner .. ':active') == 0 then
    redis.call('EXPIRE', owner .. ':jobs', math.ceil(retention) + 60)
  end
  -- What it started from goes with it, and is found by its hash until then.
  for _, input in ipairs(cjson.decode(kept[4] or '[]')) do
    redis.call('ZADD', '{IMAGE_EXPIRY}', expires_at, input.name)
    redis.call('SET', owner .. ':input:' .. input.sha256, input.name)
    redis.call('EXPIREAT', owner .. ':input:' .. input.sha256, math.ceil(tonumber(expires_at)))
  end
  -- An empty answer of cjson is a userdata, so only text is an address.
  if type(cjson.decode(kept[3] or '{{}}').webhook_url) == 'string' then
    redis.call('ZADD', '{WEBHOOKS_DUE}', now, id)
  end
  release(id)
  announce(id, status)
  return expires_at
end
"""
)

# made_before(key, id, idempotency, body): how a submission ends that came before, or nil.
# remember(idempotency, body, id, ttl): let the next one with this key find the job.
_SUBMISSION = """
local function made_before(key, id, idempotency, body)
  if redis.call('EXISTS', key) == 1 then return {'accepted', id} end  -- our own retry
  local known = body ~= '' and redis.call('GET', idempotency)
  if not known then return nil end
  known = cjson.decode(known)
  local record = string.sub(key, 1, -1 - string.len(id)) .. known.job_id
  if redis.call('EXISTS', record) == 0 then return nil end
  if known.body_sha256 == body then return {'replayed', known.job_id} end
  return {'mismatch', known.job_id}
end

local function remember(idempotency, body, id, ttl)
  if body == '' then return end
  redis.call('SET', idempotency, cjson.encode({body_sha256 = body, job_id = id}), 'EX', ttl)
end
"""
# place(queue, turns, prefix, id, who, cost, fresh): put a job into its queue where its turn is;
# returns the jobs before it there. `who`: model and owner. Start-time fair queueing: a job's start
# tag is the later of the end of its owner's last one and the start of the last one taken, so that
# owners get equal work; who has nothing queued or running (`fresh`) owes nothing. Queues are always
# sorted by tag, so the place is found by halving, and to take a job needs no thought of fairness.
_PLACE = """
local function place(queue, turns, prefix, id, model, owner, cost, fresh)
  local length = redis.call('LLEN', queue)
  if length == 0 then redis.call('DEL', turns) end
  local mine = model .. '\\n' .. owner
  local known = redis.call('HMGET', turns, model, mine)
  local turn = tonumber(known[1] or '0')
  -- Level with the model that is next: else one that was not drawn for long had arrears to claim.
  local next_id = redis.call('LINDEX', queue, 0) or ''
  local read, request = pcall(cjson.decode, redis.pcall('HGET', prefix .. next_id, 'request'))
  if read and type(request) == 'table' and type(request.model) == 'string' then
    turn = math.max(turn, tonumber(redis.call('HGET', turns, request.model) or '0'))
    redis.call('HSET', turns, model, string.format('%.0f', turn))
  end
  if not fresh then turn = math.max(turn, tonumber(known[2] or '0')) end
  redis.call('HSET', turns, mine, string.format('%.0f', turn + cost))
  redis.call('HSET', prefix .. id, 'turn', string.format('%.0f', turn))
  local function later(at)
    -- pcall: anything may lie where a stranger's entry points.
    local its = redis.pcall('HGET', prefix .. redis.call('LINDEX', queue, at), 'turn')
    return (type(its) == 'string' and tonumber(its) or 0) > turn
  end
  local low, high = 0, length
  if length == 0 or not later(length - 1) then low = length end
  while low < high do
    local middle = math.floor((low + high) / 2)
    if later(middle) then high = middle else low = middle + 1 end
  end
  if low == length then
    redis.call('RPUSH', queue, id)
  else
    redis.call('LINSERT', queue, 'BEFORE', redis.call('LINDEX', queue, low), id)
  end
  return low
end
"""
# offer(repeats, id, expires_at): let a later request for the same pictures find them.
_OFFER = """
local function offer(repeats, id, expires_at)
  redis.call('SET', repeats, id)
  redis.call('EXPIREAT', repeats, math.ceil(tonumber(expires_at)))
end
"""

SUBMIT = (
    _SHARED
    + _SUBMISSION
    + _PLACE
    + f"""
-- KEYS[1] job record   KEYS[2] owner's jobs   KEYS[3] owner's active set
-- KEYS[4] idempotency record   KEYS[5] RQ job   KEYS[6] RQ's set of queues
-- KEYS[7] RQ queue to push to   KEYS[8] repeats   KEYS[9] its turns
-- KEYS[10] the key's pictures of today   KEYS[11..] all RQ queues, for the cap
-- ARGV[1] job id   ARGV[2] created_at   ARGV[3] sha256 of the body, '' without idempotency key
-- ARGV[4] idempotency ttl in s   ARGV[5] queue cap   ARGV[6] cap of active jobs
-- ARGV[7] queue name   ARGV[8] '1' where an earlier job's pictures would do
-- ARGV[9] the record and ARGV[10] the RQ job as JSON: field, value, field, value, ...
-- ARGV[11] model   ARGV[12] owner   ARGV[13] cost
-- ARGV[14] pictures asked for   ARGV[15] most of them in a day, '' for no limit
-- ARGV[16] bytes that all images may take, '' for no limit   ARGV[17] bytes that its may
-- Returns {{outcome, detail}}: accepted (job id, jobs before it) | replayed (job id) | mismatch
-- | repeats (job id) | full | busy | spent (pictures of today) | stored (when there will be room)
local id = ARGV[1]
local before = made_before(KEYS[1], id, KEYS[4], ARGV[3])
if before then return before end
local same = ARGV[8] == '1' and redis.call('GET', KEYS[8])
if same then return {{'repeats', same}} end

local waiting, ahead = 0, 0
for i = 11, #KEYS do
  if KEYS[i] == KEYS[7] then ahead = waiting end  -- of higher priority
  waiting = waiting + redis.call('LLEN', KEYS[i])
end
if waiting >= tonumber(ARGV[5]) then return {{'full', tostring(waiting)}} end

local cap = tonumber(ARGV[6])
if redis.call('SCARD', KEYS[3]) >= cap then
  -- Heal: drop what is terminal or gone, then look again.
  for _, member in ipairs(redis.call('SMEMBERS', KEYS[3])) do
    local key = string.sub(KEYS[1], 1, -1 - string.len(id)) .. member
    local status = redis.call('HGET', key, 'status')
    if status ~= 'queued' and status ~= 'running' then redis.call('SREM', KEYS[3], member) end
  end
  local active = redis.call('SCARD', KEYS[3])
  if active >= cap then return {{'busy', tostring(active)}} end
end

if ARGV[16] ~= '' then
  local lack = lacking(ARGV[17], ARGV[16])
  if lack > 0 then return {{'stored', room_at(lack)}} end
end
if ARGV[15] ~= '' then
  local spent = tonumber(redis.call('GET', KEYS[10]) or '0')
  if spent + tonumber(ARGV[14]) > tonumber(ARGV[15]) then return {{'spent', tostring(spent)}} end
  redis.call('INCRBY', KEYS[10], ARGV[14])
  redis.call('EXPIRE', KEYS[10], 172800)
end

if ARGV[16] ~= '' then promise(id, ARGV[17]) end
local prefix = string.sub(KEYS[1], 1, -1 - string.len(id))
local fresh = redis.call('SCARD', KEYS[3]) == 0
redis.call('HSET', KEYS[1], unpack(cjson.decode(ARGV[9])))
redis.call('HSET', KEYS[5], unpack(cjson.decode(ARGV[10])))
redis.call('ZADD', KEYS[2], ARGV[2], id)
redis.call('PERSIST', KEYS[2])
redis.call('SADD', KEYS[3], id)
remember(KEYS[4], ARGV[3], id, ARGV[4])
redis.call('SADD', KEYS[6], KEYS[7])
-- Not announced: nobody can follow what has no id yet.
ahead = ahead + place(
  KEYS[7], KEYS[9], prefix, id, ARGV[11], ARGV[12], tonumber(ARGV[13]), fresh)
redis.call('PUBLISH', '{WAKEUPS}', ARGV[7])
return {{'accepted', id, tostring(ahead)}}
"""
)

ANSWER = (
    _SHARED
    + _SUBMISSION
    + _OFFER
    + f"""
-- A job that has its pictures from the start; it passes no queue and meets no cap.
-- KEYS[1] job record   KEYS[2] owner's jobs   KEYS[3] idempotency record   KEYS[4] repeats
-- ARGV[1] job id   ARGV[2] created_at   ARGV[3] sha256 of the body, '' without idempotency key
-- ARGV[4] idempotency ttl in s   ARGV[5] the record as JSON: field, value, field, value, ...
-- ARGV[6] bytes that all images may take, '' for no limit   ARGV[7] bytes of its own
-- ARGV[8..] names of its images, each followed by its bytes
-- Returns {{outcome, detail}}: accepted | replayed (job id) | mismatch | stored (as of SUBMIT)
local id = ARGV[1]
local before = made_before(KEYS[1], id, KEYS[3], ARGV[3])
if before then return before end
if ARGV[6] ~= '' then
  local lack = lacking(ARGV[7], ARGV[6])
  if lack > 0 then return {{'stored', room_at(lack)}} end
end
redis.call('HSET', KEYS[1], unpack(cjson.decode(ARGV[5])))
redis.call('ZADD', KEYS[2], ARGV[2], id)
remember(KEYS[3], ARGV[3], id, ARGV[4])
-- Its end, as every other job's.
local expires_at = close(KEYS[1], id, 'succeeded', ARGV[2])
offer(KEYS[4], id, expires_at)
for i = 8, #ARGV, 2 do
  redis.call('ZADD', '{IMAGE_EXPIRY}', expires_at, ARGV[i])
  store(ARGV[i], ARGV[i + 1])
end
return {{'accepted', id}}
"""
)

CANCEL = (
    _SHARED
    + f"""
-- KEYS[1] job record   KEYS[2] RQ queue   KEYS[3] RQ job   KEYS[4] RQ's canceled registry
-- ARGV[1] job id   ARGV[2] now   ARGV[3] now as RQ writes times
-- Returns the status after the call, or false when there is no such job.
local status = redis.call('HGET', KEYS[1], 'status')
if status == 'running' then
  redis.call('HSET', KEYS[1], 'cancel_requested', '1')
  redis.call('PUBLISH', '{CANCELS}', ARGV[1])
elseif status == 'queued' then
  redis.call('HSET', KEYS[1], 'cancel_requested', '1')
  close(KEYS[1], ARGV[1], 'canceled', ARGV[2])
  status = 'canceled'
  -- Not in the list: a worker is just taking it, will find it canceled, and closes RQ's side.
  if redis.call('LREM', KEYS[2], 0, ARGV[1]) > 0 then
    local kept = math.ceil(tonumber(redis.call('HGET', KEYS[1], 'retention_s')))
    redis.call('HSET', KEYS[3], 'status', 'canceled', 'ended_at', ARGV[3])
    redis.call('EXPIRE', KEYS[3], kept)
    redis.call('ZADD', KEYS[4], ARGV[2], ARGV[1])
    -- RQ never empties this registry itself.
    redis.call('ZREMRANGEBYSCORE', KEYS[4], '-inf', tonumber(ARGV[2]) - kept)
  end
end
return status
"""
)

START = (
    _SHARED
    + f"""
-- KEYS[1] job record
-- ARGV[1] job id   ARGV[2] execution   ARGV[3] worker   ARGV[4] now
-- Returns 1 when the job is this execution's now, else 0.
local now = redis.call('HMGET', KEYS[1], 'status', 'cancel_requested')
if now[1] ~= 'queued' and now[1] ~= 'running' then return 0 end
if now[2] == '1' then
  close(KEYS[1], ARGV[1], 'canceled', ARGV[4])
  return 0
end
redis.call('HSET', KEYS[1], 'status', 'running', 'execution', ARGV[2], 'worker', ARGV[3],
  'step', '0')
redis.call('HSETNX', KEYS[1], 'started_at', ARGV[4])
redis.call('HINCRBY', KEYS[1], 'attempts', 1)
-- Who comes from now on starts here, and not where those began who have waited all along.
local turn = redis.call('HGET', KEYS[1], 'turn')
if turn then
  local request = cjson.decode(redis.call('HGET', KEYS[1], 'request'))
  local turns = '{TURNS_PREFIX}' .. request.priority
  if tonumber(redis.call('HGET', turns, request.model) or '0') < tonumber(turn) then
    redis.call('HSET', turns, request.model, turn)
  end
end
announce(ARGV[1], 'running')
return 1
"""
)

PROGRESS = f"""
-- KEYS[i] job records
-- ARGV[3i-2] job id   ARGV[3i-1] execution   ARGV[3i] step
-- Returns the ids that must leave the batch (canceled, taken over by another execution, or gone),
-- and id, count, id, count … of those whose previews somebody wants.
local evict, previews, steps, moved = {{}}, {{}}, {{}}, false
for i, key in ipairs(KEYS) do
  local id, execution, step = ARGV[3 * i - 2], ARGV[3 * i - 1], ARGV[3 * i]
  local now = redis.call('HMGET', key,
    'status', 'execution', 'cancel_requested', 'attempts', 'previews')
  if now[1] == 'running' and now[2] == execution then
    redis.call('HSET', key, 'step', step)
    steps[id], moved = {{tonumber(now[4]), tonumber(step)}}, true
    if now[3] == '1' then evict[#evict + 1] = id end
    if now[5] and now[5] ~= '0' then
      previews[#previews + 1] = id
      previews[#previews + 1] = now[5]
    end
  else
    evict[#evict + 1] = id
  end
end
if moved then
  redis.call('PUBLISH', '{EVENTS}', cjson.encode({{kind = 'progress', steps = steps}}))
end
return {{evict, previews}}
"""

WISH = """
-- KEYS[1] job record
-- ARGV[1] previews wanted of each picture
-- Returns 1; 0 when the job is over or gone. Who wants fewer than another leaves some out.
local now = redis.call('HMGET', KEYS[1], 'status', 'previews')
if now[1] ~= 'queued' and now[1] ~= 'running' then return 0 end
if tonumber(now[2] or '0') < tonumber(ARGV[1]) then
  redis.call('HSET', KEYS[1], 'previews', ARGV[1])
end
return 1
"""

FINISH = (
    _SHARED
    + _OFFER
    + f"""
-- KEYS[1] job record   KEYS[2] repeats, where its images may answer the next such request
-- ARGV[1] job id   ARGV[2] execution, '' for a job that no worker holds
-- ARGV[3] status   ARGV[4] now   ARGV[5] images as JSON   ARGV[6] warnings as JSON
-- ARGV[7] error as JSON or ''   ARGV[8..] names of the images, each followed by its bytes
-- Returns 1, or 0 when the job is not this execution's any more.
local now = redis.call('HMGET', KEYS[1], 'status', 'execution', 'total_steps')
local held = now[1] == 'running' and now[2] == ARGV[2]
local waiting = now[1] == 'queued' and ARGV[2] == ''
if not held and not waiting then return 0 end
redis.call('HSET', KEYS[1], 'images', ARGV[5], 'warnings', ARGV[6])
if ARGV[7] ~= '' then redis.call('HSET', KEYS[1], 'error', ARGV[7]) end
if ARGV[3] == 'succeeded' then redis.call('HSET', KEYS[1], 'step', now[3]) end
local expires_at = close(KEYS[1], ARGV[1], ARGV[3], ARGV[4])
if KEYS[2] then offer(KEYS[2], ARGV[1], expires_at) end
for i = 8, #ARGV, 2 do
  redis.call('ZADD', '{IMAGE_EXPIRY}', expires_at, ARGV[i])
  store(ARGV[i], ARGV[i + 1])
end
return 1
"""
)

REQUEUE = (
    _SHARED
    + """
-- KEYS[1] job record
-- ARGV[1] job id   ARGV[2] execution
-- Returns 1, or 0 when the job is not this execution's any more.
local now = redis.call('HMGET', KEYS[1], 'status', 'execution')
if now[1] ~= 'running' or now[2] ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], 'status', 'queued', 'step', '0')
redis.call('HDEL', KEYS[1], 'execution', 'worker')
announce(ARGV[1], 'queued')
return 1
"""
)

OLDEST = """
-- KEYS[1..] queues, the highest priority first   ARGV[1] places of each that need not be looked at
-- Returns for each queue the least id behind those places, '' where there is none: ids sort by
-- time. Nothing is read as long as no more than one queue has jobs, for then it does not matter.
local found, others = {}, 0
for i, queue in ipairs(KEYS) do
  local oldest = ''
  local length = redis.call('LLEN', queue)
  if others > 0 and length > tonumber(ARGV[1]) then
    for _, id in ipairs(redis.call('LRANGE', queue, ARGV[1], -1)) do
      if #id == 26 and (oldest == '' or id < oldest) then oldest = id end
    end
  end
  if length > 0 then others = others + 1 end
  found[i] = oldest
end
return found
"""
