"""A forgotten transaction: what it hid is judged by its own events, and nothing overtakes it."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pytest
from confluent_kafka import Producer

from outbox.record import SEQ, Seq
from relay.producers import clearance, hanging, openings
from relay.producers.clearance import Clearance
from relay.producers.delivery import Interrupted, Recorded, Target, Unsettled
from relay.producers.entry import Entry, Owed, encoded
from relay.producers.hanging import Hanging
from relay.producers.inquiry import Inquiry
from relay.producers.ledger import Ledger
from relay.producers.line import Line
from relay.producers.openings import Openings
from relay.producers.ranges import READ_COMMITTED, Ranges

PROGRESS, EVENTS, OTHERS = ("progress", 0), ("events", 0), ("others", 0)


THEIRS = None
"""A record of another shard of the same source."""


class Log:
    """Marks of the shard's records by partition. `stable`: where a read_committed reader stops."""

    def __init__(
        self, marks: dict[Target, list[int | None]], stable: dict[Target, int] | None = None
    ) -> None:
        self.marks = marks
        self.stable = stable or {}
        self.aborted: set[tuple[Target, int]] = set()
        self.asked = False
        self.leaderless: set[Target] = set()
        self.gone: set[Target] = set()

    def ends(self, targets: list[Target], level: Any) -> dict[Target, int]:
        self.asked = True
        if self.gone & {*targets}:
            raise Interrupted("the ends of partitions are not to be had")
        found = {target: len(self.marks.get(target, [])) for target in targets}
        if level == READ_COMMITTED:
            found |= {target: end for target, end in self.stable.items() if target in found}
        return found

    def rest(self) -> None: ...

    def known(self, targets: set[Target], *, led: bool = False) -> set[Target]:
        return {*targets} - self.gone - (self.leaderless if led else set())

    def read(self, target: Target, start: int, end: int, *, committed: bool, **_: Any) -> list[Any]:
        marks = self.marks.get(target, [])
        if committed:
            end = min(end, self.stable.get(target, end))
        return [
            SimpleNamespace(
                topic=lambda: target[0],
                partition=lambda: target[1],
                key=lambda: b"",
                timestamp=lambda: (1, 1),
                headers=lambda mark=mark: [(SEQ, seq(mark).encode())],
                value=lambda mark=mark: encoded(entry(mark)),
            )
            for offset, mark in enumerate(marks[start:end], start)
            if not (committed and (target, offset) in self.aborted)
        ]


def seq(position: int | None) -> Seq:
    return Seq("s", 1, 1, 1, 1) if position is THEIRS else Seq("s", 1, 0, 1, position)


def entry(position: int | None, *into: Target) -> Entry:
    return Entry(Recorded(seq(position), "1:1:", "2:2:"), into)


def hanging_of(log: Log) -> Hanging:
    looker = Openings(cast(Ranges, log), place=PROGRESS)
    looker.sources.add("s")
    return Hanging(cast(Ranges, log), looker, place=PROGRESS)


def furthest(visible: dict[Target, list[int | None]], known: int, *candidates: Entry) -> int:
    return hanging_of(Log(visible)).furthest(entry(known), candidates, lambda: True).recorded.seq.position


@pytest.mark.parametrize(
    ("visible", "candidates", "last"),
    [
        ({EVENTS: [5]}, [entry(10, EVENTS)], 10),
        ({}, [entry(10, EVENTS)], 0),
        ({EVENTS: [5]}, [entry(10, EVENTS), entry(20, EVENTS)], 10),
        ({EVENTS: [5, 15]}, [entry(10, EVENTS), entry(20, EVENTS)], 20),
        ({OTHERS: [15]}, [entry(10, EVENTS), entry(20, EVENTS, OTHERS)], 20),
        # Refused as a whole, then sent in smaller pieces of which two are in.
        ({EVENTS: [3, 9, 13]}, [entry(30, EVENTS), entry(10, EVENTS), entry(15, EVENTS)], 15),
        ({EVENTS: [3, 9]}, [entry(10, EVENTS), entry(30, EVENTS), entry(30, EVENTS)], 10),
    ],
)
def test_an_aborted_transaction_is_not_taken_for_committed_because_of_the_one_before_it(
    visible: dict[Target, list[int | None]], candidates: list[Entry], last: int
) -> None:
    assert furthest(visible, 0, *candidates) == last


