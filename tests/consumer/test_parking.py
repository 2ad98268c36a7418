"""A poison record holds up its own key only; behind it the order stays, and everything runs exactly once."""

import json
import random
from collections import defaultdict
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.orm import Session, sessionmaker

from outbox import Reject, Retry
from outbox.consumer import Consumer, Record
from outbox.consumer.parking import parked, wishes
from outbox.consumer.parking.wishes import Place
from outbox.errors import ConfigurationError
from relay.cli import main
from tests.consumer.conftest import StageFactory
from tests.consumer.stage import Stage, Witness, eventually, running
from tests.consumer.test_failures import Counted

BREAKABLE = "breakable"
"""The connections that a test may break."""


class Keyed:
    """Stores `key:n` of each record, and rejects those in `bad`."""

    def __init__(self, stage: Stage, **settings: Any) -> None:
        self.stage = stage
        self.bad: dict[str, Exception] = {}
        dedupe = settings.pop("dedupe", None)
        self.consumer = stage.consumer(**settings)

        @self.consumer.on(topic=stage.topic, dedupe=dedupe)
        def handle(session: Session, value: bytes, record: Record) -> None:
            stage.store(session, record)
            if value.decode() in self.bad:
                raise self.bad[value.decode()]

    def put(self, *values: str) -> None:
        """Records `key:n` of partition 0; a key of - is none."""
        for value in values:
            key = value.partition(":")[0]
            self.stage.put(value, key=key if key != "-" else None)
        self.stage.flush()

    def place(self, offset: int) -> Place:
        return Place(group=self.stage.group, topic=self.stage.topic, partition=0, offset=offset)

    def release(self, offset: int) -> None:
        with self.stage.engine.begin() as connection:
            wishes.release(connection, self.place(offset), who="a test")

    def discard(self, offset: int, reason: str = "not wanted") -> None:
        with self.stage.engine.begin() as connection:
            wishes.discard(connection, self.place(offset), reason=reason, who="a test")

    def waiting(self) -> list[tuple[int, str]]:
        return [
            (row[0], row[1])
            for row in self.stage.rows("""
            SELECT record_offset, state FROM consumer_parked ORDER BY record_offset""")
        ]

    def counted(self) -> int:
        """How many wait, as the partition's own row says."""
        found = self.stage.rows("SELECT parked FROM consumer_offset WHERE partition = 0")
        return int(found[0][0]) if found else -1


@pytest.fixture
def keyed(build: StageFactory) -> Keyed:
    return Keyed(build(partitions=1))


def test_a_poison_waits_with_the_later_records_of_its_key_and_all_others_go_on(
    keyed: Keyed, seen: Witness
) -> None:
    keyed.bad["a:1"] = Reject("an order of nobody")
    keyed.put("a:0", "a:1", "b:1", "a:2", "c:1", "a:3", "b:2")
    with running(keyed.consumer):
        eventually(lambda: keyed.stage.offset() == 7)
        assert "an order of nobody" in seen.wait("consumer.parked")["error"]
        assert keyed.stage.effects() == ["a:0", "b:1", "c:1", "b:2"]
        assert keyed.waiting() == [(1, "failed"), (3, "queued"), (5, "queued")]
        assert keyed.counted() == 3
        (partition,) = keyed.consumer.health().members[0].partitions
        assert partition.parked == 3
        assert keyed.consumer.health().ok
        keyed.bad.clear()
        keyed.release(1)
        eventually(lambda: keyed.counted() == 0)
        keyed.put("a:4")
        eventually(lambda: "a:4" in keyed.stage.effects())
    assert keyed.stage.effects() == ["a:0", "b:1", "c:1", "b:2", "a:1", "a:2", "a:3", "a:4"]
    assert keyed.waiting() == []


