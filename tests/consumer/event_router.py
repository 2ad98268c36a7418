"""Records of a real Debezium Event Router, of every shape it can give them; kept as bytes for the tests.

make event-router                   compare what it writes now with what is kept
make event-router ARGS="--record"   keep what it writes now
"""

import base64
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

import psycopg
from confluent_kafka import Consumer, Message, TopicPartition

from benchmarks.child import Child
from benchmarks.peers.debezium import JARS
from outbox.storage import ddl
from outbox.testing.servers import jars, start_kafka, start_postgres
from tests.conftest import create_engine

KEPT = Path(__file__).with_name("event_router.json")

ID = "0190f4d4-5a7e-7000-8000-00000000000{n}"
PAYLOAD = '{"order": "4711", "total": 12345678901234567.89, "note": "für \\"Ann\\" – ✓"}'

JSON = {"value.converter": "org.apache.kafka.connect.json.JsonConverter"}
SCHEMAS = {**JSON, "value.converter.schemas.enable": "true"}
PLAIN = {**JSON, "value.converter.schemas.enable": "false"}
EXPAND = {"transforms.outbox.table.expand.json.payload": "true"}
BESIDE = {"transforms.outbox.table.fields.additional.placement": "type:envelope:eventType"}

SHAPES: dict[str, dict[str, str]] = {
    "text": {"value.converter": "org.apache.kafka.connect.storage.StringConverter"},
    "json string": PLAIN,
    "json string, schemas": SCHEMAS,
    "expanded": {**PLAIN, **EXPAND},
    "expanded, schemas": {**SCHEMAS, **EXPAND},
    "type beside": {**PLAIN, **BESIDE},
    "type beside, schemas": {**SCHEMAS, **BESIDE},
    "type beside, expanded": {**PLAIN, **BESIDE, **EXPAND},
    "json headers and key": {
        **PLAIN,
        "header.converter": "org.apache.kafka.connect.json.JsonConverter",
        "header.converter.schemas.enable": "true",
        "key.converter": "org.apache.kafka.connect.json.JsonConverter",
    },
    "our table": {"value.converter": "org.apache.kafka.connect.converters.ByteArrayConverter"},
    "our table, json": PLAIN,
    "our table, json, schemas": SCHEMAS,
    "tombstones": {
        "value.converter": "org.apache.kafka.connect.storage.StringConverter",
        "transforms.outbox.route.tombstone.on.empty.payload": "true",
    },
}
"""What differs between connectors; the ones of "our table" read outbox_event, whose payload is bytea."""

WORKER = """
bootstrap.servers={bootstrap}
key.converter=org.apache.kafka.connect.storage.StringConverter
value.converter=org.apache.kafka.connect.storage.StringConverter
offset.storage.file.filename={directory}/offsets
plugin.discovery=hybrid_warn
listeners=http://127.0.0.1:0
"""

CONNECTOR = {
    "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
    "tasks.max": "1",
    "plugin.name": "pgoutput",
    "publication.autocreate.mode": "disabled",
    "snapshot.mode": "no_data",
    "tombstones.on.delete": "false",
    "transforms": "outbox",
    "transforms.outbox.type": "io.debezium.transforms.outbox.EventRouter",
    "transforms.outbox.table.field.event.key": "aggregateid",
    "transforms.outbox.table.fields.additional.placement": "type:header:eventType",
}

TABLE = """
CREATE TABLE debezium_outbox (
    id uuid PRIMARY KEY, aggregatetype text NOT NULL, aggregateid text NOT NULL, type text NOT NULL,
    payload jsonb)
"""
ROWS = f"""
WITH given (id, key, type, payload) AS (VALUES
    ('{ID.format(n=1)}'::uuid, '4711', 'order.placed.v1', '{PAYLOAD}'),
    ('{ID.format(n=2)}'::uuid, '4711', 'OrderPlaced', '{PAYLOAD}'),
    ('{ID.format(n=3)}'::uuid, '4711', 'OrderPlaced', NULL)
), theirs AS (
    INSERT INTO debezium_outbox SELECT id, 'order', key, type, payload::jsonb FROM given
)
INSERT INTO outbox_event (id, aggregatetype, aggregateid, type, payload)
SELECT id, 'order', key, type, convert_to(payload, 'UTF8') FROM given
"""

RECORDS = 3
"""Of each shape: our name of the type, theirs, and an event without a payload."""

Records = list[dict[str, Any]]


def kept() -> dict[str, Records]:
    """The records of each shape, as they were recorded."""
    return {shape: found["records"] for shape, found in json.loads(KEPT.read_text())["shapes"].items()}


