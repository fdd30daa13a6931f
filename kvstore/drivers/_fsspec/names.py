"""How keys are spelled as the names of objects, below the driver's prefix.

On S3 a name is the key itself, as S3 lists by code point. Elsewhere, where a name is a path, it is that of the file driver:
`images:img_1` is `images/img_1.json`. A key that is too long for a name, or on S3 holds what XML can't say, lies under its
hash, with the key inside.
"""

from __future__ import annotations

import re
from hashlib import blake2b

from kvstore.drivers._fs.paths import tree_folders, tree_path, tree_text
from kvstore.keys import is_key

PRIVATE = ".kvstore/"
"""The driver's own room. No name of a key starts with it."""
HASHED = PRIVATE + "keys/"
"""The objects of keys that are no names, by their hash. Sorts before what else is listed of the room."""
TIMES = PRIVATE + "times/"
"""When what may expire: `<milliseconds>-<hash of the name>`, with the name inside."""
PARTS = PRIVATE + "parts/"
"""What is being written."""

MAX_NAME_BYTES = 1024
MAX_PREFIX_BYTES = 800

# Control characters and line ends get lost on the way to one server or another.
_SPELLED = re.compile("[\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]+")


def digest(text: str) -> str:
    return blake2b(text.encode(), digest_size=16).hexdigest()


_LAST = "~\u2027\ud7ff\ufffd"
"""The characters that those that can't be spelled come behind."""


class Names:
    """The names below a prefix of `prefix_bytes`. `flat`: as they are on S3."""

    def __init__(self, *, flat: bool, prefix_bytes: int, at_root: bool) -> None:
        self.flat = flat
        self._at_root = at_root
        self._room = MAX_NAME_BYTES - prefix_bytes

    def name(self, key: str) -> str:
        if self.flat:
            fits = _SPELLED.fullmatch(key) is not None and len(key.encode()) <= self._room
            return key if fits else HASHED + digest(key)
        name = "/".join(tree_path(key))
        return name if len(name.encode()) <= self._room else HASHED + digest(key)

    def key(self, name: str) -> str | None:
        """The key of an object. None: it is not one of ours, or its name does not tell."""
        if self.flat:
            return name if "/" not in name and is_key(name, at_root=self._at_root) and self.name(name) == name else None
        *folders, file = name.split("/")
        segments, begun = [], ""
        for part, folder in [*((folder, True) for folder in folders), (file, False)]:
            said = tree_text(part, folder=folder)
            if said is None:
                return None
            begun += said[0]
            if not said[1]:
                segments.append(begun)
                begun = ""
        key = ":".join(segments)
        return key if is_key(key, at_root=self._at_root) and tree_path(key) == [*folders, file] else None

    def cut(self, text: str) -> str:
        """`text` as a name, or where it is none one before it. Hardly a name is between the two."""
        found = _SPELLED.match(text)
        safe = found[0] if found else ""
        if safe != text:
            safe += "".join(f"{last}\U0010ffff" for last in _LAST if last < text[len(safe)])[-2:]
        return safe.encode()[: self._room].decode(errors="ignore")

    def start(self, prefix: str) -> str:
        """What the names of all keys below `prefix` start with, as far as they tell."""
        return prefix if self.flat else "".join(f"{folder}/" for folder in tree_folders(prefix[:-1]))


def marker(name: str, expires_at: int) -> str:
    """The name of the marker of an object."""
    return f"{TIMES}{max(expires_at, 0):015d}-{digest(name)}"


def marked(name: str) -> tuple[int, str] | None:
    """What a marker's name says: when, and the hash of the object's name. None: it is none."""
    at, _, hashed = name[len(TIMES) :].partition("-")
    if len(at) == 15 and at.isascii() and at.isdigit() and len(hashed) == 32 and name.startswith(TIMES):
        return int(at), hashed
    return None
