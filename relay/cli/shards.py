"""`outbox-relay shards`: how the shards of one database are carried."""

import time
from typing import Any

import click
from sqlalchemy import text

from outbox.errors import ConfigurationError
from outbox.storage import ddl
from relay.cli import options, reshard
from relay.cli.main import EXIT_FAILED

REQUEST = """
UPDATE outbox_shard SET wanted_mode = nullif(:mode, mode)
WHERE (CAST(:shard AS integer) IS NULL OR shard = :shard) AND (NOT frozen OR mode = :mode)
"""
"""Ask the owner for a mode; asking for the mode that a shard has withdraws an earlier request."""

FROZEN = """
SELECT EXISTS (SELECT FROM outbox_shard
               WHERE (CAST(:shard AS integer) IS NULL OR shard = :shard) AND frozen AND mode <> :mode)
"""
"""While their number is being changed no shard may get another mode than the rest."""

FROM_ROW = """
UPDATE outbox_shard SET wanted_mode = 'transactional'
WHERE mode = 'transactional' AND (CAST(:shard AS integer) IS NULL OR shard = :shard)
"""
"""A transactional shard that wants this mode begins its progress records anew, as its row stands."""

MODES = """
SELECT s.shard, s.mode, s.wanted_mode, l.owner,
       coalesce(r.state->'shards'->(s.shard::text)->>'switch', r.state->>'alarm') AS alarm
FROM outbox_shard s
LEFT JOIN outbox_lease l ON l.shard = s.shard AND l.lease_until > clock_timestamp()
LEFT JOIN outbox_relay r ON r.instance = l.owner
WHERE CAST(:shard AS integer) IS NULL OR s.shard = :shard ORDER BY s.shard
"""

WITHOUT_END = """
SELECT instance, started_at, heartbeat FROM outbox_relay
WHERE stopped_at IS NULL AND heartbeat < clock_timestamp() - interval '10 seconds' ORDER BY heartbeat
"""
"""Relays that fell silent without saying that they end: dead, or frozen with records on their way."""

LOOK_EVERY = 0.2


@click.group()
def shards() -> None:
    """How many shards one database has, and how they are carried."""


shards.add_command(reshard.list_)
shards.add_command(reshard.set_)


@shards.command(
    short_help="Change how events are sent: sequenced or transactional.",
    epilog="Example:  outbox-relay shards mode transactional --yes",
)
@click.argument("mode", type=click.Choice(["sequenced", "transactional"]))
@click.option("--shard", type=int, help="One shard only.  [default: all]")
@click.option(
    "--from-row",
    is_flag=True,
    help="Progress topic lost or contradicting: begin it anew from the shard's row. Can repeat events.",
)
@click.option("--timeout", default=60.0, show_default=True, help="Seconds to wait for the relays.")
@click.option("--dry-run", is_flag=True, help="Say what would change, and change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@options.database_url
@options.as_json
def mode(
    database_url: str | None,
    mode: str,
    shard: int | None,
    from_row: bool,
    timeout: float,
    dry_run: bool,
    yes: bool,
    as_json_: bool,
) -> None:
    """Change how events are sent; nothing is lost, repeated or reordered by the change itself.

    The relay that carries a shard changes it between two deltas, and the command waits for that. A request
    that is not done in time (exit 1) stays, and is done as soon as a relay can; asking for the mode that the
    shard has withdraws it.
    """
    if from_row and mode != "transactional":
        raise click.UsageError("--from-row is for mode transactional, which keeps a progress topic")
    before = _modes(database_url, shard)
    changing = [s["shard"] for s in before if from_row or s["mode"] != mode]
    if not (dry_run or yes) and changing:
        risk = ", though events can be repeated" if from_row else ""
        click.confirm(f"Send shards {changing} in mode {mode} from now on{risk}?", abort=True, err=True)
    if not dry_run:
        with options.connected(database_url) as connection:
            connection.execute(text(REQUEST), {"mode": mode, "shard": shard})
            if connection.scalar(text(FROZEN), {"mode": mode, "shard": shard}):
                raise ConfigurationError(
                    "the number of shards is being changed; ask for another mode once "
                    "`outbox-relay shards list` says that it is done"
                )
            if from_row:
                connection.execute(text(FROM_ROW), {"shard": shard})
        _wait(database_url, shard, timeout)
    after = _modes(database_url, shard)
    with options.connected(database_url) as connection:
        silent = [dict(row._mapping) for row in connection.execute(text(WITHOUT_END))]
    done = all(s["mode"] == mode and s["wanted_mode"] is None for s in after)
    if as_json_:
        options.echo_json(
            {
                "done": done,
                "shards": [{**now, "before": was["mode"]} for was, now in zip(before, after, strict=True)],
                "without_end": silent,
            }
        )
    else:
        _print(mode, after, silent, changing if dry_run else None)
    raise SystemExit(0 if done or dry_run else EXIT_FAILED)


def _modes(url: str | None, shard: int | None) -> list[dict[str, Any]]:
    with options.connected(url) as connection:
        ddl.check(connection)
        found = [dict(row._mapping) for row in connection.execute(text(MODES), {"shard": shard})]
    if not found:
        raise ConfigurationError(f"there is no shard {shard}; `outbox-relay status` lists them")
    return found


def _wait(url: str | None, shard: int | None, timeout: float) -> None:
    """Until no request is open, or the time is over."""
    end = time.monotonic() + timeout
    said: object = None
    while waiting := [s for s in _modes(url, shard) if s["wanted_mode"] is not None]:
        now = [(s["shard"], s["owner"], s["alarm"]) for s in waiting]
        if now != said:
            for number, owner, alarm in now:
                click.echo(f"shard {number}: waiting for {reshard.waited_for(owner, alarm)}", err=True)
            said = now
        if time.monotonic() >= end:
            return
        time.sleep(LOOK_EVERY)


def _print(
    mode: str, after: list[dict[str, Any]], silent: list[dict[str, Any]], would: list[int] | None
) -> None:
    for s in after:
        if would is not None:
            change = f"would change to {mode}" if s["shard"] in would else "stays"
        elif s["mode"] == mode:
            change = "done"
        else:
            change = f"not changed yet; waiting for {reshard.waited_for(s['owner'], s['alarm'])}"
        click.echo(f"shard {s['shard']}: {s['mode']}, {change}")
    if silent and mode == "transactional":
        click.echo(
            "These relays fell silent without saying that they end. Until you know them dead, a record that\n"
            "one of them sent in mode sequenced can still arrive; readers that ignore `outbox-seq` see it:"
        )
        for relay in silent:
            click.echo(f"  {relay['instance']}, silent since {relay['heartbeat']}")
