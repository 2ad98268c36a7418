"""A server set back in time or moved to a newer version: what it remembers is right, what it forgot is told
apart by name, and no new event is taken for a repeat."""

from collections.abc import Iterator

import psycopg
import pytest

from outbox.errors import GuardViolation
from outbox.testing.servers import postgres_copies, start_postgres
from outbox.testing.servers.postgres import OwnPostgres, Settings
from relay import planner, progress
from relay.disaster.rebase import Rebase
from tests.relay.database.half import drain, shard
from tests.relay.database.memory_broker import MemoryBroker
from tests.relay.disaster.conftest import Install
from tests.relay.disaster.copies import Here, dump_and_restore

SETTINGS: Settings = {"max_connections": 30}


@pytest.fixture
def alone() -> Iterator[OwnPostgres]:
    """A server that a test may wreck."""
    with start_postgres(SETTINGS, own=True) as server:
        assert isinstance(server, OwnPostgres)
        yield server


def live(here: Here, broker: MemoryBroker, count: int) -> list[str]:
    """So many events, each published in a delta of its own."""
    written = []
    for _ in range(count):
        written += here.write()
        here.publish(broker)
    return written


def test_pg_upgrade_keeps_every_number_and_needs_the_identity_alone(
    alone: OwnPostgres, install: Install, broker: MemoryBroker
) -> None:
    here = install(alone)
    written = live(here, broker, 5) + here.write(3)
    alone.stop()
    with postgres_copies.start_upgraded(alone, SETTINGS) as upgraded:
        assert int(upgraded.version.split(".")[0]) >= int(alone.version.split(".")[0])
        there = Here(upgraded, upgraded.url_of(here.name))
        with pytest.raises(GuardViolation, match="outbox-relay rebase"):
            there.publish(broker)
        with pytest.raises(GuardViolation, match="outbox-relay rebase --identity-only"):
            Rebase(there.url).run()
        done = Rebase(there.url, identity_only=True).run()
        assert (done.changed, done.kind) == (True, "moved")
        written += there.write(2)
        there.publish(broker)
    assert [found.id for found in broker.log] == written
    assert len({found.seq.source for found in broker.log}) == 2, "the old server may be started again"


def test_an_upgrade_in_the_midst_of_sending_transactions_is_refused_until_it_was_finished(
    old: OwnPostgres, install: Install, broker: MemoryBroker
) -> None:
    """What is committed stands in a topic named by the old identity, where the new one does not look."""
    here = install(old)
    live(here, broker, 2)
    here.write(3)
    carrying = shard(here.url, broker)
    drain(carrying)
    carrying.let_go()
    with here.session() as session:
        session.execute("UPDATE outbox_shard SET mode = 'transactional' WHERE next IS NOT NULL")
        session.execute("UPDATE outbox_identity SET system_identifier = system_identifier - 1")
    before = here.content()
    moved = Rebase(here.url, identity_only=True)
    for attempt in (moved.survey, moved.run):
        with pytest.raises(GuardViolation, match=r"shard 0 .* start the relay against the old server"):
            attempt()
    assert here.content() == before
    with here.session() as session:
        session.execute(
            "UPDATE outbox_shard SET done = next, done_floor = next_floor, done_xid = next_xid, "
            "next = NULL, next_floor = NULL, next_xid = NULL, low = 0"
        )
    assert moved.run().kind == "moved"


def test_a_restored_copy_is_not_mistaken_for_an_upgrade(
    old: OwnPostgres, new: OwnPostgres, install: Install, broker: MemoryBroker
) -> None:
    here = install(old)
    live(here, broker, 2)
    copy = dump_and_restore(here, new)
    with pytest.raises(GuardViolation, match="without --identity-only"):
        Rebase(copy.url, identity_only=True).run()


def test_recovery_to_a_point_in_time_goes_on_under_a_new_source(
    install: Install, broker: MemoryBroker
) -> None:
    archiving: Settings = {
        **SETTINGS,
        "archive_mode": "on",
        "archive_command": "true",
        "wal_level": "replica",
    }
    with start_postgres(archiving, own=True) as server:
        assert isinstance(server, OwnPostgres)
        archive, backup = server.data.parent / "archive", server.data.parent / "backup"
        archive.mkdir()
        archive.chmod(0o777)
        server.reload({"archive_command": f'cp "%p" "{archive}/%f"'})
        here = install(server)
        kept = live(here, broker, 3)
        postgres_copies.back_up(server, backup)
        kept += live(here, broker, 3)
        with psycopg.connect(server.url, autocommit=True) as session:
            session.execute("SELECT pg_create_restore_point('before_the_mistake')")
        forgotten = live(here, broker, 4)
        with psycopg.connect(server.url, autocommit=True) as session:
            session.execute("SELECT pg_switch_wal()")
        server.stop()
        target: Settings = {**SETTINGS, "recovery_target_name": "before_the_mistake"}
        with postgres_copies.start_recovered(server, backup, archive, target) as recovered:
            there = Here(recovered, recovered.url_of(here.name))
            after = there.write(5)
            there.publish(broker)
    assert broker.ids() == kept + forgotten + after, "sent once, and no new event is taken for a repeat"
    sources = [found.seq.source for found in broker.log]
    assert not set(sources[-5:]) & set(sources[:10])


def set_back(alone: OwnPostgres, here: Here, broker: MemoryBroker) -> tuple[list[str], list[str]]:
    """A snapshot of the volume, four more events, the snapshot restored, three new events."""
    kept = live(here, broker, 3)
    alone.kill()
    snapshot = alone.data.parent / "snapshot"
    postgres_copies.copy(alone.data, snapshot)
    alone.start()
    forgotten = live(here, broker, 4)
    alone.stop()
    postgres_copies.copy(snapshot, alone.data)
    alone.start()
    return kept + forgotten, here.write(3)


def test_after_a_restored_volume_snapshot_numbers_follow_the_clock(
    alone: OwnPostgres, install: Install, broker: MemoryBroker
) -> None:
    here = install(alone)
    before, after = set_back(alone, here, broker)
    here.publish(broker)
    assert broker.ids() == before + after


def test_numbers_that_only_count_would_hide_the_new_events(
    alone: OwnPostgres, install: Install, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LOOK_AND_PLAN", "LOOK_CONFIRM_AND_PLAN"):
        counting = getattr(planner, name).replace(progress.NEXT_DELTA, "delta + 1")
        monkeypatch.setattr(planner, name, counting)
    here = install(alone)
    _, after = set_back(alone, here, broker)
    here.publish(broker)
    marks = [found.seq.mark for found in broker.log]
    assert {found.id for found in broker.log[-len(after) :]} == set(after)
    assert max(marks[: -len(after)]) >= marks[-1], "the new events' numbers lie below those of other events"


def test_with_a_clock_that_went_back_too_the_identity_alone_gives_a_new_source(
    alone: OwnPostgres, install: Install, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be noticed is the operator's to say: the volume was set back."""
    for name in ("LOOK_AND_PLAN", "LOOK_CONFIRM_AND_PLAN"):
        counting = getattr(planner, name).replace(progress.NEXT_DELTA, "delta + 1")
        monkeypatch.setattr(planner, name, counting)
    here = install(alone)
    before, after = set_back(alone, here, broker)
    assert Rebase(here.url, identity_only=True).run().changed
    here.publish(broker)
    assert broker.ids() == before + after
