"""`outbox-relay parked`: what was set aside, and what an operator wants done with it.

These commands only mark; the relay that carries the shard executes, in the order of each key.
"""

import getpass
import json
from typing import TYPE_CHECKING, Any

import click
from sqlalchemy import text

from outbox import preflight
from outbox.errors import OutboxError
from outbox.storage import ddl
from relay.cli import options, shown

if TYPE_CHECKING:
    from sqlalchemy import Connection

LIST = """
SELECT head.parked, h.topic, h.aggregateid AS key, head.id, head.type, head.error, head.attempts, h.held_at,
       waiting.events, h.wanted_at, h.wanted_by, h.planned IS NOT NULL AS under_way, h.note
FROM outbox_hold h
CROSS JOIN LATERAL (
    SELECT * FROM outbox_parked p WHERE p.hold = h.hold ORDER BY p.delta, p.position LIMIT 1) head
CROSS JOIN LATERAL (
    SELECT count(*) AS events
    FROM (SELECT FROM outbox_parked p WHERE p.hold = h.hold LIMIT 100001) few) waiting
WHERE (CAST(:topic AS text) IS NULL OR h.topic = :topic)
ORDER BY h.held_at, h.hold
"""
"""Each key that waits with the event in front. Index outbox_parked_hold."""

SHOW = """
SELECT p.*, h.wanted_at, h.wanted_by, h.undecided, h.planned, h.note,
       (SELECT count(*) FROM outbox_parked before WHERE before.hold = p.hold
        AND (before.delta, before.position) < (p.delta, p.position)) AS in_front
FROM outbox_parked p JOIN outbox_hold h USING (hold) WHERE parked = :parked
"""

SETTLED = "SELECT outcome, settled_at, settled_by, reason FROM outbox_archive WHERE parked = :parked"

HOLD_OF = """
SELECT hold, planned, (
    SELECT parked FROM outbox_parked p WHERE p.hold = h.hold ORDER BY p.delta, p.position LIMIT 1) AS head,
    (SELECT count(*) FROM outbox_parked p WHERE p.hold = h.hold) AS events
FROM outbox_hold h WHERE hold = (SELECT hold FROM outbox_parked WHERE parked = :parked)
FOR NO KEY UPDATE
"""
"""Locked against the relay's plan until we commit, and the other way round."""

ALL = """
SELECT min(parked) FROM outbox_hold JOIN outbox_parked USING (hold)
WHERE planned IS NULL AND (CAST(:topic AS text) IS NULL OR outbox_hold.topic = :topic) GROUP BY hold
"""

RELEASE = """
UPDATE outbox_hold SET wanted_at = clock_timestamp(), wanted_by = :by, undecided = :undecided
WHERE hold = :hold
"""

DISCARD = "UPDATE outbox_parked SET discarded_by = :by, discard_reason = :reason WHERE parked = :parked"
DISCARD_ALL = "UPDATE outbox_parked SET discarded_by = :by, discard_reason = :reason WHERE hold = :hold"

EDIT = """
UPDATE outbox_parked
SET payload = CASE WHEN :new_payload THEN :payload ELSE payload END,
    headers = CASE WHEN :new_headers THEN CAST(:headers AS jsonb) ELSE headers END,
    topic = coalesce(:topic, topic), edited_at = clock_timestamp(), edited_by = :by
WHERE parked = :parked
"""

yes = click.option("--yes", is_flag=True, help="Do it; otherwise only say what would be done.")


@click.group(short_help="Events that the broker refused, and what waits behind them.")
def parked() -> None:
    """Events that the broker refused, and those of the same key that wait behind them."""


@parked.command(
    "list",
    short_help="Every key that waits, its event in front, and why.",
    epilog="Example:  outbox-relay parked list --topic orders",
)
@options.database_url
@options.as_json
@click.option("--topic", help="Only this topic.")
def list_(database_url: str | None, topic: str | None, as_json_: bool) -> None:
    """Every key that waits: the event in front, why it was refused, how many wait. Exit 1 when one does."""
    with options.connected(database_url) as connection:
        ddl.check(connection)
        keys = [dict(row._mapping) for row in connection.execute(text(LIST), {"topic": topic})]
    if as_json_:
        options.echo_json({"parked": keys})
    for key in () if as_json_ else keys:
        click.echo(
            f"{key['parked']}: {key['topic']} key {key['key']}, {key['type']} {key['id']}, "
            f"{key['events']} waiting since {key['held_at']:%Y-%m-%d %H:%M:%S}, attempts {key['attempts']}: "
            f"{key['error']}"
        )
        if key["note"]:
            click.echo(f"    last release: {key['note']}")
        if key["wanted_at"]:
            click.echo(f"    release asked for by {key['wanted_by']}")
    if not keys and not as_json_:
        click.echo("nothing is parked")
    raise SystemExit(1 if keys else 0)


@parked.command(epilog="Example:  outbox-relay parked show 12 --json")
@options.database_url
@options.as_json
@click.argument("number", type=int)
def show(database_url: str | None, number: int, as_json_: bool) -> None:
    """One parked event with its payload. Exit 1 when there is none; says what became of it."""
    with options.connected(database_url) as connection:
        ddl.check(connection)
        row = connection.execute(text(SHOW), {"parked": number}).one_or_none()
        gone = connection.execute(text(SETTLED), {"parked": number}).one_or_none()
    if row is None:
        became = f"it was {gone.outcome} at {gone.settled_at}" if gone else "there never was"
        click.echo(f"no event {number} is parked: {became}", err=True)
        raise SystemExit(1)
    shown.show(dict(row._mapping), as_json=as_json_)


