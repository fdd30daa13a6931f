"""Options as a user gives them: times that make sense, what of a URL's query is the driver's own, where its login ends."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any, NamedTuple
from urllib.parse import SplitResult, parse_qsl, urlsplit

from kvstore.errors import ConfigError, closest

_ESCAPE = "each : / ? # [ ] @ % of a user name or a password is percent-encoded (@ as %40)"
_SAID = {bool: "true or false", int: "a whole number", float: "a number of seconds"}
_HOST = r"(?:\[[^\[\]@]*\]|[^:@\[\],]*)(?::[0-9]*)?"
_HOSTS = re.compile(rf"{_HOST}(?:,{_HOST})*")
LOGIN = re.compile(r"[^/?#\[\]]*@")
"""What ends with the last `@` before the path, as RFC 3986 has it and urllib reads it."""


class Parts(NamedTuple):
    """Of a URL, without its scheme and its query."""

    login: str
    """With its `@`, as it stands in the URL; empty where there is none."""
    address: str
    """Hosts and path. It may be shown."""

    @property
    def password(self) -> str:
        return self.login[:-1].partition(":")[2]


def check_seconds(driver: str, **options: float) -> None:
    """Raises `ConfigError` for a time that is not positive and finite."""
    for name, seconds in options.items():
        if not 0 < seconds < float("inf"):
            raise ConfigError(f"{name} is a positive number of seconds, not {seconds!r}", driver=driver)


def check_client(driver: str, option: str, client: object, kind: str, *, is_one: bool) -> None:
    """Raises `ConfigError` for an object of a user that is not of a `kind`, such as a client that is not for asyncio."""
    if client is not None and not is_one:
        given = f"{type(client).__module__}.{type(client).__qualname__}"
        raise ConfigError(f"{option} is {kind}, not {given}", driver=driver)


def own_query(url: str, kinds: Mapping[str, type[Any]], driver: str) -> tuple[str, dict[str, Any]]:
    """The URL without the options named in `kinds`, and these. The rest of the query stays to the letter."""
    address, _, query = url.partition("?")
    own: dict[str, Any] = {}
    others = []
    for part in filter(None, query.split("&")):
        [(name, value)] = parse_qsl(part, keep_blank_values=True) or [(part, "")]
        if name in kinds:
            own[name] = _read(value, kinds[name])
            if own[name] is None:
                raise ConfigError(f"{name} is {_SAID[kinds[name]]}", driver=driver)
        else:
            others.append(part)
    return address + ("?" + "&".join(others) if others else ""), own


def check_query(query: str, own: Collection[str], others: Collection[str], driver: str) -> list[tuple[str, str]]:
    """The options in what a URL's query holds besides the driver's `own`. Raises `ConfigError` unless all are of `others`."""
    options = parse_qsl(query, keep_blank_values=True)
    for name, _ in options:
        if name in own:
            raise ConfigError(f"give {name!r} as an option beside `url`, not in its query", driver=driver)
        if name not in others:
            if "@" in query:
                raise unclear_url(driver)
            raise ConfigError(f"there is no option {name!r} in this URL{closest(name, [*own, *others])}", driver=driver)
    return options


def parted(url: str, login: re.Pattern[str], driver: str) -> Parts:
    """The URL as its client reads it, which takes what `login` matches behind `://` for the login.

    Raises `ConfigError`, which shows nothing of it, where a mark that is not percent-encoded may have ended a user name or a
    password too early: then a part of it would be taken for a host, a port, a path or an option, and be told as one.
    """
    rest = url.partition("://")[2]
    found = login.match(rest)
    before, after = (rest[: found.end()], rest[found.end() :]) if found else ("", rest)
    address, _, query = after.partition("?")
    hosts = re.split("[/#]", address, maxsplit=1)[0]
    maybe = address.rpartition("@")[0]
    if (
        not _HOSTS.fullmatch(hosts)
        or (maybe and ":" in before + maybe)
        or "?" in before
        or any("@" in part.partition("=")[0] for part in query.split("&"))
    ):
        raise unclear_url(driver)
    return Parts(before, address)


def split_url(url: str, driver: str) -> SplitResult:
    """What `urlsplit` reads. Its own errors may show a password, so they are no cause, and no context."""
    with suppress(ValueError):
        return urlsplit(url)
    raise unclear_url(driver)


def unclear_url(driver: str) -> ConfigError:
    said = "the hosts (host or host:port, the port a number), the path or the options of this URL can't be read"
    return ConfigError(f"{said}; {_ESCAPE}", driver=driver)


def _read(value: str, kind: type[Any]) -> Any:
    """None: it is not of that kind. What Python says of it may show a password that holds a `?`."""
    with suppress(KeyError, ValueError):
        return {"true": True, "false": False}[value.lower()] if kind is bool else kind(value)
    return None
