"""`outbox-relay consume MODULE:CONSUMER`: run the threads of a consumer or pipe until told to stop."""

import importlib
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from outbox.consumer import Consumer, Pipe, State
from outbox.consumer.crew import signals
from outbox.consumer.stopping import Stop
from relay.telemetry.consumer_pages import ConsumerPages
from relay.telemetry.health import Health

ASK_EVERY = timedelta(seconds=0.2)
"""Between two questions whether a State is ready, or we are to stop."""


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
    short_help="Apply events with the handlers of a consumer or pipe.",
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
    "--state",
    "states",
    multiple=True,
    metavar="MODULE:STATE",
    help="Read this State too, begin once it is ready, and show it on the health pages; repeatable.",
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
    states: tuple[str, ...],
    health_address: str | None,
    verbose: bool,
) -> None:
    """Apply events with the handlers of CONSUMER, an outbox.consumer.Consumer or Pipe in MODULE.

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
    consumer: Consumer | Pipe = _named(target, Consumer, Pipe)
    beside: list[State[Any]] = [_named(state, State) for state in states]
    if isinstance(consumer, Pipe) and partitions is not None:
        raise click.BadParameter("the group gives a Pipe its partitions", param_hint="--partitions")
    with ExitStack() as stack:
        stack.enter_context(_answering(health_address, consumer, beside))
        for state in beside:
            stack.enter_context(state)
        if not _wait_for(beside):
            return
        if isinstance(consumer, Pipe):
            consumer.run(threads, kafka=kafka)
        else:
            consumer.run(threads, kafka=kafka, partitions=partitions)


def _wait_for(states: Sequence[State[Any]]) -> bool:
    """False if told to stop before all are ready."""
    stop = Stop()
    with signals(stop):
        for state in states:
            while not stop.is_set() and not state.wait_ready(ASK_EVERY):
                pass
    return not stop.is_set()


@contextmanager
def _answering(
    address: str | None, consumer: Consumer | Pipe, states: Sequence[State[Any]]
) -> Iterator[None]:
    """Health and metrics over HTTP while inside, if there is an address. Raises ConfigurationError."""
    if address is None:
        yield
        return
    try:
        server = Health(address, ConsumerPages(consumer.health, [state.health for state in states]))
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--health-address") from error
    server.start()
    try:
        yield
    finally:
        server.close()


def load(target: str) -> Consumer:
    """The consumer that `target` names. Raises click.BadParameter."""
    found: Consumer = _named(target, Consumer)
    return found


def _named(target: str, *kinds: type[Any]) -> Any:
    """What `target` names, of one of these kinds. Raises click.BadParameter."""
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
    if not isinstance(found, kinds):
        wanted = " or ".join(f"outbox.consumer.{kind.__name__}" for kind in kinds)
        raise click.BadParameter(f"{target} is no {wanted} but of type {type(found).__name__}")
    return found
