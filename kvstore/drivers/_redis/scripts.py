"""What runs on the server, so that a call is one round trip and one step.

`KEYS`: the index of all keys (a sorted set by name), that of those which expire (by their time), and when each was written (a
hash, in microseconds). `ARGV[1]` is what stands before every key of the mount, `ARGV[2]` before custom metadata, `ARGV[3]` the
channel of changes, `ARGV[4]` who makes them, `ARGV[5]` whether to keep all that, beside the values.

Keys that the server has expired are still in the index; what looks at the index takes them out first.
"""

LOST = "LOST a part of a value was lost on the server"
"""What was sent before is not there any more: evicted, or the server was started anew."""

FENCED = "FENCED another write was given up before"

_HEAD = """
local index, expiring, written = KEYS[1], KEYS[2], KEYS[3]
local prefix, meta, channel, writer, indexed = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5] == '1'
"""

# A write that was given up may still be on its way here. Before any later one, who gave it up makes a fence and takes
# another name.
_FENCE = f"""
if redis.call('EXISTS', meta .. ':' .. writer) == 1 then return redis.error_reply('{FENCED}') end
"""

# What all keys of a call have in common is one command for them all: each takes as long as the SET of a key.
_TOGETHER = """
local function together(list, run)
    for first = 1, #list, 4000 do run(unpack(list, first, math.min(first + 3999, #list))) end
end
local function forget(keys)
    if not indexed then return end
    together(keys, function(...) redis.call('ZREM', index, ...) end)
    together(keys, function(...) redis.call('ZREM', expiring, ...) end)
    together(keys, function(...) redis.call('HDEL', written, ...) end)
end
local function tell(changes)
    for first = 1, #changes, 1000 do
        local some = table.concat(changes, '\\0', first, math.min(first + 999, #changes))
        redis.pcall('PUBLISH', channel, writer .. '\\0' .. some)  -- all is written: a login that may not tell of it may do that
    end
end
local function remove(key)
    if indexed then redis.call('DEL', meta .. key) end
    return redis.call('DEL', prefix .. key)
end
"""

_EXPIRE = """
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
"""

_NOW = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
"""

# Until its millisecond is over a key is there, and so it may be for this script when TIME says that it is not.
_PURGE = (
    _NOW
    + """
