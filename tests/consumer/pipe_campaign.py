"""Brokers are killed under pipes that carry a stream, and readers of committed records count the results.

`make campaign-pipe ARGS="--seconds 240 --brokers 3"`: one broker dies at a time (SIGKILL) and returns; with
three the next one dies once all replicas are in sync again (`--careless`: at once). Each round has topics and
pipes of its own and ends with its verdict; `--keep` leaves the brokers' logs of a round that went wrong.
"""

import argparse
import contextlib
import itertools
import logging
import random
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

from outbox import hooks
from outbox.testing.servers import KafkaServer, start_kafka
from tests.consumer.pipes import Piped
from tests.consumer.stage import Stage

PARTITIONS = 4

INTERNAL = ("__consumer_offsets", "__transaction_state")

SESSION = {"session.timeout.ms": 6000, "heartbeat.interval.ms": 500, "max.poll.interval.ms": 30000}

CALM = 90.0
"""Seconds after the last kill in which everything has to arrive."""


class Source(threading.Thread):
    """Sends until it is told to stop, whatever the brokers do."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(daemon=True)
        self._stage = stage
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(0.1):
            self._stage.send(20, flush=False)

    def end(self) -> None:
        self._over.set()
        self.join()
        self._stage.flush(within=60)


@contextlib.contextmanager
def committing() -> Iterator[threading.Event]:
    """Set when one of our pipes next asks for a commit."""
    asked = threading.Event()

    def watch(point: str, _facts: dict[str, Any]) -> None:
        if point == "pipe.offsets_sent":
            asked.set()

    end = hooks.subscribe(watch)
    try:
        yield asked
    finally:
        end()


def attack(kafka: KafkaServer, topics: list[str], chance: random.Random, until: float, careless: bool) -> int:
    """Kill one after the other, within milliseconds of a commit; how many."""
    kills = 0
    while time.monotonic() < until:
        time.sleep(chance.uniform(0.2, 2.0))
        victim = chance.choice(kafka.brokers)
        with committing() as commit:
            commit.wait(10)
        time.sleep(chance.uniform(0.0, 0.02))
        victim.kill()
        kills += 1
        time.sleep(chance.choice((0.0, chance.uniform(0.0, 3.0))))
        victim.start()
        if len(kafka.brokers) > 1 and not careless:
            for topic in (*topics, *INTERNAL):
                kafka.await_in_sync(topic)
    return kills


def play(kafka: KafkaServer, *, seed: int, seconds: float, careless: bool) -> str:
    """One round: what it did and found, `as promised` at its end or what is wrong."""
    chance, name = random.Random(seed), uuid4().hex[:12]
    source = kafka.create_topic(f"pipe.{name}.from", PARTITIONS)
    to = kafka.create_topic(f"pipe.{name}.to", PARTITIONS)
    stage = Stage(cast(Any, None), "", kafka.bootstrap, source, PARTITIONS, new=False)
    piped = Piped(stage, to)
    sender = Source(stage)
    pipes = [piped.handing_on(instance=f"{name}-{n}", kafka=SESSION, batch_size=20) for n in range(2)]
    runs = [threading.Thread(target=pipe.run, args=(2,)) for pipe in pipes]
    try:
        for thread in (sender, *runs):
            thread.start()
        time.sleep(3)
        kills = attack(kafka, [source, to], chance, time.monotonic() + seconds, careless)
        sender.end()
        began = time.monotonic()
        while not _all_there(piped) and time.monotonic() - began < CALM:
            time.sleep(0.5)
        calm = time.monotonic() - began
        faults = piped.faults()
    finally:
        for pipe in pipes:
            pipe.stop()
        for run in runs:
            run.join(60)
    sent = sum(len(stage.expected(p)) for p in range(PARTITIONS))
    verdict = "; ".join(faults) or "as promised"
    return f"{name}: {sent} records, {kills} kills, through {calm:.0f} s after the last record: {verdict}"


def _all_there(piped: Piped) -> bool:
    with contextlib.suppress(AssertionError):  # a reader that waits at an open transaction
        return piped.all_there()
    return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=240.0)
    parser.add_argument("--round", type=float, default=30.0, help="seconds of trouble in a round")
    parser.add_argument("--brokers", type=int, choices=[1, 3], default=3)
    parser.add_argument("--careless", action="store_true", help="do not wait for replicas to be in sync")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--keep", type=Path, help="where the brokers' files go when a round went wrong")
    given = parser.parse_args()
    logging.getLogger("outbox").setLevel(logging.CRITICAL)
    end, wrong = time.monotonic() + given.seconds, 0
    with start_kafka(given.brokers, own=True) as kafka:
        for seed in itertools.count(given.seed):
            if time.monotonic() >= end:
                break
            told = play(kafka, seed=seed, seconds=given.round, careless=given.careless)
            sys.stdout.write(f"seed {seed}: {told}\n")
            sys.stdout.flush()
            if not told.endswith(": as promised"):
                wrong += 1
                if given.keep is not None:
                    for broker in kafka.brokers:
                        shutil.copytree(broker.directory, given.keep / str(seed) / str(broker.node))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
