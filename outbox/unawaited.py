"""Fail the commit when an `emit` or `cancel` was called and never awaited: it would be lost without a word.

Calling an async one only makes a coroutine. Until that runs, the call is noted on what is going to commit.
On a raw psycopg connection nothing tells of a commit: there Python's warning that a coroutine was never
awaited is all there is.
"""

from functools import cache

from sqlalchemy import event
from sqlalchemy.orm import Session, SessionTransaction

from outbox.errors import EmitError

KEY = "outbox.unawaited"
"""In Session.info: what was not awaited yet, in words, by call."""

Unawaited = dict[object, str]


def on(session: Session) -> Unawaited:
    """The calls that `session` has not carried out yet; while there are any, it does not commit."""
    _listen()
    found: Unawaited = session.info.setdefault(KEY, {})
    return found


def refuse_unawaited(unawaited: Unawaited) -> None:
    """Raises EmitError if there is any."""
    if unawaited:
        raise EmitError(
            f"nothing was committed: {', '.join(unawaited.values())} was called and not awaited, so it would "
            "have no effect; write `await` before the call"
        )


@cache
def _listen() -> None:
    """For all sessions, at the first async call: listening to each of them costs more than the emit."""
    event.listen(Session, "before_commit", _before_commit)
    event.listen(Session, "after_transaction_end", _after_end)


def _before_commit(session: Session) -> None:
    refuse_unawaited(session.info.get(KEY, {}))


def _after_end(session: Session, transaction: SessionTransaction) -> None:
    if transaction.parent is None:
        session.info.get(KEY, {}).clear()
