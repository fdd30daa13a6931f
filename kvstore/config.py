"""Mounts from a TOML file, a mapping or an environment variable."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from kvstore.errors import ConfigError, KVStoreError
from kvstore.resolve import FromEnvironment, read_text
from kvstore.storage import Storage

ENVIRONMENT = "KVSTORE_CONFIG"
_MAYBE_URL = re.compile(r".*@|[A-Za-z][A-Za-z0-9+.-]+:", re.DOTALL)
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}|\$\$")


def open_storage(source: str | os.PathLike[str] | Mapping[str, Any] | None = None) -> Storage:
    """A storage with the mounts that a configuration names.

    `source` is the path of a TOML file, a mapping of the same form, or a URL for a storage of one mount; without one, the
    environment variable `KVSTORE_CONFIG` holds a path or a URL. The form:

        [mounts]
        "" = "sqlite:///app.db"
        cache = { driver = "redis", url = "${REDIS_URL}", ttl = 60 }

    A mount is a driver's name or URL, or a table with `driver`, the mount's `ttl` (seconds) and `read_only`, and the
    driver's options. In texts `${NAME}` is the environment variable of that name, `${NAME:-text}` the text where it is not
    set, `$$` a `$`; an option that is nothing but a variable may be a number, `true` or `false`. Relative paths are relative
    to the working directory. A key that no mount holds is refused.

    Raises `ConfigError` for what is wrong, naming the file or the variable, and the mount.
    """
    where = ""
    if source is None:
        where = ENVIRONMENT
        source = os.environ.get(ENVIRONMENT)
        if not source:
            raise _wrong(f"give a file or a mapping, or set {ENVIRONMENT} to the path of a file or to a URL")
    if isinstance(source, str) and ("://" in source or source.endswith(":")):
        where, source = where or "the URL", {"": source}
    if isinstance(source, Mapping):
        content: Mapping[str, Any] = source
        mounts = content.get("mounts")
        if "mounts" not in content or isinstance(mounts, str) or (isinstance(mounts, Mapping) and "driver" in mounts):
            content = {"mounts": content}
    else:
        path: object = None
        with suppress(TypeError):
            path = os.fspath(source)
        if not isinstance(path, str):
            raise _wrong(f"a configuration is the path of a file or a mapping, not {type(source).__name__}")
        content = _load(path, where)
        where = ": ".join(filter(None, (where, path)))
    return _build(content, where or "the mapping")


def _load(path: str, variable: str) -> dict[str, Any]:
    where = ": ".join(filter(None, (variable, path or "''")))
    try:
        return tomllib.loads(Path(path).expanduser().read_text("utf-8"))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise _wrong(f"{where} is not TOML: {error}") from error
    except UnicodeDecodeError as error:  # which holds the whole text
        wrong = f"{where} is not TOML: {error}"
    except (OSError, ValueError, RuntimeError) as error:  # NUL in the path; a user whose home is not known
        if not _MAYBE_URL.match(path):
            raise _wrong(f"{where} can't be read: {getattr(error, 'strerror', error)}") from error
        # It may be a URL that was mistyped, with a password in it, and the error shows it.
        wrong = f"{variable or 'the source'} names no file that can be read, and is no URL, which has :// behind its scheme"
    raise _wrong(wrong)


def _build(content: Mapping[str, Any], where: str) -> Storage:
    unknown = [str(name) for name in content if name != "mounts"]
    if unknown:
        shown = f"setting {unknown[0]!r}" if "@" not in unknown[0] else "such setting"
        raise _wrong(f"{where}: there is no {shown}; the mounts stand in a table `mounts`")
    mounts = content.get("mounts")
    if not isinstance(mounts, Mapping) or not mounts:
        raise _wrong(f"{where}: no mounts are given in a table `mounts`")
    storage = Storage()
    for base, entry in mounts.items():
        try:
            options: Any = {"driver": entry} if isinstance(entry, str) else entry
            if not isinstance(options, Mapping):
                raise ConfigError("a mount is a driver's name or URL, or a table with `driver` and its options")
            options = {str(name): expand(value) for name, value in options.items()}
            driver = options.pop("driver", None)
            if driver is None:
                hint = "; the mounts stand in a table `mounts`" if base in ("mount", "Mounts") else ""
                raise ConfigError(f"the mount names no `driver`{hint}")
            for name, kind in (("ttl", float), ("read_only", bool)):
                if isinstance(options.get(name), FromEnvironment):
                    with suppress(msgspec.ValidationError):  # else the mount says what is wrong
                        options[name] = read_text(options[name], kind)
            storage.mount(base, driver, **options)
        except KVStoreError as error:
            place = None if "://" in str(base) else str(base)  # a URL where a base belongs may have a password
            at = {"operation": "open_storage", "mount": place, "driver": error.driver}
            raise type(error)(f"{where}: {error.message}", **at) from error.__cause__
    return storage


def expand(value: Any) -> Any:
    """`value` with `${NAME}` replaced in every text inside."""
    if isinstance(value, str):
        return (FromEnvironment if _VARIABLE.fullmatch(value) else str)(_VARIABLE.sub(_variable, value))
    if isinstance(value, Mapping):
        return {name: expand(member) for name, member in value.items()}
    if isinstance(value, list):
        return [expand(member) for member in value]
    return value


def _variable(match: re.Match[str]) -> str:
    if match[0] == "$$":
        return "$"
    value = os.environ.get(match[1], match[2])
    if value is None:
        raise ConfigError(f"the environment variable {match[1]} is not set")
    return value


def _wrong(message: str) -> ConfigError:
    return ConfigError(message, operation="open_storage")
