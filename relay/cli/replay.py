"""`outbox-relay replay`: send published events again, to their topic for named groups or to another one."""

import sys
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click
from sqlalchemy import text

from outbox import preflight
from outbox.errors import OutboxError
from outbox.record import EVERYBODY
from outbox.storage import bucket, ddl
from relay.cli import options
from relay.cli.parked import who

if TYPE_CHECKING:
    from sqlalchemy import Connection

COUNT = f"""
SELECT count(*), min(e.occurred_at), max(e.occurred_at) FROM outbox_event e JOIN outbox_shard s
  ON {bucket.IN_SHARD}
WHERE pg_visible_in_snapshot(e.xid, s.done)
  AND (CAST(:since AS timestamptz) IS NULL OR e.occurred_at >= :since)
  AND (CAST(:until AS timestamptz) IS NULL OR e.occurred_at < :until)
  AND (CAST(:topic AS text) IS NULL OR coalesce(e.topic, 'outbox.event.' || e.aggregatetype) = :topic)
  AND (CAST(:aggregateid AS text) IS NULL OR e.aggregateid = :aggregateid)
  AND NOT EXISTS (SELECT FROM outbox_parked p WHERE p.id = e.id)
  AND NOT EXISTS (SELECT FROM outbox_archive a WHERE a.id = e.id AND a.outcome = 'discarded')
"""
"""Reads the whole ring once; the replay itself does it in windows."""

OLDEST = "SELECT occurred_at FROM outbox_event ORDER BY position LIMIT 1"

REQUEST = """
INSERT INTO outbox_job (shard, since, until, topic, aggregateid, to_topic, groups, latest_per_key,
                        requested_by)
SELECT shard, :since, :until, :topic, :aggregateid, :to_topic, :groups, :latest_per_key, :by FROM outbox_shard
WHERE NOT EXISTS (SELECT FROM outbox_reshard)
RETURNING job
"""
"""One job a shard: each keeps its own order and cursor. Waits for whoever is just changing the shards' number
(they lock outbox_job), and its snapshot, taken after that wait, shows what became of them."""

LIST = """
SELECT job, shard, since, until, topic, aggregateid, to_topic, groups, latest_per_key, requested_at,
       requested_by, canceled_by, sent, refused, error, ended_at, outcome
FROM outbox_job WHERE CAST(:number AS bigint[]) IS NULL OR job = ANY(CAST(:number AS bigint[]))
ORDER BY job DESC LIMIT 50
"""

CANCEL = "UPDATE outbox_job SET canceled_by = :by WHERE job = :job AND ended_at IS NULL RETURNING job"


