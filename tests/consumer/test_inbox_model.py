"""When a leaf may be emptied: a model of producers, consumers and their clocks, beside naive rules."""

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import pytest

LEAF = 12.0
LEAVES = 16
WINDOW = 24.0
"""Hours, as in the real one; a schedule lasts some weeks."""


@dataclass
class Entry:
    """A record in a partition's log. appended: the true time. stamped: its producer's clock."""

    event: int
    appended: float
    stamped: float


@dataclass
class Log:
    """One partition, and what the group's row says of it."""

    entries: list[Entry] = field(default_factory=list)
    next_offset: int = 0
    seen_at: float | None = None
    seen_high: int = 0
    read_through: float | None = None
    read_stamp: float | None = None
    stopped_until: float = 0.0
    speed: int = 1000


@dataclass
class World:
    """Some partitions of one group, the inbox, and how long ids are kept by `rule`."""

    random: Random
    rule: "Callable[[World, float], bool]"
    now: float = 0.0
    logs: list[Log] = field(default_factory=list)
    inbox: dict[int, dict[tuple[int, int], list[int]]] = field(default_factory=dict)
    last: dict[int, float] = field(default_factory=dict)
    wrong: int = 0
    first: dict[tuple[int, int], float] = field(default_factory=dict)
    clocks: list[float] = field(default_factory=list)
    emptied: int = 0

    def append(self) -> None:
        """A producer sends something new, or again what it sent less than the window ago."""
        number = self.random.randrange(len(self.logs))
        log = self.logs[number]
        recent = [e for e in log.entries if self.now - self.first[number, e.event] < WINDOW]
        clock = self.random.choice(self.clocks)
        if recent and self.random.random() < 0.4:
            log.entries.append(Entry(self.random.choice(recent).event, self.now, self.now + clock))
            return
        event = len(self.first)
        self.first[number, event] = self.now
        log.entries.append(Entry(event, self.now, self.now + clock))

    def consume(self, number: int) -> None:
        """A batch of one partition, unless its consumer stands still."""
        log = self.logs[number]
        if self.now < log.stopped_until:
            return
        slot = int(self.now // LEAF) % LEAVES
        for offset in range(log.next_offset, min(len(log.entries), log.next_offset + log.speed)):
            entry = log.entries[offset]
            known = [o for leaf in self.inbox.values() for o in leaf.get((number, entry.event), ())]
            dropped = any(o < offset for o in known)
            copies = [o for o, e in enumerate(log.entries[:offset]) if e.event == entry.event]
            self.wrong += dropped is not bool(copies)
            if not dropped:
                self.inbox.setdefault(slot, {}).setdefault((number, entry.event), []).append(offset)
                self.last[slot] = self.now
            log.next_offset = offset + 1
            log.read_stamp = entry.stamped
        if log.seen_at is not None and log.next_offset >= log.seen_high:
            log.read_through = log.seen_at
            log.seen_at = None
        if log.seen_at is None:
            log.seen_at, log.seen_high = self.now, len(log.entries)

    def sweep(self) -> None:
        turn = int(self.now // LEAF)
        for age in range(1, LEAVES):
            slot, ended = (turn - age) % LEAVES, (turn - age + 1) * LEAF
            if self.inbox.get(slot) and self.rule(self, ended):
                del self.inbox[slot]
                self.emptied += 1


def ours(world: World, ended: float) -> bool:
    return all(log.read_through is not None and log.read_through >= ended + WINDOW for log in world.logs)


def processing_clock(world: World, ended: float) -> bool:
    """Naive: the window after a leaf's end is over."""
    return world.now >= ended + WINDOW


def fastest_partition(world: World, ended: float) -> bool:
    """Naive: somebody has seen it."""
    return any(log.read_through is not None and log.read_through >= ended + WINDOW for log in world.logs)


def record_time(world: World, ended: float) -> bool:
    """Naive: what was read last was stamped so late, by its producer's clock."""
    return all(log.read_stamp is not None and log.read_stamp >= ended + WINDOW for log in world.logs)


def played(seed: int, rule: "Callable[[World, float], bool]") -> World:
    """Three weeks: bursts, consumers that stop for days, slow ones, and producers with wrong clocks."""
    random = Random(seed)
    world = World(random, rule, clocks=[0.0, random.choice([0.0, 30.0, 90.0])])
    world.logs = [Log(speed=random.choice([1, 3, 1000])) for _ in range(random.randint(1, 3))]
    while world.now < 500.0:
        world.now += random.expovariate(1.0) * 2
        for _ in range(random.randint(0, 4)):
            world.append()
        if random.random() < 0.02:
            random.choice(world.logs).stopped_until = world.now + random.uniform(10, 60)
        for number in range(len(world.logs)):
            if random.random() < 0.8:
                world.consume(number)
        world.sweep()
    return world


def test_no_event_is_lost_and_no_repeat_within_the_window_is_applied() -> None:
    worlds = [played(seed, ours) for seed in range(60)]
    assert sum(world.wrong for world in worlds) == 0
    assert sum(world.emptied for world in worlds) > 300


@pytest.mark.parametrize("naive", [processing_clock, fastest_partition, record_time])
def test_a_naive_rule_is_caught_by_the_same_schedules(naive: "Callable[[World, float], bool]") -> None:
    assert sum(played(seed, naive).wrong > 0 for seed in range(60)) >= 5
