"""From what a user names to a driver: short name, module, `module:Class`, entry point, URL or instance."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import re
import sys
import typing
from collections.abc import Collection, Iterable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

import msgspec

import kvstore.drivers
from kvstore.driver import Driver
from kvstore.errors import ConfigError, DriverNotFoundError, MissingDependencyError, closest

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

DriverSpec = str | Driver
"""How a driver is named; see `create_storage`."""


class FromEnvironment(str):
    """A text that an environment variable holds. As an option it may stand for a number, or for true or false."""

    __slots__ = ()


ENTRY_POINTS = "kvstore.drivers"
# URL schemes that are not the name of their driver.
_SCHEMES = {
    "file": "fs",
    "postgres": "postgresql",
    "mariadb": "mysql",
    **dict.fromkeys(("rediss", "unix", "valkey"), "redis"),
    **dict.fromkeys(("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "sftp", "ssh"), "fsspec"),
}
_WORD = r"[^\W\d]\w*"
_FILE = re.compile(r"\.(db|sqlite\d?|json|toml)$")
_NAME = re.compile(rf"{_WORD}(?:\.{_WORD})*(?::{_WORD})?")


def resolve_driver(spec: DriverSpec, options: Mapping[str, Any], also: Collection[str] = ("ttl", "read_only")) -> Driver:
    """The driver that `spec` names, made with `options`. Nothing is connected. `also` are what its mount takes, to be named.

    Raises `DriverNotFoundError`, `MissingDependencyError`, or `ConfigError` for options that the driver does not have.
    """
    if isinstance(spec, Driver):
        for option in options:
            hint = closest(option, [*also])
            raise ConfigError(f"a driver that is made already takes no option {option!r}{hint}", driver=spec.name)
        return spec
    if isinstance(spec, type) and issubclass(spec, Driver):
        raise ConfigError(f"{spec.__name__} is a class: give an instance, or name it as '{spec.__module__}:{spec.__name__}'")
    if not isinstance(spec, str):
        raise ConfigError(f"a driver is named by text or given as an instance, not as {type(spec).__name__}")
    name, is_url = split_spec(spec)
    cls = _named(name, is_url=is_url)
    if is_url and "url" in options:
        raise ConfigError("a URL is given twice, once as the option 'url'", driver=_short(cls))
    options = _checked_options(cls, options, also, complete=not is_url)
    try:
        if not is_url:
            return cls(**options)
        scheme, colon, rest = spec.partition(":")
        return cls.from_url(scheme.lower() + colon + rest, **options)
    except (TypeError, ValueError) as error:
        # What Python says of a URL may show a password in it.
        if "@" not in f"{spec}{options.get('url')}":
            raise ConfigError(f"the driver can't be made with these options: {error}", driver=_short(cls)) from error
    raise ConfigError("the driver can't be made with this URL", driver=_short(cls))


def split_spec(spec: str) -> tuple[str, bool]:
    """The name of the driver that a text means, and whether the text is a URL."""
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)(?:://|:$)", spec)
    if scheme is None:
        return spec, False
    name = scheme[1].lower().partition("+")[0]
    return _SCHEMES.get(name, name), True


def driver_names() -> list[str]:
    """The short names that can be used here: the built-in ones and those of entry points."""
    return sorted({*_built_in(), *(point.name for point in _entry_points())})


def _entry_points() -> Iterable[EntryPoint]:
    from importlib.metadata import entry_points  # which takes 11 ms, and most programs name a built-in driver

    return entry_points(group=ENTRY_POINTS)


def _built_in() -> list[str]:
    return [module.name for module in pkgutil.iter_modules(kvstore.drivers.__path__) if not module.name.startswith("_")]


def _named(name: str, *, is_url: bool) -> type[Driver]:
    module, colon, attribute = name.partition(":")
    if not _NAME.fullmatch(name) or (colon and module in [*_built_in(), *_SCHEMES]):
        raise DriverNotFoundError(_misnamed(name))
    if colon:
        found = getattr(_import(module, name), attribute, None)
        if not (isinstance(found, type) and issubclass(found, Driver)):
            raise DriverNotFoundError(f"module {module!r} has no driver class {attribute!r}")
        return found
    if "." in name:
        return _only_driver(_import(name, name))
    if not name.startswith("_"):
        try:
            return _only_driver(_import(f"kvstore.drivers.{name}", name))
        except DriverNotFoundError:
            for point in _entry_points():
                if point.name == name:
                    return _registered(point)
    raise _unknown(name, is_url=is_url)


def _unknown(name: str, *, is_url: bool = False) -> DriverNotFoundError:
    if _FILE.search(name):
        return DriverNotFoundError(f"there is no driver {name!r}; a file is an option, as in 'sqlite', path={name!r}")
    hint = closest(name, driver_names(), meant=_SCHEMES.get(name))
    if "did you mean" not in hint and not is_url and name.isidentifier() and importlib.util.find_spec(name) is not None:
        hint = f"; a module is named with its driver class, as '{name}:Class'"
    return DriverNotFoundError(f"there is no driver {name!r}{hint}")


def _misnamed(text: str) -> str:
    """What is wrong with a text that is no name. It may be a mistyped URL, so nothing is shown that may be of a password."""
    if not re.search("[:/@]", text):
        return _unknown(text).message
    scheme = re.split("[^a-z0-9]", text.lower(), maxsplit=1)[0]
    if _FILE.search(text) and "@" not in text:
        path = text.partition(":")[2] if scheme == "sqlite" else text
        return f"there is no driver of such a name; a file is an option, as in 'sqlite', path={path!r}"
    such = (
        f"a URL of {scheme} starts with {scheme}://"
        if scheme in [*_built_in(), *_SCHEMES]
        else "a URL has :// behind its scheme"
    )
    return f"there is no driver of such a name, which is a short one, a module or 'module:Class'; {such}"


def _registered(point: EntryPoint) -> type[Driver]:
    """What a package registers under `ENTRY_POINTS`: a driver class, or a module that has one."""
    found: Any = _import(point.module, point.name)
    if not point.attr:
        return _only_driver(found)
    for attribute in point.attr.split("."):
        found = getattr(found, attribute, None)
    if isinstance(found, ModuleType):
        return _only_driver(found)
    if not (isinstance(found, type) and issubclass(found, Driver)):
        raise DriverNotFoundError(f"the entry point {point.name!r} names no driver: {point.value}")
    return found


def _import(module: str, name: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(error.name + ".")):
            if module == f"kvstore.drivers.{name}" or _FILE.search(name):
                raise _unknown(name) from error
            raise DriverNotFoundError(f"there is no driver {name!r}: no module {error.name!r} can be imported") from error
        if error.name in sys.stdlib_module_names:
            raise MissingDependencyError(f"driver {name!r} does not run on {sys.platform}: it needs {error.name}") from error
        raise MissingDependencyError(f"driver {name!r} needs the package {error.name!r}: pip install {error.name}") from error
    except (ValueError, TypeError) as error:  # such as an empty or relative module name
        raise DriverNotFoundError(f"there is no driver {name!r}") from error


def _only_driver(module: Any) -> type[Driver]:
    found = [
        value
        for name, value in vars(module).items()
        if isinstance(value, type)
        and issubclass(value, Driver)
        and value.__module__ == module.__name__
        and not name.startswith("_")
    ]
    if len(found) != 1:
        raise DriverNotFoundError(
            f"module {module.__name__!r} has {len(found)} public drivers; name one as '{module.__name__}:Class'"
        )
    return found[0]


def _short(cls: type[Driver]) -> str:
    return cls.__module__.rpartition(".")[2]


def _checked_options(cls: type[Driver], options: Mapping[str, Any], also: Collection[str], *, complete: bool) -> dict[str, Any]:
    """Refuses unknown options with the closest known one, those of a wrong type, and where they are all, missing ones."""
    checked = {option: str(value) if isinstance(value, FromEnvironment) else value for option, value in options.items()}
    name = _short(cls)
    parameters = inspect.signature(cls).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return checked
    for option in options:
        if option not in parameters:
            raise ConfigError(f"there is no option {option!r}{closest(option, [*parameters, *also])}", driver=name)
    missing = [p.name for p in parameters.values() if p.default is p.empty and p.name not in options]
    if missing and complete:
        raise ConfigError(f"option {missing[0]!r} is missing", driver=name)
    try:
        hints = typing.get_type_hints(cls.__init__)
    except NameError:  # a name that only type checkers import
        hints = {}
    for option, value in options.items():
        try:
            if isinstance(value, FromEnvironment):
                checked[option] = read_text(value, hints.get(option, Any))
            else:
                msgspec.convert(value, hints.get(option, Any))
        except (msgspec.ValidationError, UnicodeError) as error:
            choices = typing.get_args(hints[option]) if typing.get_origin(hints[option]) is Literal else ()
            named = f"; there are {', '.join(map(repr, choices))}" if choices else ""
            raise ConfigError(f"option {option!r} is wrong: {error}{named}", driver=name) from None
        except TypeError:  # a type that msgspec does not know, such as a path; where it is no class, the driver checks it
            kinds = [typing.get_origin(kind) or kind for kind in typing.get_args(hints[option]) or (hints[option],)]
            if all(isinstance(kind, type) for kind in kinds) and not isinstance(value, tuple(kinds)):
                takes = " | ".join(kind.__name__ for kind in kinds)
                raise ConfigError(
                    f"option {option!r} is wrong: Expected `{takes}`, got `{type(value).__name__}`", driver=name
                ) from None
    return checked


def read_text(text: str, kind: Any) -> Any:
    """What a text says as a value of `kind`. Raises `msgspec.ValidationError`, or `TypeError` for a kind unknown to msgspec."""
    return msgspec.convert(str(text), kind, strict=False)