def test_a_record_that_fails_again_stays_first_of_its_key(keyed: Keyed, seen: Witness) -> None:
    keyed.bad |= {"a:1": Reject("bad"), "a:2": Reject("worse")}
    keyed.put("a:1", "a:2", "a:3")
    with running(keyed.consumer):
        eventually(lambda: keyed.counted() == 3)
        keyed.release(0)
        seen.wait("consumer.failed_again")
        assert keyed.waiting() == [(0, "failed"), (1, "queued"), (2, "queued")]
        assert keyed.stage.rows("SELECT attempts, wish FROM consumer_parked WHERE record_offset = 0") == [
            (2, None)
        ]
        del keyed.bad["a:1"]
        keyed.release(0)
        # What queued behind it follows by itself, and may be poison too.
        seen.wait("consumer.failed_again", count=2)
        assert keyed.waiting() == [(1, "failed"), (2, "queued")]
        assert keyed.stage.effects() == ["a:1"]
        keyed.bad.clear()
        keyed.release(1)
        eventually(lambda: keyed.counted() == 0)
    assert keyed.stage.effects() == ["a:1", "a:2", "a:3"]


def test_a_discarded_record_stays_with_its_reason_and_the_next_goes_on(keyed: Keyed) -> None:
    keyed.bad["a:1"] = Reject("bad")
    keyed.put("a:1", "a:2", "a:3")
    with running(keyed.consumer):
        eventually(lambda: keyed.counted() == 3)
        keyed.discard(1, "the customer withdrew it")
        eventually(lambda: keyed.counted() == 2)
        keyed.discard(0)
        eventually(lambda: keyed.counted() == 0)
        (member,) = keyed.consumer.health().members
        assert (member.applied, member.discarded) == (1, 2)
    assert keyed.stage.effects() == ["a:3"]
    assert keyed.stage.rows("""
        SELECT record_offset, reason, wished_by FROM consumer_parked ORDER BY record_offset""") == [
        (0, "not wanted", "a test"),
        (1, "the customer withdrew it", "a test"),
    ]
    with pytest.raises(ConfigurationError, match="was discarded already"):
        keyed.discard(0)


def test_a_record_without_a_key_holds_up_nobody(keyed: Keyed) -> None:
    keyed.bad["-:1"] = Reject("bad")
    keyed.put("-:1", "-:2", "a:1")
    with running(keyed.consumer):
        eventually(lambda: keyed.stage.offset() == 3)
        assert keyed.stage.effects() == ["-:2", "a:1"]
        keyed.bad.clear()
        keyed.release(0)
        eventually(lambda: keyed.counted() == 0)
    assert keyed.stage.effects() == ["-:2", "a:1", "-:1"]


def test_what_queues_cannot_be_released_before_what_it_waits_for(keyed: Keyed) -> None:
    keyed.bad["a:1"] = Reject("bad")
    keyed.put("a:1", "a:2")
    with running(keyed.consumer):
        eventually(lambda: keyed.counted() == 2)
    with pytest.raises(ConfigurationError, match="waits behind an earlier one"):
        keyed.release(1)
    with pytest.raises(ConfigurationError, match="nothing is parked at"):
        keyed.release(7)


def test_a_wish_waits_for_an_owner(keyed: Keyed) -> None:
    keyed.bad["a:1"] = Reject("bad")
    keyed.put("a:1", "a:2")
    with running(keyed.consumer):
        eventually(lambda: keyed.counted() == 2)
    keyed.release(0)
    keyed.bad.clear()
    with running(keyed.consumer):
        eventually(lambda: keyed.counted() == 0)
    assert keyed.stage.effects() == ["a:1", "a:2"]


def test_a_released_record_may_ask_to_be_tried_later(keyed: Keyed) -> None:
    keyed.bad["a:1"] = Reject("bad")
    keyed.put("a:1")
    with running(keyed.consumer):
        eventually(lambda: keyed.counted() == 1)
        keyed.bad["a:1"] = Retry("not yet")
        keyed.release(0)
        keyed.put("b:1")
        eventually(lambda: keyed.stage.effects() == ["b:1"])
        keyed.bad.clear()
        eventually(lambda: keyed.counted() == 0)
    assert keyed.stage.effects() == ["b:1", "a:1"]


