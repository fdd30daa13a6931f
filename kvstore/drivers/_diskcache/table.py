"""diskcache's table: what its columns say, and what is asked of it."""

from __future__ import annotations

from kvstore.driver import Stat
from kvstore.drivers._sqlite.statements import NOT_RESERVED
from kvstore.keys import MAX_KEY_BYTES

RAW, BINARY, TEXT = 1, 2, 3
"""What the column `mode` says: in the row, or in a file as bytes or as UTF-8. 4 is a pickle."""

LIVE = "raw = 1 AND (expire_time IS NULL OR expire_time > ?)"
IS_KEY = (
    "key <> '' AND trim(key, ':') = key AND instr(key, '/') = 0 AND instr(key, '::') = 0 AND instr(key, char(0)) = 0"
    " AND instr(':' || key || ':', ':.:') = 0 AND instr(':' || key || ':', ':..:') = 0"
    f" AND length(CAST(key AS BLOB)) <= {MAX_KEY_BYTES}"
)
"""`kvstore.keys.is_key` in SQL: other texts are another program's, and neither listed, counted nor cleared."""
IS_WHOLE_KEY = f"{IS_KEY} AND {NOT_RESERVED}"
ASKED = f"FROM Cache WHERE key IN (SELECT value FROM json_each(?)) AND {LIVE}"
BELOW = f"FROM Cache WHERE key >= ? AND key < ? AND {LIVE}"
READ = f"SELECT key, mode, filename, value, size {ASKED}"
_SIZE = f"CASE WHEN mode = {RAW} THEN length(CAST(value AS BLOB)) ELSE size END"
STAT = f"SELECT key, {_SIZE}, rowid, access_count, store_time, expire_time, tag {ASKED}"
# In the update the plain names are the old row's: the tag, which is the custom metadata, stays with a live key.
UPSERT = (
    "INSERT INTO Cache (key, raw, store_time, expire_time, access_time, access_count, size, mode, filename, value)"
    " VALUES (?, 1, ?, ?, ?, 1, ?, ?, ?, ?) ON CONFLICT (key, raw) DO UPDATE SET store_time = excluded.store_time,"
    " expire_time = excluded.expire_time, access_time = excluded.access_time, access_count = access_count + 1,"
    " size = excluded.size, mode = excluded.mode, filename = excluded.filename, value = excluded.value,"
    " tag = CASE WHEN expire_time IS NULL OR expire_time > ? THEN tag END"
)


def stat(size: int, row: int, count: int, written: float, expire_time: float | None, tag: object) -> Stat:
    """Of what `STAT` finds behind the key."""
    custom = tag if isinstance(tag, bytes) else None
    expires_at = None if expire_time is None else round(expire_time * 1000)
    return Stat(size, f"{row:x}-{count:x}-{written.hex()}", int(written * 1000), expires_at, custom)