@click.command(
    short_help="Send published events again, in order, once each.",
    epilog="Example:  outbox-relay replay --since 2026-05-01T00:00Z --topic orders --for billing --yes "
    "--wait",
)
@options.database_url
@options.as_json
@click.option("--since", type=options.TIME, help="Events that occurred at this time or later, with its zone.")
@click.option("--until", type=options.TIME, help="Events that occurred before this time.")
@click.option("--topic", help="Events of this topic.")
@click.option("--aggregate", help="Events of this key.")
@click.option("--to", "to_topic", help="Send them to this topic instead of their own.")
@click.option(
    "--for",
    "groups",
    multiple=True,
    help="Group that shall apply them again; * for every reader. Needed without --to.",
)
@click.option(
    "--latest-per-key",
    is_flag=True,
    help="Of each key only the event behind which no newer one was sent: for compacted topics, which refuse "
    "any other replay.",
)
@click.option("--wait", is_flag=True, help="Until it has ended, with progress on stderr.")
@click.option("--dry-run", is_flag=True, help="Only count; the same as without --yes.")
@click.option("--yes", is_flag=True, help="Do it; otherwise only count.")
@click.option("--list", "list_", is_flag=True, help="The latest replays and how far they are.")
@click.option("--cancel", type=int, help="End this replay after the window that is on its way.")
def replay(
    database_url: str | None,
    as_json_: bool,
    since: datetime | None,
    until: datetime | None,
    topic: str | None,
    aggregate: str | None,
    to_topic: str | None,
    groups: tuple[str, ...],
    latest_per_key: bool,
    wait: bool,
    dry_run: bool,
    yes: bool,
    list_: bool,
    cancel: int | None,
) -> None:
    """Send published events again, in order, once each; live events go on between.

    Consumers of this framework apply them again if the replay is for their group; other readers see
    repeats with the same id. Only what the ring still holds can be sent, and it is kept until the replay
    has ended, 24 hours at most. With --latest-per-key an event goes out only if nothing newer of its key was
    sent (with --to: nothing newer that matches). Exit 1 when --wait saw one fail.
    """
    if list_ or cancel is not None:
        _manage(database_url, as_json_, cancel)
        return
    if to_topic is None and not groups:
        raise click.UsageError("say --for whom: a group, or '*' for every reader; or send --to another topic")
    if to_topic is not None:
        preflight.check(
            "the replay", topic=to_topic, key=None, payload=None, headers=None, max_record_bytes=1_000
        )
    if any("," in group or ";" in group for group in groups):
        raise click.UsageError("a group's name with a comma or semicolon cannot be told in a header; use '*'")
    wanted = {
        "since": since,
        "until": until,
        "topic": topic,
        "aggregateid": aggregate,
        "to_topic": to_topic,
        "groups": ",".join(groups) or EVERYBODY,
        "latest_per_key": latest_per_key,
    }
    with options.connected(database_url) as connection:
        ddl.check(connection)
        count, first, last = connection.execute(text(COUNT), wanted).one()
        oldest = connection.scalar(text(OLDEST))
        jobs: list[int] = []
        if yes and not dry_run and count:
            wanted["by"] = who(connection)
            jobs = [job for (job,) in connection.execute(text(REQUEST), wanted)]
            if not jobs:
                raise OutboxError(
                    "no replay can begin while the number of shards is being changed; ask again once "
                    "`outbox-relay shards list` says that it is done"
                )
    if not as_json_:
        _say(count, first, last, since, oldest, jobs, latest_per_key=latest_per_key)
    ended = _wait(database_url, jobs) if wait and jobs else []
    if as_json_:
        options.echo_json(
            {"events": count, "first": first, "last": last, "oldest": oldest, "jobs": jobs, "ended": ended}
        )
    sys.exit(1 if any(job["outcome"] != "done" for job in ended) else 0)


def _say(
    count: int,
    first: object,
    last: object,
    since: datetime | None,
    oldest: datetime | None,
    jobs: list[int],
    *,
    latest_per_key: bool,
) -> None:
    between = f", from {first} to {last}" if count else ""
    between += "; of them the latest of each key goes out" if count and latest_per_key else ""
    click.echo(f"{count:,} published events match{between}")
    if since is not None and (oldest is None or since < oldest):
        click.echo(f"the ring reaches back to {oldest}: older events are gone")
    if jobs:
        click.echo(f"replay {', '.join(map(str, jobs))} is noted; see: outbox-relay replay --list")
    elif count:
        click.echo("nothing was done, add --yes")


def _wait(database_url: str | None, jobs: list[int]) -> list[dict[str, Any]]:
    while True:
        with options.connected(database_url) as connection:
            found = _jobs(connection, jobs)
        if sys.stderr.isatty():
            click.echo(f"\r{sum(job['sent'] for job in found):,} sent", nl=False, err=True)
        if all(job["ended_at"] for job in found):
            for job in found:
                click.echo(f"replay {job['job']}: {job['outcome']}, {job['sent']:,} sent", err=True)
            return found
        time.sleep(0.5)


def _jobs(connection: "Connection", jobs: list[int] | None) -> list[dict[str, Any]]:
    return [dict(row._mapping) for row in connection.execute(text(LIST), {"number": jobs})]


def _manage(database_url: str | None, as_json_: bool, cancel: int | None) -> None:
    with options.connected(database_url) as connection:
        ddl.check(connection)
        if (
            cancel is not None
            and connection.scalar(text(CANCEL), {"job": cancel, "by": who(connection)}) is None
        ):
            raise OutboxError(f"no replay {cancel} is under way; see: outbox-relay replay --list")
        jobs = _jobs(connection, None)
    if as_json_:
        options.echo_json({"replays": jobs})
        return
    for job in jobs:
        state = job["outcome"] or ("to be canceled" if job["canceled_by"] else "under way")
        click.echo(
            f"{job['job']}: shard {job['shard']}, for {job['groups']}, {state}, {job['sent']:,} sent, "
            f"{job['refused']} refused{': ' + job['error'] if job['error'] else ''}"
        )
    if not jobs:
        click.echo("there was no replay yet")