def test_too_many_parked_records_stop_the_partition_with_nothing_skipped(
    build: StageFactory, seen: Witness
) -> None:
    keyed = Keyed(build(partitions=1), max_parked=3)
    keyed.bad |= {f"a{n}:1": Reject("bad") for n in range(5)}
    keyed.put(*(f"a{n}:1" for n in range(5)), "b:1")
    with running(keyed.consumer):
        assert "max_parked" in seen.wait("consumer.stopped")["reason"]
        assert (keyed.stage.offset(), keyed.counted(), keyed.stage.effects()) == (3, 3, [])
        keyed.discard(0)
        del keyed.bad["a1:1"]
        keyed.release(1)
        eventually(lambda: keyed.counted() == 1)
    with running(keyed.consumer):
        eventually(lambda: keyed.stage.offset() == 6)
    assert keyed.stage.effects() == ["a1:1", "b:1"]


def test_a_stopped_partition_whose_claim_was_lost_is_claimed_again_and_carries_out_wishes(
    build: StageFactory, seen: Witness
) -> None:
    keyed = Keyed(build(partitions=1), max_parked=3)
    keyed.bad |= {f"a{n}:1": Reject("bad") for n in range(5)}
    keyed.put(*(f"a{n}:1" for n in range(5)), "b:1")
    with running(keyed.consumer):
        seen.wait("consumer.stopped")
        # A sleeper that Kafka took the partition from claims it late, and ends.
        keyed.stage.sql("UPDATE consumer_offset SET owner_epoch = owner_epoch + 1")
        for offset in range(3):
            keyed.discard(offset)
        # It may go on, and park what follows, before the last of them is gone.
        eventually(lambda: keyed.consumer.health().members[0].discarded == 3)
    with running(keyed.consumer):
        eventually(lambda: keyed.stage.offset() == 6)
    assert (keyed.stage.effects(), keyed.counted()) == (["b:1"], 2)


def test_too_many_records_behind_a_poison_stop_the_partition(build: StageFactory, seen: Witness) -> None:
    keyed = Keyed(build(partitions=1), max_parked=3)
    keyed.bad["a:1"] = Reject("bad")
    keyed.put("a:1", "a:2", "b:1", "a:3", "a:4")
    with running(keyed.consumer):
        assert "max_parked" in seen.wait("consumer.stopped")["reason"]
    assert keyed.stage.offset() <= 4
    assert "b:1" in keyed.stage.effects()


def test_a_type_that_nobody_handles_yet_can_be_parked(build: StageFactory) -> None:
    stage = build(partitions=1)
    consumer = stage.consumer(unknown="park")

    consumer.on(Counted, topic=stage.topic)(lambda session, event: None)
    stage.put("x", type_="thing.unheard.v1")
    stage.flush()
    with running(consumer):
        eventually(lambda: stage.offset() == 1)
    assert "thing.unheard.v1" in stage.rows("SELECT error FROM consumer_parked")[0][0]
    later = stage.recorder()
    with stage.engine.begin() as connection:
        assert wishes.release_all(connection, group=stage.group, who="a test") == 1
    with running(later):
        eventually(lambda: stage.effects() == ["x"])


def without_a_queue(_: Any, __: Any, runs: Any, *, room: int) -> Any:
    """What a dead-letter topic does: the poison goes aside, its key's next records overtake it."""
    return runs, 0


