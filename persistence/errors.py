"""What persistence raises besides the errors of kvstore."""

from __future__ import annotations

from kvstore.errors import KVStoreError


class RecordNotFoundError(KVStoreError):
    """There is no record, or no message, with this id."""


class ConflictError(KVStoreError):
    """Something is there that must not be, or is not as it was expected; nothing was changed."""
