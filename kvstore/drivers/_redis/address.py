"""What a Redis URL says, checked as a whole before anything is connected."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import SplitResult, unquote

from kvstore.drivers._options import LOGIN, check_query, parted, split_url, unclear_url
from kvstore.errors import ConfigError

OWN_QUERY = {"base": str, "index": bool, "cluster": bool, "connect_timeout": float, "timeout": float}
"""Options of the driver that may stand in a URL's query."""
TLS_QUERY = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_keyfile_password", "ssl_cert_reqs", "ssl_check_hostname")

_SCHEMES = ("redis", "rediss", "valkey", "unix", "redis+sentinel")
_HOST = re.compile(r"(\[[0-9a-fA-F:.%]+\]|[^:\[\]]+)(?::([0-9]{1,5}))?")
_SENTINEL_PORT = 26379


class Address(NamedTuple):
    """Where a URL leads."""

    url: str
    """As redis-py takes it."""
    shown: str
    """Without the login and the query."""
    db: int = 0
    service: str = ""
    """What Sentinel calls the master; empty where there is none to ask."""
    sentinels: tuple[tuple[str, int], ...] = ()
    username: str | None = None
    password: str | None = None


def parsed(url: str) -> Address:
    """Raises `ConfigError` for what is wrong in `url`, and shows nothing in it that may be of a password."""
    scheme, _, rest = url.partition("://")
    scheme = scheme.lower()
    if scheme not in _SCHEMES or "://" not in url:
        raise _wrong("a Redis URL starts with redis://, rediss://, unix:// or redis+sentinel://")
    shown = f"{scheme}://{parted(url, LOGIN, 'redis').address}"
    parts = split_url(f"{scheme}://{rest}", "redis")
    if parts.fragment or (scheme != "unix" and "@" in parts.path):
        raise unclear_url("redis")
    _check_query(scheme, parts.query)
    redis_url = f"{scheme.replace('valkey', 'redis')}://{rest}"
    if scheme == "unix":
        if not parts.path.strip("/"):
            raise _wrong("the URL of a Unix socket is unix:///path/of/the/socket")
        return Address(redis_url, shown)
    if scheme == "redis+sentinel":
        return _sentinel(parts, redis_url, shown)
    try:
        parts.port  # noqa: B018 - parsed when it is asked for
    except ValueError:  # which shows no more than the digits
        raise _wrong("the port in a Redis URL is a number up to 65535") from None
    return Address(redis_url, shown, _db(parts.path.strip("/")))


def _sentinel(parts: SplitResult, url: str, shown: str) -> Address:
    service, _, db = parts.path.strip("/").partition("/")
    if not service:
        raise _wrong("a Sentinel URL names the service: redis+sentinel://host:port,host:port/service/db")
    sentinels = []
    for host in parts.netloc.rpartition("@")[2].split(","):
        said = _HOST.fullmatch(host)
        if said is None or int(said[2] or 0) > 65535:
            raise _wrong("a Sentinel is host:port in a URL, and several are parted by commas")
        sentinels.append((said[1].strip("[]"), int(said[2] or _SENTINEL_PORT)))
    username = unquote(parts.username) if parts.username else None
    password = None if parts.password is None else unquote(parts.password)
    return Address(url, shown, _db(db), unquote(service), tuple(sentinels), username, password)


def _db(text: str) -> int:
    if not re.fullmatch("[0-9]{0,9}", text):
        raise _wrong(f"the database in a Redis URL is a number, not {text!r}")
    return int(text or 0)


def _check_query(scheme: str, query: str) -> None:
    for name, value in check_query(query, OWN_QUERY, TLS_QUERY, "redis"):
        if scheme != "rediss":
            raise _wrong(f"{name!r} is for TLS, and so for a URL that starts with rediss://")
        if name == "ssl_cert_reqs" and value not in ("none", "optional", "required"):
            raise _wrong("ssl_cert_reqs is none, optional or required")


def _wrong(message: str) -> ConfigError:
    return ConfigError(message, driver="redis")