@pytest.mark.parametrize("queue", [parked.queue, without_a_queue], ids=["ours", "naive"])
def test_key_order_and_exactly_once_survive_poison_releases_takeovers_and_broken_connections(
    build: StageFactory, queue: Any, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr(parked, "queue", queue)
    chance = random.Random(7)
    stage = build(partitions=2)
    poison = {f"k{k}:{n}" for k in range(8) for n in range(30) if chance.random() < 0.1}
    healed: set[str] = set()
    engine = create_engine(stage.engine.url, connect_args={"application_name": BREAKABLE})
    request.addfinalizer(engine.dispose)
    consumers = [_stumbling(stage, engine, poison, healed) for _ in range(2)]
    numbers: dict[str, int] = defaultdict(int)
    total = 240
    with running(consumers[0]), running(consumers[1]):
        for n in range(total):
            key = f"k{n % 8}"
            stage.put(f"{key}:{numbers[key]}", key=key, partition=n % 2)
            numbers[key] += 1
            if n % 30 == 29:
                stage.flush()
                _take_over_or_break(stage, chance)

        def everything() -> bool:
            healed.update(value for value in sorted(poison) if chance.random() < 0.02)
            with stage.engine.begin() as connection:
                wishes.release_all(connection, group=stage.group, who="a test")
            if chance.random() < 0.05:
                _take_over_or_break(stage, chance)
            return len(stage.effects()) >= total

        eventually(everything, within=90)
    effects = stage.effects()
    by_key: dict[str, list[int]] = defaultdict(list)
    for value in effects:
        key, _, number = value.partition(":")
        by_key[key].append(int(number))
    right = len(effects) == total and all(numbers == sorted(numbers) for numbers in by_key.values())
    assert right == (queue is not without_a_queue)
    assert len(set(effects)) == len(effects)


def _stumbling(stage: Stage, engine: Engine, poison: set[str], healed: set[str]) -> Consumer:
    consumer = stage.consumer(max_parked=10_000, batch_size=20, sessions=sessionmaker(engine))

    @consumer.on(topic=stage.topic)
    def handle(session: Session, value: bytes, record: Record) -> None:
        stage.store(session, record)
        if value.decode() in poison and value.decode() not in healed:
            raise Reject("poison")

    return consumer


def _take_over_or_break(stage: Stage, chance: random.Random) -> None:
    with stage.engine.begin() as connection:
        if chance.random() < 0.5:
            connection.execute(text("UPDATE consumer_offset SET owner_epoch = owner_epoch + 1"))
        else:
            connection.execute(
                text("""SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                    WHERE datname = current_database() AND application_name = :name"""),
                {"name": BREAKABLE},
            )


def test_the_commands_list_show_release_and_discard(keyed: Keyed) -> None:
    keyed.bad |= {"a:1": Reject("bad"), "b:1": Reject("worse")}
    keyed.put("a:1", "a:2", "b:1")
    at = ["--group", keyed.stage.group, "--topic", keyed.stage.topic, "--partition", "0"]

    def command(*arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(main, ["consumers", *arguments, "--database-url", keyed.stage.url])
        return done.exit_code, done.output

    with running(keyed.consumer):
        eventually(lambda: keyed.counted() == 3)
        code, said = command("parked", "list", "--group", keyed.stage.group, "--json")
        assert (code, [row["record_offset"] for row in json.loads(said)]) == (1, [0, 2])
        code, said = command("parked", "show", *at, "--offset", "0", "--json")
        assert (code, json.loads(said)["value"], json.loads(said)["error"]) == (0, "a:1", "Reject: bad")
        assert command("list")[1].count("3 parked") == 1
        keyed.bad.clear()
        code, said = command("parked", "release", *at, "--offset", "0")
        assert (code, "add --yes" in said) == (0, True)
        assert keyed.counted() == 3
        assert command("parked", "release", *at, "--offset", "0", "--yes")[0] == 0
        eventually(lambda: keyed.counted() == 1)
        assert command("parked", "discard", *at, "--offset", "2", "--reason", "gone", "--yes")[0] == 0
        eventually(lambda: keyed.counted() == 0)
        code, said = command("parked", "release", *at, "--offset", "9", "--yes")
        assert (code, "nothing is parked" in said) == (3, True)
    assert command("parked", "list")[0] == 0
    assert keyed.stage.effects() == ["a:1", "a:2"]
