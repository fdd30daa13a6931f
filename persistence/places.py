"""Places: where a persistence lies in a backend where other things may lie too, if nothing else is said.

One for all spellings: a driver's name, its URL and its function in `persistence.drivers` lead to the same place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qs

from kvstore.resolve import split_spec


class Place(NamedTuple):
    """The option of a driver that says where, and its value."""

    option: str
    value: str


PLACES = {
    "diskcache": Place("path", "agentx-cache"),
    "fs": Place("path", "agentx"),
    "mongodb": Place("collection", "agentx"),
    "mysql": Place("table", "agentx"),
    "postgresql": Place("table", "agentx"),
    "redis": Place("base", "agentx"),
    "sqlite": Place("path", "agentx.db"),
}


def placed(spec: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a driver, given by name or URL, with its place where neither they nor the URL say one."""
    name, is_url = split_spec(spec)
    place = PLACES.get(name.removeprefix("kvstore.drivers.").partition(":")[0])
    given = {option: value for option, value in options.items() if place is None or option != place.option or value is not None}
    if place is None or place.option in given or (is_url and place.option == "path"):
        return given
    url = spec if is_url else given.get("url")
    if isinstance(url, str) and place.option in parse_qs(url.partition("?")[2], keep_blank_values=True):
        return given
    return {place.option: place.value} | given
