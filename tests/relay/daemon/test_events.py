"""`events list` and `events show` say where an event is, with the rights of a reader, and change nothing."""

import json
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from click.testing import CliRunner, Result

from outbox.storage.roles import Roles, statements
from relay.cli import main
from relay.row import ID, PAYLOAD
from tests.relay.conftest import Connect
from tests.relay.database.half import Half, Session, shard, write
from tests.relay.database.memory_broker import MemoryBroker

Look = Callable[..., Result]


@pytest.fixture
def session(connect: Connect) -> Session:
    return connect(autocommit=True)


@pytest.fixture
def look(database: str, session: Session) -> Iterator[Look]:
    """Runs `outbox-relay events …` as a role that may only read."""
    role = f"reader_{uuid4().hex[:8]}"
    for statement in statements(Roles(reader=[role]), create=True):
        session.execute(statement.encode())
    url = psycopg.conninfo.make_conninfo(database, user=role)

    def run(*arguments: Any, code: int = 0) -> Result:
        result = CliRunner().invoke(main, ["events", *map(str, arguments)], env={"OUTBOX_DATABASE_URL": url})
        assert result.exit_code == code, result.output
        return result

    yield run
    session.execute(f"DROP OWNED BY {role}; DROP ROLE {role}".encode())


def listed(look: Look, *arguments: Any) -> list[tuple[str, str]]:
    events = json.loads(look("list", "--json", *arguments).stdout)["events"]
    return [(event["id"], event["state"]) for event in events]


def published(database: str, broker: MemoryBroker) -> None:
    carrying = shard(database, broker)
    for _ in range(20):
        carrying.run_once()
    carrying.finish()


def test_each_event_shows_where_it_is(database: str, session: Session, look: Look) -> None:
    (sent,) = write(session, key="a")
    (refused,) = write(session, key="b", payload=b"poison")
    (waiting,) = write(session, key="b")
    published(database, MemoryBroker(refuses=lambda row: row[PAYLOAD] == b"poison"))
    planned = write(session, 2, key="c")
    half = Half(database)
    state = half.row.claim()
    state = half.row.plan(state, half.looker.look(state.done))
    half.row.mark_low(state, state.low + 4)
    half.close()
    (pending,) = write(session, key=None)
    assert listed(look) == [
        (pending, "pending"),
        (planned[1], "planned"),
        (planned[0], "published"),
        (waiting, "held"),
        (refused, "parked"),
        (sent, "published"),
    ]
    assert listed(look, "--pending") == [(planned[1], "planned"), (pending, "pending")]
    one = json.loads(look("show", planned[1], "--json").stdout)
    assert one["seq"] == f"{state.stream.decode()}5"
    assert (one["state"], one["position"], one["payload"]) == ("planned", 5, "{}")
    assert "refuses it" in look("show", refused).stdout
    assert json.loads(look("show", sent, "--json").stdout)["seq"] is None


def test_filters_choose_among_them(session: Session, look: Look) -> None:
    (a,) = write(session, key="a")
    (b,) = write(session, key="b")
    both = [(b, "pending"), (a, "pending")]
    assert listed(look, "--aggregate", "order", "--type", "order.placed.v1") == both
    assert listed(look, "--key", "a") == [(a, "pending")]
    assert listed(look, "--topic", "outbox.event.order", "--since", "2020-01-01T00:00Z") == both
    assert listed(look, "--until", "2020-01-01T00:00Z") == []
    assert listed(look, "--type", "order.changed.v1") == []
    assert listed(look, "--limit", 1) == both[:1]
    assert b in look("list", "--key", "b").stdout
    assert "no such event" in look("list", "--key", "nobody").stdout


def test_a_settled_event_is_found_after_the_ring_forgot_it(
    database: str, session: Session, look: Look
) -> None:
    (kept, dropped) = write(session, key="a"), write(session, key="b")
    broker = MemoryBroker(refuses=lambda row: row[ID].decode() in (*kept, *dropped))
    published(database, broker)
    session.execute(
        "UPDATE outbox_parked SET discarded_by = 'o', discard_reason = 'r' WHERE aggregateid = 'b'"
    )
    session.execute("UPDATE outbox_hold SET wanted_at = now(), wanted_by = 'o' WHERE aggregateid = 'b'")
    published(database, broker)
    session.execute("TRUNCATE outbox_event")
    assert json.loads(look("show", *kept, "--json").stdout)["state"] == "parked"
    assert json.loads(look("show", *dropped, "--json").stdout)["state"] == "discarded"
    assert "was not committed" in look("show", uuid4(), code=1).output
