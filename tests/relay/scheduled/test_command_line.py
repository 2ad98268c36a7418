"""`outbox-relay scheduled` shows what waits and takes it back; its exit code says whether it was in time."""

import json
from uuid import uuid4

from tests.relay.daemon.test_command_line import outbox_relay
from tests.relay.scheduled.scheduling import Session, left, schedule


def test_list_shows_the_earliest_first_and_says_what_is_due(session: Session, database: str) -> None:
    later, due = schedule(session, 3600, key="k2", topic="orders"), schedule(session, -1, key="k1")
    shown = json.loads(outbox_relay("scheduled", "list", "--json", DATABASE_URL=database).stdout)
    assert [(e["id"], e["key"], e["topic"], e["is_due"]) for e in shown["scheduled"]] == [
        (str(due), "k1", "outbox.event.step", True),
        (str(later), "k2", "orders", False),
    ]
    assert shown["count"] == 2
    said = outbox_relay("scheduled", "list", "--key", "k1", DATABASE_URL=database).stdout
    assert f"{due}  step.taken.v1  outbox.event.step  k1  DUE" in said
    assert str(later) not in said
    assert "2 scheduled in all" in said


def test_cancel_takes_back_what_is_there_and_says_what_is_too_late(session: Session, database: str) -> None:
    one, two, late = schedule(session, 3600), schedule(session, 3600), uuid4()
    unasked = outbox_relay("scheduled", "cancel", str(one), DATABASE_URL=database)
    assert (unasked.returncode, left(session)) == (2, 2)
    assert "--yes" in unasked.stderr

    dry = outbox_relay("scheduled", "cancel", str(one), "--dry-run", DATABASE_URL=database)
    assert (dry.returncode, left(session)) == (0, 2)
    assert "1 would be cancelled" in dry.stdout

    done = outbox_relay("scheduled", "cancel", str(one), str(late), "--yes", "--json", DATABASE_URL=database)
    assert done.returncode == 1
    assert json.loads(done.stdout) == {"cancelled": [str(one)], "too_late": [str(late)], "dry_run": False}
    assert left(session) == 1

    done = outbox_relay("scheduled", "cancel", str(two), "--yes", DATABASE_URL=database)
    assert (done.returncode, left(session)) == (0, 0)
    assert "1 cancelled" in done.stdout
    assert "nothing is scheduled" in outbox_relay("scheduled", "list", DATABASE_URL=database).stdout
