"""Apply each event exactly once: results, emitted events and offset are stored together, or nothing is.

    consumer = Consumer(group="billing", sessions=sessionmaker(engine), kafka={"bootstrap.servers": "..."})

    @consumer.on(OrderPlaced)
    def open_invoice(session: Session, event: OrderPlaced) -> None:
        session.add(Invoice(order_id=event.order_id, amount=event.total))

    consumer.run(threads=3)

A handler that returns has its results stored; one that raises has them rolled back. `Retry` keeps the record
and tries it again, `Reject` parks it: later records of its key wait behind it, everything else goes on.
What a handler does outside this database may happen more than once.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session, sessionmaker

from outbox.consumer.crew import settled_heap, signals, work
from outbox.consumer.database import Database
from outbox.consumer.foreign.dedupe import By, WithoutId
from outbox.consumer.foreign.dedupe import dedupe as new_dedupe
from outbox.consumer.handlers import Handlers
from outbox.consumer.health import Health
from outbox.consumer.member import Member, Setup
from outbox.consumer.place import seek as seeking
from outbox.consumer.place.position import Positions
from outbox.consumer.place.rebuild import Rebuilding, as_tables, rebuild, topics_read
from outbox.consumer.place.seek import Goal, Moved
from outbox.consumer.place.switch import CATCH_UP, Switched, switch
from outbox.consumer.properties import admin_properties, consumer_properties
from outbox.consumer.reach import opened
from outbox.consumer.readiness import wait_for_database, wait_for_topics
from outbox.consumer.settings import Poison, Settings, Start, Unknown
from outbox.consumer.stopping import Stop
from outbox.errors import ConfigurationError
from outbox.event import Event

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

F = TypeVar("F", bound=Callable[..., object])

Shares = Sequence[Sequence[tuple[str, int]] | None]

_DEFAULTS = Settings()


class Consumer:
    """A consumer group's handlers and what they run on.

    group: the name under which Kafka and the database keep its place. sessions: a sessionmaker bound to the
    engine of the database that holds both the results and `consumer_offset`. kafka: librdkafka's properties,
    passed on as they are; those that would break a guarantee are refused. projection: the tables, or mapped
    classes, that its handlers fill and that `rebuild` empties. The rest: see Settings.

    Each thread needs two database connections at most. Raises ConfigurationError.
    """

    def __init__(
        self,
        *,
        group: str,
        sessions: "sessionmaker[Session] | async_sessionmaker[AsyncSession]",
        kafka: Mapping[str, Any],
        concurrency: int = _DEFAULTS.concurrency,
        projection: Iterable[object] = (),
        batch_size: int = _DEFAULTS.batch_size,
        batch_bytes: int = _DEFAULTS.batch_bytes,
        batch_time: timedelta = _DEFAULTS.batch_time,
        batch_wait: timedelta | None = _DEFAULTS.batch_wait,
        start: Start = _DEFAULTS.start,
        positions: Positions = _DEFAULTS.positions,
        unknown: Unknown = _DEFAULTS.unknown,
        attempts: int = _DEFAULTS.attempts,
        poison: Poison = _DEFAULTS.poison,
        max_parked: int = _DEFAULTS.max_parked,
        handler_limit: timedelta | None = _DEFAULTS.handler_limit,
        claim_patience: timedelta = _DEFAULTS.claim_patience,
        idle_timeout: timedelta = _DEFAULTS.idle_timeout,
        identity_check: timedelta = _DEFAULTS.identity_check,
        mirror: timedelta = _DEFAULTS.mirror,
        stuck_after: timedelta = _DEFAULTS.stuck_after,
        wait_for_topics: timedelta = _DEFAULTS.wait_for_topics,
    ) -> None:
        self._projection = as_tables(projection)
        if not group:
            raise ConfigurationError("a consumer needs a group: it names its place in topics and database")
        self._handlers = self._new_handlers()
        self._stop = Stop()
        self._members: list[Member] = []
        self._setup = Setup(
            group=group,
            database=self._new_database(sessions, concurrency),
            handlers=self._handlers,
            properties=consumer_properties(kafka, group),
            settings=Settings(
                concurrency=concurrency,
                batch_size=batch_size,
                batch_bytes=batch_bytes,
                batch_time=batch_time,
                batch_wait=batch_wait,
                start=start,
                positions=positions,
                unknown=unknown,
                attempts=attempts,
                poison=poison,
                max_parked=max_parked,
                handler_limit=handler_limit,
                claim_patience=claim_patience,
                idle_timeout=idle_timeout,
                identity_check=identity_check,
                mirror=mirror,
                stuck_after=stuck_after,
                wait_for_topics=wait_for_topics,
            ),
        )
        self._kafka = dict(kafka)

    @property
    def group(self) -> str:
        return self._setup.group

    @property
    def database(self) -> Database:
        """Where its results and offsets are."""
        return self._setup.database

    @property
    def topics(self) -> list[str]:
        """What its handlers read by name."""
        return self._handlers.topics

    @property
    def patterns(self) -> list[re.Pattern[str]]:
        """What its handlers read by pattern."""
        return self._handlers.patterns

    def on(
        self,
        *events: type[Event],
        topic: str | re.Pattern[str] | None = None,
        batch: bool = False,
        tombstones: bool = False,
        wire_type: str | None = None,
        default: bool = False,
        dedupe: By | None = None,
        dedupe_window: timedelta = timedelta(hours=24),
        without_id: WithoutId = "handle",
    ) -> Callable[[F], F]:
        """Register a handler `(session, event)` or `(session, event, record)` for these events.

        topic: read them from this topic instead of the events' own. Without events: the handler gets the
            value (bytes, None for a tombstone) of every record of the topic that no other handler takes. A
            compiled pattern, or a string that begins with ^, means every topic whose whole name matches it,
            those that are made later included, but none of Kafka's own (`__…`).
        batch: the handler gets lists, `(session, events)` or `(session, events, records)`: neighbouring
            records of one type, for bulk SQL.
        tombstones: it also gets records of its types whose value is null, as None; otherwise they are
        skipped.

        For records that no outbox wrote:

        wire_type: what their producer calls this event, if not by its own name and version.
        default: records of the topic that name no type are this event too.
        dedupe: drop what the producer sends again: by "event_id" (header `id`, or a CloudEvent's id and
            source), or by what a function of the Record gives. Dropped is a record whose id came before it in
            its partition less than `dedupe_window` earlier, a minute to seven days. Repeats in another
            partition are handled.
        without_id: what becomes of a record that has no id: it is handled without looking for repeats (said
            once a topic), parked, or stops its partition.
        """
        for event in events:
            _require_event_class(event)

        def register(function: F) -> F:
            name = getattr(function, "__qualname__", repr(function))
            self._handlers.add(
                function,
                events,
                topic=topic,
                bulk=batch,
                tombstones=tombstones,
                wire_type=wire_type,
                default=default,
                dedupe=None if dedupe is None else new_dedupe(dedupe, dedupe_window, without_id, name=name),
            )
            return function

        return register

    def run(
        self,
        threads: int = 1,
        *,
        kafka: Mapping[str, Any] | None = None,
        partitions: Iterable[tuple[str, int]] | None = None,
    ) -> None:
        """Consume until `stop()`, SIGTERM or SIGINT (the latter two when called in the main thread).

        threads: members of the group in this process, each with a Kafka client and a session of its own.
        kafka: properties that take precedence for this run.
        partitions: read exactly these, as (topic, number), instead of those that the group would give; they
        are spread over the threads. Nobody takes them over when this process dies. Who has one of them too
        is fenced by its row, and fences in turn: the two alternate, ever more rarely.

        Waits for servers that are not there yet. The batch under way is finished before it returns; a second
        signal does not wait for it.
        Raises OutboxError when it cannot work: bad settings, schema, rights or topics.
        """
        setup, shares = self._prepared(threads, kafka, partitions)
        with signals(self._stop), settled_heap():
            try:
                self._consume(setup, shares)
            finally:
                self._stop.clear()

    def stop(self) -> None:
        """Let `run` return after the batch under way. From any thread, any number of times."""
        self._stop.set()

    def health(self) -> Health:
        """What its threads are doing at this moment. From any thread."""
        return Health(group=self.group, members=tuple(member.health() for member in tuple(self._members)))

    def seek(
        self, to: Goal, *, topic: str | None = None, partition: int | None = None, dry_run: bool = False
    ) -> list[Moved]:
        """Read a topic again, or go on further ahead, whether or not the group is running anywhere.

        to: "beginning", "end", an offset (of one partition), a time with its zone, or an event's id. topic:
        may be left out by a consumer of one. Parked records from there on are forgotten, for they come
        again; what was discarded stays so. Whatever handlers wrote of what is read again stays, too: see
        `rebuild`. Of an AsyncConsumer: while it serves, and from a thread (`asyncio.to_thread`).
        Raises ConfigurationError, GuardViolation or Fenced; nothing was changed then.
        """
        if topic is None and len(self.topics) != 1:
            raise ConfigurationError(
                f"name the topic, this consumer reads {', '.join(self.topics) or 'none'}"
            )
        return seeking.seek(
            self._setup.database,
            self._setup.access,
            group=self.group,
            topic=topic or self.topics[0],
            to=to,
            partition=partition,
            dry_run=dry_run,
        )

    def rebuild(self, *, incomplete: bool = False, dry_run: bool = False) -> Rebuilding:
        """Empty the tables of `projection` and apply the whole history again, whether or not the group runs.

        Emptied in the transaction that sends every partition back. Handlers run again as they are, so they
        should fill these tables and do nothing else: what they wrote elsewhere, and events that they emit,
        come once more. incomplete: also if retention deleted the beginning of the history.
        Raises ConfigurationError, GuardViolation or Fenced; nothing was changed then.
        """
        return rebuild(
            self._setup.database,
            self._setup.access,
            group=self.group,
            topics=self._topics_read(),
            tables=self._projection,
            incomplete=incomplete,
            dry_run=dry_run,
        )

    def _topics_read(self) -> list[str]:
        """Those that handlers name, and those that the group has found by their patterns."""
        patterns = self._handlers.patterns
        there = topics_read(self._setup.database, self.group) if patterns else []
        found = {topic for topic in there if any(pattern.fullmatch(topic) for pattern in patterns)}
        return sorted({*self.topics, *found})

    def take_over(
        self,
        old: str,
        swap: Callable[[Connection], object],
        *,
        catch_up: timedelta = CATCH_UP,
        dry_run: bool = False,
    ) -> Switched:
        """Take the place of group `old`, whose projection this group has built anew beside it.

        swap: leads readers to the new tables (redefines a view, renames), in the transaction that retires the
        old group. catch_up: how long the old group is held meanwhile.
        Raises NotCaughtUp, ConfigurationError or Fenced; nothing was changed then.
        """
        return switch(
            self._setup.database, old=old, new=self.group, swap=swap, catch_up=catch_up, dry_run=dry_run
        )

    def _prepared(
        self,
        threads: int,
        kafka: Mapping[str, Any] | None,
        partitions: Iterable[tuple[str, int]] | None,
    ) -> tuple[Setup, Shares]:
        """What a run needs, and what each member reads by hand. Raises ConfigurationError."""
        if threads < 1:
            raise ConfigurationError(f"threads is {threads}; it must be at least 1")
        if not self.topics and not self.patterns:
            raise ConfigurationError(
                "this consumer has no handler; register one with @consumer.on(SomeEvent)"
            )
        setup = self._setup
        if kafka:
            properties = consumer_properties({**self._kafka, **kafka}, self.group)
            setup = dataclasses.replace(setup, properties=properties)
        places = None if partitions is None else _places(partitions, self._handlers)
        return setup, _shares(places, threads)

    def _new_handlers(self) -> Handlers:
        return Handlers()

    def _new_database(self, sessions: object, lanes: int) -> Database:
        given = getattr(sessions, "kw", None)
        engine = given.get("bind") if isinstance(given, dict) else None
        if not isinstance(engine, Engine):
            raise ConfigurationError(
                "sessions must be a sessionmaker bound to an engine: sessionmaker(engine); for an "
                "async_sessionmaker there is AsyncConsumer"
            )
        check_engine(cast(dict[str, Any], given), engine)
        return Database(engine, cast("sessionmaker[Session]", sessions), lanes)

    def _consume(self, setup: Setup, shares: Shares) -> None:
        """shares: what each member reads by hand; None: what the group gives it."""
        opened(
            setup.new_client, setup.properties, f"group {setup.group}"
        ).close()  # properties are refused before anybody waits for a server
        identities = setup.new_identities(admin_properties(setup.properties))
        patience = setup.settings.wait_for_topics.total_seconds()
        if not (
            wait_for_database(setup.database, self._stop)
            and wait_for_topics(identities, _awaited(shares, self.topics), self._stop, patience=patience)
        ):
            return
        self._members = []
        try:
            for number, share in enumerate(shares):
                self._members.append(Member(setup, number, share))
        except BaseException:
            for member in self._members:
                member.close()
            raise
        work(self._members, self._stop, name=setup.group)


def _places(partitions: Iterable[tuple[str, int]], handlers: Handlers) -> list[tuple[str, int]]:
    """Raises ConfigurationError for what cannot be read."""
    places = list(partitions)
    if not places:
        raise ConfigurationError("partitions is empty; name some, or leave it out to get the group's")
    for place in places:
        match place:
            case (str(), int(number)) if number >= 0:
                pass
            case _:
                raise ConfigurationError(f"partitions holds {place!r}; write (topic, number): ('orders', 0)")
        if not handlers.routes(place[0]):
            raise ConfigurationError(f"partitions names topic {place[0]}, which no handler reads")
    if len(set(places)) < len(places):
        raise ConfigurationError("partitions names one twice; each can be read once only")
    return places


def _awaited(shares: Sequence[Sequence[tuple[str, int]] | None], topics: list[str]) -> list[str]:
    """Which topics must be there before anything can be read."""
    if shares[0] is None:
        return topics
    return sorted({topic for share in shares for topic, _ in share or ()})


def _shares(places: list[tuple[str, int]] | None, threads: int) -> list[list[tuple[str, int]] | None]:
    if places is None:
        return [None] * threads
    return [places[number::threads] for number in range(min(threads, len(places)))]


def _require_event_class(event: object) -> None:
    """Asked before a function is there: `@consumer.on` without (...) would silently register nothing."""
    if not (isinstance(event, type) and issubclass(event, Event)):
        raise ConfigurationError(
            f"on() takes event classes, not {getattr(event, '__qualname__', repr(event))}; write "
            "@consumer.on(OrderPlaced)"
        )


def check_engine(given: Mapping[str, Any], engine: Engine) -> None:
    """Can results and offset be stored together by what the maker of sessions was given? Raises
    ConfigurationError."""
    if given.get("binds"):
        raise ConfigurationError(
            "sessions binds several engines; results and offset must be stored by one: sessionmaker(engine)"
        )
    if given.get("twophase"):
        raise ConfigurationError(
            "sessions uses two-phase commit, which one database does not need; leave twophase out"
        )
    if engine.dialect.name != "postgresql":
        raise ConfigurationError(
            f"sessions is bound to {engine.dialect.name}; offsets are kept in PostgreSQL only"
        )
