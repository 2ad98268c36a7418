"""A short seeded torture: processes killed, frozen and rebalanced, backends ended, records repeated."""

import os
import signal
import subprocess
import threading
import time
from random import Random
from typing import Any

import pytest
from sqlalchemy import text

from tests.consumer.conftest import StageFactory
from tests.consumer.stage import PROTOCOLS, SHORT, Stage, eventually

SECONDS = float(os.environ.get("OUTBOX_TORTURE_SECONDS", "15"))
SEED = int(os.environ.get("OUTBOX_TORTURE_SEED", "1"))

END_BACKENDS = text("""
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND random() < 0.4
""")


class Torture:
    """Three consumer processes and what is done to them."""

    def __init__(self, stage: Stage, random: Random, **orders: Any) -> None:
        self.stage = stage
        self.random = random
        self.orders = {"settings": {"batch_size": 20}, "threads": 2, **orders}
        self.processes: list[subprocess.Popen[str]] = []
        self.frozen: list[tuple[float, subprocess.Popen[str]]] = []
        self.done: dict[str, int] = {}
        self._over = threading.Event()
        for _ in range(3):
            self.start()

    def start(self) -> None:
        self.processes.append(self.stage.process(**self.orders))

    def step(self) -> None:
        """One random cruelty; sleepers that slept past their session are woken."""
        now = time.monotonic()
        for until, process in [sleeper for sleeper in self.frozen if sleeper[0] < now]:
            process.send_signal(signal.SIGCONT)
            self.frozen.remove((until, process))
        awake = [p for p in self.processes if p.poll() is None and all(p is not s for _, s in self.frozen)]
        cruelty = self.random.choice(["kill", "freeze", "leave", "backends", "repeat", "nothing"])
        self.done[cruelty] = self.done.get(cruelty, 0) + 1
        match cruelty:
            case "kill" | "leave" if len(awake) > 1:
                self.random.choice(awake).send_signal(signal.SIGKILL if cruelty == "kill" else signal.SIGTERM)
                self.start()
            case "freeze" if len(awake) > 1:
                process = self.random.choice(awake)
                process.send_signal(signal.SIGSTOP)
                self.frozen.append((now + self.random.uniform(0.5, 5), process))
            case "backends":
                with self.stage.engine.connect() as connection:
                    connection.execute(END_BACKENDS)
            case "repeat":
                self.stage.repeat(self.random.randrange(self.stage.partitions), self.random.randint(1, 60))

    def run(self, seconds: float) -> None:
        pause, end = threading.Event(), time.monotonic() + seconds
        while time.monotonic() < end:
            self.stage.send(self.random.randint(1, 200))
            self.step()
            pause.wait(self.random.uniform(0.05, 0.5))

    def wake(self) -> None:
        for _, process in self.frozen:
            process.send_signal(signal.SIGCONT)
        self.frozen.clear()

    def close(self) -> None:
        self.wake()
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait(10)


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("protocol", ["cooperative", "kip848"])
def test_effects_stay_exactly_once_and_in_order_whatever_is_done_to_the_processes(
    build: StageFactory, protocol: str
) -> None:
    stage = build(partitions=4)
    kafka = {**PROTOCOLS[protocol], **SHORT}
    torture = Torture(stage, Random(SEED), kafka=kafka)
    try:
        torture.run(SECONDS)
        torture.wake()
        stage.send(20)
        stage.wait(within=60)
        # Whatever doubles would have come by now: all partitions are read to their ends.
        eventually(lambda: all(stage.offset(p) == stage.end(p) for p in range(stage.partitions)), within=30)
    finally:
        torture.close()
    assert stage.faults() == [], (SEED, torture.done)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_same_torture_breaks_a_consumer_whose_offset_is_committed_apart(build: StageFactory) -> None:
    stage = build(partitions=4)
    torture = Torture(stage, Random(SEED), kafka=SHORT, **{"break": "offset_apart"})
    try:
        # A blow has to fall between two commits: mostly the first stretch sees one.
        for _ in range(3):
            torture.run(SECONDS)
            torture.wake()
            stage.send(20)
            eventually(lambda: all(stage.offset(p) == stage.end(p) for p in range(4)), within=60)
            if stage.faults():
                break
    finally:
        torture.close()
    assert stage.faults() != []
