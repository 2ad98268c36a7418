"""Tell whether a row that was given up, or never acknowledged, lies in its partition after all.

What was refused to us may still have been accepted from a predecessor, and what a frozen predecessor holds
may arrive yet. The first record of the row's own stream at or above its number decides, as a consumer's mark
would.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

from outbox.record import Seq


class Verdict(Enum):
    """What became of a row under its number."""

    LANDED = auto()
    """It lies there: sending it again would be a repeat."""
    PASSED = auto()
    """A higher number lies there and it does not: under its own number nobody would take it any more."""
    OPEN = auto()
    """Nothing at or above its number lies there: its own number still counts."""


class Undecided(Exception):
    """The log no longer tells whether the row landed; an operator has to say."""


@dataclass(frozen=True, slots=True)
class Trace:
    """Where a row was last addressed to. No record at or above `seq` lies below offset `start`, if known."""

    topic: str
    partition: int
    seq: Seq
    start: int | None


class Landings(Protocol):
    """Answers for one cluster."""

    def verdict(self, trace: Trace, alive: Callable[[], bool]) -> Verdict:
        """Raises Undecided, Interrupted while no broker answers, Abandoned as soon as `alive()` says no."""

    def close(self) -> None:
        """Let go of the broker."""


class NeverOpen:
    """Mode `transactional`: numbers only rise in what is committed, so one that is not in is passed."""

    def __init__(self, asked: Landings) -> None:
        self._asked = asked

    def verdict(self, trace: Trace, alive: Callable[[], bool]) -> Verdict:
        verdict = self._asked.verdict(trace, alive)
        return Verdict.PASSED if verdict is Verdict.OPEN else verdict

    def close(self) -> None:
        self._asked.close()
