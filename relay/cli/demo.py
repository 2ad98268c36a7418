"""`outbox-relay demo`: watch it being exact while processes are killed."""

import sys
from pathlib import Path

import click

from relay.cli import options


@click.command(
    short_help="Kill processes while orders arrive, then count what arrived.",
    epilog="Example:  outbox-relay demo --orders 5000 --kills 20",
)
@click.option("--orders", type=click.IntRange(1), default=2_000, show_default=True, help="Orders to place.")
@click.option("--kills", type=click.IntRange(0), default=10, show_default=True, help="Processes to kill.")
@click.option(
    "--kafka",
    type=click.Choice(["real", "mock"]),
    help="Apache Kafka (Java), or librdkafka's mock.  [default: OUTBOX_KAFKA_BOOTSTRAP_SERVERS, else real "
    "where Java and the jars or Maven are, else mock]",
)
@click.option(
    "--postgres",
    type=click.Choice(["embedded", "machine"]),
    help="A wheel's PostgreSQL, or this machine's programs.  [default: OUTBOX_DATABASE_URL, else embedded]",
)
@click.option(
    "--logs",
    type=click.Path(path_type=Path, file_okay=False),
    help="Keep the logs of all processes in this directory.",
)
@options.as_json
def demo(
    orders: int, kills: int, kafka: str | None, postgres: str | None, logs: Path | None, as_json_: bool
) -> None:
    """Place orders over HTTP while relays and consumers are killed and frozen; count what arrived.

    Starts PostgreSQL and Kafka (or takes yours), an order service, two relays for each database that emits
    events, three invoice consumers and a shipping consumer, all as processes of their own. Then each order
    must have its one invoice and shipment: the verdict is computed from the databases and from a fresh read
    of the topics. Exit 1 unless nothing was lost, invented, doubled or out of order.
    """
    from relay.demo.failure import DemoFailed
    from relay.demo.interruption import Interrupted, Interruption
    from relay.demo.progress import Board
    from relay.demo.scenario import Demo, Options

    board = Board()
    choices = Options(orders=orders, kills=kills, kafka=kafka, postgres=postgres, logs=logs)
    try:
        with Interruption() as interruption:
            outcome = Demo(choices, board, interruption).play()
    except Interrupted as interrupted:
        board.clear()
        board.say("stopped; everything that the demo started is gone")
        sys.exit(128 + interrupted.number)
    except DemoFailed as failure:
        board.clear()
        board.say(f"outbox-relay: {failure}")
        sys.exit(1)
    board.clear()
    for line in (*outcome.breaches(), *filter(None, [outcome.stalled])):
        board.say(line)
    if as_json_:
        options.echo_json(outcome.document())
    else:
        click.echo("\n".join(outcome.table()))
    sys.exit(0 if outcome.passed else 1)
