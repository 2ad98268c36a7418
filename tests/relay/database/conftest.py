"""Writers and owners of one database, closed after the test."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.relay.conftest import Connect
from tests.relay.database.half import Half, Session
from tests.relay.database.memory_broker import MemoryBroker


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
