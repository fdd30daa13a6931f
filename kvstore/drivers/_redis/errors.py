"""What redis-py says, as errors of the tree."""

from __future__ import annotations

from collections.abc import Sequence

from kvstore.drivers._redis import scripts
from kvstore.drivers._redis.address import Address
from kvstore.errors import BackendError, BackendTimeout, BackendUnavailable, CorruptValueError, KVStoreError


def as_kvstore_error(
    error: Exception,
    about: Sequence[str] = (),
    seconds: float = 0.0,
    *,
    writes: bool = False,
    connect_timeout: float,
    address: Address | None,
) -> KVStoreError:
    """`error`, which came after `seconds` of a call that is `about` these keys, as one of kvstore's."""
    from redis import exceptions

    # What is told while connecting, or by a server that is starting, is told before anything was sent.
    is_early = "connecting to" in str(error) or isinstance(error, exceptions.BusyLoadingError)
    done = False if is_early else writes or None
    if isinstance(error, exceptions.AuthenticationError | exceptions.AuthorizationError | exceptions.NoPermissionError):
        return BackendUnavailable(f"Redis refuses the login, or the user has no right to this: {error}", maybe_written=False)
    if isinstance(error, TimeoutError | exceptions.TimeoutError):
        if "connecting" in str(error):
            return BackendUnavailable(f"no connection to Redis in {connect_timeout:g} seconds", maybe_written=done)
        return BackendTimeout(f"Redis did not answer in {seconds:.1f} seconds", maybe_written=done)
    if type(error).__name__ == "MasterNotFoundError" and address is not None:
        asked = ", ".join(f"{host}:{port}" for host, port in address.sentinels)
        why = "not every one can be reached" if " : " in str(error) else "they know none"
        return BackendUnavailable(f"the Sentinels at {asked} name no master {address.service!r}: {why}", maybe_written=False)
    if isinstance(error, exceptions.ConnectionError | exceptions.ClusterDownError | OSError):
        return BackendUnavailable(f"Redis can't be reached: {error}", maybe_written=done)
    if isinstance(error, exceptions.RedisClusterException):
        hint = "; leave out cluster=True" if "not enabled" in str(error) else ""
        return BackendUnavailable(f"Redis: {error}{hint}", maybe_written=done)
    if "WRONGTYPE" in str(error):
        return no_string(about[0] if len(about) == 1 else None)
    is_refused = scripts.LOST in str(error) or scripts.FENCED in str(error)
    return BackendError(f"Redis: {error}", maybe_written=False if is_refused else None)


def no_string(key: str | None) -> CorruptValueError:
    which = "one of these keys" if key is None else "this key"
    return CorruptValueError(f"another program keeps no string under {which}", key=key)
