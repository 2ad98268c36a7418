"""Waiting for a standby that is away: nothing is sent, and that is said once, not at every look."""

import logging
import time

import pytest

from outbox.storage.roles import Roles, statements
from tests.relay.database.half import Session, shard, write
from tests.relay.database.memory_broker import MemoryBroker

LASTS = 2.5
"""Seconds that the standby is away: long enough for a complaint that counts them to be another twice."""


def test_a_standby_that_stays_away_is_complained_of_once(
    database: str, writer: Session, broker: MemoryBroker, caplog: pytest.LogCaptureFixture
) -> None:
    for statement in statements(Roles(standbys=True)):
        writer.execute(statement.encode())
    write(writer, 3)
    carrying = shard(database, broker, wait_for_standby="nobody", standby_patience=0.1)
    end = time.monotonic() + LASTS
    carrying._supervision.stopping = lambda: time.monotonic() > end
    with caplog.at_level(logging.WARNING, "relay.shard"):
        while time.monotonic() < end:
            carrying.run_once()
    said = [record.getMessage() for record in caplog.records if "did not flush" in record.getMessage()]
    assert len(said) == 1, said
    assert said[0].startswith("nobody did not flush the plan of delta ")
    assert said[0].endswith(" within 0.1 s; nothing is sent until they do")
    assert broker.log == []
    carrying.let_go()
