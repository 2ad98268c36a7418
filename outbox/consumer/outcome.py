"""What can become of a batch, and what a failure means for the record that caused it."""

from dataclasses import dataclass
from datetime import timedelta

import psycopg
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from outbox.consumer.parking.parked import TooManyParked
from outbox.consumer.watermark import Marks
from outbox.errors import (
    CatalogError,
    ConfigurationError,
    OutboxError,
    Reject,
    Retry,
    UndecodableRecord,
)


class ProcessDied(OutboxError):
    """A record whose handling its process does not survive: killed, or out of memory, or too slow."""


@dataclass(frozen=True, slots=True)
class Committed:
    """Results, emitted events, offset and marks are in the database; `parked` records wait there.

    records: how many of the batch are done with; fewer than it had where its time was over.
    """

    next_offset: int
    marks: Marks
    records: int
    applied: int
    repeats: int
    skipped: int
    parked: int = 0


@dataclass(frozen=True, slots=True)
class Overtaken:
    """The row is not as this batch knew it: somebody else owns the partition. Nothing was changed."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """The answer to COMMIT was lost: only the row can tell whether it happened."""

    error: BaseException


@dataclass(frozen=True, slots=True)
class Failed:
    """Rolled back."""

    error: Exception


Outcome = Committed | Overtaken | Unknown | Failed


@dataclass(frozen=True, slots=True)
class Wait:
    """Try again, without limit. `at_least`: asked for by the handler."""

    at_least: timedelta = timedelta(0)


@dataclass(frozen=True, slots=True)
class Try:
    """Try again, but not for ever."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """No further try of this record can succeed."""


@dataclass(frozen=True, slots=True)
class Halt:
    """The consumer is at fault, not the record: others would fail like it."""


Verdict = Wait | Try | GiveUp | Halt

_CONNECTION = ("08", "57", "58", "XX")
_PASSING = (*_CONNECTION, "40", "53", "55", "25006")
"""SQLSTATE classes: connection, operator intervention, system, internal; transaction rollback (serialization
failure, deadlock), insufficient resources, object not in prerequisite state (lock not available); and
read_only_sql_transaction: a standby that will be promoted or left."""


def judge(error: BaseException) -> Verdict:
    """What to do about a record whose handler, or whose transaction, raised `error`."""
    match error:
        case Retry():
            return Wait(error.after or timedelta(0))
        case Reject() | UndecodableRecord():
            return GiveUp()
        case ConfigurationError() | CatalogError() | TooManyParked():
            return Halt()
    return Wait() if passes(error) else Try()


def passes(error: BaseException) -> bool:
    """Is this a failure of the database or the way to it that time can mend?"""
    if isinstance(error, PoolTimeout):
        return True
    state = sqlstate(error)
    if state is not None:
        return state.startswith(_PASSING)
    return isinstance(
        error, OperationalError | InterfaceError | psycopg.OperationalError | psycopg.InterfaceError
    )


def outcome_is_unknown(error: BaseException) -> bool:
    """Raised by COMMIT: may the transaction have been committed all the same?

    Only an error that the server reports about the transaction itself says that it was not. Taking a certain
    failure for an unknown one costs a claim; the other way round would apply a batch twice.
    """
    if isinstance(error, DBAPIError):
        state = sqlstate(error)
        return (
            error.connection_invalidated or state is None or state.startswith(_CONNECTION) or state == "40003"
        )
    if isinstance(error, psycopg.Error):
        return error.sqlstate is None or error.sqlstate.startswith(_CONNECTION) or error.sqlstate == "40003"
    return False


def sqlstate(error: BaseException) -> str | None:
    """PostgreSQL's code of the error; None if the server sent none."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    state = getattr(cause, "sqlstate", None)
    return state if isinstance(state, str) else None


def brief(error: BaseException) -> str:
    """The error in one line, for people."""
    cause = getattr(error, "orig", None) or error
    text = (str(cause).strip().splitlines() or [""])[0]
    return f"{type(cause).__name__}: {text}" if text else type(cause).__name__