def produced() -> dict[str, Records]:
    """The same from a Debezium that runs now."""
    logical = {"wal_level": "logical", "max_replication_slots": "20", "max_wal_senders": "20"}
    with start_postgres(logical) as postgres, start_kafka(own=True) as kafka, TemporaryDirectory() as work:
        url = postgres.database("shop")
        engine = create_engine(url)
        with engine.begin() as connection:
            ddl.apply(connection)
        engine.dispose()
        with psycopg.connect(url, autocommit=True) as session:
            session.execute(TABLE)
            for name, table in (("theirs", "debezium_outbox"), ("ours", "outbox_event")):
                session.execute(
                    f"CREATE PUBLICATION {name} FOR TABLE {table} "
                    "WITH (publish = 'insert', publish_via_partition_root = true)".encode()
                )
            for number in range(len(SHAPES)):
                kafka.create_topic(_topic(number), partitions=1)
            files = _configured(Path(work), url, kafka.bootstrap)
            options = ["-Xmx1g", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"]
            program = "org.apache.kafka.connect.cli.ConnectStandalone"
            with Child(jars.java(), *options, "-cp", f"{JARS}/*", program, *map(str, files)) as running:
                _wait_for_slots(session, running)
                session.execute(ROWS.encode())
                return {shape: _read(kafka.bootstrap, _topic(n), running) for n, shape in enumerate(SHAPES)}


def _topic(number: int) -> str:
    return f"shape{number}"


def _configured(work: Path, url: str, bootstrap: str) -> list[Path]:
    """The worker's file and one for each connector."""
    parts = urlsplit(url)
    worker = work / "worker.properties"
    worker.write_text(WORKER.format(bootstrap=bootstrap, directory=work))
    files = [worker]
    for number, (shape, own) in enumerate(SHAPES.items()):
        ours = shape.startswith("our table")
        settings: Mapping[str, Any] = {
            "name": f"shape{number}",
            "topic.prefix": f"prefix{number}",
            "slot.name": f"slot{number}",
            "database.hostname": parts.hostname,
            "database.port": parts.port,
            "database.user": parts.username,
            "database.password": parts.password or "",
            "database.dbname": parts.path.lstrip("/"),
            "publication.name": "ours" if ours else "theirs",
            "table.include.list": "public.outbox_event" if ours else "public.debezium_outbox",
            "transforms.outbox.route.topic.replacement": _topic(number),
            **CONNECTOR,
            **own,
        }
        file = work / f"connector{number}.properties"
        file.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        files.append(file)
    return files


def _wait_for_slots(session: psycopg.Connection[Any], running: Child) -> None:
    for _ in range(1200):
        running.check()
        active = session.execute("SELECT count(*) FROM pg_replication_slots WHERE active").fetchone()
        if active == (len(SHAPES),):
            return
        session.execute("SELECT pg_sleep(0.1)")
    raise running.failed(f"did not begin to read {len(SHAPES)} slots within two minutes")


def _read(bootstrap: str, topic: str, running: Child) -> Records:
    """All that one shape's connector sent."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": topic, "auto.offset.reset": "earliest"})
    consumer.assign([TopicPartition(topic, 0, 0)])
    found: Records = []
    end = time.monotonic() + 120
    while len(found) < RECORDS and time.monotonic() < end:
        message = consumer.poll(1.0)
        if message is not None and message.error() is None:
            found.append(_record(message))
    consumer.close()
    if len(found) < RECORDS:
        raise running.failed(f"wrote {len(found)} records of {RECORDS} to {topic} within two minutes")
    return found


def _record(message: "Message[bytes, bytes]") -> dict[str, Any]:
    headers: Any = message.headers() or ()
    return {
        "topic": message.topic(),
        "key": _encoded(message.key()),
        "value": _encoded(message.value()),
        "headers": [[name, _encoded(value)] for name, value in headers],
    }


def _encoded(value: bytes | None) -> str | None:
    """Readable where it is text, base64 otherwise."""
    if value is None:
        return None
    try:
        return "text:" + value.decode()
    except UnicodeDecodeError:
        return "base64:" + base64.b64encode(value).decode()


def decoded(value: str | None) -> bytes | None:
    """What `_encoded` wrote."""
    if value is None:
        return None
    kind, _, text = value.partition(":")
    return text.encode() if kind == "text" else base64.b64decode(text)


def _lasting(records: Records) -> Records:
    """Without the header that names the run."""
    return [
        {**record, "headers": [header for header in record["headers"] if not header[0].endswith(".runId")]}
        for record in records
    ]


def _version(artifact: str) -> str:
    """The version in the name of its jar."""
    (jar,) = JARS.glob(f"{artifact}-[0-9]*.jar")
    return jar.stem.removeprefix(f"{artifact}-")


def _document(found: Mapping[str, Records]) -> dict[str, Any]:
    """What is kept: the records beside all that they depend on."""
    return {
        "debezium": _version("debezium-connector-postgres"),
        "connect": _version("connect-runtime"),
        "settings": CONNECTOR,
        "shapes": {shape: {"settings": own, "records": found[shape]} for shape, own in SHAPES.items()},
    }


def main(arguments: list[str]) -> int:
    found = produced()
    if "--record" in arguments:
        KEPT.write_text(json.dumps(_document(found), indent=1, ensure_ascii=False) + "\n")
        return 0
    known = kept()
    differing = [shape for shape in SHAPES if _lasting(found[shape]) != _lasting(known.get(shape, []))]
    for shape in differing:
        print(f"{shape}: {found[shape]} instead of {known.get(shape)}")  # noqa: T201
    print(f"{len(SHAPES) - len(differing)} of {len(SHAPES)} shapes are as they are kept")  # noqa: T201
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
