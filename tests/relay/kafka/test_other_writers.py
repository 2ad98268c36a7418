"""What others write into the table is carried unchanged, byte for byte."""

import os

from tests.relay import wire
from tests.relay.conftest import StartRelay
from tests.relay.scene import Scene

FIVE = """
INSERT INTO outbox_event (id, aggregatetype, aggregateid, type, payload)
VALUES (gen_random_uuid(), %(aggregatetype)s, %(key)s, 'Any Type: ü', %(payload)s) RETURNING id::text
"""
SEALED = FIVE.replace("outbox_event", "outbox_sealed")


def test_rows_with_debeziums_five_columns_arrive_as_they_were_written(
    scene: Scene, start: StartRelay
) -> None:
    prefix = "outbox.event."
    aggregatetype = scene.topic.replace(".", "-")
    scene.topic = prefix + aggregatetype
    from confluent_kafka.admin import AdminClient, NewTopic

    admin = AdminClient({"bootstrap.servers": scene.bootstrap})
    admin.create_topics([NewTopic(scene.topic, 6, 1)])[scene.topic].result(20)
    written = {}
    for key, payload in (
        ("k", bytes(range(256))),
        ("k", b'{"json":  "as it is \\u00fc"}'),
        ("k", b""),
        ("k", None),
        (None, os.urandom(1000)),
        ("", b"empty key"),
        ("schlüssel", b"x"),
    ):
        for statement in (FIVE, SEALED):
            values = {"aggregatetype": aggregatetype, "key": key, "payload": payload}
            row = scene.session.execute(statement, values).fetchone()
            assert row is not None
            written[row[0]] = (None if key is None else key.encode(), payload)
    start()
    scene.wait_until_through()
    records = wire.read(scene.bootstrap, scene.topic)
    assert {record.id: (record.key, record.value) for record in records} == written
    assert {dict(record.headers)["type"] for record in records} == {"Any Type: ü".encode()}
    assert wire.complaints(records, scene.committed()) == []
    admin.delete_topics([scene.topic])[scene.topic].result(20)
