"""What runs on the server, so that a call is one round trip and one step.

`KEYS`: the index of all keys (a sorted set by name), that of those which expire (by their time), and when each was written (a
hash, in microseconds). `ARGV[1]` is what stands before every key of the mount, `ARGV[2]` before custom metadata, `ARGV[3]` the
channel of changes, `ARGV[4]` who makes them, `ARGV[5]` whether to keep all that, beside the values.

Keys that the server has expired are still in the index; what looks at the index takes them out first.
"""

_HEAD = """
local index, expiring, written = KEYS[1], KEYS[2], KEYS[3]
local prefix, meta, channel, writer, indexed = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5] == '1'
local function forget(key)
    if not indexed then return end
    redis.call('ZREM', index, key)
    redis.call('ZREM', expiring, key)
    redis.call('HDEL', written, key)
end
local function expire(key, at)
    if not indexed then return end
    if at == '' then
        redis.call('PERSIST', meta .. key)
        redis.call('ZREM', expiring, key)
    else
        redis.call('PEXPIREAT', meta .. key, at)
        redis.call('ZADD', expiring, at, key)
    end
end
local function tell(kind, key)
    redis.call('PUBLISH', channel, writer .. ' ' .. kind .. ' ' .. key)
end
local function remove(key)
    local there = redis.call('DEL', prefix .. key)
    if indexed then redis.call('DEL', meta .. key) end
    forget(key)
    if there == 1 then tell('remove', key) end
    return there
end
local time = redis.call('TIME')
local function purge()
    local now = time[1] * 1000 + math.floor(time[2] / 1000)
    while true do
        local due = redis.call('ZRANGEBYSCORE', expiring, '-inf', now, 'LIMIT', 0, 1000)
        for _, key in ipairs(due) do
            if redis.call('EXISTS', prefix .. key) == 0 then
                forget(key)
            else
                redis.call('ZREM', expiring, key)
            end
        end
        if #due < 1000 then return end
    end
end
"""

WRITE = (
    _HEAD
    + """
local at = 7
for _ = 1, ARGV[6] do
    local data = redis.call('GET', prefix .. ARGV[at])
    if ARGV[at + 1] == '1' then
        if data ~= ARGV[at + 2] then return false end
    elseif data then
        return false
    end
    at = at + 3
end
local found = {}
while ARGV[at] do
    local key, kind, data, expires_at = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
    if kind == 'r' then
        found[#found + 1] = remove(key)
    else
        local left = redis.call('PTTL', prefix .. key)
        found[#found + 1] = left == -2 and 0 or 1
        if kind == 'm' then
            redis.call('RENAME', data, prefix .. key)
            redis.call('PERSIST', prefix .. key)
            if expires_at ~= '' then redis.call('PEXPIREAT', prefix .. key, expires_at) end
        elseif expires_at == '' then
            redis.call('SET', prefix .. key, data)
        else
            redis.call('SET', prefix .. key, data, 'PXAT', expires_at)
        end
        if expires_at ~= '' or left >= 0 then expire(key, expires_at) end
        if indexed then
            redis.call('ZADD', index, 0, key)
            redis.call('HSET', written, key, time[1] * 1000000 + time[2])
        end
        tell('update', key)
    end
    at = at + 4
end
return found
"""
)
"""`ARGV`: how many conditions, each key, `1` and data or `0` and nothing; then writes: key, kind, data, expiry.

The kinds: `s` sets, `r` removes, `m` moves what lies under the name that is given for data.
"""

READ = (
    _HEAD
    + """
local found = {}
for at = 7, #ARGV do
    local size = redis.pcall('STRLEN', prefix .. ARGV[at])
    if type(size) == 'table' then
        found[#found + 1] = -1
    elseif size > tonumber(ARGV[6]) then
        found[#found + 1] = size
    else
        found[#found + 1] = redis.call('GET', prefix .. ARGV[at])
    end
end
return found
"""
)
"""`ARGV`: the most bytes to give at once; the keys. For each its value, nothing, the size of a larger one, or -1 where
it is no string."""

TOUCH = (
    _HEAD
    + """
if redis.call('EXISTS', prefix .. ARGV[6]) == 0 then return 0 end
if ARGV[7] == '' then
    redis.call('PERSIST', prefix .. ARGV[6])
else
    redis.call('PEXPIREAT', prefix .. ARGV[6], ARGV[7])
end
expire(ARGV[6], ARGV[7])
return 1
"""
)

SET_META = (
    _HEAD
    + """
local key = ARGV[6]
if redis.call('EXISTS', prefix .. key) == 0 then return 0 end
if ARGV[7] == '' then
    redis.call('DEL', meta .. key)
else
    local at = redis.call('PEXPIRETIME', prefix .. key)
    redis.call('SET', meta .. key, ARGV[7])
    if at > 0 then redis.call('PEXPIREAT', meta .. key, at) end
end
return 1
"""
)

STAT = (
    _HEAD
    + """
local found = {}
for at = 6, #ARGV do
    local data = redis.call('GET', prefix .. ARGV[at])
    if data then
        local custom = redis.call('GET', meta .. ARGV[at])
        local at_write = redis.call('HGET', written, ARGV[at]) or '0'
        local expires_at = redis.call('PEXPIRETIME', prefix .. ARGV[at])
        found[#found + 1] = {#data, redis.sha1hex(data), at_write, expires_at, custom}
    else
        found[#found + 1] = false
    end
end
return found
"""
)

SCAN = (
    _HEAD
    + """
purge()
return redis.call(ARGV[6], index, ARGV[7], ARGV[8], 'LIMIT', 0, ARGV[9])
"""
)
"""`ARGV`: the command, the bounds in its order, the limit."""

COUNT = (
    _HEAD
    + """
purge()
return redis.call('ZLEXCOUNT', index, ARGV[6], ARGV[7])
"""
)

CLEAR = (
    _HEAD
    + """
purge()
local keys = redis.call('ZRANGEBYLEX', index, ARGV[6], ARGV[7], 'LIMIT', 0, 1000)
for _, key in ipairs(keys) do remove(key) end
return keys
"""
)

SWEEP = _HEAD + "purge() return redis.call('ZRANGE', expiring, 0, 0, 'WITHSCORES')"