@parked.command(epilog="Example:  outbox-relay parked edit 12 --payload mended.json --yes")
@options.database_url
@click.argument("number", type=int)
@click.option(
    "--payload", type=click.File("rb"), help="File with the new payload, byte for byte; - is stdin."
)
@click.option("--headers", help="The caller's headers as a JSON object; {} removes them.")
@click.option("--topic", help="Send it to this topic instead.")
@yes
def edit(
    database_url: str | None, number: int, payload: Any, headers: str | None, topic: str | None, yes: bool
) -> None:
    """Mend a parked event; its id, key and place in the order stay. Release it afterwards."""
    if payload is None and headers is None and topic is None:
        raise click.UsageError("say what to change: --payload, --headers or --topic")
    body = payload.read() if payload is not None else None
    own = _headers(headers)
    preflight.check(
        f"parked event {number}", topic=topic, key=None, payload=body, headers=own, max_record_bytes=2**31
    )
    with options.connected(database_url) as connection:
        ddl.check(connection)
        _hold_of(connection, number)
        if not yes:
            click.echo(f"would change event {number}; nothing was done, add --yes")
            return
        values = {
            "parked": number,
            "new_payload": payload is not None,
            "payload": body,
            "new_headers": own is not None,
            "headers": json.dumps(own) if own else None,
            "topic": topic,
            "by": who(connection),
        }
        connection.execute(text(EDIT), values)
    click.echo(f"event {number} is changed; send it with: outbox-relay parked release {number} --yes")


@parked.command(epilog="Example:  outbox-relay parked release 12 --yes")
@options.database_url
@options.as_json
@click.argument("numbers", type=int, nargs=-1)
@click.option("--all", "all_", is_flag=True, help="Every key that waits (of --topic, if given).")
@click.option("--topic", help="With --all: only this topic.")
@click.option(
    "--as-new", "undecided", flag_value="new", help="Send it anew if Kafka no longer tells whether it landed."
)
@click.option(
    "--as-sent", "undecided", flag_value="sent", help="Take it as sent if Kafka no longer tells that."
)
@yes
def release(
    database_url: str | None,
    numbers: tuple[int, ...],
    all_: bool,
    topic: str | None,
    undecided: str | None,
    yes: bool,
    as_json_: bool,
) -> None:
    """Send the key of each given event, in order. The relay does so within seconds, and only then."""
    if bool(numbers) == all_:
        raise click.UsageError("name events (see `parked list`), or --all")
    with options.connected(database_url) as connection:
        ddl.check(connection)
        if all_:
            numbers = tuple(n for (n,) in connection.execute(text(ALL), {"topic": topic}))
        holds = {hold.hold: hold.events for hold in (_hold_of(connection, number) for number in numbers)}
        by = who(connection)
        for hold in holds if yes else ():
            connection.execute(text(RELEASE), {"hold": hold, "by": by, "undecided": undecided})
    _report(as_json_, yes, "release", keys=len(holds), events=sum(holds.values()))


@parked.command(epilog='Example:  outbox-relay parked discard 12 --reason "sent by hand" --yes')
@options.database_url
@options.as_json
@click.argument("numbers", type=int, nargs=-1, required=True)
@click.option("--reason", required=True, help="Kept beside the event in outbox_archive.")
@click.option("--with-waiting", is_flag=True, help="Also what waits behind it now.")
@yes
def discard(
    database_url: str | None,
    numbers: tuple[int, ...],
    reason: str,
    with_waiting: bool,
    yes: bool,
    as_json_: bool,
) -> None:
    """Never send these events. What waited behind the first of a key goes out in order."""
    events = 0
    with options.connected(database_url) as connection:
        ddl.check(connection)
        by = who(connection)
        for number in numbers:
            hold = _hold_of(connection, number)
            events += hold.events if with_waiting else 1
            if not yes:
                continue
            values = {"parked": number, "hold": hold.hold, "by": by, "reason": reason}
            connection.execute(text(DISCARD_ALL if with_waiting else DISCARD), values)
            if with_waiting or hold.head == number:
                connection.execute(text(RELEASE), values | {"undecided": None})
    _report(as_json_, yes, "discard", keys=len(numbers), events=events)


def _hold_of(connection: "Connection", number: int) -> Any:
    hold = connection.execute(text(HOLD_OF), {"parked": number}).one_or_none()
    if hold is None:
        raise OutboxError(f"no event {number} is parked; see: outbox-relay parked list")
    if hold.planned is not None:
        raise OutboxError(f"event {number} is being sent at this moment; nothing was changed, try again")
    return hold


def _report(as_json_: bool, done: bool, what: str, *, keys: int, events: int) -> None:
    if as_json_:
        options.echo_json({"done": done, "keys": keys, "events": events})
    elif done:
        click.echo(f"{what} of {events} events of {keys} keys is noted; the relay does it, see: parked list")
    else:
        click.echo(f"would {what} {events} events of {keys} keys; nothing was done, add --yes")


def who(connection: "Connection") -> str:
    """What is written down beside an order."""
    return f"{getpass.getuser()} as {connection.scalar(text('SELECT session_user'))}"


def _headers(given: str | None) -> dict[str, str] | None:
    if given is None:
        return None
    try:
        found = json.loads(given)
    except ValueError as error:
        raise click.BadParameter(f"is not JSON: {error}", param_hint="--headers") from error
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise click.BadParameter("must be one JSON object of texts", param_hint="--headers")
    return found
