"""The Python relays, each in a process of its own in .venv.peers, on rows copied from the outbox."""

from pathlib import Path

import psycopg

from benchmarks.backlog import Arrivals, fill
from benchmarks.child import Child
from benchmarks.drain import WARM, Drained, watch
from benchmarks.place import Place

PYTHON = Path(".venv.peers/bin/python")

COPY = {
    "txoutbox": """
INSERT INTO txoutbox (topic, key, payload, headers)
SELECT topic, aggregateid, payload, jsonb_build_object('id', id, 'type', type)
FROM outbox_event WHERE position > %s ORDER BY position
""",
    "faststream": """
INSERT INTO faststream_outbox (queue, payload, headers)
SELECT 'orders', payload, jsonb_build_object('id', id, 'type', type,
    'content-type', 'application/octet-stream', 'correlation_id', id)
FROM outbox_event WHERE position > %s ORDER BY position
""",
}
"""The same rows in the peer's own table."""


def drain(place: Place, peer: str, events: int) -> Drained:
    """A peer that is warm and idle finds `events` committed at once."""
    program = str(Path(__file__).with_name(f"{peer}_relay.py"))
    with place.database() as url, place.topic() as topic:
        arrivals = Arrivals(place.kafka.bootstrap, topic)
        with (
            Child(str(PYTHON), program, url, place.kafka.bootstrap, topic) as running,
            psycopg.connect(url, autocommit=True) as connection,
        ):
            running.hear()
            fill(url, topic, WARM)
            connection.execute(COPY[peer].encode(), (0,))
            arrivals.wait(WARM)
            fill(url, topic, events, first=WARM)
            connection.execute(COPY[peer].encode(), (WARM,))
            return watch(running, arrivals, WARM, events)
