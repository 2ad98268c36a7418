"""Mode transactional under everything at once, judged by a plain read_committed reader.

`python -m tests.relay.kafka.campaign --seconds 600 --brokers 3` (or `make campaign-transactional`):
brokers and relays are killed, relays freeze past their lease, brokers freeze, sessions are cut. Each round
has a database and a topic of its own on the same brokers, and ends with its verdict: each event exactly once,
each key in order, and nothing that stands still.
"""

import argparse
import itertools
import logging
import random
import sys
import tempfile
import time
from pathlib import Path
from uuid import uuid4

from outbox.storage import ddl
from outbox.testing.servers import KafkaServer, PostgresServer, start_kafka, start_postgres
from tests.conftest import create_engine
from tests.relay import wire
from tests.relay.kafka import troubles
from tests.relay.process import RelayProcess
from tests.relay.scene import Scene
from tests.relay.sharding.several import split

TIGHT = {
    "OUTBOX_LOOK_ROWS": "20",
    "OUTBOX_CHUNK_ROWS": "7",
    "OUTBOX_TRANSACTION_ROWS": "7",
    "OUTBOX_LEASE": "0.7",
    "OUTBOX_TRANSACTION_TIME": "0",
}
"""Many small transactions, and owners that follow one another quickly."""

MENDED = "KAFKA-20734"


class Relays:
    """Starts relays of one round; `close` ends those that still run."""

    def __init__(self, scene: Scene, logs: Path) -> None:
        self._scene, self._logs = scene, logs
        self._started: list[RelayProcess] = []

    def start(self) -> RelayProcess:
        name = f"relay-{len(self._started) + 1}"
        settings = {**self._scene.settings, "OUTBOX_INSTANCE": name}
        self._started.append(RelayProcess(settings, self._logs / f"{name}.log"))
        return self._started[-1]

    @property
    def mended(self) -> int:
        """How often one of them ended what the brokers had left open."""
        return sum(relay.log.count(MENDED) for relay in self._started)

    def close(self) -> None:
        for relay in self._started:
            relay.close()


def play(url: str, kafka: KafkaServer, logs: Path, *, seed: int, seconds: float, restarts: int) -> str:
    """One round: what it did and found, `as promised` at its end or what is wrong."""
    topic = kafka.create_topic(f"torture.{uuid4().hex[:12]}", 6)
    with Scene(url, kafka.bootstrap, topic, **TIGHT) as scene:
        scene.session.execute("UPDATE outbox_shard SET wanted_mode = 'transactional'")
        troubles.keys(scene)
        relays = Relays(scene, logs)
        try:
            first = relays.start()
            scene.wait("SELECT bool_and(mode = 'transactional') FROM outbox_shard")
            first.stop()
            until = time.monotonic() + seconds
            writers = [troubles.Writer(scene, seed * 10 + n, until) for n in range(3)]
            for writer in writers:
                writer.start()
            trouble = troubles.Trouble(scene, kafka.brokers, relays.start, seed, restarts=restarts)
            trouble.go_on(until)
            for writer in writers:
                writer.join(60)
                assert writer.failure is None, writer.failure
            began = time.monotonic()
            scene.wait_until_through(120)
            calm = time.monotonic() - began
            committed = scene.session.execute(troubles.COMMITTED).fetchall()
            records = scene.arrived()
        finally:
            relays.close()
    kafka.delete_topic(topic)
    deeds = ", ".join(f"{count} {what}" for what, count in sorted(trouble.done.items()))
    verdict = "; ".join(wire.plain_complaints(records, committed)) or "as promised"
    found = f"{relays.mended} open transactions ended, through {calm:.1f} s after the last event"
    return f"{len(committed)} events, {deeds}, {found}: {verdict}"


def made(postgres: PostgresServer, shards: int) -> str:
    """A database of a round's own."""
    url = postgres.database(f"torture_{uuid4().hex[:12]}")
    engine = create_engine(url)
    with engine.begin() as connection:
        ddl.apply(connection)
    engine.dispose()
    if shards > 1:
        split(url, shards)
    return url


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--round", type=float, default=40.0, help="seconds of trouble in a round")
    parser.add_argument("--brokers", type=int, choices=[1, 3], default=3)
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--restarts", type=int, default=2, help="broker kills among some ten deeds")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    given = parser.parse_args()
    logging.getLogger("relay.kafka").setLevel(logging.CRITICAL)
    end, wrong = time.monotonic() + given.seconds, 0
    with (
        tempfile.TemporaryDirectory() as logs,
        start_postgres({"max_prepared_transactions": 100}, own=True) as postgres,
        start_kafka(given.brokers, own=True) as kafka,
    ):
        for seed in itertools.count(given.seed):
            if time.monotonic() >= end:
                break
            directory = Path(logs) / str(seed)
            directory.mkdir()
            told = play(
                made(postgres, given.shards),
                kafka,
                directory,
                seed=seed,
                seconds=given.round,
                restarts=given.restarts,
            )
            wrong += not told.endswith(": as promised")
            sys.stdout.write(f"seed {seed}: {told}\n")
            sys.stdout.flush()
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
