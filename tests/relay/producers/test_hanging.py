"""A forgotten transaction: what it hid is judged by its own events, and nothing overtakes it."""

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from outbox.record import SEQ, Seq
from relay.producers import clearance, hanging
from relay.producers.clearance import Clearance
from relay.producers.delivery import Interrupted, Recorded, Target, Unsettled
from relay.producers.entry import Entry, encoded
from relay.producers.hanging import Hanging
from relay.producers.inquiry import Inquiry
from relay.producers.ledger import Ledger
from relay.producers.line import Line
from relay.producers.ranges import READ_COMMITTED, Ranges

PROGRESS, EVENTS, OTHERS = ("progress", 0), ("events", 0), ("others", 0)


class Log:
    """Marks of the shard's records by partition. `stable`: where a read_committed reader stops."""

    def __init__(self, marks: dict[Target, list[int]], stable: dict[Target, int] | None = None) -> None:
        self.marks = marks
        self.stable = stable or {}
        self.asked = False
        self.leaderless: set[Target] = set()
        self.gone: set[Target] = set()

    def ends(self, targets: list[Target], level: Any) -> dict[Target, int]:
        self.asked = True
        found = {target: len(self.marks.get(target, [])) for target in targets}
        if level == READ_COMMITTED:
            found |= {target: end for target, end in self.stable.items() if target in found}
        return found

    def rest(self) -> None: ...

    def known(self, targets: set[Target], *, led: bool = False) -> set[Target]:
        return targets - self.gone - (self.leaderless if led else set())

    def read(self, target: Target, start: int, end: int, **_: Any) -> list[Any]:
        marks = self.marks.get(target, [])[start:end]
        return [
            SimpleNamespace(
                headers=lambda mark=mark: [(SEQ, seq(mark).encode())],
                value=lambda mark=mark: encoded(entry(mark)),
            )
            for mark in marks
        ]


def seq(position: int) -> Seq:
    return Seq("s", 1, 0, 1, position)


def entry(position: int, *into: Target) -> Entry:
    return Entry(Recorded(seq(position), "1:1:", "2:2:"), into)


def furthest(visible: dict[Target, list[int]], known: int, *candidates: Entry) -> int:
    judge = Hanging(cast(Ranges, Log(visible)), place=PROGRESS)
    judge.sources.add("s")
    return judge.furthest(entry(known), candidates, lambda: True).recorded.seq.position


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
    visible: dict[Target, list[int]], candidates: list[Entry], last: int
) -> None:
    assert furthest(visible, 0, *candidates) == last


def clearance_of(log: Log, *, ledger: Any = None, complaints: int = 0) -> Clearance:
    inquiry = Inquiry({}, listen=lambda: None, stopping=lambda: False)
    inquiry.complaints.heard = complaints
    ledger = ledger or SimpleNamespace()
    ledger.topic, ledger.shard = PROGRESS
    looker = Clearance(cast(Ranges, log), cast(Ledger, ledger), inquiry, notary=lambda: cast(Line, None))
    looker._hanging.sources.add("s")
    return looker


def follow(log: Log, *, complaints: int = 1) -> None:
    """About to commit 11–20 behind 1–10; both wrote to the partition of events. A broker was missed."""
    clearance_of(log, complaints=complaints).follow(entry(10).recorded, {EVENTS}, lambda: True)


@pytest.mark.parametrize("hides", [{EVENTS: 1}, {PROGRESS: 0}])
def test_nothing_is_committed_behind_a_forgotten_transaction_that_it_followed(
    hides: dict[Target, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is sent again of that one would come behind it: consumers would take it for repeats."""
    monkeypatch.setattr(hanging, "PATIENCE", 0.1)
    own = {EVENTS: 3, PROGRESS: 1}
    with pytest.raises(Unsettled):
        follow(Log({EVENTS: [3, 5, 9, 12, 15], PROGRESS: [10, 20]}, own | hides))


def test_a_transaction_goes_on_behind_one_that_has_ended_everywhere() -> None:
    follow(Log({EVENTS: [3, 5, 9, 12, 15], PROGRESS: [10, 20]}, {EVENTS: 3, PROGRESS: 1}))


def test_without_a_complaint_nobody_is_asked_whether_the_former_transaction_has_ended() -> None:
    log = Log({EVENTS: [3, 12]}, {EVENTS: 0})
    follow(log, complaints=0)
    assert not log.asked


HIDDEN = {EVENTS: [3, 5], OTHERS: [], PROGRESS: [10]}
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
    monkeypatch.setattr(hanging, "PATIENCE", 0.0)
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
    monkeypatch.setattr(looker._hanging, "_seq", lambda _: replace(renamed, position=25))
    monkeypatch.setattr(looker._hanging, "note", lambda *_: None)
    monkeypatch.setattr(looker, "_notary", lambda _: nullcontext())
    assert looker.caught_up([], row, (), lambda: True) == first
