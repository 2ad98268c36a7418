"""Consumer processes that are killed, frozen past their time-outs, and made to join and leave."""

import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from tests.consumer.stage import Stage
from tests.nursery import Child

LONGEST_SLEEP = 9.0
"""Seconds: beyond session and poll time-out, so that a sleeper wakes as one whose partitions are others'."""


@dataclass(frozen=True, eq=False, slots=True)
class Mate:
    """A process, and the orders that whoever replaces it gets as well: its name, or its partitions."""

    process: Child
    orders: Mapping[str, Any]


class Crew:
    """A process for each of `orders`, all of one group; whoever is ended is replaced.

    replace_sleepers: a sleeper's place is taken while it sleeps, and once awake it is told to leave; what it
    does until then, another does as well.
    one_at_a_time: nobody comes for one who leaves in good order before that one is gone.
    deserters: how those ended whom nobody had asked to. Servers that are away are no reason to.
    """

    def __init__(
        self,
        stage: Stage,
        random: Random,
        orders: list[Mapping[str, Any]],
        *,
        replace_sleepers: bool = False,
        one_at_a_time: bool = False,
    ) -> None:
        self._stage = stage
        self._random = random
        self._replace_sleepers = replace_sleepers
        self._one_at_a_time = one_at_a_time
        self.deserters: list[int] = []
        self._members: list[Mate] = []
        self._leaving: list[Mate] = []
        self._awaited: list[Mate] = []
        self._sleepers: list[tuple[float, Mate]] = []
        for own in orders:
            self._start(own)

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
        mate = self._random.choice(awake)
        mate.process.send_signal(signal.SIGSTOP)
        self._sleepers.append((time.monotonic() + self._random.uniform(0.5, LONGEST_SLEEP), mate))
        if self._replace_sleepers:
            self._replace(mate)
        return True

    def muster(self) -> None:
        """Note who is gone, and replace them."""
        for mate in [m for m in self._awaited if m.process.poll() is not None]:
            self._awaited.remove(mate)
            self._start(mate.orders)
        for mate in [m for m in self._members if m.process.poll() is not None]:
            self.deserters.append(mate.process.returncode)
            self._members.remove(mate)
            self._start(mate.orders)

    def wake(self, *, everybody: bool = False) -> None:
        """Those who slept long enough go on."""
        now = time.monotonic()
        for until, mate in list(self._sleepers):
            if everybody or until < now:
                mate.process.send_signal(signal.SIGCONT)
                self._sleepers.remove((until, mate))
                if mate in self._leaving:
                    mate.process.terminate()

    def close(self) -> None:
        self.wake(everybody=True)
        for mate in self._members + self._leaving:
            if mate.process.poll() is None:
                mate.process.kill()
            mate.process.wait(10)

    def _awake(self) -> list[Mate]:
        asleep = [mate for _, mate in self._sleepers]
        return [m for m in self._members if m.process.poll() is None and m not in asleep]

    def _start(self, orders: Mapping[str, Any]) -> None:
        self._members.append(Mate(self._stage.process(**orders), orders))

    def _replace(self, mate: Mate) -> None:
        self._members.remove(mate)
        self._leaving.append(mate)
        self._start(mate.orders)

    def _end(self, by: signal.Signals) -> bool:
        if len(awake := self._awake()) < 2:
            return False
        mate = self._random.choice(awake)
        mate.process.send_signal(by)
        if by is signal.SIGTERM and self._one_at_a_time:
            self._members.remove(mate)
            self._leaving.append(mate)
            self._awaited.append(mate)
        else:
            self._replace(mate)
        return True