def test_a_topic_that_was_deleted_does_not_keep_a_shard_in_doubt() -> None:
    log = Log({EVENTS: [5]})
    log.gone.add(OTHERS)
    assert hanging_of(log).furthest(entry(0), [entry(10, OTHERS, EVENTS)], lambda: True).recorded == (
        entry(10).recorded
    )


def clearance_of(log: Log, *, ledger: Any = None, complaints: int = 0) -> Clearance:
    inquiry = Inquiry({}, listen=lambda: None, stopping=lambda: False)
    inquiry.complaints.heard = complaints
    ledger = ledger or SimpleNamespace()
    ledger.topic, ledger.shard = PROGRESS
    looker = Clearance(cast(Ranges, log), cast(Ledger, ledger), inquiry, notary=lambda: cast(Line, None))
    looker._openings.sources.add("s")
    return looker


def follow(log: Log, *, complaints: int = 1) -> None:
    """About to commit 11–20 behind 1–10; both wrote to the partition of events. A broker was missed."""
    clearance_of(log, complaints=complaints).follow(entry(10).recorded, {EVENTS}, lambda: True)


@pytest.mark.parametrize("hides", [{EVENTS: 1}, {PROGRESS: 0}])
def test_nothing_is_committed_behind_a_forgotten_transaction_that_it_followed(
    hides: dict[Target, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is sent again of that one would come behind it: consumers would take it for repeats."""
    monkeypatch.setattr(openings, "PATIENCE", 0.1)
    own = {EVENTS: 3, PROGRESS: 1}
    with pytest.raises(Unsettled):
        follow(Log({EVENTS: [3, 5, 9, 12, 15], PROGRESS: [10, 20]}, own | hides))


def test_a_transaction_goes_on_behind_one_that_has_ended_everywhere() -> None:
    follow(Log({EVENTS: [3, 5, 9, 12, 15], PROGRESS: [10, 20]}, {EVENTS: 3, PROGRESS: 1}))


def test_without_a_complaint_nobody_is_asked_whether_the_former_transaction_has_ended() -> None:
    log = Log({EVENTS: [3, 12]}, {EVENTS: 0})
    follow(log, complaints=0)
    assert not log.asked


HIDDEN: dict[Target, list[int | None]] = {EVENTS: [3, 5], OTHERS: [], PROGRESS: [10]}
"""The transaction with 3 and 5 was committed; where its events lie its end was forgotten."""


def forgetful() -> tuple[Log, Clearance]:
    """A claim under which events were sent to a partition that lost its leader, of which the client heard."""
    log = Log(HIDDEN)
    looker = clearance_of(log)
    looker.examine({EVENTS}, lambda: True)
    log.stable[EVENTS] = 0
    log.leaderless.add(EVENTS)
    looker._inquiry.complaints.heard = 1
    looker.examine({OTHERS}, lambda: True)
    return log, looker


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openings, "PATIENCE", 0.0)
    monkeypatch.setattr(clearance, "LOOK_AGAIN", 0.0)


@pytest.mark.usefixtures("at_once")
def test_a_partition_that_had_no_leader_is_looked_at_again_though_events_go_elsewhere() -> None:
    log, looker = forgetful()
    looker.examine({OTHERS}, lambda: True)
    log.leaderless.clear()
    with pytest.raises(Unsettled):
        looker.examine({OTHERS}, lambda: True)


@pytest.mark.usefixtures("at_once")
def test_a_partition_that_had_no_leader_is_looked_at_again_though_nothing_is_sent() -> None:
    log, looker = forgetful()
    looker.tend(lambda: True)
    log.leaderless.clear()
    with pytest.raises(Unsettled):
        looker.tend(lambda: True)


def test_without_a_complaint_an_idle_shard_asks_nothing() -> None:
    log = Log(HIDDEN)
    looker = clearance_of(log)
    looker.examine({EVENTS}, lambda: True)
    log.asked = False
    looker.tend(lambda: True)
    assert not log.asked


@pytest.mark.usefixtures("at_once")
def test_a_shard_is_not_left_while_a_transaction_of_it_may_stand_open() -> None:
    """Nobody would look for it, nor know it to be committed: what bears another name is not."""
    log, looker = forgetful()
    with pytest.raises(Interrupted, match="partition 0 has no leader") as interrupted:
        looker.leave(lambda: True)
    assert not isinstance(interrupted.value, Unsettled)
    log.leaderless.clear()
    with pytest.raises(Unsettled):
        looker.leave(lambda: True)
    del log.stable[EVENTS]
    looker.leave(lambda: True)


@pytest.mark.usefixtures("at_once")
def test_a_shard_is_left_where_a_topic_was_deleted() -> None:
    log, looker = forgetful()
    log.gone.add(EVENTS)
    looker.leave(lambda: True)


@pytest.mark.parametrize(
    "renamed", [Seq("t", 1, 0, 5, 0), Seq("s", 2, 0, 5, 0)], ids=["source", "generation"]
)
def test_the_first_transaction_under_another_name_may_be_the_hidden_one(
    renamed: Seq, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last record that can be seen bears the old name; the row already bears the new one."""
    row = Recorded(renamed, "1:1:", "2:2:")
    first = replace(row, seq=replace(renamed, position=30))
    old = replace(entry(10), doubtful=1)
    ledger = SimpleNamespace(
        read=lambda _alive: old,
        since=lambda _offset, _alive, *, committed: [] if committed else [Entry(first, (EVENTS,))],
    )
    looker = clearance_of(Log({EVENTS: [25]}), ledger=ledger)
    monkeypatch.setattr(looker._openings, "seq", lambda _: replace(renamed, position=25))
    monkeypatch.setattr(looker._hanging, "note", lambda *_: None)
    monkeypatch.setattr(looker, "_notary", lambda _: nullcontext())
    assert looker.caught_up([], row, (), lambda: True) == first


def waiting(looking: Callable[[], object]) -> None:
    """It says that somebody else has to end a transaction, and does not ask for a claim that ends it."""
    with pytest.raises(Interrupted, match="stands open at offset 0 of topic events, partition 0") as caught:
        looking()
    assert not isinstance(caught.value, Unsettled)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("step", ["examine", "tend", "leave"])
def test_a_forgotten_transaction_behind_an_open_one_of_somebody_else_is_not_taken_for_ended(
    step: str,
) -> None:
    """The next marker would decide about it; and nobody looks once its name is left."""
    log = Log({EVENTS: [THEIRS, 3, 5]})
    looker = clearance_of(log)
    looker.examine({EVENTS}, lambda: True)
    log.stable[EVENTS] = 0
    looker._inquiry.complaints.heard = 1
    steps: dict[str, Callable[[], None]] = {
        "examine": lambda: looker.examine({EVENTS}, lambda: True),
        "tend": lambda: looker.tend(lambda: True),
        "leave": lambda: looker.leave(lambda: True),
    }
    waiting(steps[step])
    looker._look_at = 0.0
    waiting(steps[step])
    log.stable[EVENTS], looker._look_at = 1, 0.0
    with pytest.raises(Unsettled):
        steps[step]()
    del log.stable[EVENTS]
    looker._look_at = 0.0
    steps[step]()
    assert EVENTS in looker._clean


@pytest.mark.usefixtures("at_once")
def test_an_open_transaction_of_somebody_else_holds_up_nothing_where_the_shard_wrote_nothing_behind_it() -> (
    None
):
    clearance_of(Log({EVENTS: [3, THEIRS, THEIRS]}, {EVENTS: 1})).examine({EVENTS}, lambda: True)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("elsewhere", ["its record names it", "it wrote there earlier"])
def test_two_shards_that_stand_before_each_other_do_not_wait_for_each_other(
    elsewhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each ends its own where it stands first, and waits for the other only then."""
    named = elsewhere == "its record names it"
    last = entry(10, EVENTS, OTHERS) if named else entry(10, EVENTS)
    log = Log({EVENTS: [THEIRS, 3], OTHERS: [5, THEIRS]}, {EVENTS: 0, OTHERS: 0})
    looker = clearance_of(log, ledger=SimpleNamespace(read=lambda _alive: last))
    ended: list[Target] = []
    monkeypatch.setattr(looker._hanging, "mend", lambda _entry, hung, *_: ended.extend(hung))
    monkeypatch.setattr(looker, "_notary", lambda _: nullcontext())
    waiting(lambda: looker.caught_up([], None, () if named else [OTHERS], lambda: True))
    assert ended == [OTHERS]


@pytest.mark.usefixtures("at_once")
def test_nothing_is_committed_behind_one_that_somebody_else_s_open_transaction_hides() -> None:
    marks: dict[Target, list[int | None]] = {EVENTS: [THEIRS, 3, 9, 12], PROGRESS: [10, 20]}
    waiting(lambda: follow(Log(marks, {EVENTS: 0, PROGRESS: 1})))
    follow(Log({**marks, EVENTS: [3, 9, THEIRS, 12]}, {EVENTS: 2, PROGRESS: 1}))


@pytest.mark.usefixtures("at_once")
def test_what_somebody_else_s_open_transaction_hides_is_not_judged() -> None:
    """It was committed, and would go out again: both were to be seen once that transaction has ended."""
    log = Log({EVENTS: [THEIRS, 5]}, {EVENTS: 0})
    judge = hanging_of(log)
    waiting(lambda: judge.furthest(entry(0), [entry(10, EVENTS)], lambda: True))
    del log.stable[EVENTS]
    assert judge.furthest(entry(0), [entry(10, EVENTS)], lambda: True) == entry(10, EVENTS)


@pytest.mark.usefixtures("at_once")
def test_what_somebody_else_s_open_transaction_hides_is_not_sent_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = Log({EVENTS: [3, THEIRS, 5]}, {EVENTS: 0})
    log.aborted.add((EVENTS, 0))
    looker = hanging_of(log)
    sent: list[bytes] = []
    monkeypatch.setattr(
        hanging, "_ended", lambda _client, records, *_, **__: sent.extend(r["value"] for r in records)
    )
    owing = replace(entry(10), owed=(Owed(*EVENTS, 0),))
    mend = partial(looker.mend, owing, {}, [cast(Producer, None)], cast(Producer, None), lambda: True)
    log.stable[EVENTS] = 1
    with pytest.raises(Interrupted, match="stands open at offset 1"):
        mend()
    assert sent == []
    del log.stable[EVENTS]
    mend()
    assert sent == [encoded(entry(3)), encoded(entry(10, EVENTS))]


@pytest.mark.usefixtures("at_once")
def test_what_hangs_is_ended_before_it_is_judged_what_lies_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """1–10 is forgotten where 11–20, whose own record is, was committed: both would go out again."""
    log = Log({EVENTS: [5, 15]}, {EVENTS: 0})
    doubt = replace(entry(0), doubtful=0)
    ledger = SimpleNamespace(
        read=lambda _alive: doubt,
        since=lambda _offset, _alive, *, committed: (
            [] if committed else [entry(10, EVENTS), entry(20, EVENTS)]
        ),
    )
    looker = clearance_of(log, ledger=ledger)
    noted: list[Entry] = []
    monkeypatch.setattr(looker._hanging, "note", lambda found, *_: noted.append(found))
    monkeypatch.setattr(looker, "_notary", lambda _: nullcontext())
    repaid: list[Entry] = []
    monkeypatch.setattr(looker._hanging, "_repay", lambda found, *_: repaid.append(found))

    def end(hung: dict[Target, int], *_: Any) -> None:
        assert noted == [replace(doubt, owed=(Owed(*EVENTS, 0),))]
        log.stable.clear()
        log.aborted |= {*hung.items()}

    monkeypatch.setattr(looker._hanging, "_end", end)
    assert looker.caught_up([], None, (), lambda: True) == entry(20).recorded
    assert repaid == [Entry(entry(20).recorded, (EVENTS,), (Owed(*EVENTS, 0),))]
