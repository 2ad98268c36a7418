"""`outbox-relay shards list`, `shards set`: how many shards there are, and changing that while all runs."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from outbox.errors import ConfigurationError
from outbox.storage import ddl
from relay.cli import options
from relay.cli.main import EXIT_FAILED

SHARDS = """
SELECT s.shard, s.lo, s.hi, s.source, s.generation, s.frozen, s.next IS NULL AS idle,
       coalesce(s.done::text = r.upto::text, false) AS at_end, l.owner, relay.state->>'alarm' AS alarm
FROM outbox_shard s
LEFT JOIN outbox_reshard r ON true
LEFT JOIN outbox_lease l ON l.shard = s.shard AND l.lease_until > clock_timestamp()
LEFT JOIN outbox_relay relay ON relay.instance = l.owner
ORDER BY s.shard
"""

RESHARD = "SELECT shards, generation, requested_at, upto IS NOT NULL AS end_known FROM outbox_reshard"

SET = "SELECT outbox_shards_set(:wanted)"

CANCEL = "SELECT outbox_shards_cancel()"

REFUSED = "OB001"

LOOK_EVERY = 0.2


@click.command(
    "list",
    short_help="Shards with their buckets and owners.",
    epilog="Example:  outbox-relay shards list --json",
)
@options.database_url
@options.as_json
def list_(database_url: str | None, as_json_: bool) -> None:
    """Shards with their buckets and owners, and whether their number is being changed."""
    found, changing = _look(database_url)
    if as_json_:
        options.echo_json({"shards": found, "changing": changing})
        return
    for s in found:
        click.echo(
            f"shard {s['shard']}: buckets {s['lo']} to {s['hi']}, source {s['source']}, "
            f"generation {s['generation']}, owner {s['owner'] or 'none'}"
        )
    if changing is not None:
        click.echo(f"being changed to {changing['shards']} since {changing['requested_at']}")


@click.command(
    "set",
    short_help="Change how many shards there are, while all runs.",
    epilog="Example:  outbox-relay shards set 4 --yes",
)
@click.argument("number", type=click.IntRange(1, 256), required=False)
@click.option("--cancel", is_flag=True, help="Let the shards go on as they were.")
@click.option("--no-wait", is_flag=True, help="Do not wait until the new shards stand.")
@click.option("--dry-run", is_flag=True, help="Say what would change, and change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@options.database_url
@options.as_json
def set_(
    database_url: str | None,
    number: int | None,
    cancel: bool,
    no_wait: bool,
    dry_run: bool,
    yes: bool,
    as_json_: bool,
) -> None:
    """Change how many shards carry the database, while it is written and relayed; no key loses its order.

    The relays acknowledge what is under way and all that was committed until then, and go on with NUMBER
    shards. Nothing is sent for as long as the largest delta under way takes. Exit 1 when it was cancelled.
    """
    if cancel == (number is not None):
        raise click.UsageError("give the number of shards, or --cancel")
    before, changing = _look(database_url)
    if dry_run or (not cancel and changing is None and len(before) == number):
        _report(as_json_, done=not dry_run, was=len(before), number=number, changing=changing)
        return
    if not yes:
        question = "Cancel the change?" if cancel else f"Go from {len(before)} to {number} shards?"
        click.confirm(question, abort=True, err=True)
    if cancel:
        with _asking(database_url) as connection:
            cancelled = bool(connection.execute(text(CANCEL)).scalar())
        _report(as_json_, done=cancelled, was=len(before), number=None, changing=None)
        raise SystemExit(0 if cancelled else EXIT_FAILED)
    with _asking(database_url) as connection:
        generation = connection.execute(text(SET), {"wanted": number}).scalar()
    done = None if no_wait else _wait(database_url, generation)
    found, changing = _look(database_url)
    _report(as_json_, done=bool(done), was=len(before), number=len(found), changing=changing)
    raise SystemExit(EXIT_FAILED if done is False else 0)


def _look(url: str | None) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    with options.connected(url) as connection:
        ddl.check(connection)
        changing = connection.execute(text(RESHARD)).one_or_none()
        found = [dict(row._mapping) for row in connection.execute(text(SHARDS))]
    return found, None if changing is None else dict(changing._mapping)


@contextmanager
def _asking(url: str | None) -> Iterator[Any]:
    """What the database refuses for a reason of its own reaches the person as it said it."""
    with options.connected(url) as connection:
        try:
            yield connection
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) != REFUSED:
                raise
            said = str(error.orig).splitlines()[0]
            raise ConfigurationError(
                f"{said}; `outbox-relay shards list` and `status` show what is under way"
            ) from error


def _wait(url: str | None, generation: int) -> bool:
    """Until the shards of `generation` stand (True) or the change was cancelled (False)."""
    said = ""
    while True:
        found, changing = _look(url)
        if min(s["generation"] for s in found) >= generation:
            return True
        if changing is None:
            return False
        waiting = [s for s in found if not (s["at_end"] and s["idle"])]
        now = f"{len(found) - len(waiting)} of {len(found)} shards have sent what was committed before"
        for s in waiting[:3]:
            now += f"; shard {s['shard']}: waiting for {waited_for(s['owner'], s['alarm'])}"
        if now != said:
            click.echo(now, err=True)
            said = now
        time.sleep(LOOK_EVERY)


def waited_for(owner: str | None, alarm: str | None) -> str:
    """Who has to do something about a shard, and what keeps it from that."""
    if owner is None:
        return "a relay; none carries it: start one with `outbox-relay run`"
    return f"{owner}: {alarm}" if alarm else owner


def _report(
    as_json: bool, *, done: bool, was: int, number: int | None, changing: dict[str, Any] | None
) -> None:
    if as_json:
        options.echo_json({"done": done, "before": was, "shards": number, "changing": changing})
    elif changing is not None:
        click.echo(f"{was} shards, being changed to {changing['shards']}")
    elif number is None:
        click.echo(
            f"{was} shards go on as they were" if done else "the number of shards was not being changed"
        )
    else:
        click.echo(f"{number} shards" if done else f"{was} shards; would be {number}")
