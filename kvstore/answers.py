"""Answers: what a driver may answer. One that answers wrongly is told of, and neither hangs a caller nor passes for done."""

from __future__ import annotations

from collections.abc import Sized

from kvstore.errors import BackendError

_FORMS = {
    "read": "a list of bytes or None, one a key",
    "has": "a list of bool, one a key",
    "stat": "a list of Stat or None, one a key",
    "write": "a list of bool, one a write",
    "write_many": "a list of such a list, None or an error, one a batch",
}
TRIES = 10_000
"""How often what was just read may be something else by the time of a write. Others are never faster for so long."""


def mistake(method: str, answers: object, asked: Sized) -> BackendError | None:
    """The error of a driver whose `method` did not answer with a list of as many as it was asked for; None where it did."""
    if isinstance(answers, list):
        if len(answers) == len(asked):
            return None
        given = f"{len(answers)} of {len(asked)}"
    else:
        given = "None" if answers is None else f"with {type(answers).__name__}"
    return BackendError(f"the driver's {method} answered {given}: it returns {_FORMS[method]}")


def check_page(page: object, after: str | None, *, reverse: bool = False) -> None:
    """Raises for what is no page of a scan, and for one that does not lie behind `after`: to go on there might never end."""
    if not isinstance(page, list):
        raise BackendError(f"the driver's scan answered with {type(page).__name__}: it returns a list of str")
    if not page:
        return
    for key in (page[0], page[-1]):
        if not isinstance(key, str):
            raise BackendError(f"the driver's scan answered with a list of {type(key).__name__}: it returns a list of str")
        if after is not None and (key >= after if reverse else key <= after):
            shown = after.replace("\U0010ffff" * 2, "")  # of `after_all` there are hundreds
            asked = f"after={shown!r}{', reverse=True' if reverse else ''}"
            raise BackendError(f"the driver's scan({asked}) gave {key!r}, which does not lie behind that")


def never_holds() -> BackendError:
    """The error of a driver whose conditions never hold, though they are what it has just read."""
    return BackendError(
        f"the driver's write answered None {TRIES:,} times on end: that what it is to expect does not hold, "
        "though `read` gave it just before"
    )
