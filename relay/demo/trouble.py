"""Kill processes by SIGKILL and freeze them past their lease, blow after blow, while orders come in."""

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from relay.demo.fleet import Fleet, Process
from relay.demo.services import LEASE_SECONDS, Role

GAP = 3.0
"""Seconds between two kills: time for a succession, and for some quiet before the next blow."""

DEAD = (0.2, 1.0)
"""Seconds, at least and at most, until a killed process is started again."""

BEYOND = 1.5
"""Seconds that a frozen process sleeps longer than the others' patience with it."""

KILLED = (Role.ORDER_RELAY, Role.INVOICE, Role.INVOICE_RELAY, Role.INVOICE, Role.ORDER_RELAY, Role.SHIPPING)
FROZEN = (Role.ORDER_RELAY, Role.INVOICE, Role.INVOICE_RELAY)
RELAYS = (Role.ORDER_RELAY, Role.INVOICE_RELAY)

KILLS_PER_FREEZE = 3


@dataclass(frozen=True, slots=True, order=True)
class Blow:
    """What happens to one process of a role, `at` seconds from the start."""

    at: float
    kind: Literal["kill", "freeze"]
    role: Role


def schedule(kills: int) -> list[Blow]:
    """`kills` kills and a third as many freezes, at least one if there is any trouble at all."""
    killed, frozen = itertools.cycle(KILLED), itertools.cycle(FROZEN)
    blows = [Blow((n + 0.5) * GAP, "kill", role) for n, role in zip(range(kills), killed, strict=False)]
    freezes = max(kills // KILLS_PER_FREEZE, min(kills, 1))
    step = kills * GAP / freezes if freezes else 0.0
    blows += [Blow((n + 0.5) * step, "freeze", role) for n, role in zip(range(freezes), frozen, strict=False)]
    return sorted(blows)


def duration(kills: int) -> float:
    """Seconds over which the blows fall."""
    return kills * GAP


class Trouble:
    """Deals the blows. Of relays, the one that carries is hit: `carrier(role)` names it once there is one."""

    def __init__(
        self,
        blows: list[Blow],
        fleet: Fleet,
        *,
        carrier: Callable[[Role], str | None],
        session_seconds: float,
        say: Callable[[str], None],
        chance: random.Random,
    ) -> None:
        self._blows = blows
        self._fleet = fleet
        self._carrier = carrier
        self._session_seconds = session_seconds
        self._say = say
        self._chance = chance
        self._count = itertools.count()
        self._mends: list[tuple[float, int, Process, Callable[[], None]]] = []
        self.kills = 0
        self.freezes = 0

    @property
    def over(self) -> bool:
        return not self._blows and not self._mends

    @property
    def next_role(self) -> Role | None:
        """Whom the next blow waits for."""
        return self._blows[0].role if self._blows else None

    def run_once(self, now: float) -> None:
        """Do what is due `now`, in seconds from the start."""
        while self._mends and self._mends[0][0] <= now:
            heapq.heappop(self._mends)[3]()
        for blow in [blow for blow in self._blows if blow.at <= now]:
            # Where nobody is worth the blow at the moment, it waits.
            if (victim := self._choose(blow.role)) is not None:
                self._blows.remove(blow)
                self._strike(blow, victim, now)

    def _strike(self, blow: Blow, victim: Process, now: float) -> None:
        if blow.kind == "kill":
            victim.kill()
            self.kills += 1
            self._say(f"killed {victim.name} (SIGKILL)")
            self._later(now + self._chance.uniform(*DEAD), victim, victim.start)
        else:
            patience = LEASE_SECONDS if victim.role in RELAYS else self._session_seconds
            victim.freeze()
            self.freezes += 1
            self._say(
                f"froze {victim.name} for {patience + BEYOND:g} s (SIGSTOP), longer than it may be silent"
            )
            self._later(now + patience + BEYOND, victim, victim.thaw)

    def _later(self, at: float, process: Process, mend: Callable[[], None]) -> None:
        heapq.heappush(self._mends, (at, next(self._count), process, mend))

    def _choose(self, role: Role) -> Process | None:
        candidates = [process for process in self._fleet.of(role) if process.active]
        if role in RELAYS:
            carrier = self._carrier(role)
            candidates = [process for process in candidates if process.instance == carrier]
        return self._chance.choice(candidates) if candidates else None
