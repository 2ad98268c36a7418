"""Have a compacted topic's newest values at hand: a table in memory, rebuilt from Kafka and kept current.

    customers = State(CustomerChanged, kafka={"bootstrap.servers": "..."})

    with customers:                               # its own thread and Kafka client
        customers.wait_ready(timedelta(minutes=1))
        customers["ann"].name                     # the newest CustomerChanged of key ann

It belongs to no consumer group and stores nothing: each process that has one reads the whole topic. It is
behind Kafka by what is on its way, so it is for looking things up, not for deciding what must be exact.
"""

import logging
import threading
from collections.abc import Callable, ItemsView, Iterator, Mapping, ValuesView
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Generic, Literal, TypeVar

from outbox import catalog
from outbox.consumer.figures import ClientFigures
from outbox.consumer.identity import BrokerIdentities
from outbox.consumer.notice import Notice
from outbox.consumer.properties import admin_properties, consumer_properties
from outbox.consumer.record import Polled, enveloped_type, headers_of
from outbox.consumer.state.follow import Follower, Reading
from outbox.errors import ConfigurationError, UndecodableRecord
from outbox.event import Event, is_named
from outbox.record import REPLAY, SEQ, TYPE, Seq
from outbox.upcast import is_newer

log = logging.getLogger(__name__)

E = TypeVar("E", bound=Event)

