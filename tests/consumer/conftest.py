"""Stages: a topic, a database and what plays on them."""

from collections.abc import Iterator
from typing import Protocol

import pytest
from sqlalchemy import Engine

from outbox.testing.servers import KafkaServer
from tests.conftest import TopicFactory
from tests.consumer.stage import Stage, Witness, witness


class StageFactory(Protocol):
    """Builds a stage with so many partitions."""

    def __call__(self, partitions: int = 3) -> Stage: ...


@pytest.fixture
def kind(request: pytest.FixtureRequest) -> str:
    """How handlers are called: plainly, unless a test asks for "async", "lanes" or "async lanes"."""
    return str(getattr(request, "param", "plain"))


@pytest.fixture
def build(engine: Engine, database: str, kafka: KafkaServer, topic: TopicFactory, kind: str) -> StageFactory:
    def stage(partitions: int = 3) -> Stage:
        name = topic("things", partitions=partitions)
        return Stage(engine, database, kafka.bootstrap, name, partitions, kind=kind)

    return stage


@pytest.fixture
def stage(build: StageFactory) -> Stage:
    """A stage with three partitions."""
    return build()


@pytest.fixture
def seen() -> Iterator[Witness]:
    """Which hook points were reached in this process."""
    with witness() as observer:
        yield observer
