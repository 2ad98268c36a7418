"""Deliberately wrong consumers: each lacks one guarantee, so that its test is known to be able to fail."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Connection, text

from outbox.consumer import batch, claim, partition, release
from outbox.consumer.identity import TopicIdentity
from outbox.consumer.partition import Arrival, Partition
from outbox.consumer.place import move
from outbox.consumer.record import Polled
from outbox.consumer.watermark import Marks

Patch = Callable[[pytest.MonkeyPatch], None]


def no_epoch(patch: pytest.MonkeyPatch) -> None:
    """The batch's compare-and-set forgets who owns the partition."""
    patch.setattr(batch, "ADVANCE", _without(batch.ADVANCE.text, "AND owner_epoch = :epoch"))


def no_comparison(patch: pytest.MonkeyPatch) -> None:
    """The batch overwrites the offset whatever it is."""
    statement = _without(batch.ADVANCE.text, "AND next_offset = :expected AND owner_epoch = :epoch")
    patch.setattr(batch, "ADVANCE", statement)


def offset_apart(patch: pytest.MonkeyPatch) -> None:
    """The offset is committed in a transaction of its own, before the results."""
    advance = batch.BatchRunner._advance

    def apart(self: batch.BatchRunner, _connection: Connection, *rest: Any) -> bool:
        with self.database.engine.begin() as other:
            return advance(self, other, *rest)

    patch.setattr(batch.BatchRunner, "_advance", apart)


def no_marks(patch: pytest.MonkeyPatch) -> None:
    """Nothing is ever a repeat."""

    def admit(_self: Marks, _seq: bytes) -> bool:
        return True

    patch.setattr(Marks, "admit_encoded", admit)


def believes_jumps(patch: pytest.MonkeyPatch) -> None:
    """The first record after positioning counts whatever its offset is."""
    arrive = partition.Partition.arrive

    def believe(self: Partition, message: Polled, offset: int) -> Arrival:
        self.fresh = False
        return arrive(self, message, offset)

    patch.setattr(Partition, "arrive", believe)


def trusts_names(patch: pytest.MonkeyPatch) -> None:
    """A topic is taken for what its name says."""

    def agrees(_self: TopicIdentity, _other: TopicIdentity) -> bool:
        return True

    patch.setattr(TopicIdentity, "agrees", agrees)
    statement = claim.CLAIM.text.replace("AND (topic_id = :topic_id) IS NOT FALSE", "")
    patch.setattr(claim, "CLAIM", text(statement))


def marks_emptied(patch: pytest.MonkeyPatch) -> None:
    """A moved partition begins with no marks at all."""
    statement = move.MOVE.text.replace("CASE WHEN :run_up OR run_up IS NOT NULL THEN -1 END", "NULL")
    patch.setattr(
        move, "MOVE", text(statement.replace("CASE WHEN :empty THEN '{}' ELSE sources END", "'{}'"))
    )


def marks_kept(patch: pytest.MonkeyPatch) -> None:
    """A moved partition keeps the marks it had."""
    statement = move.MOVE.text.replace("CASE WHEN :run_up OR run_up IS NOT NULL THEN -1 END", "NULL")
    patch.setattr(move, "MOVE", _without(statement, "sources = CASE WHEN :empty THEN '{}' ELSE sources END,"))


def all_forgotten(patch: pytest.MonkeyPatch) -> None:
    """A seek drops every parked record, also those that are not read again."""
    patch.setattr(move, "FORGET", _without(move.FORGET.text, "AND record_offset >= :to"))


def none_forgotten(patch: pytest.MonkeyPatch) -> None:
    """A seek keeps every parked record, also those that are read again."""
    patch.setattr(move, "FORGET", text(f"{move.FORGET.text} AND false"))


def waits_for_ever(patch: pytest.MonkeyPatch) -> None:
    """A claim leaves whoever blocks it alone."""

    def nothing(_self: release.Release) -> None:
        return None

    patch.setattr(release.Release, "_look", nothing)


def repeats_unknown(patch: pytest.MonkeyPatch) -> None:
    """An unknown outcome counts as a failure: the batch is run again as it is."""
    patch.setattr(batch, "outcome_is_unknown", lambda _error: False)


def apply(name: str) -> None:
    """For a process that ends broken."""
    patch: Patch = globals()[name]
    patch(pytest.MonkeyPatch())


@contextmanager
def variant(patch: Patch) -> Iterator[None]:
    """Broken while inside."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        patch(monkeypatch)
        yield


def _without(statement: str, part: str) -> Any:
    assert part in statement
    return text(statement.replace(part, ""))
