"""How the file driver spells keys as paths, so that every key has a file of its own on any file system.

In the tree a segment is a directory and the last one a file, `images:img_1` is `images/img_1.json`. File systems fold case,
normalize Unicode and forbid characters, each in its own way; so all but `a-z0-9_.-` is percent-encoded (RFC 3986, in
upper-case hex), and so is what some system gives a meaning: a dot at either end, a device's name, `.json` behind a
directory. What is too long for one name goes on in a directory that ends with `~`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import unquote

SUFFIX = ".json"
MORE = "~"
PRIVATE = ".kvstore"
"""The driver's own directory. No escaped name starts with a dot."""

_MAX_NAME = 200
_UNSAFE = re.compile(rb"[^a-z0-9_.-]")
# Reserved on Windows with any extension.
_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(?=\.|$)")


def tree_path(key: str) -> list[str]:
    """The names from the base to the file of `key`."""
    *folders, last = key.split(":")
    return [*tree_folders(":".join(folders)), *_names(last, SUFFIX)]


def tree_folders(base: str) -> list[str]:
    """The names from the driver's base to the directory of the keys below `base`."""
    return [name for segment in base.split(":") for name in _names(segment, "")] if base else []


def tree_text(name: str, *, folder: bool) -> tuple[str, bool] | None:
    """What a name in a directory says: (text of the segment, whether it goes on). None: it is not one of ours."""
    more = folder and name.endswith(MORE)
    if not folder and not name.endswith(SUFFIX):
        return None
    bare = name[: -len(MORE)] if more else name if folder else name[: -len(SUFFIX)]
    text = unquote(bare, errors="replace")
    suffix = MORE if more else "" if folder else SUFFIX
    return (text, more) if bare and _escape(text, suffix) == name else None


def _names(segment: str, suffix: str) -> list[str]:
    *parts, last = _parts(segment)
    return [*(_escape(part, MORE) for part in parts), _escape(last, suffix)]


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
