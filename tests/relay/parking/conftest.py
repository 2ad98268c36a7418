"""A topic that refuses large records until a test raises its limit, and the operator's commands."""

from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner, Result
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource

from outbox.testing.servers import KafkaServer
from relay.cli import main
from tests.conftest import TopicFactory
from tests.relay.database.conftest import broker, own, writer
from tests.relay.scene import Scene

__all__ = ["broker", "mend", "operate", "own", "small", "writer"]

NOTHING_PARKED = "SELECT NOT EXISTS (SELECT FROM outbox_hold)"

Operate = Callable[..., Result]


@pytest.fixture
def small(scene: Scene, topic: TopicFactory) -> Scene:
    """A scene whose topic has two partitions and takes 20,000 bytes."""
    scene.topic = topic("small", 2, max_message_bytes="20000")
    return scene


@pytest.fixture
def mend(small: Scene, kafka: KafkaServer) -> Callable[[], None]:
    """Raises the limit."""

    def raise_limit() -> None:
        entry = ConfigEntry("max.message.bytes", "3000000", incremental_operation=AlterConfigOpType.SET)
        resource = ConfigResource(ConfigResource.Type.TOPIC, small.topic, incremental_configs=[entry])
        kafka.admin.incremental_alter_configs([resource])[resource].result(20)

    return raise_limit


@pytest.fixture
def operate(scene: Scene) -> Operate:
    """Runs `outbox-relay …` against the scene's database."""

    def run(*arguments: Any, code: int = 0, **more: Any) -> Result:
        result = CliRunner().invoke(
            main, [str(a) for a in arguments], env={"OUTBOX_DATABASE_URL": scene.database}, **more
        )
        assert result.exit_code == code, result.output
        return result

    return run
