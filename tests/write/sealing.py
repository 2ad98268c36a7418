"""Writers that record the event before they lock what it is about, and in which order theirs would leave."""

import threading
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import psycopg
from sqlalchemy import Engine, make_url, text

EVENT = """
INSERT INTO {table} (id, aggregatetype, aggregateid, type) VALUES (gen_random_uuid(), 'zone', %s, 'zone.v1')
RETURNING id
"""
CHANGE = "UPDATE zones SET balance = balance + 1 WHERE id = %s RETURNING balance"

WRITERS = 4
ZONES = 2


def inversions(engine: Engine, *, table: str, rounds: int) -> tuple[int, int]:
    """Let writers contend, each `rounds` times; how many events of a zone follow a later one, of how many."""
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO zones SELECT n, 0 FROM generate_series(1, :n) n"), {"n": ZONES})
    took_effect: dict[str, int] = {}
    begin = threading.Barrier(WRITERS)

    def write(number: int) -> None:
        url = make_url(engine.url.render_as_string(hide_password=False)).set(drivername="postgresql")
        with psycopg.connect(url.render_as_string(hide_password=False)) as session:
            begin.wait(20)
            for turn in range(rounds):
                zone = (number + turn) % ZONES + 1
                event = session.execute(EVENT.format(table=table).encode(), [str(zone)]).fetchone()
                balance = session.execute(CHANGE, [zone]).fetchone()
                session.commit()
                assert event is not None
                assert balance is not None
                took_effect[str(event[0])] = balance[0]

    with ThreadPoolExecutor(WRITERS) as threads:
        for done in [threads.submit(write, n) for n in range(WRITERS)]:
            done.result(timeout=100)
    lines = defaultdict(list)
    with engine.connect() as connection:
        for id_, key in connection.execute(
            text("SELECT id::text, aggregateid FROM outbox_event ORDER BY position")
        ):
            lines[key].append(took_effect[id_])
    assert sum(map(len, lines.values())) == WRITERS * rounds
    return sum(a > b for line in lines.values() for a, b in pairwise(line)), WRITERS * rounds
