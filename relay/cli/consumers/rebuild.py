"""`outbox-relay consumers rebuild`: make a projection anew from its whole history."""

import sys
import time
from dataclasses import asdict

import click

from outbox.consumer import Consumer
from outbox.consumer.place.rebuild import Rebuilding, left
from relay.cli import options
from relay.cli.consume import load
from relay.cli.consumers import reach

LOOK = 0.5
"""Seconds between two looks at how far it is."""

BAR = 30


@click.command(
    short_help="Empty a projection's tables and apply its whole history again.",
    epilog="Example:  outbox-relay consumers rebuild shop.billing:consumer --yes --wait",
)
@click.argument("target", metavar="MODULE:CONSUMER")
@click.option(
    "--incomplete", is_flag=True, help="Also if retention has deleted the beginning, which then is missing."
)
@click.option("--wait", is_flag=True, help="Until it has caught up, with progress on stderr.")
@options.as_json
@reach.deed
def rebuild(target: str, incomplete: bool, wait: bool, dry_run: bool, yes: bool, as_json_: bool) -> None:
    """Empty the tables that CONSUMER names as its projection, and read its topics from the beginning.

    One transaction, whether the group runs or not; the group's processes do the work, so start them if none
    run. Handlers are called as they are: events that they emit are emitted again. To keep the old version
    readable meanwhile, build a second group beside it: see `consumers switch`.
    """
    consumer, done = load(target), yes and not dry_run
    begun = consumer.rebuild(incomplete=incomplete, dry_run=not done)
    if not as_json_:
        click.echo(f"{', '.join(begun.tables)}: {begun.records:,} records are read again")
        click.echo(
            "emptied; the group's processes read from the beginning"
            if done
            else "nothing was changed, add --yes"
        )
    seconds = _watch(consumer, begun) if done and wait else None
    if as_json_:
        options.echo_json(
            {
                "done": done,
                "tables": begun.tables,
                "records": begun.records,
                "moved": [asdict(each) for each in begun.moved],
                "seconds": seconds,
            }
        )


def _watch(consumer: Consumer, begun: Rebuilding) -> float:
    """Until all is read; returns how long it took."""
    start, total = time.monotonic(), max(1, begun.records)
    while True:
        missing = left(consumer.database, consumer.group, begun)
        took = time.monotonic() - start
        if sys.stderr.isatty():
            click.echo(f"\r{progress(total - missing, total, took)}", nl=not missing, err=True)
        if not missing:
            return took
        time.sleep(LOOK)


def progress(read: int, total: int, took: float) -> str:
    """A bar, the count, and how long the rest will take at this pace."""
    share = min(1.0, max(0, read) / total)
    bar = "#" * int(share * BAR)
    eta = f"{(total - read) * took / read:,.0f} s left" if read > 0 else "waiting for the group's processes"
    return f"[{bar:<{BAR}}] {share:4.0%}  {max(0, read):,} of {total:,}, {eta}   "
