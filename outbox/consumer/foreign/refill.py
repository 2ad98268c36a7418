"""What a run-up remembers beside the marks: the ids of foreign records that stand before the place."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import Connection

from outbox.consumer.claim import Claim
from outbox.consumer.foreign.inbox import Ids, Inbox
from outbox.consumer.record import Polled
from outbox.consumer.sift import Sieve


@dataclass(frozen=True, slots=True)
class Refill:
    """Fills the inbox again, whose older ids are gone."""

    inbox: Inbox
    sieve: Sieve

    def span(self, topic: str) -> timedelta | None:
        """For how long ids of the topic are needed; None: never."""
        return self.inbox.window(topic)

    def prepare(self, claim: Claim) -> None:
        """Before the first record."""
        self.inbox.prepare([claim])

    def add(self, connection: Connection, claim: Claim, records: Sequence[Polled]) -> None:
        """Remember these, in the transaction that stores how far the run-up is. Repeatable."""
        self.inbox.admit(connection, [Ids(claim, self.sieve.ids(claim.topic, records))])