OnChange = Callable[[str, E | None], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class StateHealth:
    """What a State of these topics is doing.

    ready: has it caught up, and does it go on? While brokers are away it serves what it has, and says so in
    `trouble`. skipped: records that could not be read or are of no type it knows; repeats: records that were
    not newer than what their key holds. lag: offsets not read yet. client: what its Kafka client says of
    itself.
    """

    topics: tuple[str, ...]
    ready: bool
    keys: int
    lag: int
    skipped: int
    repeats: int
    trouble: tuple[str, ...]
    client: ClientFigures = field(default_factory=ClientFigures)


class State(Mapping[str, E]):
    """The newest event of each key, by key; a Mapping that any thread may read.

    events: the classes whose records it holds, older versions upcast; a record of one replaces what another
        left under its key, and a tombstone deletes it.
    topic: read them from this topic instead of their own.
    undecodable: what becomes of a record that cannot be read: "skip" keeps what the key had, counts it and
        says so; "stop" ends the reading.
    unknown: what becomes of a record of another type or a newer version: skip it (said once a type) or stop.
    on_change: told of each key and its new event (None: deleted) once it is ready, in the State's thread;
        after a rebuild of the keys that differ. What it raises is logged and changes nothing.
    check: how often it looks whether the topic is still the same one, and for new partitions.
    name: of the Kafka group in the client's requests; no offset is ever stored under it.

    Empty until it is ready. Raises ConfigurationError.
    """

    def __init__(
        self,
        *events: type[E],
        kafka: Mapping[str, Any],
        topic: str | None = None,
        undecodable: Literal["skip", "stop"] = "skip",
        unknown: Literal["skip", "stop"] = "skip",
        on_change: OnChange[E] | None = None,
        check: timedelta = timedelta(seconds=5),
        name: str = "outbox-state",
    ) -> None:
        given: tuple[object, ...] = events
        if not given or not all(isinstance(event, type) and issubclass(event, Event) for event in given):
            raise ConfigurationError("a State holds events: State(CustomerChanged, kafka=...)")
        if undecodable not in ("skip", "stop") or unknown not in ("skip", "stop"):
            raise ConfigurationError(
                "undecodable and unknown are 'skip' or 'stop' each; a State parks nothing"
            )
        if check <= timedelta(0):
            raise ConfigurationError(f"check is {check!r}; it must be a positive timedelta")
        self._types = _Types(events)
        self._undecodable, self._unknown = undecodable, unknown
        self._on_change = on_change
        topics = sorted({topic or event.__topic__ for event in events})
        self._topics = topics
        # The end of a partition is what "caught up" means; a consumer of a group has no use for it.
        properties = consumer_properties(kafka, name) | {"enable.partition.eof": True}
        self._follower: Follower[E] = Follower(
            topics,
            properties,
            BrokerIdentities(admin_properties(properties)),
            apply=self._apply,
            complete=self._complete,
            check=check.total_seconds(),
        )
        self._lock = threading.Lock()
        self._served: Reading[E] | None = None
        self._values: dict[str, E] = {}
        self._ready = threading.Condition()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None
        self._said: set[str] = set()
        self._poison = Notice(every=30.0)
        self._skipped = self._repeats = 0

    def start(self) -> None:
        """Begin to read, in a thread of its own."""
        if self._thread is not None:
            raise ConfigurationError("this State was started before; make another one")
        self._thread = threading.Thread(target=self._run, name=f"state-{'-'.join(self._topics)}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop reading; what it holds stays readable, and grows old."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    @property
    def ready(self) -> bool:
        """Has it caught up with where the topic ended when the reading began, and does it go on?"""
        return self._served is not None and self._failure is None and not self._stopping.is_set()

    @property
    def lag(self) -> int:
        """Offsets between what was read and the topic's end as far as it is known; control records count."""
        reading = self._follower.reading
        return reading.lag if reading is not None else 0

    def wait_ready(self, timeout: timedelta | None = None) -> bool:
        """Until it is ready; False after `timeout`. Raises what ended the reading."""
        seconds = None if timeout is None else timeout.total_seconds()
        with self._ready:
            self._ready.wait_for(lambda: self._served is not None or self._failure is not None, seconds)
        if self._failure is not None:
            raise self._failure
        return self.ready

    def snapshot(self) -> dict[str, E]:
        """A copy as of one moment: no change is half in it."""
        with self._lock:
            return dict(self._values)

    def health(self) -> StateHealth:
        """From any thread."""
        notices = (self._follower.notice.text, self._follower.reach.notice.text, self._poison.text)
        failed = None if self._failure is None else f"stopped: {self._failure}"
        return StateHealth(
            topics=tuple(self._topics),
            ready=self.ready,
            keys=len(self._values),
            lag=self.lag,
            skipped=self._skipped,
            repeats=self._repeats,
            trouble=tuple(text for text in (failed, *notices) if text is not None),
            client=self._follower.reach.figures.health(),
        )

    def __getitem__(self, key: str) -> E:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        """Over the keys of one moment."""
        return iter(self.snapshot())

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __enter__(self) -> "State[E]":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def items(self) -> ItemsView[str, E]:
        """Of one moment."""
        return self.snapshot().items()

    def values(self) -> ValuesView[E]:
        """Of one moment."""
        return self.snapshot().values()

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._follower.run_once()
        except Exception as error:
            self._failure = error
            log.error("the State of %s stopped: %s", ", ".join(self._topics), error)
        finally:
            self._follower.close()
            with self._ready:
                self._ready.notify_all()

    def _apply(self, reading: Reading[E], messages: list[Polled]) -> None:
        changes: list[tuple[str, E | None]] = []
        with self._lock:
            for message in messages:
                self._take(reading, message, changes)
        if reading is self._served:
            self._tell(changes)

    def _take(self, reading: Reading[E], message: Polled, changes: list[tuple[str, E | None]]) -> None:
        seq = replay = type_ = None
        for header, value in headers_of(message):
            if header == SEQ:
                seq = seq or value
            elif header == TYPE:
                type_ = type_ or value
            elif header == REPLAY:
                replay = replay or value
        place = (message.topic() or "", message.partition() or 0)
        replayed = replay is not None
        payload = message.value()
        try:
            key = _key(message)
            number = None if seq is None else Seq.parse(seq)
            if not reading.table.admit(place, key, number, replayed=replayed):
                self._repeats += 1
                return
            event: E | None = None
            if payload is not None:
                type_ = type_ or enveloped_type(message)
                decode = self._types.decoders.get(type_ or b"")
                if decode is None:
                    self._refuse(type_)
                    return
                event = decode(payload)
        except UndecodableRecord as error:
            where = f"{place[0]}[{place[1]}] at offset {message.offset()}"
            if self._undecodable == "stop":
                raise UndecodableRecord(f"{where}: {error}") from error
            self._skipped += 1
            self._poison.trouble(f"skipped {where}: {error}")
            return
        reading.table.put(key, event, number, replayed=replayed)
        changes.append((key, event))

    def _refuse(self, type_: bytes | None) -> None:
        what = "no type header" if type_ is None else f"type {type_.decode('utf-8', 'replace')}"
        newest = None if type_ is None else is_newer(type_.decode("utf-8", "replace"), self._types.newest)
        newer = "" if newest is None else f": the newest version it knows is {newest}; {catalog.DEPLOY}"
        said = f"a record with {what} on {', '.join(self._topics)} is not of this State{newer}"
        if self._unknown == "stop":
            raise ConfigurationError(f"{said}. Name its class too, or let such records pass, unknown='skip'")
        self._skipped += 1
        if what not in self._said:
            self._said.add(what)
            log.warning("%s; such records are skipped (said once)", said)

    def _complete(self, reading: Reading[E]) -> None:
        """The reading serves from now on."""
        with self._lock:
            before, first = self._values, self._served is None
            self._served, self._values = reading, reading.table.values
        with self._ready:
            self._ready.notify_all()
        if not first:
            now = self._values
            changed = [(key, event) for key, event in now.items() if before.get(key) != event]
            self._tell([*((key, None) for key in before if key not in now), *changed])

    def _tell(self, changes: list[tuple[str, E | None]]) -> None:
        if self._on_change is None:
            return
        for key, event in changes:
            try:
                self._on_change(key, event)
            except Exception:
                log.exception("on_change of the State of %s failed", ", ".join(self._topics))


class _Types(Generic[E]):
    """How records are read, by their type header."""

    def __init__(self, events: tuple[type[E], ...]) -> None:
        self.decoders: dict[bytes, Callable[[bytes], E]] = {}
        self.newest = catalog.newest_versions(event for event in events if is_named(event))
        older: dict[bytes, Callable[[bytes], E]] = {}
        for event in events:
            if not is_named(event):
                raise ConfigurationError(f"{event.__qualname__} has no name on the wire, so no record is one")
            wire_type = event.__wire_type__
            self.decoders[wire_type.encode()] = catalog.decoder(wire_type)  # type: ignore[assignment]
            for written in catalog.readable(event):
                older[written.encode()] = catalog.decoder(wire_type, written)  # type: ignore[assignment]
        self.decoders = older | self.decoders


def _key(message: Polled) -> str:
    key = message.key()
    if key is None:
        raise UndecodableRecord("it has no key")
    try:
        return key.decode()
    except UnicodeDecodeError as error:
        raise UndecodableRecord(f"its key {key!r} is not UTF-8") from error
