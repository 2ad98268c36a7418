"""`outbox-relay consume MODULE:CONSUMER`: run a consumer's threads until told to stop."""

import importlib
import logging
import sys
from pathlib import Path

import click

from outbox.consumer import Consumer
from outbox.errors import OutboxError


@click.command(
    epilog="Example: outbox-relay consume shop.billing:consumer --threads 3\n\n"
    "Exit codes: 0 stopped as asked (SIGTERM, Ctrl-C), 1 cannot work, 2 wrong usage."
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
@click.option("--verbose", is_flag=True, help="Log every claim and revocation too.")
def consume(target: str, threads: int, group_protocol: str | None, verbose: bool) -> None:
    """Apply events with the handlers of CONSUMER, an outbox.consumer.Consumer in MODULE.

    MODULE is looked for as Python would, the current directory first.
    """
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("outbox").setLevel(logging.INFO if verbose else logging.WARNING)
    try:
        load(target).run(threads, kafka={"group.protocol": group_protocol} if group_protocol else None)
    except OutboxError as error:
        raise click.ClickException(str(error)) from error


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
        raise click.BadParameter(f"{target} is a {type(found).__name__}, not an outbox.consumer.Consumer")
    return found
