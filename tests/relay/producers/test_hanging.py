"""A forgotten transaction: what it hid is judged by its own events, and nothing overtakes it."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from outbox.record import SEQ, Seq
from relay.producers import hanging
from relay.producers.clearance import Clearance
from relay.producers.delivery import Recorded, Target, Unsettled
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

    def ends(self, targets: list[Target], level: Any) -> dict[Target, int]:
        self.asked = True
        found = {target: len(self.marks.get(target, [])) for target in targets}
        if level == READ_COMMITTED:
            found |= {target: end for target, end in self.stable.items() if target in found}
        return found

    def rest(self) -> None: ...

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


def follow(log: Log, *, complaints: int = 1) -> None:
    """About to commit 11–20 behind 1–10; both wrote to the partition of events. A broker was missed."""
    inquiry = Inquiry({}, listen=lambda: None, stopping=lambda: False)
    inquiry.complaints.heard = complaints
    ledger = SimpleNamespace(topic=PROGRESS[0], shard=PROGRESS[1])
    clearance = Clearance(cast(Ranges, log), cast(Ledger, ledger), inquiry, notary=lambda: cast(Line, None))
    clearance._hanging.sources.add("s")
    clearance.follow(entry(10).recorded, {EVENTS}, lambda: True)


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
