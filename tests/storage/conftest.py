"""An engine on a database in which nothing is installed."""

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from tests.conftest import create_engine


@pytest.fixture
def empty_engine(empty_database: str) -> Iterator[Engine]:
    made = create_engine(empty_database)
    yield made
    made.dispose()
