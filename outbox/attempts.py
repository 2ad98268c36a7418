"""Run a transaction again when PostgreSQL says that only its timing was wrong.

That is a serialization failure (40001) or a deadlock (40P01), also when it is raised by COMMIT: both mean
that nothing was committed. A connection lost at COMMIT means no such thing, and is never tried again here.
https://www.postgresql.org/docs/current/mvcc-serialization-failure-handling.html
"""

from typing import Any, TypedDict

import psycopg
from sqlalchemy.exc import DBAPIError
from tenacity import RetryCallState, retry_if_exception, stop_after_attempt, wait_random_exponential

from outbox import hooks
from outbox.errors import ConfigurationError

_TIMING = frozenset({"40001", "40P01"})


def only_timing(error: BaseException) -> bool:
    """Was the transaction rolled back for its timing alone, so that it may succeed if run again?"""
    if isinstance(error, DBAPIError) and error.orig is not None:
        error = error.orig
    return isinstance(error, psycopg.Error) and error.sqlstate in _TIMING


class Policy(TypedDict):
    """What tenacity's Retrying and AsyncRetrying are made of."""

    stop: Any
    wait: Any
    retry: Any
    before_sleep: Any
    reraise: bool


def policy(attempts: int, what: str) -> Policy:
    """At most `attempts` runs, with a random pause of up to 20 ms, 40 ms, … 1 s between them."""
    if attempts < 1:
        raise ConfigurationError(f"{what}: attempts={attempts!r} is not a number from 1 on")

    def tell(state: RetryCallState) -> None:
        hooks.fire("outbox.retried", function=what, attempt=state.attempt_number)

    return Policy(
        stop=stop_after_attempt(attempts),
        wait=wait_random_exponential(multiplier=0.02, max=1),
        retry=retry_if_exception(only_timing),
        before_sleep=tell,
        reraise=True,
    )
