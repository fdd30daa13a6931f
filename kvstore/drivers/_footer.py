"""What a file or an object holds: the value's bytes, and behind them a footer where there is more to say.

    {"name":"Ada"}
    {"expires_at":1770436770000}0000001d#kvstore

A value that has no more to it stands alone, unless its own bytes end like a footer. So one file or object, replaced in one
step, is everything of a key.
"""

from __future__ import annotations

import re

import msgspec

from kvstore.errors import CorruptValueError

MARK = b"#kvstore"
"""What a footer ends with."""
USUAL_END = 512
"""Bytes of a file's or an object's end in which most footers lie."""
_TAIL = 8 + len(MARK)
_LENGTH = re.compile(rb"[0-9a-f]{8}")


class Footer(msgspec.Struct, frozen=True, omit_defaults=True):
    """The JSON in it."""

    expires_at: int | None = None
    """In milliseconds since 1970."""
    custom: str | None = None
    key: str | None = None
    """Where the name of the file or object does not tell."""


NONE = Footer()
_decode = msgspec.json.Decoder(Footer).decode


def tail(data: bytes, footer: Footer) -> bytes:
    """What to put behind the value `data`, empty where there is nothing to say."""
    if footer == NONE and not data.endswith(MARK):
        return b""
    text = b"\n" + msgspec.json.encode(footer)
    return b"%b%08x%b" % (text, len(text), MARK)


def footer_size(end: bytes) -> int:
    """The bytes of the footer behind a value that ends with `end`, 0 where it has none.

    Raises `CorruptValueError` for a footer that can't be read.
    """
    if not end.endswith(MARK):
        return 0
    length = end[-_TAIL : -len(MARK)]
    if not _LENGTH.fullmatch(length):
        raise CorruptValueError("the value ends in a footer without a length")
    return int(length, 16) + _TAIL


def parse_footer(end: bytes) -> tuple[int, Footer]:
    """The bytes of the footer, and what it says. `end` has to hold all of it."""
    size = footer_size(end)
    if not size:
        return 0, NONE
    text = end[-size:-_TAIL] if size <= len(end) else b""
    if not text.startswith(b"\n"):
        raise CorruptValueError("the value ends in a footer that does not begin")
    try:
        return size, _decode(text)
    except msgspec.MsgspecError as error:
        raise CorruptValueError(f"the value ends in a footer that can't be read: {error}") from error
