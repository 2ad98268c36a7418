"""The number of shards changes under writers, on the wire: relays may die or sleep at any step of it."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from signal import SIGCONT, SIGKILL
from typing import Any

import psycopg
import pytest

from tests.relay import wire
from tests.relay.conftest import StartRelay
from tests.relay.scene import Scene

SWITCHED = "SELECT min(generation) >= {generation} FROM outbox_shard"


@contextmanager
def writing(scene: Scene) -> Iterator[None]:
    """Somebody commits a few events again and again meanwhile, and now and then takes long to commit."""
    over = threading.Event()

    def write() -> None:
        with psycopg.connect(scene.database, autocommit=True) as session:
            turn = 0
            while not over.wait(0.01):
                turn += 1
                with session.transaction():
                    scene.write(7, session=session)
                    if turn % 10 == 0:
                        session.execute("SELECT pg_sleep(0.2)")

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def command(scene: Scene, *arguments: str, code: int = 0) -> Any:
    """What `outbox-relay shards …` answers."""
    done = subprocess.run(
        [sys.executable, "-m", "relay", "shards", *arguments, "--json", "--database-url", scene.database],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout) if done.stdout else done.stderr


def ask(scene: Scene, shards: int) -> None:
    scene.session.execute("SELECT outbox_shards_set(%s)", [shards])


def judged(scene: Scene, generations: int) -> None:
    """Everything is through, each event once, in its key's order, and the generations are all there."""
    scene.wait_until_through(60)
    records = scene.arrived()
    assert wire.complaints(records, scene.committed()) == []
    assert len({record.seq.split("/")[1] for record in records}) == generations


def test_the_command_changes_the_number_under_writers_and_back(scene: Scene, start: StartRelay) -> None:
    start(), start()
    with writing(scene):
        scene.wait("SELECT bool_and(lease_until > clock_timestamp()) FROM outbox_lease")
        answer = command(scene, "set", "4", "--yes")
        assert (answer["done"], answer["before"], answer["shards"]) == (True, 1, 4)
        scene.wait("SELECT count(DISTINCT owner) = 2 FROM outbox_lease", within=30)
        listed = command(scene, "list")
        assert [(s["lo"], s["hi"]) for s in listed["shards"]] == [(0, 63), (64, 127), (128, 191), (192, 255)]
        written = scene.value("SELECT count(*) FROM outbox_event")
        scene.wait(f"SELECT count(*) > {written} + 50 FROM outbox_event")
        assert command(scene, "set", "1", "--yes")["shards"] == 1
    judged(scene, 3)
    assert len({source for (source,) in scene.session.execute("SELECT source FROM outbox_shard")}) == 1


STRIKES = ["relay.reshard.end_set 1", "relay.reshard.at_end 1", "relay.reshard.switched 1", "relay.planned 9"]


@pytest.mark.parametrize("step", STRIKES)
@pytest.mark.parametrize("fate", ["KILL", "STOP"])
def test_a_relay_that_dies_or_sleeps_at_a_step_does_no_harm(
    scene: Scene, start: StartRelay, step: str, fate: str
) -> None:
    victim = start(strike=f"{step} {fate}", sabotage="impatient")
    with writing(scene):
        victim.wait_for("relay.acknowledged", 3)
        ask(scene, 3)
        if fate == "KILL":
            victim.wait()
        else:
            victim.wait_frozen()
        start(sabotage="impatient")
        scene.wait(SWITCHED.format(generation=2), within=30)
        ask(scene, 2)
        scene.wait(SWITCHED.format(generation=3), within=30)
        if fate == "STOP":
            victim.send(SIGCONT)
        written = scene.value("SELECT count(*) FROM outbox_event")
        scene.wait(f"SELECT count(*) > {written} + 50 FROM outbox_event")
    scene.wait_until_through(60)
    assert wire.complaints(scene.arrived(), scene.committed()) == []


def test_shards_of_mode_transactional_go_on_in_it_without_any_repeat(scene: Scene, start: StartRelay) -> None:
    scene.session.execute("UPDATE outbox_shard SET wanted_mode = 'transactional'")
    start(), start()
    with writing(scene):
        scene.wait("SELECT mode = 'transactional' FROM outbox_shard", within=40)
        ask(scene, 3)
        scene.wait(SWITCHED.format(generation=2), within=40)
        scene.wait("SELECT bool_and(epoch > 3 AND wanted_mode IS NULL) FROM outbox_shard", within=60)
        ask(scene, 2)
        scene.wait(SWITCHED.format(generation=3), within=60)
    scene.wait_until_through(60)
    records = scene.arrived()
    assert wire.complaints(records, scene.committed()) == []
    assert wire.repeats(records) == 0


def test_a_change_that_waits_for_a_dead_relays_shard_can_be_cancelled(
    scene: Scene, start: StartRelay
) -> None:
    scene.write(20)
    answer = command(scene, "set", "2", "--yes", "--no-wait")
    assert answer["changing"]["shards"] == 2
    assert "is being changed to 2 already" in command(scene, "set", "3", "--yes", code=3)
    assert command(scene, "set", "--cancel", "--yes")["done"] is True
    assert command(scene, "set", "--cancel", "--yes", code=1)["done"] is False
    start()
    judged(scene, 1)
    assert command(scene, "set", "1", "--yes")["done"] is True, "nothing to do"
    assert command(scene, "set", "5", "--dry-run")["shards"] == 5
    assert len(command(scene, "list")["shards"]) == 1


def test_relays_are_replaced_one_by_one_under_load(scene: Scene, start: StartRelay) -> None:
    ask(scene, 4)
    relays = [start(), start(), start()]
    scene.wait(SWITCHED.format(generation=2), within=30)
    with writing(scene):
        for turn in range(4):
            scene.wait(
                "SELECT count(DISTINCT owner) = 3 AND bool_and(lease_until > clock_timestamp()) "
                "FROM outbox_lease",
                within=40,
            )
            old = relays.pop(0)
            relays.append(start())
            if turn % 2:
                old.send(SIGKILL)
                old.wait()
            else:
                assert old.stop() == 0
    judged(scene, 1)
