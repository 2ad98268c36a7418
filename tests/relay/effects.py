"""A real consumer that stores an effect for each event, and what is wrong with what it has stored."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager

import psycopg
import sqlalchemy
from sqlalchemy import text
from sqlalchemy.orm import Session, sessionmaker

from outbox.consumer import Consumer, Record
from tests.consumer.stage import running
from tests.relay.scene import until

TABLE = """
CREATE TABLE effect (n bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, event text, source text)
"""
STORE = text("INSERT INTO effect (event, source) VALUES (:event, :source)")
STORED = "SELECT event, source FROM effect ORDER BY n"


class Effects:
    """In the database of `url`, which has the schema; it may lie on servers that fail over."""

    def __init__(self, url: str, bootstrap: str, topic: str) -> None:
        self._url = url
        self._engine = sqlalchemy.create_engine(
            "postgresql+psycopg://", creator=lambda: psycopg.connect(url, connect_timeout=3)
        )
        with self._engine.begin() as connection:
            connection.execute(text(TABLE))
        self._consumer = Consumer(
            group=f"effects.{topic}",
            sessions=sessionmaker(self._engine),
            kafka={"bootstrap.servers": bootstrap, "session.timeout.ms": 6000, "heartbeat.interval.ms": 500},
            start="earliest",
        )

        @self._consumer.on(topic=topic)
        def store(session: Session, value: bytes, record: Record) -> None:
            assert record.seq is not None
            session.execute(STORE, {"event": str(record.event_id), "source": record.seq.source})

    @contextmanager
    def storing(self) -> Iterator[None]:
        """The consumer is at work while inside."""
        try:
            with running(self._consumer):
                yield
        finally:
            self._engine.dispose()

    def stored(self) -> list[tuple[str, str]]:
        """Event and source of each effect, in the order in which they took place."""
        with psycopg.connect(self._url) as session:
            return session.execute(STORED).fetchall()

    def wait_for(self, events: Collection[str]) -> None:
        """Until each of these has had its effect."""
        wanted = {*events}

        def missing() -> int:
            return len(wanted - {id_ for id_, _ in self.stored()})

        until(lambda: not missing(), 90, lambda: f"{missing()} of {len(wanted)} events have no effect yet")

    def complaints(self, known: Sequence[tuple[str, str | None]], *, exact: bool = True) -> list[str]:
        return complaints(self.stored(), known, exact=exact)


def complaints(
    effects: Iterable[tuple[str, str]], known: Sequence[tuple[str, str | None]], *, exact: bool
) -> list[str]:
    """What is wrong with `effects` (event and source), given the ids and keys of all events in their order.

    Per key nothing is left out and nothing goes back. Unless `exact` it may go back where a new source
    begins, to events that are not known to have been sent, and effects of unknown events are no fault.
    """
    keys: dict[str | None, list[str]] = defaultdict(list)
    place: dict[str, tuple[str | None, int]] = {}
    for id_, key in known:
        place[id_] = key, len(keys[key])
        keys[key].append(id_)
    at, source, wrong = dict.fromkeys(keys, -1), dict.fromkeys(keys, ""), []
    unknown = set()
    for id_, of in effects:
        if id_ not in place:
            unknown.add(id_)
            continue
        key, n = place[id_]
        again = not exact and n <= at[key] and of != source[key]
        if n != at[key] + 1 and not again:
            wrong.append(f"{key}: event {n} of source {of} after event {at[key]} of source {source[key]}")
        at[key], source[key] = n, of
    wrong += [
        f"{key} ends with event {at[key]} of {len(ids) - 1}"
        for key, ids in keys.items()
        if at[key] != len(ids) - 1
    ]
    if exact and unknown:
        wrong.append(f"{len(unknown)} effects of events that are not known")
    return wrong
