"""Consumer processes that are killed, frozen past their time-outs, and made to join and leave."""

import signal
import subprocess
import time
from random import Random
from typing import Any

from tests.consumer.stage import Stage

LONGEST_SLEEP = 9.0
"""Seconds: beyond session and poll time-out, so that a sleeper wakes as one whose partitions are others'."""


class Crew:
    """So many processes of one group; whoever is ended is replaced.

    deserters: how those ended whom nobody had asked to. Servers that are away are no reason to.
    """

    def __init__(self, stage: Stage, random: Random, size: int, **orders: Any) -> None:
        self._stage = stage
        self._random = random
        self._orders = orders
        self.deserters: list[int] = []
        self._members: list[subprocess.Popen[str]] = []
        self._leaving: list[subprocess.Popen[str]] = []
        self._sleepers: list[tuple[float, subprocess.Popen[str]]] = []
        for _ in range(size):
            self._start()

    def kill(self) -> bool:
        """One dies as by a power cut. False if too few are awake for that."""
        return self._end(signal.SIGKILL)

    def leave(self) -> bool:
        """One leaves in good order, and another one comes."""
        return self._end(signal.SIGTERM)

    def storm(self) -> bool:
        """Several leave and join before the group has come to rest."""
        ended = [self._end(signal.SIGTERM) for _ in range(self._random.randint(2, 4))]
        return any(ended)

    def freeze(self) -> bool:
        """One sleeps, mostly longer than its membership lasts."""
        if len(awake := self._awake()) < 2:
            return False
        process = self._random.choice(awake)
        process.send_signal(signal.SIGSTOP)
        self._sleepers.append((time.monotonic() + self._random.uniform(0.5, LONGEST_SLEEP), process))
        return True

    def muster(self) -> None:
        """Note who is gone, and replace them."""
        for process in [p for p in self._members if p.poll() is not None]:
            self._members.remove(process)
            self.deserters.append(process.returncode)
            self._start()

    def wake(self, *, everybody: bool = False) -> None:
        """Those who slept long enough go on."""
        now = time.monotonic()
        for until, process in list(self._sleepers):
            if everybody or until < now:
                process.send_signal(signal.SIGCONT)
                self._sleepers.remove((until, process))

    def close(self) -> None:
        self.wake(everybody=True)
        for process in self._members + self._leaving:
            if process.poll() is None:
                process.kill()
            process.wait(10)

    def _awake(self) -> list[subprocess.Popen[str]]:
        asleep = [process for _, process in self._sleepers]
        return [p for p in self._members if p.poll() is None and p not in asleep]

    def _start(self) -> None:
        self._members.append(self._stage.process(**self._orders))

    def _end(self, by: signal.Signals) -> bool:
        if len(awake := self._awake()) < 2:
            return False
        process = self._random.choice(awake)
        process.send_signal(by)
        self._members.remove(process)
        self._leaving.append(process)
        self._start()
        return True
