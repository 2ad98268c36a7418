"""Fail-over of a real pair: what a promoted standby knows, and what was sent that it does not know."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from outbox.errors import ConfigurationError
from outbox.storage.roles import Roles, statements
from outbox.testing.servers import KafkaServer, postgres_copies
from relay.shard import Shard
from tests.relay.database.half import drain, shard
from tests.relay.database.memory_broker import MemoryBroker
from tests.relay.disaster import campaign
from tests.relay.disaster.pair import NAME, Pair
from tests.relay.scene import until

WAITING = {"wait_for_standby": NAME, "standby_patience": 0.1}


@contextmanager
def carrying(
    pair: Pair, broker: MemoryBroker, **settings: object
) -> Iterator[tuple[Shard, dict[str, object]]]:
    """A relay at work in a thread of its own, whatever happens to the servers."""
    relay = shard(pair.url, broker, **settings)
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            over.wait(min(relay.run_once().rest, 0.05))

    relay._supervision.stopping = over.is_set
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield relay, relay._supervision.status
    finally:
        over.set()
        thread.join()
        relay.let_go()


def arrived(broker: MemoryBroker) -> set[str]:
    return {found.id for found in broker.log}


def exist(pair: Pair) -> set[str]:
    """The events that the promoted server knows."""
    with pair.there.session() as session:
        return {id_ for (id_,) in session.execute("SELECT id::text FROM outbox_event")}


def test_a_relay_that_waits_sends_nothing_that_the_promoted_standby_does_not_know(
    pair: Pair, broker: MemoryBroker
) -> None:
    with carrying(pair, broker, **WAITING | {"wait_for_standby": "1"}) as (_, status):
        kept = pair.here.write(20)
        until(lambda: len(broker.log) == 20, 20, lambda: str(status))
        with pair.held_back():
            lost = pair.here.write(5)
            until(lambda: "1 standby did not flush" in str(status["alarm"]), 20, lambda: str(status))
            pair.fail_over()
        after = pair.there.write(10)
        until(lambda: "1 standby did not flush" in str(status["alarm"]), 30, lambda: str(status))
        assert len(broker.log) == 20, "the promoted server has no standby yet"
        with postgres_copies.start_standby(pair.standby, "replica2", {"max_connections": 150}):
            until(lambda: arrived(broker) >= set(after), 30, lambda: str(status))
    assert not exist(pair) & set(lost), "or the standby was not held back"
    assert broker.ids() == kept + after, "no ghost, nothing twice, and no new event taken for a repeat"
    assert {found.id for found in broker.log[20:-10]} <= set(kept), (
        "the plan's rest comes under its own numbers"
    )
    assert len({found.seq.source for found in broker.log}) == 2


def test_a_relay_that_does_not_wait_sends_ghosts_but_loses_nothing_that_is_known(
    pair: Pair, broker: MemoryBroker
) -> None:
    """What an asynchronous fail-over forgets was sent; new events come under a source of their own."""
    with carrying(pair, broker) as (_, status):
        kept = pair.here.write(20)
        until(lambda: len(broker.log) == 20, 20, lambda: str(status))
        pair.wait_until_it_streams()
        with pair.here.session() as session:
            until(
                lambda: session.execute(
                    "SELECT flush_lsn = pg_current_wal_flush_lsn() FROM pg_stat_replication"
                ).fetchone() == (True,), 20, lambda: "the standby does not follow",
            )  # fmt: skip
        with pair.held_back():
            ghosts = pair.here.write(5)
            until(lambda: len(broker.log) == 25, 20, lambda: str(status))
            pair.fail_over()
        after = pair.there.write(10)
        until(lambda: arrived(broker) >= set(after), 30, lambda: str(status))
    assert not exist(pair) & set(ghosts), "sent, and nobody remembers them"
    assert broker.ids() == kept + ghosts + after


def test_going_on_without_the_standby_is_an_alarm_until_it_is_back(pair: Pair, broker: MemoryBroker) -> None:
    settings = {**WAITING, "standby_away": "go on"}
    with carrying(pair, broker, **settings) as (_, status):
        with pair.held_back():
            written = pair.here.write(3)
            until(lambda: len(broker.log) == 3, 20, lambda: str(status))
            until(lambda: "going on without" in str(status["alarm"]), 20, lambda: str(status))
            assert status["state"] == "carrying"

        def well() -> bool:
            # Each plan tells anew: on a busy machine the first ones may still be too late for 0.1 s.
            written.extend(pair.here.write(1))
            return status["alarm"] is None

        until(well, 60, lambda: str(status))
        # The one that is back is waited for again.
        with pair.held_back():
            written += pair.here.write(3)
            until(lambda: "going on without" in str(status["alarm"]), 20, lambda: str(status))
    assert [found.id for found in broker.log] == written


def test_a_switch_over_under_writers_loses_and_repeats_nothing(pair: Pair, broker: MemoryBroker) -> None:
    committed: list[str] = []
    over = threading.Event()

    def write() -> None:
        while not over.is_set():
            try:
                with psycopg.connect(pair.url, autocommit=True) as session:
                    while not over.is_set():
                        committed.append(_one(session))
            except psycopg.Error:
                over.wait(0.02)

    with carrying(pair, broker, **WAITING | {"standby_away": "go on"}) as (_, status):
        writer = threading.Thread(target=write)
        writer.start()
        until(lambda: len(broker.log) > 100, 30, lambda: str(status))
        pair.switch_over()
        moved = len(committed)
        until(lambda: len(committed) > moved + 100, 60, lambda: "writers do not go on")
        over.set()
        writer.join()
        until(lambda: set(committed) <= arrived(broker), 60, lambda: str(status))
    known = exist(pair)
    assert set(broker.ids()) == known >= set(committed)
    assert len(broker.ids()) == len(known)
    place = {id_: n for n, id_ in enumerate(broker.ids())}
    order = [place[id_] for id_ in committed]
    assert order == sorted(order)


def _one(session: psycopg.Connection[tuple[object, ...]]) -> str:
    from tests.relay.database.half import write

    return write(session)[0]


def test_the_right_to_see_standbys_is_asked_for_by_name(pair: Pair, broker: MemoryBroker) -> None:
    """Of all that pg_stat_replication and its kind show, the relay's role is lent three columns."""
    with pair.here.session() as session:
        for statement in statements(Roles(relay=["waiting_relay"]), create=True):
            session.execute(statement.encode())
        pair.here.write()
        url = pair.here.url.replace("postgres@", "waiting_relay@")
        relay = shard(url, broker, **WAITING)
        with pytest.raises(ConfigurationError, match="db roles --relay ROLE --wait-for-standby"):
            drain(relay)
        relay.let_go()
        for statement in statements(Roles(relay=["waiting_relay"], standbys=True)):
            session.execute(statement.encode())
        relay = shard(url, broker, **WAITING)
        drain(relay)
        relay.finish()
        assert len(broker.log) == 1
        session.execute("ALTER FUNCTION outbox_standbys() OWNER TO waiting_relay")
        pair.here.write()
        relay = shard(url, broker, **WAITING)
        with pytest.raises(ConfigurationError, match="may not read pg_stat_replication"):
            drain(relay)
        relay.let_go()


@pytest.mark.parametrize("kind", campaign.KINDS[:2], ids=str)
def test_a_fail_over_under_writers_with_a_real_kafka(
    kafka: KafkaServer, tmp_path: Path, kind: campaign.Kind
) -> None:
    """The short form of `make disasters`, with a consumer whose database fails over, too."""
    verdict = campaign.play(campaign.Round(kind, events=60), kafka, tmp_path / "relay.log")
    assert verdict.complaints == []
    assert verdict.known > 100
