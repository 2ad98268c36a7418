"""Drop what a foreign producer sends again: the ids of its records are kept for a while, in the batch's
transaction.

The offset alone tells whether a record was read before; it does not tell that its producer, which knows no
exactly-once, appended the same event twice. A record is a repeat if and only if its id stands at a lower
offset of the same partition, so that one that is read again (a rebalance, a seek) is no repeat of itself.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from sqlalchemy import Connection, Engine, text

from outbox.consumer.claim import Claim
from outbox.consumer.handlers import Run
from outbox.consumer.record import Polled

# Promise: which of these ids stand at a lower offset of their partition; the others are there from now on. In
# the transaction that moves the offset, so that an id is known if and only if its record is done with; one
# statement for all of a transaction's records. Served by the primary key of each leaf.
ADMIT = text("""
SELECT topic, partition, record_offset
FROM consumer_inbox_admit(:grp, CAST(:topics AS text[]), CAST(:partitions AS integer[]),
    CAST(:ids AS text[]), CAST(:offsets AS bigint[]))
""")

# Promise: no leaf is emptied that this partition may need, from before its first id is stored. Served by the
# primary key.
WINDOW = text("""
UPDATE consumer_offset SET inbox_window = CAST(:window AS interval)
WHERE grp = :grp AND topic = :topic AND partition = :partition AND owner_epoch = :epoch
  AND inbox_window IS DISTINCT FROM CAST(:window AS interval)
""")


@dataclass(frozen=True, slots=True)
class Ids:
    """Records of one partition that have an id, by offset."""

    claim: Claim
    found: Sequence[tuple[int, str]]


@dataclass(frozen=True, slots=True)
class Inbox:
    """The ids that one group's members have handled. window: of a topic, None where nothing is dropped."""

    engine: Engine
    window: Callable[[str], timedelta | None]
    _noted: dict[tuple[str, int], int] = field(default_factory=dict)

    def prepare(self, claims: Iterable[Claim]) -> None:
        """Store, once a claim, for how long ids of its partition are needed; before any of them is stored."""
        new = [claim for claim in claims if self._noted.get((claim.topic, claim.partition)) != claim.epoch]
        if not new:
            return
        with self.engine.begin() as connection:
            for claim in new:
                connection.execute(
                    WINDOW,
                    {
                        "grp": claim.group,
                        "topic": claim.topic,
                        "partition": claim.partition,
                        "epoch": claim.epoch,
                        "window": self.window(claim.topic),
                    },
                )
        for claim in new:
            self._noted[claim.topic, claim.partition] = claim.epoch

    @staticmethod
    def admit(connection: Connection, batches: Sequence[Ids]) -> set[tuple[str, int, int]]:
        """Store ids, in the transaction that has moved the offsets behind them; returns which records are
        repeats, as (topic, partition, offset). Also for records that are not handled: those that are parked,
        and those before the place that a seek goes to.
        """
        repeats: set[tuple[str, int, int]] = set()
        rows: list[tuple[str, int, str, int]] = []
        for each in batches:
            topic, partition = each.claim.topic, each.claim.partition
            known: set[str] = set()
            for offset, found in each.found:
                if found in known:
                    repeats.add((topic, partition, offset))
                else:
                    known.add(found)
                    rows.append((topic, partition, found, offset))
        if not rows:
            return repeats
        topics, partitions, ids, offsets = (list(column) for column in zip(*rows, strict=True))
        values = {"topics": topics, "partitions": partitions, "ids": ids, "offsets": offsets}
        found_again = connection.execute(ADMIT, values | {"grp": batches[0].claim.group})
        repeats.update((topic, partition, offset) for topic, partition, offset in found_again)
        return repeats


def without(runs: Sequence[Run], repeats: set[tuple[str, int, int]]) -> tuple[list[Run], int]:
    """The runs less their repeats, and how many these were."""
    if not repeats:
        return list(runs), 0
    kept = [Run(run.route, [m for m in run.messages if _place(m) not in repeats]) for run in runs]
    gone = sum(len(run.messages) for run in runs) - sum(len(run.messages) for run in kept)
    return [run for run in kept if run.messages], gone


def _place(message: Polled) -> tuple[str | None, int | None, int | None]:
    return message.topic(), message.partition(), message.offset()
