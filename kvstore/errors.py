"""The one error tree. Every error names the operation, key, mount and driver that it concerns."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Self

# In a URL before the host, where a careless one holds `@` or `/` too; or as the value of an option.
_PASSWORD = re.compile(
    r"""(://[^\s/@:]*:)[^\s'"]*(?=@)|((?<!\w)\w*?(?:password|passwd|pwd|secret|token)\w*=)[^\s&;,'"]+""", re.IGNORECASE
)
_LONGEST = 2_000
"""Characters of a message."""
_READS = (
    *("get_item", "get_item_raw", "get_items", "has_item", "get_meta"),
    *("get_keys", "iter_keys", "iter_items", "count", "watch"),
)


class KVStoreError(Exception):
    """Base of everything that kvstore and persistence raise on purpose.

    `operation`, `key`, `mount` (the mount's base) and `driver` (its short name) are None where they do not apply.
    `maybe_written`: whether the call may have written all the same. Only of a `BackendError` it may be true.
    """

    maybe_written = False
    _outcome = ""
    """The end of the message."""

    def __init__(
        self,
        message: str,
        *,
        operation: str | None = None,
        key: object = None,
        mount: str | None = None,
        driver: str | None = None,
    ) -> None:
        shown = _PASSWORD.sub(r"\1\2***", message[: 2 * _LONGEST])
        self.message = shown if len(shown) <= _LONGEST else shown[:_LONGEST] + "…"
        super().__init__(self.message)
        self.operation = operation
        self.key = key
        self.mount = mount
        self.driver = driver

    def __str__(self) -> str:
        context = [] if self.operation is None else [self.operation]
        if self.key is not None:
            text = repr(self.key)
            context.append(f"key {text if len(text) <= 200 else text[:200] + '…'}")
        if self.mount is not None:
            context.append(f"mount {self.mount!r}")
        if self.driver is not None:
            context.append(f"driver {self.driver}")
        return f"{self.message}{self._outcome}" + (f" ({', '.join(context)})" if context else "")

    @property
    def says_maybe_written(self) -> bool:
        """Whether `maybe_written` was said by who raised it."""
        return self.maybe_written and bool(self._outcome)

    def at(self, operation: str | None = None, key: object = None, mount: str | None = None, driver: str | None = None) -> Self:
        """A copy that also says where it happened. What this error already knows is kept.

        A copy, because one failed batch answers many callers, each with a key of its own. What is no cause of this error,
        which a driver decides, is forgotten: it may show a secret.
        """
        copy = type(self)(
            self.message,
            operation=self.operation or operation,
            key=key if self.key is None else self.key,
            mount=mount if self.mount is None else self.mount,
            driver=driver if self.driver is None else self.driver,
        )
        copy.maybe_written, copy._outcome = self.maybe_written, self._outcome
        if self.operation is None and operation in _READS:
            copy.maybe_written, copy._outcome = False, ""
        copy.__cause__ = self.__cause__
        self.__context__ = self.__cause__
        return copy


class InvalidKeyError(KVStoreError):
    """The key is not one: not text, empty, too long, reserved, or with a segment that no backend could keep."""


class InvalidValueError(KVStoreError):
    """The value can't be said in JSON without changing it, or an argument such as `ttl` is out of range."""


class CorruptValueError(KVStoreError):
    """What is stored is not JSON, or not of the type asked for. It is left as it was."""


class ReadOnlyError(KVStoreError):
    """The mount was opened with `read_only=True`."""


class UnsupportedOperation(KVStoreError):
    """The driver can't promise this operation (see `Mount.capabilities`), so it is refused rather than faked."""


class DriverNotFoundError(KVStoreError):
    """No driver has this name."""


class MissingDependencyError(KVStoreError):
    """The driver's client library is not installed; the message has the `pip install` line."""


def install(extra: str) -> str:
    """The line that installs what an extra of this distribution brings.

    It names the packages themselves: in the package index the name of this project may be that of another one. Where the
    sources are only on the path, it names their directory.
    """
    from importlib import metadata
    from pathlib import Path

    try:
        required = metadata.requires("kvstore") or []
    except metadata.PackageNotFoundError:
        required = []
    packages = [line.partition(";")[0].strip() for line in required if line.endswith((f"'{extra}'", f'"{extra}"'))]
    return "pip install " + " ".join(f'"{package}"' for package in packages or [f"{Path(__file__).parent.parent}[{extra}]"])


def closest(name: str, known: Collection[str], *, meant: str | None = None) -> str:
    """The end of a message about an unknown name: `meant`, the closest of those `known`, or them all."""
    from difflib import get_close_matches

    close = [meant] if meant else get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(known) or 'none'}"


class ConfigError(KVStoreError):
    """A mount, an option or a configuration file is wrong."""


class ClosedError(KVStoreError):
    """The storage was closed."""


class BackendError(KVStoreError):
    """The backend failed; its own error is the `__cause__`.

    `maybe_written` is false where it is known that nothing was written, as of every call that only reads. Who raises it says
    so, True or False; None is for what is no write, and for a driver that does not know: `maybe_written` is true then.
    """

    maybe_written = True

    def __init__(
        self,
        message: str,
        *,
        maybe_written: bool | None = None,
        operation: str | None = None,
        key: object = None,
        mount: str | None = None,
        driver: str | None = None,
    ) -> None:
        super().__init__(message, operation=operation, key=key, mount=mount, driver=driver)
        if maybe_written is not None:
            self.tell(maybe_written=maybe_written)

    def tell(self, *, maybe_written: bool) -> Self:
        """Says in its message, too, whether the call may have written."""
        self.maybe_written = maybe_written
        self._outcome = "; whether anything was written is not known" if maybe_written else "; nothing was written"
        return self


class BackendUnavailable(BackendError):
    """The backend can't be used: it can't be reached, refuses the login, or has no such database."""


class BackendTimeout(BackendError):
    """The backend did not answer in time, or was locked too long."""


@contextmanager
def after_write() -> Iterator[None]:
    """What fails inside fails behind a write, which may count although this did not."""
    try:
        yield
    except BackendError as error:
        raise error.at().tell(maybe_written=True) from error.__cause__


def backend_error(error: Exception) -> KVStoreError:
    """`error` as one of the tree; what a driver let through is a `BackendError` that it caused."""
    if isinstance(error, KVStoreError):
        return error
    wrapped = BackendError(f"the backend failed: {type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped
