"""`outbox-relay run`: the daemon."""

from pathlib import Path

import click

from relay.cli import options


@click.command(epilog="Example:  OUTBOX_DATABASE_URL=postgresql://relay@db/shop outbox-relay run")
@options.config_file
@options.database_url
@click.option("--kafka-bootstrap-servers", help="Kafka address.  [env: OUTBOX_KAFKA_BOOTSTRAP_SERVERS]")
@click.option("--instance", help="Name of this relay among others.  [default: host, process and chance]")
def run(
    config: Path | None,
    database_url: str | None,
    kafka_bootstrap_servers: str | None,
    instance: str | None,
) -> None:
    """Publish committed events until SIGTERM.

    Start as many as you like: they share the shards evenly and take over what one of them leaves. Waits for a
    database or broker that is not there yet, and says so.
    """
    from relay.config import RelayConfig
    from relay.daemon import Relay
    from relay.relays import Relays

    settings = RelayConfig.load(
        config,
        database_url=database_url,
        kafka_bootstrap_servers=kafka_bootstrap_servers,
        instance=instance,
    )
    (Relays if settings.databases else Relay)(settings).run()