while true do
    local due = redis.call('ZRANGEBYSCORE', expiring, '-inf', string.format('(%.0f', now), 'LIMIT', 0, 1000)
    local gone = {}
    for _, key in ipairs(due) do
        local at = redis.call('PEXPIRETIME', prefix .. key)
        if at == -2 then
            gone[#gone + 1] = key
        elseif at == -1 then
            redis.call('ZREM', expiring, key)
        else
            redis.call('ZADD', expiring, at, key)
        end
    end
    forget(gone)
    if #due < 1000 or #gone == 0 then break end
end
"""
)

WRITE = (
    _HEAD
    + _FENCE
    + _TOGETHER
    + _EXPIRE
    + f"""
local at, parts = 9, {{}}
if ARGV[8] ~= '' then parts[1] = ARGV[8] end
for place = at + 3 * ARGV[6] + 2 * ARGV[7], #ARGV, 4 do
    if ARGV[place + 1] == 'm' then parts[#parts + 1] = ARGV[place + 2] end
    if ARGV[place + 1] == 'r' then redis.call('STRLEN', prefix .. ARGV[place]) end  -- which fails where it is no string
end
local function drop()
    together(parts, function(...) redis.call('DEL', ...) end)
end
for _, part in ipairs(parts) do
    if redis.call('EXISTS', part) == 0 then
        drop()
        return redis.error_reply('{LOST}')
    end
end
"""
    + """
local function apart(range)
    return redis.call('GETRANGE', ARGV[8], string.match(range, '(%d+) (%d+)'))
end
for _ = 1, ARGV[6] do
    local data, kind, wanted = redis.call('GET', prefix .. ARGV[at]), ARGV[at + 1], ARGV[at + 2]
    if kind == '0' then wanted = false elseif kind == '2' then wanted = apart(wanted) end
    if data ~= wanted then
        drop()
        return false
    end
    at = at + 3
end
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local found, plain, members, times, gone, changes = {}, {}, {}, {}, {}, {}
local function set(key, expires_at)
    local left = redis.call('PTTL', prefix .. key)
    found[#found + 1] = left == -2 and 0 or 1
    if expires_at ~= '' or left >= 0 then expire(key, expires_at) end
    if indexed then
        members[#members + 1], members[#members + 2] = 0, key
        times[#times + 1], times[#times + 2] = key, now
    end
    changes[#changes + 1] = 'u' .. key
end
for _ = 1, ARGV[7] do
    set(ARGV[at], '')
    plain[#plain + 1], plain[#plain + 2] = prefix .. ARGV[at], ARGV[at + 1]
    at = at + 2
end
together(plain, function(...) redis.call('MSET', ...) end)
while ARGV[at] do
    local key, kind, data, expires_at = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
    if kind == 'r' then
        found[#found + 1] = remove(key)
        gone[#gone + 1] = key
        if found[#found] == 1 then changes[#changes + 1] = 'r' .. key end
    else
        set(key, expires_at)
        if kind ~= 'm' then
            if kind == 'p' then data = apart(data) end
            if expires_at == '' then
                redis.call('SET', prefix .. key, data)
            else
                redis.call('SET', prefix .. key, data, 'PXAT', expires_at)
            end
        else
            redis.call('RENAME', data, prefix .. key)
            redis.call('PERSIST', prefix .. key)
            if expires_at ~= '' then redis.call('PEXPIREAT', prefix .. key, expires_at) end
        end
    end
    at = at + 4
end
together(members, function(...) redis.call('ZADD', index, ...) end)
together(times, function(...) redis.call('HSET', written, ...) end)
forget(gone)
drop()
tell(changes)
return found
"""
)
"""`ARGV`: how many conditions, how many plain sets, the name of what was sent apart or nothing; each condition's key, `1` and
data, `2` and where it lies in what was sent apart, or `0` and nothing; each plain set's key and data; then the other writes:
key, kind, data, expiry. What was found comes in this order too. Nothing is done where what was sent before is not there.

The kinds: `s` sets with an expiry, `p` sets what lies there in what was sent apart, `m` moves what lies under the name that
is given for data, `r` removes.
"""

READ = """
local names = {}
for at = 3, #ARGV do names[at - 2] = ARGV[1] .. ARGV[at] end
local found = redis.call('MGET', unpack(names))
for place, data in ipairs(found) do
    if not data then
        if redis.call('EXISTS', names[place]) == 1 then found[place] = -1 end
    elseif #data > tonumber(ARGV[2]) then
        found[place] = #data
    end
end
return found
"""
"""`ARGV`: what stands before every key; the most bytes to give at once; the keys. For each its value, nothing, the size of a
larger one, or -1 where it is no string."""

IS = """
local data = redis.call('GET', KEYS[1])
return data and (redis.sha1hex(data) == ARGV[1] and 1 or 0)
"""
"""`ARGV`: the SHA-1 of what the value may be. Nothing where there is none."""

PIECES = """
if redis.call('EXISTS', KEYS[1]) == 0 then return false end
local pieces, size = {}, tonumber(ARGV[1])
for at = 0, redis.call('STRLEN', KEYS[1]) - 1, size do
    pieces[#pieces + 1] = redis.call('GETRANGE', KEYS[1], at, at + size - 1)
end
return pieces
"""
"""`ARGV`: how many bytes a piece has."""

TYPES = """
local found = {}
for at = 2, #ARGV do found[at - 1] = redis.call('TYPE', ARGV[1] .. ARGV[at]).ok end
return found
"""
"""`ARGV`: what stands before every key; the keys. For each its type, `none` where there is nothing."""

TIME = _NOW + "return {now}"

TOUCH = (
    _HEAD
    + _FENCE
    + _EXPIRE
    + """
if redis.call('EXISTS', prefix .. ARGV[6]) == 0 then return 0 end
redis.call('STRLEN', prefix .. ARGV[6])  -- which fails where it is no string
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
    + _FENCE
    + """
local key = ARGV[6]
if redis.call('EXISTS', prefix .. key) == 0 then return 0 end
redis.call('STRLEN', prefix .. key)
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
    + _TOGETHER
    + _PURGE
    + """
return redis.call(ARGV[6], index, ARGV[7], ARGV[8], 'LIMIT', 0, ARGV[9])
"""
)
"""`ARGV`: the command, the bounds in its order, the limit."""

COUNT = (
    _HEAD
    + _TOGETHER
    + _PURGE
    + """
return redis.call('ZLEXCOUNT', index, ARGV[6], ARGV[7])
"""
)

CLEAR = (
    _HEAD
    + _FENCE
    + _TOGETHER
    + _PURGE
    + """
local keys = redis.call('ZRANGEBYLEX', index, ARGV[6], ARGV[7], 'LIMIT', 0, 1000)
if #keys == 0 then return false end
local names, metas, changes, there = {}, {}, {}, 0
for at, key in ipairs(keys) do names[at], metas[at] = prefix .. key, meta .. key end
together(names, function(...) there = there + redis.call('EXISTS', ...) end)
if there == #keys then  -- as mostly
    for at, key in ipairs(keys) do changes[at] = 'r' .. key end
    together(names, function(...) redis.call('DEL', ...) end)
    together(metas, function(...) redis.call('DEL', ...) end)
else
    for _, key in ipairs(keys) do
        if remove(key) == 1 then changes[#changes + 1] = 'r' .. key end
    end
end
forget(keys)
tell(changes)
return {#changes, keys[#keys]}
"""
)
"""Of the first thousand keys, how many there were, and the last. Nothing where there is none."""

SWEEP = _HEAD + _TOGETHER + _PURGE + "return {now, redis.call('ZRANGE', expiring, 0, 0, 'WITHSCORES')[2]}"
"""The time, and when the next key expires."""

REINDEX = (
    _HEAD
    + _FENCE
    + _TOGETHER
    + """
local gone = {}
for at = 6, #ARGV do
    local expires_at = redis.call('PEXPIRETIME', prefix .. ARGV[at])
    if expires_at == -2 then
        gone[#gone + 1] = ARGV[at]
    else
        redis.call('ZADD', index, 0, ARGV[at])
        if expires_at > 0 then
            redis.call('ZADD', expiring, expires_at, ARGV[at])
        else
            redis.call('ZREM', expiring, ARGV[at])
        end
    end
end
forget(gone)
return #ARGV - 5 - #gone
"""
)
"""`ARGV`: keys that may be there. One that is written or removed meanwhile stays what the index says of it."""
