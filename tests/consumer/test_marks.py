"""Marks drop exactly the repeats, whatever crashed, slept, woke or was re-sharded."""

from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outbox.consumer.watermark import Marks
from outbox.record import Seq

PARTITIONS = 3

Log = list[tuple[int, Seq]]
"""What one partition holds, in order: (the sending session's epoch, the record's place)."""


class Shard:
    """The stream of one shard: rows in order, each bound for one partition, and the sessions that send it."""

    def __init__(self, random: Random, source: str, generation: int, shard: int, epoch: int) -> None:
        self._random = random
        self._epoch = epoch
        self.rows: list[tuple[int, Seq]] = []
        delta = position = 0
        for _ in range(random.randint(1, 12)):
            if position == 0 or random.random() < 0.3:
                delta += random.randint(1, 5)
                # A straggler: the later delta may begin below positions of the earlier one.
                position = random.randint(1, 8)
            else:
                position += random.randint(1, 3)
            seq = Seq(source, generation, shard, delta, position)
            self.rows.append((random.randrange(PARTITIONS), seq))
        self.landed = [False] * len(self.rows)
        self.queues: list[dict[int, list[tuple[int, int, Seq]]]] = []

    def take_over(self) -> None:
        """A new session begins at the first unconfirmed row, or before; older ones keep what they queued."""
        self._epoch += 1
        first = next((n for n, landed in enumerate(self.landed) if not landed), len(self.rows))
        start = self._random.randint(max(0, first - 3), first)
        queue: dict[int, list[tuple[int, int, Seq]]] = {}
        for number, (partition, seq) in list(enumerate(self.rows))[start:]:
            queue.setdefault(partition, []).append((number, self._epoch, seq))
        self.queues.append(queue)

    def send(self, logs: list[Log]) -> None:
        """Some session, perhaps a sleeper, lands the next records of one partition."""
        ready = [(queue, partition) for queue in self.queues for partition in queue if queue[partition]]
        if not ready:
            return self.take_over()
        queue, partition = self._random.choice(ready)
        for _ in range(self._random.randint(1, 4)):
            if queue[partition]:
                number, epoch, seq = queue[partition].pop(0)
                logs[partition].append((epoch, seq))
                self.landed[number] = True
        return None

    @property
    def done(self) -> bool:
        return all(self.landed)


def schedule(random: Random) -> tuple[list[Log], list[Shard]]:
    """Some sources with several shards each and re-shardings between, sleepers waking at any time."""
    logs: list[Log] = [[] for _ in range(PARTITIONS)]
    every: list[Shard] = []
    for source in ("a", "b")[: random.randint(1, 2)]:
        for generation in range(1, random.randint(1, 3) + 1):
            shards = [
                Shard(random, source, generation, n, len(every) * 100) for n in range(random.randint(1, 3))
            ]
            every += shards
            while not all(shard.done for shard in shards):
                random.choice([shard for shard in shards if not shard.done]).send(logs)
                if random.random() < 0.2:
                    random.choice(shards).take_over()
                if random.random() < 0.3:
                    sleeper = random.choice(every)
                    if any(any(queue.values()) for queue in sleeper.queues):
                        sleeper.send(logs)
    for _ in range(random.randint(0, 30)):
        sleeper = random.choice(every)
        if any(any(queue.values()) for queue in sleeper.queues):
            sleeper.send(logs)
    return logs, every


Admit = Callable[[int, Seq], bool]


def admit_by_marks() -> Admit:
    """What the consumer does, with the marks stored and read back now and then."""
    marks = Marks()
    count = 0

    def admit(_epoch: int, seq: Seq) -> bool:
        nonlocal marks, count
        count += 1
        if count % 3 == 0:
            marks = Marks.load(marks.copy().dump())
        return marks.admit(seq)

    return admit


def admit_with_epoch() -> Admit:
    """Naive: a later owner's records outrank earlier ones."""
    seen: dict[tuple[str, int, int], tuple[int, int, int]] = {}

    def admit(epoch: int, seq: Seq) -> bool:
        stream, place = (seq.source, seq.generation, seq.shard), (epoch, seq.delta, seq.position)
        if place <= seen.get(stream, (0, 0, 0)):
            return False
        seen[stream] = place
        return True

    return admit


def admit_by_position() -> Admit:
    """Naive: positions alone, though a straggler's delta comes later with lower ones."""
    seen: dict[tuple[str, int], int] = {}

    def admit(_epoch: int, seq: Seq) -> bool:
        if seq.position <= seen.get((seq.source, seq.shard), 0):
            return False
        seen[seq.source, seq.shard] = seq.position
        return True

    return admit


def wrong_partitions(random: Random, admitter: Callable[[], Admit]) -> int:
    """How many partitions did not apply each of their rows once, in their shard's order."""
    logs, shards = schedule(random)
    wrong = 0
    for partition, log in enumerate(logs):
        admit = admitter()
        applied = [seq for epoch, seq in log if admit(epoch, seq)]
        for shard in shards:
            stream = [seq for place, seq in shard.rows if place == partition]
            wrong += [seq for seq in applied if seq in stream] != stream
    return wrong


@given(st.integers(min_value=0))
@settings(max_examples=600, deadline=None)
def test_each_record_is_admitted_once_and_in_order(seed: int) -> None:
    assert wrong_partitions(Random(seed), admit_by_marks) == 0


@pytest.mark.parametrize("naive", [admit_with_epoch, admit_by_position])
def test_a_naive_comparison_is_caught_by_the_same_schedules(naive: Callable[[], Admit]) -> None:
    assert sum(wrong_partitions(Random(seed), naive) > 0 for seed in range(600)) > 300


def test_marks_shared_by_partitions_would_lose_records() -> None:
    """One partition may be behind another: each needs marks of its own."""
    lost = 0
    for seed in range(100):
        logs, shards = schedule(Random(seed))
        shared = Marks()
        merged = sorted(((epoch, seq) for log in reversed(logs) for epoch, seq in log), key=lambda _: 0)
        applied = {seq for _, seq in merged if shared.admit(seq)}
        lost += any(seq not in applied for shard in shards for _, seq in shard.rows)
    assert lost > 50


def test_an_older_generation_is_a_repeat_and_a_newer_one_starts_afresh() -> None:
    marks = Marks()
    assert marks.admit(Seq("s", 2, 0, 9, 9))
    assert not marks.admit(Seq("s", 1, 5, 99, 99))
    assert marks.admit(Seq("s", 3, 0, 1, 1))
    assert not marks.admit(Seq("s", 2, 1, 50, 50))


def test_sources_know_nothing_of_each_other() -> None:
    marks = Marks()
    assert marks.admit(Seq("a", 1, 0, 5, 5))
    assert marks.admit(Seq("b", 1, 0, 1, 1))
    assert not marks.admit(Seq("a", 1, 0, 5, 5))


def test_a_copy_leaves_the_original_as_it_was() -> None:
    marks = Marks()
    marks.admit(Seq("s", 1, 0, 1, 1))
    copy = marks.copy()
    assert copy.admit(Seq("s", 1, 0, 1, 2))
    assert marks.admit(Seq("s", 1, 0, 1, 2))
