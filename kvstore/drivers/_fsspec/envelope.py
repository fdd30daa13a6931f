"""What an object holds: the value's bytes, and behind them a footer where there is more to say, as in the file driver.

    {"name":"Ada"}
    {"expires_at":1770436770000}0000001d#kvstore

A value that has no more to it stands alone, unless its own bytes end like a footer. So one object is everything of a key.
"""

from __future__ import annotations

import re

import msgspec

from kvstore.errors import CorruptValueError

_MARK = b"#kvstore"
_TAIL = 8 + len(_MARK)
_LENGTH = re.compile(rb"[0-9a-f]{8}")


class Footer(msgspec.Struct, frozen=True, omit_defaults=True):
    """The JSON in it."""

    expires_at: int | None = None
    """In milliseconds since 1970."""
    custom: str | None = None
    key: str | None = None
    """Where the name of the object does not tell."""


NONE = Footer()
_decode = msgspec.json.Decoder(Footer).decode


def sealed(data: bytes, footer: Footer) -> bytes:
    """The object of the value `data`."""
    if footer == NONE and not data.endswith(_MARK):
        return data
    text = b"\n" + msgspec.json.encode(footer)
    return b"%b%b%08x%b" % (data, text, len(text), _MARK)


def footer_size(end: bytes) -> int:
    """The bytes of the footer of an object that ends with `end`, 0 where it has none.

    Raises `CorruptValueError` for a footer that can't be read.
    """
    if not end.endswith(_MARK):
        return 0
    length = end[-_TAIL : -len(_MARK)]
    if not _LENGTH.fullmatch(length):
        raise CorruptValueError("the object ends in a footer without a length")
    return int(length, 16) + _TAIL


def opened(end: bytes) -> tuple[int, Footer]:
    """The bytes of the footer, and what it says. `end` has to hold all of it."""
    size = footer_size(end)
    if not size:
        return 0, NONE
    text = end[-size:-_TAIL] if size <= len(end) else b""
    if not text.startswith(b"\n"):
        raise CorruptValueError("the object ends in a footer that does not begin")
    try:
        return size, _decode(text)
    except msgspec.MsgspecError as error:
        raise CorruptValueError(f"the object ends in a footer that can't be read: {error}") from error
