"""Handle several records at a time, each key's in order, in one transaction.

The lanes share a connection, so their statements take turns; what they gain is the time in which handlers
wait for something else. A failure in one of them fails all.
"""

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session

from outbox import pending
from outbox.consumer import handlers
from outbox.consumer.handlers import Route, Run
from outbox.consumer.record import Polled
from outbox.consumer.time_limit import TimeLimit
from outbox.errors import ConfigurationError

AHEAD = 32
"""Records for each lane dealt at once. A batch whose time is over still handles what comes before its
furthest record, so a key with many records must not let the others run far ahead of it."""


@dataclass(frozen=True, slots=True)
class Task:
    """One record, the `number`-th of those that the transaction handles."""

    number: int
    route: Route
    message: Polled

    def run(self) -> Run:
        return Run(self.route, [self.message])


@dataclass(frozen=True, slots=True)
class Bulk:
    """Records that one call handles, while all lanes stand still; the first of them is the `number`-th."""

    number: int
    run: Run


def steps(runs: Iterable[Run], lanes: int) -> Iterator[list[Task] | Bulk]:
    """What is done one after the other: records that are dealt to lanes, or one call of a bulk handler."""
    number = 0
    tasks: list[Task] = []
    for run in runs:
        if run.route.handler.bulk:
            if tasks:
                yield tasks
                tasks = []
            yield Bulk(number, run)
            number += len(run.messages)
            continue
        for message in run.messages:
            tasks.append(Task(number, run.route, message))
            number += 1
            if len(tasks) == lanes * AHEAD:
                yield tasks
                tasks = []
    if tasks:
        yield tasks


@dataclass(slots=True)
class Deal:
    """Who handles which record: whoever is free takes the next one, and with it all later ones of its key.

    Records without a key count as one key. `begin` for each step; `next` may be called by several threads.
    """

    lanes: int
    error: BaseException | None = None
    _owners: dict[bytes | None, int] = field(default_factory=dict)
    _tasks: Sequence[Task] = ()
    _cursor: int = 0
    _queues: list[deque[Task]] = field(default_factory=list)
    _furthest: int = -1
    _end: int | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, tasks: Sequence[Task]) -> None:
        """Deal these; a key stays on the lane, and so in the session, that it had."""
        self._tasks = tasks
        self._cursor = 0
        self._queues = [deque() for _ in range(self.lanes)]

    def forget(self) -> None:
        """The sessions know nothing any more: any lane may have any key."""
        self._owners.clear()

    def next(self, lane: int) -> Task | None:
        """What this lane does next; None when nothing is left for it."""
        with self._lock:
            task = self._find(lane)
            if task is None or self.error is not None or (self._end is not None and task.number > self._end):
                return None
            self._furthest = max(self._furthest, task.number)
            return task

    def _find(self, lane: int) -> Task | None:
        if self._queues[lane]:
            return self._queues[lane].popleft()
        while self._cursor < len(self._tasks):
            task = self._tasks[self._cursor]
            self._cursor += 1
            owner = self._owners.setdefault(task.message.key(), lane)
            if owner == lane:
                return task
            self._queues[owner].append(task)
        return None

    def stop(self) -> None:
        """Time is over: only what comes before a record that was begun is still handled."""
        with self._lock:
            if self._end is None:
                self._end = self._furthest

    def fail(self, error: BaseException) -> None:
        """Nothing more is begun; the first error counts, as others may follow from it."""
        with self._lock:
            if self.error is None:
                self.error = error

    def left(self) -> Polled | None:
        """The first record of the step that was not handled, once all lanes have ended."""
        if self._end is None:
            assert self._cursor == len(self._tasks), "a lane ended before its time"
            assert not any(self._queues), "a lane ended before its time"
            return None
        return next((task.message for task in self._tasks if task.number > self._end), None)


class LaneConnection(Connection):
    """One transaction for several sessions at a time: statements take turns, and there are no savepoints,
    because those of different lanes would stand inside each other."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._turns = threading.RLock()

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        with self._turns:
            return super().execute(*args, **kwargs)

    def exec_driver_sql(self, *args: Any, **kwargs: Any) -> Any:
        with self._turns:
            return super().exec_driver_sql(*args, **kwargs)

    def begin_nested(self) -> Any:
        raise no_savepoints()


def no_savepoints() -> ConfigurationError:
    return ConfigurationError(
        "a handler used session.begin_nested(), and with concurrency > 1 handlers share a transaction in "
        "which savepoints would stand inside each other; leave it away, or set concurrency=1"
    )


def handle(sessions: Sequence[Session], runs: Iterable[Run], limit: TimeLimit) -> Polled | None:
    """Like handlers.apply, with a thread for each session. All of them have ended when it returns."""
    deal = Deal(len(sessions))
    with ThreadPoolExecutor(len(sessions), thread_name_prefix="outbox-lane") as threads:
        for step in steps(runs, len(sessions)):
            if isinstance(step, Bulk):
                settle(sessions)
                with pending.place(step.number):
                    left = handlers.apply(sessions[0], [step.run], limit.call)
                settle(sessions)
                deal.forget()
            else:
                deal.begin(step)
                wait([threads.submit(_lane, n, session, deal, limit) for n, session in enumerate(sessions)])
                if deal.error is not None:
                    raise deal.error
                left = deal.left()
            if left is not None:
                return left
    return None


def settle(sessions: Iterable[Session]) -> None:
    """What one session has changed is seen by all, whatever they have loaded before."""
    for session in sessions:
        session.flush()
        session.expire_all()


def _lane(lane: int, session: Session, deal: Deal, limit: TimeLimit) -> None:
    try:
        while (task := deal.next(lane)) is not None:
            if not limit.call(lane):
                deal.stop()
            with pending.place(task.number):
                handlers.apply(session, [task.run()], _begun)
    except BaseException as error:
        deal.fail(error)
    finally:
        limit.rest(lane)


def _begun() -> bool:
    return True
