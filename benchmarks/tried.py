"""What was tried where kvstore is behind what it wants, by part and row. The page tells it below what is missed."""

from __future__ import annotations

_ALONE_ON_MYSQL = (
    "Tried: asyncmy directly instead of SQLAlchemy's execution (saved 120 µs), statements that are prepared once (20), "
    "one timer for all calls in place of one each (3), no task of its own for a write that can be settled (25)."
)
_CROWD_ON_MYSQL = (
    "asyncmy is compiled: a call by it takes four times the processor's time of one here, and MariaDB takes 8 µs a row of a "
    "batch. Tried: values as hexadecimal literals (a quarter of asyncmy's time; quoted ones take as much), a prepared "
    "statement for as many rows as the last batch had (a fifth less of the server's time), an upsert that tells what it found "
    "instead of asking before (a fifth less), none of it where nobody asks (a tenth less), two batches under way at once (a "
    "third less; three take more), reads by statements that are prepared once (a quarter less), no coroutine on the way of a "
    "crowd's call and answers found by the server's names (each a tenth less). A read's 4.5 µs are all the client's: 1.3 the "
    "event loop's, 1.5 what puts calls in order, 0.3 JSON, 1.3 the share of its batch in a statement of 40 µs."
)
TRIED = {
    ("memory", "set-200"): (
        "With no more than the look for what JSON can't say (below) an async dict takes 1.6 times as long as one without. Of "
        "a set's 0.95 µs the async dict takes 0.3. The rest is, in this order: a look for the null that orjson makes of "
        "NaN (0.15 with values that are new each time), the call of the driver and its share of a pass of the event loop "
        "(0.1), the time of the write and the entry (0.1), the mount (0.06), the lock that makes conditions hold between "
        "threads (0.05), a copy, since what orjson gives keeps a block of 4 KB (0.05). Tried: to remember the mount of a "
        "key (saved 0.3), a token in a list as the lock (saved 0.12), `rpartition` to find the null (saved 0.06), to "
        "encode without a call more (saves 0.02, not done), a layer less, msgspec as the encoder (as fast, but it takes "
        "bytes and sets)."
    ),
    ("files", "get-200"): (
        "Opening, reading and closing take 5.3 µs, and 2 more that no link is followed out of the base. Tried: reading "
        "in the event loop from directories that are kept open (it was 38 µs by a thread), paths that are remembered."
    ),
    ("files", "set-200"): (
        "The rename, which every atomic write waits for, takes most of the time: the bare calls are not twice as fast "
        "either. On a disk in memory a set takes 92 µs, half of it the hop to the thread that may wait for the disk."
    ),
    ("mysql", "set-200 get-200"): _ALONE_ON_MYSQL,
    ("mysql", "set-tasks-64 get-tasks-64"): _CROWD_ON_MYSQL,
    ("mariadb", "set-200 get-200"): _ALONE_ON_MYSQL,
    ("mariadb", "set-tasks-64 get-tasks-64"): _CROWD_ON_MYSQL,
    ("sessions-full", "append"): (
        "Both wait for the disk once, by a thread, which is most of the time. 64 sessions at once share that wait. Tried: a "
        "claim of the next number and the check of the head in one commit, no task of its own for it (saved 40 µs)."
    ),
    ("sessions-full", "last all"): (
        "A message is a key of its own, which keeps appends at one cost and safe between processes; so a whole read "
        "looks up every key, where others read one range. Tried: pages of 500 keys, each read with the head in one "
        "statement; to decode straight into the entry (a fifth less); no look-up of the mount of each key (a fifth); to "
        "read a page ahead (nothing, for the thread that reads and the one that decodes take turns)."
    ),
}
