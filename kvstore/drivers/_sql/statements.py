"""What PostgreSQL and MySQL are both asked, in the same words. Where they differ, `among` and the drivers say it."""

from __future__ import annotations

PIECE = 2**19
"""Bytes of a value that are sent or read at once: more would hold the event loop."""


def live(now: str, table: str = "") -> str:
    """Of a row: it has not expired at `now`."""
    column = f'{table}"expires_at"'
    return f"({column} IS NULL OR {column} > {now})"


class Statements:
    """For one table. `among` says that a column is one of the keys in the first argument, `time` tells the server's."""

    def __init__(self, table: str, among: str, digest: str, time: str) -> None:
        small = f'CASE WHEN octet_length("value") <= {PIECE} THEN "value" END'
        asked = f'FROM {table} WHERE "key" {among} AND {live("$2")}'
        one = f'WHERE "key" = $1 AND {live("$2")}'
        self.read = f"SELECT {small} FROM {table} {one}"
        self.read_many = f'SELECT "key", {small} {asked}'
        self.there = f'SELECT "key" {asked}'
        self.stat = f'SELECT "key", octet_length("value"), "revision", "mtime", "expires_at", "custom" {asked}'
        self.piece = f'SELECT "revision", substring("value" FROM $3 FOR $4) FROM {table} {one}'
        among_them = f'FROM {table} WHERE "key" {{low}} $1 AND "key" < $2 AND {live("$3")}'
        self.scan = f'SELECT "key" {among_them} ORDER BY "key" {{order}} LIMIT $4'
        self.count = f"SELECT count(*) {among_them.format(low='>=')}"
        self.touch = f'UPDATE {table} SET "expires_at" = $3 {one}'
        self.custom = f'UPDATE {table} SET "custom" = $3 {one}'
        self.remove_one = f"DELETE FROM {table} {one}"
        self.remove = f'DELETE FROM {table} WHERE "key" {among}'
        lock = f'SELECT "key", {live("$2")}{{}} FROM {table} WHERE "key" {among} ORDER BY "key" FOR UPDATE'
        self.lock, self.lock_keys = lock.format(f", {digest}"), lock.format("")
        new = '"value" = $4, "expires_at" = $5, "mtime" = $6, "revision" = $7'
        self.compare = f'UPDATE {table} SET {new} {one} AND "value" = $3'
        self.compare_remove = f'DELETE FROM {table} {one} AND "value" = $3'
        self.time = f"SELECT {time}"
        self.next_expiry = f'SELECT {time}, min("expires_at") FROM {table} WHERE "expires_at" IS NOT NULL'
