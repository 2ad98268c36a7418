"""Kafka away, slow or frozen, the database away: nothing is busy, nothing grows, all goes out afterwards."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from outbox.storage import ddl
from outbox.testing.servers import KafkaBroker, KafkaServer, start_postgres
from tests.conftest import TopicFactory, create_engine
from tests.relay import wire
from tests.relay.conftest import StartRelay
from tests.relay.outages.strain import Strain, resident
from tests.relay.process import RelayProcess
from tests.relay.scene import THROUGH, Scene, until

AWAY = 8.0
"""Seconds of an outage in the suite; `python -m tests.relay.outages` takes as many as it is told."""


def through(scene: Scene, relay: RelayProcess, *, within: float = 90.0) -> None:
    """Until all is published, the alarm is gone, and what arrived stands the test."""
    try:
        scene.wait_until_through(within)
    except AssertionError as error:
        error.add_note(relay.log[-3000:])
        raise
    well = "SELECT state->>'alarm' IS NULL AND state->>'state' = 'carrying' FROM outbox_relay"
    scene.wait(well, within=30)
    assert scene.complaints() == []
    assert relay.stop() == 0


def sit_out(scene: Scene, relay: RelayProcess, cause: str, *, seconds: float, column: str = "alarm") -> None:
    """An outage of `seconds` under writers: it is named, and strains nothing."""
    scene.write(1000, pad=512)
    until(lambda: cause in str(scene.status("relay-1").get(column)), 40, lambda: relay.log[-3000:])
    strain = Strain(relay)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        scene.write(500, pad=512)
        time.sleep(0.5)
    assert strain.faults() == []
    assert scene.status("relay-1")["state"] == "waiting"


def test_kafka_away_is_waited_out_at_rest_and_caught_up(
    scene: Scene, start: StartRelay, broker: KafkaBroker
) -> None:
    relay = start(lease="5", look_rows="1000", chunk_rows="1000", sabotage="impatient")
    scene.write(500)
    scene.wait_until_through()
    broker.kill()
    sit_out(scene, relay, "broker", seconds=AWAY)
    broker.start()
    through(scene, relay)


def test_kafka_frozen_is_waited_out_at_rest_and_caught_up(
    scene: Scene, start: StartRelay, broker: KafkaBroker
) -> None:
    relay = start(lease="30", look_rows="1000", chunk_rows="1000", sabotage="impatient")
    scene.write(500)
    scene.wait_until_through()
    broker.pause()
    sit_out(scene, relay, "broker", seconds=AWAY)
    broker.resume()
    through(scene, relay)


@contextmanager
def stuttering(broker: KafkaBroker, *, stopped: float, going: float) -> Iterator[None]:
    """`broker` works for `going` seconds in `stopped + going`."""
    over = threading.Event()

    def stutter() -> None:
        while not over.is_set():
            broker.pause()
            over.wait(stopped)
            broker.resume()
            over.wait(going)

    thread = threading.Thread(target=stutter)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        broker.resume()


def test_a_slow_broker_slows_and_breaks_nothing(scene: Scene, start: StartRelay, broker: KafkaBroker) -> None:
    relay = start(lease="5", look_rows="1000", chunk_rows="1000")
    scene.write(100)
    scene.wait_until_through()
    with stuttering(broker, stopped=0.4, going=0.1):
        strain = Strain(relay)
        for _ in range(8):
            scene.write(2000, pad=512)
            time.sleep(0.5)
        scene.wait_until_through(90)
        assert strain.faults(core=0.6, growth=60) == [], "what is acknowledged late is not held in heaps"
    assert scene.complaints() == []
    assert wire.repeats(scene.arrived()) == 0, "slow is no failure"
    assert relay.stop() == 0


def test_a_database_that_is_away_is_waited_out_at_rest(
    kafka: KafkaServer, topic: TopicFactory, tmp_path: Path
) -> None:
    with start_postgres(own=True) as server:
        engine = create_engine(url := server.database("shop"))
        with engine.begin() as connection:
            ddl.apply(connection)
        engine.dispose()
        scene = Scene(url, kafka.bootstrap, topic("events"))
        settings = {**scene.settings, "OUTBOX_INSTANCE": "relay-1", "OUTBOX_LEASE": "5"}
        with RelayProcess(settings, tmp_path / "log", sabotage="impatient") as relay:
            scene.write(500)
            scene.wait_until_through()
            scene.session.close()
            server.stop()
            until(lambda: "database 127.0.0.1" in relay.log, 20, lambda: relay.log)
            strain = Strain(relay)
            time.sleep(AWAY / 2)
            assert strain.faults(lines=1.0) == []
            server.start()
            with Scene(url, kafka.bootstrap, scene.topic) as again:
                again.write(500)
                until(lambda: again.value(THROUGH) is True, 60, lambda: relay.log[-3000:])
                through(again, relay)


def test_events_of_a_megabyte_and_of_the_limit_are_sent_in_bounded_chunks(
    scene: Scene, start: StartRelay, broker: KafkaBroker, second_kafka: KafkaServer
) -> None:
    large = second_kafka.create_topic(f"{scene.topic}.large", 6, max_message_bytes="10485760")
    for _ in range(5):
        scene.write(8, pad=1_000_000, topic=large)
    scene.write(2, pad=9_900_000, topic=large)
    relay = start(lease="5", look_rows="1000", chunk_rows="2000")
    peak = 0

    def done() -> bool:
        nonlocal peak
        peak = max(peak, resident(relay.pid))
        return int(scene.status("relay-1").get("published", 0)) == 42

    until(done, 90, lambda: relay.log[-2000:])
    scene.wait_until_through()
    found = wire.read(scene.bootstrap, large)
    assert wire.complaints(found, scene.committed()) == []
    assert wire.repeats(found) == 0
    assert peak < 220, f"{peak} MB for a backlog of 60 MB in chunks of 4 MB"
    assert relay.stop() == 0
