"""Debezium on Kafka Connect: one warm process that carries one database's outbox table."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

import psycopg

from benchmarks.backlog import Arrivals, fill
from benchmarks.child import Child
from benchmarks.drain import WARM, Drained, watch
from benchmarks.place import Place
from outbox.testing.servers import jars

JARS = Path(".venv.peers/jars")

PART = 1_000
"""Events of one transaction of the backlog."""

WORKER = """
bootstrap.servers={bootstrap}
key.converter=org.apache.kafka.connect.storage.StringConverter
value.converter=org.apache.kafka.connect.converters.ByteArrayConverter
offset.storage.file.filename={directory}/offsets
offset.flush.interval.ms=1000
plugin.discovery=hybrid_warn
listeners=http://127.0.0.1:0
connector.client.config.override.policy=All
producer.compression.type=lz4
producer.linger.ms=5
producer.batch.size=262144
producer.buffer.memory=67108864
producer.acks=all
producer.enable.idempotence=true
producer.max.in.flight.requests.per.connection=5
"""

CONNECTOR = """
name=outbox
connector.class=io.debezium.connector.postgresql.PostgresConnector
tasks.max=1
database.hostname={hostname}
database.port={port}
database.user={username}
database.password={password}
database.dbname={database}
topic.prefix=bench
plugin.name=pgoutput
publication.name=bench
publication.autocreate.mode=disabled
slot.name=bench
snapshot.mode=no_data
table.include.list=public.outbox_event
column.include.list=public.outbox_event.(id|aggregatetype|aggregateid|type|payload|topic)
binary.handling.mode=bytes
tombstones.on.delete=false
extended.headers.enabled=false
max.batch.size=16384
max.queue.size=65536
poll.interval.ms=10
transforms=outbox
transforms.outbox.type=io.debezium.transforms.outbox.EventRouter
transforms.outbox.route.by.field=topic
transforms.outbox.route.topic.replacement=${{routedByValue}}
transforms.outbox.table.field.event.key=aggregateid
transforms.outbox.table.fields.additional.placement=type:header
"""

PUBLICATION = (
    "CREATE PUBLICATION bench FOR TABLE outbox_event "
    "WITH (publish = 'insert', publish_via_partition_root = true)"
)


class Debezium:
    """A connector that has carried `carried` events so far."""

    def __init__(self, url: str, topic: str, running: Child, arrivals: Arrivals) -> None:
        self._url, self._topic, self._running, self._arrivals = url, topic, running, arrivals
        self._carried = 0

    def warm(self, events: int) -> None:
        """Until its code is compiled; the first one waits for the connector to begin."""
        self._arrivals.wait(self._carry(WARM), within=120)
        self._arrivals.wait(self._carry(events), within=600)
        self._running.freeze()

    def drain(self, events: int) -> Drained:
        """It stands still while others are measured and while its backlog gathers."""
        self._running.thaw()
        self._arrivals.wait(self._carry(events // 10))
        self._running.freeze()
        before = self._carried
        # In many transactions: one large one would be decoded before it is committed.
        for _ in range(events // PART):
            self._carry(PART)
        self._running.thaw()
        found = watch(self._running, self._arrivals, before, self._carried - before)
        self._running.freeze()
        return found

    def _carry(self, events: int) -> int:
        fill(self._url, self._topic, events, first=self._carried)
        self._carried += events
        return self._carried


@contextmanager
def debezium(place: Place) -> Iterator[Debezium]:
    """Kafka Connect with one connector, begun, on a database and a topic of its own."""
    with place.database() as url, place.topic() as topic, TemporaryDirectory() as directory:
        parts = urlsplit(url)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(PUBLICATION)
        worker, connector = Path(directory, "worker.properties"), Path(directory, "connector.properties")
        worker.write_text(WORKER.format(bootstrap=place.kafka.bootstrap, directory=directory))
        connector.write_text(
            CONNECTOR.format(
                hostname=parts.hostname,
                port=parts.port,
                username=parts.username,
                password=parts.password or "",
                database=parts.path.lstrip("/"),
            )
        )
        options = ["-Xms512m", "-Xmx1g", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"]
        program = "org.apache.kafka.connect.cli.ConnectStandalone"
        command = [jars.java(), *options, "-cp", f"{JARS}/*", program, str(worker), str(connector)]
        with Child(*command) as running:
            _await_slot(url, running)
            yield Debezium(url, topic, running, Arrivals(place.kafka.bootstrap, topic))
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("SELECT pg_drop_replication_slot('bench')")


def _await_slot(url: str, running: Child) -> None:
    """What is committed before the slot is active would not be carried."""
    with psycopg.connect(url, autocommit=True) as connection:
        for _ in range(600):
            running.check()
            active = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'bench' AND active"
            if connection.execute(active).fetchone() == (1,):
                return
            connection.execute("SELECT pg_sleep(0.1)")
    raise running.failed("did not begin to read within a minute")
