"""`outbox-relay adopt`: go on with another Kafka cluster."""

from pathlib import Path

import click
import psycopg

from outbox.errors import ConfigurationError
from relay.cli import options
from relay.database import OutcomeUnknown


@click.command(
    short_help="Go on with another Kafka cluster.",
    epilog="Example:  outbox-relay adopt --kafka-bootstrap-servers new:9092 --from old:9092 --empty --yes",
)
@options.config_file
@options.database_url
@click.option("--kafka-bootstrap-servers", help="The NEW cluster.  [env: OUTBOX_KAFKA_BOOTSTRAP_SERVERS]")
@click.option("--from", "old", metavar="SERVERS", help="The old cluster, host:port[,host:port].")
@click.option(
    "--from-property",
    "old_properties",
    multiple=True,
    metavar="NAME=VALUE",
    help="librdkafka property of the old cluster where it differs from [kafka] of the new one. Passwords "
    "belong into a file: NAME=@FILE reads it.",
)
@click.option("--empty", is_flag=True, help="The new topics are empty; consumers have read the old ones.")
@click.option("--mirrored", is_flag=True, help="The new topics are a copy, and mirroring has stopped.")
@click.option(
    "--consumers-drained", is_flag=True, help="With --empty and no --from: they have, and nobody can check."
)
@click.option("--dry-run", is_flag=True, help="Only check and say what would be done.")
@click.option("--yes", is_flag=True, help="Do it.")
@options.as_json
def adopt(
    config: Path | None,
    database_url: str | None,
    kafka_bootstrap_servers: str | None,
    old: str | None,
    old_properties: tuple[str, ...],
    empty: bool,
    mirrored: bool,
    consumers_drained: bool,
    dry_run: bool,
    yes: bool,
    as_json_: bool,
) -> None:
    """Let this database's relay and consumers go on with another Kafka cluster.

    Run it as the role that owns the tables, for each database that sends or consumes, after the relays were
    stopped with nothing planned and the consumers were stopped. With --empty the old topics must have been
    read to their ends; with --mirrored each partition must end with the same record in both clusters, and
    consumers read the copy from its beginning, dropping what they applied. Records without `outbox-seq`, of
    other producers, are applied again then.
    """
    from relay.config import RelayConfig
    from relay.disaster.adopt import Adoption

    if empty == mirrored:
        raise click.UsageError("say what the new topics are: --empty or --mirrored")
    if yes and dry_run:
        raise click.UsageError("--dry-run and --yes exclude each other")
    if mirrored and not old:
        raise click.UsageError("--mirrored compares with the old cluster; name it with --from")
    settings = RelayConfig.load(
        config, database_url=database_url, kafka_bootstrap_servers=kafka_bootstrap_servers
    )
    new = settings.kafka_properties
    work = Adoption(
        settings.url,
        new,
        old={**new, **_properties(old_properties), "bootstrap.servers": old} if old else None,
        mirrored=mirrored,
        drained=consumers_drained,
    )
    try:
        done = work.run(dry_run=not yes)
    except (OutcomeUnknown, psycopg.OperationalError) as error:
        raise ConfigurationError(f"{error}; run it again: what is done already is not done twice") from error
    if as_json_:
        options.echo_json(
            {
                "changed": done.changed,
                "cluster": done.cluster,
                "was": done.before,
                "shards": done.shards,
                "topics": done.topics,
                "groups": done.groups,
            }
        )
        return
    click.echo(f"Kafka cluster {done.cluster}, before: {done.before or 'none'}")
    click.echo(f"{done.shards} shards, {len(done.topics)} topics, groups: {', '.join(done.groups) or 'none'}")
    if done.changed:
        click.echo("done; start relays and consumers against the new cluster")
    elif yes:
        click.echo("nothing to do")
    else:
        click.echo("nothing was changed; run it again with --yes")


def _properties(given: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not equals:
            raise click.BadParameter(f"{each} is not NAME=VALUE", param_hint="--from-property")
        if value.startswith("@"):
            try:
                value = Path(value[1:]).read_text().rstrip("\n")
            except OSError as error:
                raise click.BadParameter(str(error), param_hint="--from-property") from None
        found[name] = value
    return found
