"""Customers: place, change and cancel orders over HTTP, ask for too much at times, and note each answer.

Some changes and cancellations of one order are sent by several customers at once. Their order is then the
service's to decide; what counts is what it acknowledged.
"""

import contextlib
import http.client
import json
import queue
import random
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal

from relay.demo.evidence import Notes
from relay.demo.failure import DemoFailed

CUSTOMERS = 8
"""Connections at once."""

STALE = 2.0
"""Seconds after which an idle connection is opened anew: uvicorn closes one after 5, perhaps just now."""

ANSWER = 30.0
BEYOND_CREDIT = Decimal("10000.01")
CANCELLED, CHANGED, REFUSED = 0.08, 0.12, 0.05
"""Shares of the orders that are cancelled and changed, and of refused ones, which come on top."""


@dataclass(frozen=True, slots=True)
class Story:
    """What a customer wants with one order. `contested`: the steps after the first are left to anybody."""

    order: str
    customer: str
    total: Decimal
    changes: tuple[Decimal, ...]
    cancelled: bool
    contested: bool

    @property
    def refused(self) -> bool:
        return self.total >= BEYOND_CREDIT


Step = tuple[Story, Decimal | None]
"""A change to an amount, or a cancellation."""


def stories(orders: int, chance: random.Random) -> list[Story]:
    """`orders` that will be placed, and some more that are refused, hence rolled back, in chance order."""
    refused = max(1, round(orders * REFUSED)) if orders else 0
    told = [_story(chance, refused=False) for _ in range(orders)]
    told += [_story(chance, refused=True) for _ in range(refused)]
    chance.shuffle(told)
    return told


def _story(chance: random.Random, *, refused: bool) -> Story:
    def amount() -> Decimal:
        return Decimal(chance.randint(100, 1_000_000)) / 100

    return Story(
        order=str(uuid.UUID(int=chance.getrandbits(128), version=4)),
        customer=str(uuid.UUID(int=chance.getrandbits(128), version=4)),
        total=BEYOND_CREDIT + amount() if refused else amount(),
        changes=tuple(amount() for _ in range(chance.randint(1, 3))) if chance.random() < CHANGED else (),
        cancelled=chance.random() < CANCELLED,
        contested=chance.random() < 0.5,
    )


class Customers:
    """Play the stories on threads of their own, evenly over `seconds`; `notes` is what they were told."""

    def __init__(self, told: list[Story], port: int, *, seconds: float) -> None:
        self.notes = {story.order: Notes() for story in told}
        self._port = port
        self._pace = seconds / len(told) if told else 0.0
        self._due = iter(enumerate(told))
        self._contested: queue.SimpleQueue[Step] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._failure: Exception | None = None
        self._threads = [threading.Thread(target=self._guarded, daemon=True) for _ in range(CUSTOMERS)]
        self.placed = 0
        self.changed = 0
        self.cancelled = 0
        self.rolled_back = 0

    def start(self) -> None:
        self._began = time.monotonic()
        for thread in self._threads:
            thread.start()

    @property
    def done(self) -> bool:
        """Has every story been told to its end? Raises DemoFailed when an answer was wrong or missing."""
        if self._failure is not None:
            raise DemoFailed(f"a customer gave up: {self._failure}") from self._failure
        return not any(thread.is_alive() for thread in self._threads)

    def stop(self) -> None:
        """Leave the rest of the stories untold."""
        self._stopped.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(ANSWER)

    def _guarded(self) -> None:
        try:
            with contextlib.closing(_Line(self._port)) as line:
                self._play(line)
        except Exception as error:
            self._failure = error

    def _play(self, line: "_Line") -> None:
        while not self._stopped.is_set():
            with self._lock:
                number, story = next(self._due, (0, None))
            if story is None:
                break
            self._stopped.wait(self._began + number * self._pace - time.monotonic())
            self._place(line, story)
            self._follow(line, limit=2)
        while not self._stopped.is_set() and self._follow(line, limit=1):
            pass

    def _place(self, line: "_Line", story: Story) -> None:
        body = {"order_id": story.order, "customer_id": story.customer, "total": str(story.total)}
        status = line.ask("POST", "/orders", body, expect={201, 422})
        if (status == 422) != story.refused:
            raise DemoFailed(f"order {story.order} of {story.total} was answered with {status}")
        if story.refused:
            self._count("rolled_back")
            return
        self.notes[story.order].placed = True
        self._count("placed")
        steps: list[Step] = [(story, amount) for amount in story.changes]
        if story.cancelled:
            steps.append((story, None))
        for step in steps:
            if story.contested:
                self._contested.put(step)
            else:
                self._step(line, *step)

    def _follow(self, line: "_Line", *, limit: int) -> bool:
        """Take up to `limit` steps that were left to anybody. False when there was none."""
        for taken in range(limit):
            try:
                step = self._contested.get_nowait()
            except queue.Empty:
                return taken > 0
            self._step(line, *step)
        return True

    def _step(self, line: "_Line", story: Story, amount: Decimal | None) -> None:
        path, notes = f"/orders/{story.order}", self.notes[story.order]
        if amount is None:
            line.ask("POST", f"{path}/cancel", None, expect={204})
            notes.cancelled = True
            self._count("cancelled")
            return
        # 409: another customer cancelled it first.
        expected = {204, 409} if story.contested else {204}
        if line.ask("PATCH", path, {"total": str(amount)}, expect=expected) == 204:
            with self._lock:
                notes.changes += 1
            self._count("changed")

    def _count(self, what: str) -> None:
        with self._lock:
            setattr(self, what, getattr(self, what) + 1)


class _Line:
    """One keep-alive connection to the order service."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER)
        self._used = 0.0

    def ask(self, method: str, path: str, body: dict[str, str] | None, *, expect: set[int]) -> int:
        """The status, one of `expect`. A request is sent once: only its answer tells whether it was done."""
        if time.monotonic() - self._used > STALE:
            self._connection.close()
        payload = None if body is None else json.dumps(body)
        self._connection.request(method, path, payload, {"content-type": "application/json"})
        answer = self._connection.getresponse()
        text = answer.read().decode(errors="replace")
        self._used = time.monotonic()
        if answer.status not in expect:
            raise DemoFailed(f"{method} {path} was answered with {answer.status}: {text}")
        return answer.status

    def close(self) -> None:
        self._connection.close()


def healthy(port: int) -> Callable[[], bool]:
    """Does the order service answer, its database included?"""

    def ask() -> bool:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=1)) as connection:
            try:
                connection.request("GET", "/health")
                return connection.getresponse().status == 200
            except (OSError, http.client.HTTPException):
                return False

    return ask
