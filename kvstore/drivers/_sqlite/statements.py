"""What is asked of SQLite."""

from __future__ import annotations

from kvstore.keys import RESERVED

INLINE_BYTES = 65_536
"""Values up to this size are read at once, larger ones in pieces."""
SWEEP_STEP = 1000
"""Rows deleted by one sweep."""
NOT_RESERVED = f"key <> '{RESERVED}' AND NOT (key >= '{RESERVED}:' AND key < '{RESERVED};')"


class Statements:
    """The SQL for one table, whose name may be a word of SQL. `live` rows have not expired by the last argument.

    `at_root`: what is under `$meta` is no key (see `Driver.at_root`).
    """

    def __init__(self, table: str, *, at_root: bool = False) -> None:
        table = f'"{table}"'
        live = self.live = "(expires_at IS NULL OR expires_at > ?)"
        asked = f"{table} WHERE key IN (SELECT value FROM json_each(?)) AND {live}"
        # The cast is for a text that somebody wrote by hand.
        small = f"CASE WHEN length(value) <= {INLINE_BYTES} THEN CAST(value AS BLOB) END"
        self.small = f"SELECT {small} FROM {table} WHERE key = ? AND {live}"
        self.small_many = f"SELECT key, {small} FROM {asked}"
        self.many = f"SELECT key, rowid, {small} FROM {asked}"
        # To free a large row takes as long as to write one.
        large = f"length(value) + ifnull(length(custom), 0) > {INLINE_BYTES}"
        self.old = f"SELECT key, {live}, {large} FROM {table} WHERE key = ?"
        self.old_many = f"SELECT key, {live}, {large} FROM {table} WHERE key IN (SELECT value FROM json_each(?))"
        self.there_many = f"SELECT key FROM {asked}"
        size = "CASE typeof(value) WHEN 'blob' THEN length(value) ELSE length(CAST(value AS BLOB)) END"
        self.stat = f"SELECT key, {size}, revision, mtime, expires_at, custom FROM {asked}"
        # Revisions begin anywhere, so that a key that was removed and written within a millisecond shows it.
        # In the update the plain names are the old row's: custom metadata of a live key stays, that of an expired one goes.
        self.upsert = (
            f"INSERT INTO {table} (key, value, expires_at, mtime, revision) VALUES (?, ?, ?, ?, random() & 0xffffff)"
            " ON CONFLICT (key) DO UPDATE SET value = excluded.value, expires_at = excluded.expires_at,"
            f" mtime = excluded.mtime, revision = revision + 1, custom = CASE WHEN {live} THEN custom END"
        )
        self.upsert_small = f"{self.upsert} WHERE NOT {large}"
        self.delete = f"DELETE FROM {table} WHERE key = ?"
        self.touch = f"UPDATE {table} SET expires_at = ? WHERE key = ? AND {live}"
        self.custom = f"UPDATE {table} SET custom = ? WHERE key = ? AND {live}"
        self.rowid = f"SELECT rowid FROM {table} WHERE key = ?"
        a_key = f" AND {NOT_RESERVED}" if at_root else ""
        self.among = f"FROM {table} WHERE key {{low}} ? AND key < ?{a_key}"
        self.counts = f"SELECT count(*), count(CASE WHEN {live} THEN 1 END) FROM {table} WHERE key >= ? AND key < ?{a_key}"
        self.total = f"SELECT count(*) FROM {table}"
        self.clear = f"DELETE FROM {table} WHERE key >= ? AND key < ?{a_key}"
        self.clear_all = f"DELETE FROM {table}"
        self.expired = f"SELECT 1 FROM {table} WHERE expires_at <= ? LIMIT 1"
        expired = f"SELECT rowid FROM {table} WHERE expires_at <= ? LIMIT {SWEEP_STEP}"
        self.sweep = f"DELETE FROM {table} WHERE rowid IN ({expired})"
        self.next_expiry = f"SELECT min(expires_at) FROM {table} WHERE expires_at IS NOT NULL"
