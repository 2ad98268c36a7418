"""Relays take their share of the shards, a dead one's within the lease, a leaving one's at once."""

import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from outbox.errors import ConfigurationError
from relay.database import Database
from relay.lease import Leases
from relay.namesake import SILENT
from relay.share import Reaching
from tests.relay.database.half import Session
from tests.relay.sharding.several import split

Start = Callable[..., "Member"]

LATER = f"UPDATE outbox_relay SET heartbeat = heartbeat - interval '{SILENT.total_seconds()} s'"
"""As if the time had passed in silence."""

SET_BACK_RELAYS = """
UPDATE outbox_relay
SET heartbeat = heartbeat + interval '1 hour', alive_until = alive_until + interval '1 hour'
"""
SET_BACK_LEASES = "UPDATE outbox_lease SET lease_until = lease_until + interval '1 hour'"
"""As if the server's clock had been set back by as much, or another one's were behind."""


class Member:
    """A relay of which only the leases live."""

    def __init__(self, url: str, name: str, lease: float) -> None:
        self.reaching = Reaching.YES
        self.leases = Leases(
            Database(url),
            owner=name,
            duration=timedelta(seconds=lease),
            state=lambda: {"state": "test"},
            reaching=lambda: self.reaching,
        )

    def tend(self) -> None:
        """One round, giving away what should be given away, as a relay without anything under way does."""
        wanted = self.leases.run_once()
        for shard in [n for n, lease in self.leases.mine.items() if lease.lost]:
            self.leases.release(shard)
        if wanted.give:
            self.leases.release(max(self.leases.mine))

    @property
    def held(self) -> set[int]:
        return {n for n, lease in self.leases.mine.items() if lease.held}


@pytest.fixture
def start(database: str) -> Iterator[Start]:
    started: list[Member] = []

    def one(name: str, lease: float = 60.0) -> Member:
        started.append(Member(database, name, lease))
        return started[-1]

    yield one
    for member in started:
        member.leases.farewell()


def tended(*members: Member, rounds: int = 8) -> list[int]:
    for _ in range(rounds):
        for member in members:
            member.tend()
    held = [shard for member in members for shard in member.held]
    assert len(held) == len(set(held)), "each shard has one holder"
    return [len(member.held) for member in members]


def test_shards_are_shared_evenly_as_relays_come_and_go(database: str, start: Start) -> None:
    split(database, 5)
    first = start("a")
    assert tended(first) == [5]
    second, third = start("b"), start("c")
    assert sorted(tended(first, second)) == [2, 3]
    assert sorted(tended(first, second, third)) == [1, 2, 2]
    for shard in list(second.leases.mine):
        second.leases.run_once(leaving=True)
        second.leases.release(shard)
    assert sorted(tended(first, third)) == [2, 3]


def test_a_relay_more_than_there_are_shards_stands_by(database: str, start: Start) -> None:
    members = [start(name) for name in "ab"]
    assert tended(*members) == [1, 0]
    wanted = members[1].leases.run_once()
    assert wanted.short, "it asks often, to take over soon"
    assert [member.leases.leads for member in members] == [True, False]


def test_a_dead_ones_shards_are_taken_within_the_lease(database: str, start: Start) -> None:
    split(database, 4)
    dead, alive = start("dead", lease=1.0), start("alive", lease=1.0)
    assert sorted(tended(dead, alive, rounds=4)) == [2, 2]
    died = time.monotonic()
    while len(alive.held) < 4:
        assert time.monotonic() - died < 10
        alive.tend()
    assert dead.held == set(), "by then the dead one, were it frozen only, knows that its leases ran out"


def test_leaving_gives_others_the_whole_share_before_the_last_word(database: str, start: Start) -> None:
    split(database, 4)
    leaving, staying = start("leaving"), start("staying")
    tended(leaving, staying)
    leaving.leases.run_once(leaving=True)
    assert leaving.held, "still renewed, for something may be under way"
    one = min(leaving.held)
    leaving.leases.release(one)
    staying.tend()
    assert one in staying.held


def test_a_restarted_relay_of_the_same_name_has_its_shards_back_without_waiting_for_the_lease(
    database: str, start: Start, writer: Session
) -> None:
    split(database, 2)
    assert tended(start("same"), rounds=1) == [2]
    again = start("same")
    assert tended(again, rounds=4) == [0], "whether the first one still lives is not known yet"
    writer.execute(LATER)
    assert tended(again, rounds=1) == [2]
    writer.execute("UPDATE outbox_relay SET heartbeat = heartbeat + interval '1 hour'")
    assert tended(start("same"), rounds=1) == [2], "nor for a clock that was set back"


