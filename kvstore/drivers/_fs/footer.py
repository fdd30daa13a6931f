"""What a file of the tree holds: the value's bytes, and behind them a footer where there is more to say.

    {"name":"Ada"}
    {"expires_at":1770436770000,"custom":null}0000002a#kvstore

A value without expiry and metadata stands alone, unless its own bytes end like a footer. So one file, replaced in one step,
is everything of a key.
"""

from __future__ import annotations

import os
import re

import msgspec

from kvstore.errors import CorruptValueError

MARK = b"#kvstore"
"""What a file with a footer ends with."""
_TAIL = 8 + len(MARK)
_GUESS = 512
_LENGTH = re.compile(rb"[0-9a-f]{8}")


class Footer(msgspec.Struct, frozen=True):
    """The JSON in it."""

    expires_at: int | None = None
    custom: str | None = None


_NONE = Footer()
_decode = msgspec.json.Decoder(Footer).decode


def tail(data: bytes, footer: Footer) -> bytes:
    """What to put behind the value `data`, empty where there is nothing to say."""
    if footer == _NONE and not data.endswith(MARK):
        return b""
    text = b"\n" + msgspec.json.encode(footer)
    return b"%b%08x%b" % (text, len(text), MARK)


def read_footer(descriptor: int) -> tuple[int, Footer]:
    """The size of the value and the footer, read from the end of an open file alone.

    Raises `CorruptValueError` for a footer that can't be read.
    """
    total = os.fstat(descriptor).st_size
    end = os.pread(descriptor, _GUESS, max(0, total - _GUESS))
    size = _size(end)
    if not size:
        return total, _NONE
    if size > len(end):
        end = os.pread(descriptor, size, max(0, total - size))
    if size > len(end):
        raise _too_long()
    return total - size, _parse(end[-size:-_TAIL])


def split(whole: bytes) -> tuple[bytes, Footer]:
    """The value and the footer of a file that was read as a whole."""
    size = _size(whole)
    if not size:
        return whole, _NONE
    if size > len(whole):
        raise _too_long()
    return whole[:-size], _parse(whole[-size:-_TAIL])


def _too_long() -> CorruptValueError:
    return CorruptValueError("the file ends in a footer that is longer than the file")


def _size(end: bytes) -> int:
    if not end.endswith(MARK):
        return 0
    length = end[-_TAIL : -len(MARK)]
    if not _LENGTH.fullmatch(length):
        raise CorruptValueError("the file ends in a footer without a length")
    return int(length, 16) + _TAIL


def _parse(text: bytes) -> Footer:
    try:
        if not text.startswith(b"\n"):
            raise CorruptValueError("the file ends in a footer that does not begin")
        return _decode(text)
    except msgspec.MsgspecError as error:
        raise CorruptValueError(f"the file ends in a footer that can't be read: {error}") from error
