"""What the commands that move a group share: which one, and how its brokers are reached."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from outbox.consumer.database import Database
from outbox.consumer.place.seek import Access
from relay.cli import options

F = TypeVar("F", bound=Callable[..., Any])


def where(command: F) -> F:
    """The group, its database and its brokers."""
    for option in (
        click.option(
            "--kafka-bootstrap-servers",
            help="The group's brokers; other properties come from the settings file.  [env: "
            "OUTBOX_KAFKA_BOOTSTRAP_SERVERS]",
        ),
        options.database_url,
        options.config_file,
        options.as_json,
    ):
        command = option(command)
    return command


def deed(command: F) -> F:
    """`--dry-run` and `--yes`: without the latter nothing is changed."""
    for option in (
        click.option("--yes", is_flag=True, help="Do it; otherwise only say what would be done."),
        click.option("--dry-run", is_flag=True, help="Only say what would be done, as without --yes."),
    ):
        command = option(command)
    return command


@contextmanager
def database(url: str | None) -> Iterator[Database]:
    """The group's database. Raises as `options.engine` does."""
    from sqlalchemy.orm import sessionmaker

    with options.engine(url) as engine:
        yield Database(engine, sessionmaker(engine))


def access(
    group: str, config: Path | None, database_url: str | None, kafka_bootstrap_servers: str | None
) -> tuple[str, Access]:
    """The database's URL and the way to the brokers. Raises ConfigurationError."""
    from confluent_kafka import Consumer as KafkaConsumer

    from outbox.consumer.identity import BrokerIdentities
    from outbox.consumer.properties import admin_properties, consumer_properties
    from relay.config import RelayConfig

    settings = RelayConfig.load(
        config, database_url=database_url, kafka_bootstrap_servers=kafka_bootstrap_servers
    )
    properties = consumer_properties(admin_properties(settings.kafka_properties), group)
    properties.pop("client.id", None)
    return settings.url, Access(
        properties=properties, new_client=KafkaConsumer, new_identities=BrokerIdentities
    )
