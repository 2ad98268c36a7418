"""What is wrong with one shard of several stops that shard, and no other."""

from collections.abc import Callable
from typing import cast

import pytest

from outbox.errors import ConfigurationError, GuardViolation, SchemaError, WrongDatabase
from outbox.testing.servers import KafkaServer
from relay import loop
from relay.carrier import Carrier
from relay.lease import Lease
from relay.shard import Shard
from relay.standby import UnknownStandbys
from relay.tenure import Did
from tests.relay.conftest import StartRelay
from tests.relay.kafka.test_mode import ask, progress_suffix
from tests.relay.scene import Scene, until
from tests.relay.sharding.several import split

SHARD_THROUGH = """
SELECT s.next IS NULL AND NOT EXISTS (
    SELECT FROM outbox_event e
    WHERE coalesce(hashtextextended(e.aggregateid, 0) & 255, 0) BETWEEN s.lo AND s.hi
      AND NOT pg_visible_in_snapshot(e.xid, s.done))
FROM outbox_shard s WHERE s.shard = {shard}
"""

SWITCHED = "SELECT bool_and(wanted_mode IS NULL) FROM outbox_shard"

HALTED = "SELECT state->'shards'->'1'->>'state' = 'halted' FROM outbox_relay WHERE instance = 'relay-2'"


def test_a_shard_without_its_progress_topic_waits_for_an_operator_and_the_other_goes_on(
    scene: Scene, start: StartRelay, kafka: KafkaServer
) -> None:
    split(scene.database, 2)
    scene.session.execute("UPDATE outbox_shard SET wanted_mode = 'transactional' WHERE shard = 1")
    scene.write(200, keys=40)
    first = start()
    scene.wait(SWITCHED)
    scene.wait_until_through()
    assert first.stop() == 0
    (name,) = [t for t in kafka.admin.list_topics(timeout=10).topics if t.endswith(progress_suffix(scene))]
    kafka.delete_topic(name)
    scene.write(200, keys=40)
    relay = start(sabotage="impatient")
    scene.wait(HALTED)
    before = scene.value("SELECT epoch FROM outbox_shard WHERE shard = 1")
    scene.wait(f"SELECT epoch > {before} + 3 FROM outbox_shard WHERE shard = 1")  # it is tried again
    scene.write(200, keys=40)
    scene.wait(SHARD_THROUGH.format(shard=0))
    assert scene.value(SHARD_THROUGH.format(shard=1)) is False
    alarm = scene.status("relay-2")["shards"]["1"]["alarm"]
    assert alarm in scene.status("relay-2")["alarm"]
    assert "--from-row --shard 1" in alarm
    assert relay.log.count("ERROR") == 1, "said once, not at each attempt"
    held = "SELECT array_agg(owner ORDER BY shard) = '{relay-2,relay-2}' FROM outbox_lease"
    assert scene.value(held) is True, "no other relay has to find out for itself"
    ask(scene, "transactional", "--from-row", "--shard", "1")
    scene.wait_until_through()
    assert relay.stop() == 0
    assert scene.complaints() == []


def test_a_relay_whose_only_shards_are_halted_still_stops_cleanly(
    scene: Scene, start: StartRelay, kafka: KafkaServer
) -> None:
    split(scene.database, 2)
    scene.transactional()
    scene.write(50, keys=40)
    first = start()
    scene.wait(SWITCHED)
    scene.wait_until_through()
    assert first.stop() == 0
    (name,) = [t for t in kafka.admin.list_topics(timeout=10).topics if t.endswith(progress_suffix(scene))]
    kafka.delete_topic(name)
    relay = start(sabotage="impatient")
    scene.wait(HALTED)
    assert relay.stop() == 0
    assert scene.value("SELECT count(owner) FROM outbox_lease") == 0


class Failing:
    """A shard that raises, and says how often it was asked."""

    def __init__(self, failure: BaseException, at_the_end: BaseException | None = None) -> None:
        self.failure = failure
        self.at_the_end = at_the_end
        self.asked = self.halted = 0

    def run_once(self) -> Did:
        self.asked += 1
        raise self.failure

    def halt(self, failure: Exception) -> Did:
        assert failure is self.failure
        self.halted += 1
        return Did(0, 60.0)

    def finish(self) -> None:
        if self.at_the_end is not None:
            raise self.at_the_end


def carrier(shard: Failing, *, several: bool, ended: Callable[[Carrier], None] = lambda _: None) -> Carrier:
    return Carrier(Lease(0), loop.Bell(), cast(Shard, shard), several=lambda: several, ended=ended)


@pytest.mark.parametrize(
    "failure", [GuardViolation("the topic is lost"), ConfigurationError("its policy"), KeyError("a bug")]
)
def test_a_failure_of_its_own_ends_a_shard_only_where_there_is_no_other(failure: Exception) -> None:
    shard = Failing(failure)
    with pytest.raises(type(failure)):
        carrier(shard, several=False).run_once()
    one = carrier(shard, several=True)
    assert one.run_once().rest == 60
    assert one.run_once().rest > 59
    assert (shard.asked, shard.halted) == (2, 1), "the doorbell of a busy service does not hurry it"


@pytest.mark.parametrize(
    "failure", [WrongDatabase("another one"), SchemaError("step 3"), UnknownStandbys("a right is missing")]
)
def test_what_is_wrong_for_all_shards_ends_the_relay(failure: Exception) -> None:
    with pytest.raises(type(failure)):
        carrier(Failing(failure), several=True).run_once()


def test_whoever_sees_a_shard_ended_sees_what_it_died_of() -> None:
    """Also when it fails during a stop: the exit code is made of it."""
    seen: list[tuple[bool, BaseException | None]] = []
    failure = SchemaError("the last delta cannot be confirmed")

    class Watched(Carrier):
        def __setattr__(self, name: str, value: object) -> None:
            super().__setattr__(name, value)
            if name == "_over" and value is True:
                seen.append((self.ended, self.failure))

    one = Watched(
        Lease(0),
        loop.Bell(),
        cast(Shard, Failing(KeyError("never asked"), at_the_end=failure)),
        several=lambda: True,
        ended=lambda carrier: seen.append((carrier.ended, carrier.failure)),
    )
    one.stop()
    one.start()
    until(lambda: len(seen) == 2, 10, lambda: str(seen))
    assert seen == [(True, failure), (True, failure)]
