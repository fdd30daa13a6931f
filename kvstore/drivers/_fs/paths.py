"""How the file driver spells keys as paths, so that every key has a file of its own on any file system.

In the tree a segment is a directory and the last one a file, `images:img_1` is `images/img_1.json`. File systems fold case,
normalize Unicode and forbid characters, each in its own way; so all but `a-z0-9_.-` is percent-encoded (RFC 3986, in
upper-case hex), and so is what some system gives a meaning: a dot at either end, a device's name, `.json` behind a
directory. What is too long for one name goes on in a directory that ends with `~`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from urllib.parse import unquote

from kvstore.errors import InvalidKeyError

SUFFIX = ".json"
MORE = "~"
PRIVATE = ".kvstore"
"""The driver's own directory. No escaped name starts with a dot."""

_MAX_NAME = 200
_MAX_PLAIN = 255
_UNSAFE = re.compile(rb"[^a-z0-9_.-]")
_SAFE = re.compile(r"[a-z0-9_-](?:[a-z0-9_.-]*[a-z0-9_-])?")
_SEPARATOR = re.compile(r"[:/\0]")
# Reserved on Windows with any extension.
_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(?=\.|$)")


def plain_path(key: str) -> list[str]:
    """The names from the base to the file of `key` where they are the segments as they are."""
    names = key.split(":")
    if names[0].lower() == PRIVATE:  # however it is written, for file systems that fold case
        raise InvalidKeyError(f"{PRIVATE} is the driver's own directory", key=key)
    if any(len(os.fsencode(name)) > _MAX_PLAIN for name in names):
        raise InvalidKeyError(f"the name of a file has at most {_MAX_PLAIN} bytes", key=key)
    return names


def tree_path(key: str) -> list[str]:
    """The names from the base to the file of `key`."""
    *folders, last = key.split(":")
    return [*tree_folders(":".join(folders)), *segment_path(last, folder=False)]


def tree_folders(base: str) -> list[str]:
    """The names from the driver's base to the directory of the keys below `base`."""
    return [name for segment in base.split(":") for name in segment_path(segment, folder=True)] if base else []


def segment_path(segment: str, *, folder: bool) -> list[str]:
    """The names of one segment, most often one."""
    suffix = "" if folder else SUFFIX
    if as_it_is(segment + suffix, folder=folder) is not None:
        return [segment + suffix]
    *parts, last = _parts(segment)
    return [*(_escape(part, MORE) for part in parts), _escape(last, suffix)]


def as_it_is(name: str, *, folder: bool) -> str | None:
    """The segment that a name says where it is spelled as it is, as most are. None: `tree_text` has to look."""
    bare = name if folder else name[: -len(SUFFIX)] if name.endswith(SUFFIX) else ""
    if _SAFE.fullmatch(bare) and len(bare) <= _MAX_NAME and not (folder and bare.endswith(SUFFIX)) and not _DEVICE.match(bare):
        return bare
    return None


def tree_text(name: str, *, folder: bool) -> tuple[str, bool] | None:
    """What a name in a directory says: (text of the segment, whether it goes on). None: it is not one of ours."""
    more = folder and name.endswith(MORE)
    if not folder and not name.endswith(SUFFIX):
        return None
    bare = name[: -len(MORE)] if more else name if folder else name[: -len(SUFFIX)]
    text = unquote(bare, errors="replace")
    suffix = MORE if more else "" if folder else SUFFIX
    if not bare or text in (".", "..") or _SEPARATOR.search(text) or _escape(text, suffix) != name:
        return None
    return text, more


def _parts(segment: str) -> Iterator[str]:
    """The parts of a segment that are short enough for a name."""
    start = size = 0
    for place, character in enumerate(segment):
        size += len(_UNSAFE.sub(b"%XX", character.encode()))
        if size > _MAX_NAME:
            yield segment[start:place]
            start, size = place, len(_UNSAFE.sub(b"%XX", character.encode()))
    yield segment[start:]


def _escape(text: str, suffix: str) -> str:
    name = _UNSAFE.sub(lambda match: b"%%%02X" % match[0][0], text.encode("utf-8", "surrogatepass")).decode()
    if name.startswith(".") or _DEVICE.match(name):
        name = f"%{ord(name[0]):02X}{name[1:]}"
    if name.endswith("."):
        name = name[:-1] + "%2E"
    if not suffix and name.endswith(SUFFIX):
        name = f"{name[: -len(SUFFIX)]}%2E{SUFFIX[1:]}"
    return name + suffix
