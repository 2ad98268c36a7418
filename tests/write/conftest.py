"""A database with the outbox and the little domain of orders.py beside it."""

from collections.abc import AsyncIterator

import pytest
from hypothesis import settings
from sqlalchemy import Engine, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from outbox import Outbox
from tests.write.orders import Base

settings.register_profile("any_speed", deadline=None)
settings.load_profile("any_speed")


@pytest.fixture
def engine(engine: Engine) -> Engine:
    Base.metadata.create_all(engine)
    return engine


@pytest.fixture
def sessions(engine: Engine) -> sessionmaker[Session]:
    return sessionmaker(engine)


@pytest.fixture
def outbox(sessions: sessionmaker[Session]) -> Outbox:
    return Outbox(sessions)


@pytest.fixture
def anyio_backend() -> str:
    """psycopg's async side and SQLAlchemy's know asyncio only."""
    return "asyncio"


@pytest.fixture
async def async_engine(engine: Engine, database: str) -> AsyncIterator[AsyncEngine]:
    """A second engine on the same database, for async tests."""
    made = create_async_engine(make_url(database).set(drivername="postgresql+psycopg"))
    yield made
    await made.dispose()
