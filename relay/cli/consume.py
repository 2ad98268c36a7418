"""`outbox-relay consume MODULE:CONSUMER`: run a consumer's threads until told to stop."""

import importlib
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from click.core import ParameterSource

from outbox.consumer import Consumer
from relay.telemetry.consumer_pages import ConsumerPages
from relay.telemetry.health import Health


def _places(
    _context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]
) -> list[tuple[str, int]] | None:
    """`orders:0,1` → partitions 0 and 1 of orders."""
    places = []
    for value in values:
        topic, _, numbers = value.rpartition(":")
        for number in numbers.split(","):
            if not topic or not number.isdecimal():
                raise click.BadParameter(f"{value!r} is not TOPIC:N,N…, e.g. orders:0,1")
            places.append((topic, int(number)))
    return places or None


@click.command(
    short_help="Apply events with the handlers of a consumer.",
    epilog="Example:  outbox-relay consume shop.billing:consumer --threads 3",
)
@click.argument("target", metavar="MODULE:CONSUMER")
@click.option(
    "--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Members of the group."
)
@click.option(
    "--group-protocol",
    type=click.Choice(["classic", "consumer"]),
    help="Kafka's group protocol: classic (cooperative-sticky), or consumer (KIP-848, Kafka 4). "
    "Without it, what the consumer says.",
)
@click.option(
    "--partitions",
    multiple=True,
    metavar="TOPIC:N,N…",
    callback=_places,
    help="Read exactly these partitions, instead of those that the group would give; repeatable.",
)
@click.option(
    "--health-address",
    envvar="OUTBOX_HEALTH_ADDRESS",
    help="host:port of /healthz, /readyz and /metrics, off without it; a port alone binds loopback."
    "  [env: OUTBOX_HEALTH_ADDRESS]",
)
@click.option(
    "--verbose", is_flag=True, help="Log every claim and revocation too, as --log-level INFO would."
)
def consume(
    target: str,
    threads: int,
    group_protocol: str | None,
    partitions: list[tuple[str, int]] | None,
    health_address: str | None,
    verbose: bool,
) -> None:
    """Apply events with the handlers of CONSUMER, an outbox.consumer.Consumer in MODULE.

    MODULE is looked for as Python would, the current directory first. Ends with 0 when stopped as asked
    (SIGTERM, Ctrl-C).
    """
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    chosen = click.get_current_context().find_root().get_parameter_source("log_level")
    if verbose:
        logging.getLogger("outbox").setLevel(logging.INFO)
    elif chosen in {None, ParameterSource.DEFAULT}:
        logging.getLogger("outbox").setLevel(logging.WARNING)
    kafka = {"group.protocol": group_protocol} if group_protocol else None
    consumer = load(target)
    with _answering(health_address, consumer):
        consumer.run(threads, kafka=kafka, partitions=partitions)


@contextmanager
def _answering(address: str | None, consumer: Consumer) -> Iterator[None]:
    """Health and metrics over HTTP while inside, if there is an address. Raises ConfigurationError."""
    if address is None:
        yield
        return
    try:
        server = Health(address, ConsumerPages(consumer.health))
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--health-address") from error
    server.start()
    try:
        yield
    finally:
        server.close()


def load(target: str) -> Consumer:
    """The consumer that `target` names. Raises click.BadParameter."""
    module_name, colon, path = target.partition(":")
    if not (module_name and colon and path):
        raise click.BadParameter(f"{target!r} is not MODULE:CONSUMER, e.g. shop.billing:consumer")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: object = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise click.BadParameter(f"there is no module {module_name} in {here} or on Python's path") from error
    for name in path.split("."):
        if not hasattr(found, name):
            raise click.BadParameter(f"module {module_name} has no {path}")
        found = getattr(found, name)
    if not isinstance(found, Consumer):
        raise click.BadParameter(
            f"{target} is no outbox.consumer.Consumer but of type {type(found).__name__}"
        )
    return found
