"""Writers and owners of one database, closed after the test."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import psycopg
import pytest

from relay.database import plain_url
from tests.relay.database.half import Half, Session
from tests.relay.database.memory_broker import MemoryBroker


class Connect(Protocol):
    def __call__(self, *, autocommit: bool = False) -> Session: ...


@pytest.fixture
def connect(database: str) -> Iterator[Connect]:
    """Opens sessions of an application."""
    opened: list[Session] = []

    def open_(*, autocommit: bool = False) -> Session:
        opened.append(psycopg.connect(plain_url(database), autocommit=autocommit))
        return opened[-1]

    yield open_
    for session in opened:
        session.close()


@pytest.fixture
def writer(connect: Connect) -> Session:
    """A session whose every statement is a transaction."""
    return connect(autocommit=True)


@pytest.fixture
def own(database: str) -> Iterator[Callable[..., Half]]:
    """Opens owners of the shard."""
    opened: list[Half] = []

    def open_(**bounds: Any) -> Half:
        opened.append(Half(database, **bounds))
        return opened[-1]

    yield open_
    for half in opened:
        half.close()


@pytest.fixture
def half(own: Callable[..., Half]) -> Half:
    return own()


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker()