def test_shards_go_to_those_who_reach_the_brokers_and_in_an_outage_nowhere(
    database: str, start: Start
) -> None:
    split(database, 4)
    able, cut_off = start("able"), start("cut off")
    cut_off.reaching = Reaching.NOT_NOW
    assert tended(able, cut_off) == [4, 0]
    cut_off.reaching = Reaching.YES
    assert tended(able, cut_off) == [2, 2]
    able.reaching = cut_off.reaching = Reaching.NOT_NOW
    tended(able, cut_off)
    able.reaching = cut_off.reaching = Reaching.NOT_FOR_LONG
    assert tended(able, cut_off) == [2, 2], "an outage of all moves nothing"
    able.reaching = Reaching.YES
    assert tended(able, cut_off) == [4, 0]
    able.reaching = Reaching.NOT_FOR_LONG
    assert tended(cut_off, able) == [0, 4], "the last one that was able keeps them"


def test_one_that_leaves_gives_its_name_away_with_its_last_word(
    database: str, start: Start, writer: Session
) -> None:
    split(database, 2)
    first, second = start("same"), start("same")
    tended(first, rounds=1)
    for _ in range(5):
        first.leases.run_once(leaving=True)
        assert tended(second, rounds=1) == [0], "something of the first one's may be under way"
    assert first.held == {0, 1}
    first.leases.release(0)
    first.leases.farewell()
    assert tended(second, rounds=1) == [2], "the one not released as well"
    first.leases.release(1)
    first.leases.farewell()
    assert tended(second, rounds=1) == [2], "the first one's word is about its own only"
    assert writer.execute("SELECT stopped_at FROM outbox_relay").fetchone() == (None,)


def test_a_second_relay_of_the_same_name_ends_and_the_first_one_notices_nothing(
    database: str, start: Start, writer: Session
) -> None:
    split(database, 2)
    first, second = start("same"), start("same")
    tended(first, rounds=1)
    with pytest.raises(ConfigurationError, match="give each its own --instance"):
        tended(second, first, rounds=4)
    second.leases.farewell()
    first.tend()
    assert (first.held, second.held) == ({0, 1}, set())
    assert writer.execute("SELECT count(*) FROM outbox_relay WHERE alive_until IS NULL").fetchone() == (0,)


def test_one_that_was_frozen_until_another_took_its_name_ends_when_it_wakes_up(
    database: str, start: Start, writer: Session
) -> None:
    frozen, second = start("same"), start("same")
    tended(frozen, rounds=1)
    writer.execute(LATER)
    tended(second, rounds=1)
    with pytest.raises(ConfigurationError, match="at work"):
        for _ in range(4):
            second.tend()
            frozen.tend()
    frozen.leases.run_once(leaving=True)
    frozen.leases.release(0)
    frozen.leases.farewell()
    second.leases.run_once()
    assert (second.held, second.leases.mine[0].lost) == ({0}, False), "none of its last acts is about ours"


def test_one_that_dies_while_it_leaves_is_succeeded_by_its_name_when_it_is_silent(
    database: str, start: Start, writer: Session
) -> None:
    first, second = start("same"), start("same")
    tended(first, rounds=1)
    first.leases.run_once(leaving=True)
    assert tended(second, rounds=3) == [0]
    writer.execute(LATER)
    assert tended(second, rounds=1) == [1]


def test_one_who_was_last_heard_of_in_the_future_holds_nothing_back(
    database: str, start: Start, writer: Session
) -> None:
    split(database, 4)
    dead, alive = start("dead"), start("alive")
    assert tended(dead, alive) == [2, 2]
    writer.execute(SET_BACK_RELAYS)
    writer.execute(SET_BACK_LEASES)
    for _ in range(3):
        alive.tend()
    assert alive.held == {0, 1, 2, 3}, "as one who died before the clock was set back"
    dead.tend()
    assert sorted(tended(dead, alive)) == [2, 2], "it lived after all"


def test_a_shard_that_is_no_longer_there_is_let_go(database: str, start: Start, writer: Session) -> None:
    split(database, 2)
    member = start("a")
    tended(member)
    writer.execute("DELETE FROM outbox_lease WHERE shard = 1")
    member.leases.run_once()
    assert member.held == {0}
    assert member.leases.mine[1].lost


def test_an_outage_keeps_a_lease_until_it_runs_out_and_is_told(
    database: str, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    member = start("a", lease=0.5)
    tended(member, rounds=1)
    member.leases.break_off()
    monkeypatch.setattr(Database, "connect", _refused)
    member.tend()
    assert member.leases.trouble is not None
    assert "database" in member.leases.trouble
    end = time.monotonic() + 10
    while member.held:
        assert time.monotonic() < end


def _refused(*_: object, **__: object) -> Any:
    raise psycopg.OperationalError("connection refused")
