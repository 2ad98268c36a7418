"""A tombstone travels as any event does: in its key's order, to the handlers that ask for it."""

from sqlalchemy import Engine
from sqlalchemy.orm import Session, sessionmaker

from outbox import Event, Outbox, Tombstone
from outbox.consumer import Consumer, Record
from tests.consumer.stage import eventually, running
from tests.relay.conftest import StartRelay
from tests.relay.scene import Scene


class ThingKept(Event, name="tests.kept", version=1, aggregate="thing", key="thing_id"):
    thing_id: int
    state: str


def test_a_tombstone_leaves_behind_its_keys_events_and_arrives_as_none(
    scene: Scene, engine: Engine, start: StartRelay
) -> None:
    outbox = Outbox(sessionmaker(engine))
    with outbox.sessions.begin() as session:
        outbox.emit(session, ThingKept(thing_id=7, state="new"), topic=scene.topic)
        gone = outbox.emit(session, Tombstone(ThingKept, key=7), topic=scene.topic, headers={"why": "asked"})
        outbox.emit(session, ThingKept(thing_id=7, state="again"), topic=scene.topic)
    start()
    scene.wait_until_through()
    assert scene.complaints() == []
    tombstone = next(record for record in scene.arrived() if record.value is None)
    assert (tombstone.key, tombstone.id) == (b"7", str(gone))
    assert {"type": b"tests.kept.v1", "why": b"asked"}.items() <= dict(tombstone.headers).items()

    got: list[tuple[bytes | None, str | None]] = []
    consumer = Consumer(
        group=scene.topic, sessions=outbox.sessions, kafka={"bootstrap.servers": scene.bootstrap}
    )

    @consumer.on(ThingKept, topic=scene.topic, tombstones=True)
    def keep(session: Session, event: ThingKept | None, record: Record) -> None:
        got.append((record.key, None if event is None else event.state))

    with running(consumer):
        eventually(lambda: len(got) == 3)
    assert got == [(b"7", "new"), (b"7", None), (b"7", "again")]
