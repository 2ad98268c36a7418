"""Sessions of an application, and movers, closed after the test."""

from collections.abc import Callable, Iterator
from typing import Protocol

import psycopg
import pytest
from sqlalchemy import Engine

from relay.database import Database, plain_url
from relay.mover import Mover
from tests.relay.scheduled.scheduling import Session


class Connect(Protocol):
    def __call__(self, *, autocommit: bool = False) -> Session: ...


@pytest.fixture
def connect(database: str, engine: Engine) -> Iterator[Connect]:
    """Opens sessions of an application."""
    opened: list[Session] = []

    def open_(*, autocommit: bool = False) -> Session:
        opened.append(psycopg.connect(plain_url(database), autocommit=autocommit))
        return opened[-1]

    yield open_
    for session in opened:
        session.close()


@pytest.fixture
def session(connect: Connect) -> Session:
    """A session whose every statement is a transaction."""
    return connect(autocommit=True)


@pytest.fixture
def another(database: str) -> Iterator[Callable[[], Mover]]:
    """Makes movers."""
    made: list[Mover] = []

    def make() -> Mover:
        made.append(Mover(Database(database)))
        return made[-1]

    yield make
    for mover in made:
        mover.connection.close()


@pytest.fixture
def mover(another: Callable[[], Mover]) -> Mover:
    return another()
