"""S3 by s3fs: its session and its client, whose calls are made one by one so that none is repeated unasked."""

from __future__ import annotations

import asyncio
import io
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from email.utils import parsedate_to_datetime
from importlib import import_module
from secrets import token_hex
from typing import Any, TypeVar

from kvstore.clock import Clock
from kvstore.drivers._fsspec.names import PARTS, PRIVATE
from kvstore.drivers._fsspec.store import AT_ONCE, Found, Store, Telling, closed, gathered
from kvstore.errors import (
    BackendError,
    BackendTimeout,
    BackendUnavailable,
    ConfigError,
    KVStoreError,
    UnsupportedOperation,
    after_write,
)

_PIECE = 2**20
_PAGE = 1000
"""As many names as S3 tells or takes at once."""
_TRIES = 5
_BUSY = ("SlowDown", "ServiceUnavailable", "RequestLimitExceeded", "Throttling", "ThrottlingException", "503")
_MISSING = ("NoSuchKey", "404")
_FAILED = ("PreconditionFailed", "ConditionalRequestConflict", "OperationAborted", "412", "409", *_MISSING)
_UNKNOWN = ("NotImplemented", "501")
"""Of a condition that the server does not know."""
_REFUSED = (
    *("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "TokenRefreshRequired"),
    *("AllAccessDisabled", "AccountProblem", "NotSignedUp", "AuthorizationHeaderMalformed", "InvalidClientTokenId"),
    *("PermanentRedirect", "IllegalLocationConstraintException", "InvalidBucketName", "NoSuchBucket", "401", "403"),
)
_REVISION = "kvstore-revision"

T = TypeVar("T")


class S3Store(Store):
    """Objects in a bucket, below `prefix`, a literal text. Sets `clock` by the server's."""

    def __init__(
        self,
        fs: Any,
        bucket: str,
        prefix: str,
        clock: Clock,
        *,
        connect_timeout: float,
        timeout: float,
        telling: Telling,
        own: bool,
    ) -> None:
        self._fs = fs
        self._bucket = bucket
        self._prefix = prefix
        self._clock = clock
        self._connect_timeout = connect_timeout
        self._timeout = timeout
        self._telling = telling
        self._own = own
        self._room = asyncio.Semaphore(AT_ONCE)
        self._probing = asyncio.Lock()
        self._conditions: bool | None = None
        self._deletes = False

    async def open(self) -> None:
        try:
            async with asyncio.timeout(self._connect_timeout):
                await self._fs.set_session()
                await self._told(lambda: self._call("list_objects_v2", Prefix=self._prefix, MaxKeys=1))
        except TimeoutError as error:
            raise _unusable(f"no answer from S3 in {self._connect_timeout:g} seconds") from error
        except KVStoreError as error:
            raise _unusable(f"S3 can't be used: {error.message}") from error.__cause__
        except _Code as code:
            raise _unusable(f"S3 can't be used: {code.error().message}") from code.cause
        except TypeError as error:  # of `storage_options`
            raise ConfigError(f"S3 can't be used with these options: {self._telling.clean(error)}") from self._telling.cause(
                error
            )
        except Exception as error:  # a profile that is not there, a URL that is none
            raise _unusable(f"S3 can't be used: {self._telling.clean(error)}") from self._telling.cause(error)

    async def aclose(self) -> None:
        if self._own and (client := self._fs._s3) is not None:
            self._fs._s3 = None
            await client.__aexit__(None, None, None)

    async def get(self, name: str, end: int | None = None) -> Found | None:
        asked: dict[str, Any] = {} if end is None else {"Range": f"bytes=-{end}"}

        async def fetch() -> Found | None:
            found = await self._call("get_object", Key=self._prefix + name, **asked)
            pieces = []
            async with found["Body"] as body:
                while True:
                    async with asyncio.timeout(self._timeout):
                        piece = await body.read(_PIECE)
                    if not piece:
                        break
                    pieces.append(piece)
            size = int(found["ContentRange"].rpartition("/")[2]) if "ContentRange" in found else found["ContentLength"]
            data = b"".join(pieces)
            if len(data) != found["ContentLength"]:
                raise BackendUnavailable("the connection to S3 ended within an object")
            revision = found["Metadata"].get(_REVISION) or found["ETag"].strip('"')
            return Found(data, size, found["ETag"], revision, int(found["LastModified"].timestamp() * 1000))

        try:
            return await self._told(fetch)
        except _Code as code:
            if code.code in _MISSING:
                return None
            if code.code in ("InvalidRange", "416") and end is not None:  # an empty object has no end
                return await self.get(name)
            raise code.error() from code.cause

    async def put(self, name: str, data: bytes, *, match: str | None = None, sure: bool = True) -> bool:
        if not sure:
            return await self._put(name, data, None if self._conditions is False else match, sure=False)
        if match is not None and not await self._keeps_conditions():
            raise UnsupportedOperation("this S3 server takes no conditions (If-Match and If-None-Match on PutObject)")
        return await self._put(name, data, match)

    async def _put(self, name: str, data: bytes, match: str | None, *, sure: bool = True) -> bool:
        condition: dict[str, Any] = {} if match is None else {"IfMatch": match} if match else {"IfNoneMatch": "*"}
        metadata = {_REVISION: token_hex(8)}

        async def send() -> None:
            # As a file, which is sent in pieces.
            body = io.BytesIO(data) if len(data) > _PIECE else data
            seconds = self._timeout + len(data) / _PIECE
            await self._call("put_object", Key=self._prefix + name, Body=body, Metadata=metadata, seconds=seconds, **condition)

        try:
            await self._told(send, again=match is None or not sure)
        except _Code as code:
            if match is not None and code.code in _FAILED:
                # A client that sends again what got no answer fails against itself.
                with after_write():
                    found = await self.get(name, 1)
                return found is not None and found.revision == metadata[_REVISION]
            if not sure and match is not None and code.code in _UNKNOWN:
                return await self._put(name, data, None)
            raise code.error() from code.cause
        return True

    async def delete(self, names: Sequence[str]) -> None:
        if len(names) == 1:
            await self._delete(names[0])
        for start in range(0, len(names) if len(names) > 1 else 0, _PAGE):
            await self._delete_together(names[start : start + _PAGE])

    async def _delete_together(self, names: Sequence[str]) -> None:
        objects = {"Objects": [{"Key": self._prefix + name} for name in names], "Quiet": True}
        try:
            told = await self._told(lambda: self._call("delete_objects", Delete=objects))
        except _Code as code:
            if code.code in _REFUSED or code.code in _BUSY:
                raise code.error() from code.cause
            await gathered(map(self._delete, names))  # a server that knows no such call
            return
        left = {error["Key"] for error in told.get("Errors", ()) if error.get("Code") not in _MISSING}
        await gathered(self._delete(name) for name in names if self._prefix + name in left)

    async def _delete(self, name: str) -> None:
        try:
            await self._told(lambda: self._call("delete_object", Key=self._prefix + name))
        except _Code as code:
            if code.code not in _MISSING:
                raise code.error() from code.cause

    async def delete_if(self, name: str, etag: str | None, *, sure: bool = True) -> bool | None:
        if not sure and not etag:
            await self._delete(name)
            return True
        if sure and not (await self._keeps_conditions() and self._deletes):
            return None
        return await self._delete_if(name, etag or "", sure=sure)

    async def _delete_if(self, name: str, etag: str, *, sure: bool = True) -> bool:
        try:
            await self._told(lambda: self._call("delete_object", Key=self._prefix + name, IfMatch=etag), again=False)
        except _Code as code:
            if code.code in _FAILED:
                return False
            if not sure and code.code in _UNKNOWN:
                await self._delete(name)
                return True
            raise code.error() from code.cause
        return True

    async def list(self, start: str, after: str, limit: int) -> tuple[list[str], str | None]:
        # Where a name ends at a slash, all behind it are one entry: rooms of others cost nothing.
        deep: dict[str, Any] = {} if start.startswith(PRIVATE) else {"Delimiter": "/"}
        behind: dict[str, Any] = {"StartAfter": self._prefix + after} if after else {}
        try:
            page = await self._told(
                lambda: self._call(
                    "list_objects_v2", Prefix=self._prefix + start, MaxKeys=max(1, min(limit, _PAGE)), **deep, **behind
                )
            )
        except _Code as code:
            raise code.error() from code.cause
        names = [found["Key"][len(self._prefix) :] for found in page.get("Contents", ())]
        ends = [found["Prefix"][len(self._prefix) :] + "\U0010ffff" for found in page.get("CommonPrefixes", ())]
        return names, max([*names[-1:], *ends[-1:]]) if page.get("IsTruncated") and (names or ends) else None

    # What the server can

    async def _keeps_conditions(self) -> bool:
        """Whether the server refuses a write whose condition fails. Asked once: a server that knows none just writes."""
        async with self._probing:
            if self._conditions is None:
                name = f"{PARTS}probe-{token_hex(8)}"
                wrong = '"00000000000000000000000000000000"'
                try:
                    self._conditions = (
                        await self._put(name, b"1", "")
                        and not await self._put(name, b"2", "")
                        and not await self._put(name, b"3", wrong)
                    )
                    self._deletes = self._conditions and not await self._delete_if(name, wrong)
                except (BackendUnavailable, BackendTimeout):
                    raise
                except BackendError:  # such as NotImplemented
                    self._conditions = bool(self._conditions)
                await self._delete(name)
            return self._conditions

    # Calls and errors

    async def _told(self, call: Callable[[], Awaitable[T]], *, again: bool = True) -> T:
        """What `call` gives; once more where the server said that it was too busy, or `again` the connection was lost."""
        exceptions = _exceptions()
        lost = (exceptions.ConnectionClosedError, exceptions.ResponseStreamingError)
        for attempt in range(1, _TRIES + 1):
            try:
                async with self._room:
                    return await call()
            except exceptions.ClientError as error:
                code = str(error.response.get("Error", {}).get("Code", ""))
                if code not in _BUSY or attempt == _TRIES:
                    raise _Code(code, error, self._telling, self._bucket) from None
            except KVStoreError:
                raise
            except Exception as error:
                if not (again and isinstance(error, lost) and attempt == 1):
                    raise self._error(error, first=attempt == 1) from self._telling.cause(error)
            await asyncio.sleep((0.05 + random.random() / 20) * 2**attempt)
        raise AssertionError("the last attempt raises")

    async def _call(self, name: str, *, seconds: float | None = None, **arguments: Any) -> Any:
        if self._fs._s3 is None:
            raise closed()
        client = await self._fs.get_s3(self._bucket)
        method = getattr(client, name)
        asked = self._fs._get_s3_method_kwargs(method, Bucket=self._bucket, **arguments)
        began = time.monotonic()
        async with asyncio.timeout(seconds or self._timeout):
            answer = await method(**asked)
        self._look_at_clock(answer["ResponseMetadata"].get("HTTPHeaders", {}), time.monotonic() - began)
        return answer

    def _look_at_clock(self, headers: dict[str, str], seconds: float) -> None:
        """By the date of an answer that took `seconds`. Only whole seconds are told."""
        if "date" in headers and "age" not in headers:  # else it comes from a cache
            with suppress(ValueError):
                now = int(parsedate_to_datetime(headers["date"]).timestamp() * 1000)
                self._clock.set(now, within=1000 + int(seconds * 1000))

    def _error(self, error: Exception, *, first: bool) -> KVStoreError:
        exceptions = _exceptions()
        said = self._telling.clean(error)
        if isinstance(error, exceptions.NoCredentialsError | exceptions.PartialCredentialsError):
            return BackendUnavailable(f"there are no credentials for S3: {said}")
        if isinstance(
            error, exceptions.ConnectTimeoutError | exceptions.EndpointConnectionError | exceptions.ProxyConnectionError
        ):
            # An attempt before may have been the one that counts.
            return BackendUnavailable(f"no connection to S3: {said}", maybe_written=False if first else None)
        if isinstance(error, TimeoutError | exceptions.ReadTimeoutError):
            return BackendTimeout(f"S3 did not answer in {self._timeout:g} seconds")
        if isinstance(error, exceptions.TokenRetrievalError | exceptions.CredentialRetrievalError):
            return BackendUnavailable(f"there are no credentials for S3: {said}")
        if isinstance(error, OSError | exceptions.HTTPClientError) or type(error).__module__.startswith("aiohttp"):
            return BackendUnavailable(f"the connection to S3 failed: {said}")
        return BackendError(f"S3: {said}")


def _unusable(message: str) -> BackendUnavailable:
    return BackendUnavailable(message, maybe_written=False)


def _exceptions() -> Any:
    return import_module("botocore.exceptions")  # it has no types, and is there only with s3fs


class _Code(Exception):
    """What S3 answered in place of a result."""

    def __init__(self, code: str, error: Exception, telling: Telling, bucket: str) -> None:
        super().__init__(code)
        self.code = code
        self.cause = telling.cause(error)
        self._said = telling.clean(error)
        self._bucket = bucket

    def error(self) -> KVStoreError:
        if self.code == "NoSuchBucket":
            return BackendUnavailable(f"there is no bucket {self._bucket!r}")
        if self.code in _REFUSED:
            return BackendUnavailable(f"S3 refuses the login or the request: {self._said}")
        if self.code in _BUSY:
            return BackendUnavailable(f"S3 is too busy: {self._said}")
        return BackendError(f"S3: {self._said}")
