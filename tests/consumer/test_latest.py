"""What a key holds is its newest record, whatever repeats, late copies, replays and compaction leave over."""

from random import Random

import pytest

from outbox.consumer.state.latest import REMEMBERED, Latest
from outbox.consumer.watermark import Marks
from outbox.record import Seq

PLACE = ("t", 0)


def seq(position: int, *, delta: int = 1, source: str = "s", generation: int = 1, shard: int = 0) -> Seq:
    return Seq(source, generation, shard, delta, position)


class Log:
    """A partition's records and what a table makes of them."""

    def __init__(self) -> None:
        self.now = 0.0
        self.table: Latest[str] = Latest(clock=lambda: self.now)

    def read(
        self, key: str, value: str | None, number: Seq | None, *, replayed: bool = False, partition: int = 0
    ) -> bool:
        if not self.table.admit(("t", partition), key, number, replayed=replayed):
            return False
        self.table.put(key, value, number, replayed=replayed)
        return True


def test_a_late_copy_of_an_old_value_does_not_overwrite_a_newer_one() -> None:
    log = Log()
    log.read("k", "old", seq(1))
    log.read("k", "new", seq(2))
    assert not log.read("k", "old", seq(1))
    assert log.table.values == {"k": "new"}


def test_a_late_copy_does_not_bring_back_what_a_tombstone_deleted() -> None:
    log = Log()
    log.read("k", "old", seq(1))
    log.read("k", None, seq(2))
    log.now = REMEMBERED - 1
    log.table.forget()
    assert not log.read("k", "old", seq(1))
    assert log.table.values == {}


def test_what_is_remembered_of_deleted_keys_ends() -> None:
    log = Log()
    log.read("k", None, seq(1))
    log.now = REMEMBERED
    log.read("young", None, seq(2))
    assert log.table.forget() == 1
    assert log.table.forget() == 0


def test_keys_whose_first_copies_were_compacted_away_are_not_taken_for_repeats() -> None:
    # 1 … 6 were sent, then 1 … 6 again after a crash; the cleaner reached the copies of 1 … 3 only.
    log = Log()
    for n in (4, 5, 6, 1, 2, 3, 4, 5, 6):
        log.read(f"k{n}", str(n), seq(n))
    assert log.table.values == {f"k{n}": str(n) for n in range(1, 7)}

    marks = Marks()  # of the partition: what a consumer of a log that is not compacted goes by
    kept = {n for n in (4, 5, 6, 1, 2, 3, 4, 5, 6) if marks.admit(seq(n))}
    assert kept == {4, 5, 6}


def test_a_new_source_is_newer_and_late_copies_of_the_old_one_stay_old() -> None:
    log = Log()
    log.read("k", "old", seq(5, source="before"))
    log.read("k", "new", seq(1, source="after"))
    assert not log.read("k", "old", seq(5, source="before"))
    assert log.table.values == {"k": "new"}


def test_an_older_generation_is_older_whatever_its_delta() -> None:
    log = Log()
    log.read("k", "new", seq(1, delta=1, generation=2, shard=3))
    assert not log.read("k", "old", seq(9, delta=9, generation=1))


def test_after_partitions_were_added_the_order_of_reading_does_not_matter() -> None:
    for partitions in ((0, 1), (1, 0)):
        log = Log()
        copies = {0: ("old", seq(1)), 1: ("new", seq(2))}
        for partition in partitions:
            value, number = copies[partition]
            log.read("k", value, number, partition=partition)
        assert log.table.values == {"k": "new"}


def test_a_replay_fills_gaps_and_overwrites_nothing() -> None:
    log = Log()
    log.read("k", "new", seq(9))
    assert not log.read("k", "old", seq(1, delta=2), replayed=True)
    assert log.read("gone", "first", seq(2, delta=2), replayed=True)
    assert log.read("gone", "second", seq(3, delta=2), replayed=True)
    assert log.read("gone", "live", seq(4, delta=3))
    assert log.table.values == {"k": "new", "gone": "live"}


def test_records_without_a_number_count_as_they_come() -> None:
    log = Log()
    log.read("k", "one", None)
    log.read("k", "two", None)
    log.read("k", None, None)
    log.read("k", "three", None)
    assert log.table.values == {"k": "three"}


@pytest.mark.parametrize("seed", range(30))
def test_any_history_of_crashes_and_compactions_ends_with_the_newest_values(seed: int) -> None:
    random = Random(seed)
    truth: dict[str, str] = {}
    log: list[tuple[str, str | None, Seq]] = []
    stream: list[tuple[str, str | None, Seq]] = []
    for n in range(1, 120):
        key, value = f"k{random.randrange(12)}", None if random.random() < 0.2 else str(n)
        stream.append((key, value, seq(n)))
        if value is None:
            truth.pop(key, None)
        else:
            truth[key] = value
    sent = 0
    while sent < len(stream):
        begin = max(0, sent - random.randrange(30))  # a crash: the last stretch follows again
        sent = min(len(stream), begin + random.randint(1, 60))
        log += stream[begin:sent]
    clean = random.randrange(len(log))  # compaction keeps the last copy of a key below this place
    last = {key: place for place, (key, _, _) in enumerate(log[:clean])}
    table: Latest[str] = Latest()
    for place, (key, value, number) in enumerate(log):
        if (place >= clean or last[key] == place) and table.admit(PLACE, key, number):
            table.put(key, value, number)
    assert table.values == truth
