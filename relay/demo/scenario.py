"""Direct the demo: servers, services, orders and trouble at once, then wait, look and judge."""

import random
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from confluent_kafka import Consumer

from outbox.testing.servers import workspace
from outbox.testing.servers.ports import Port
from relay.demo import databases, services, trouble, wire
from relay.demo.failure import DemoFailed, DemoImpossible
from relay.demo.fleet import Fleet, wait_until
from relay.demo.gauge import Counts, Gauge
from relay.demo.interruption import Interruption
from relay.demo.progress import Board
from relay.demo.report import Outcome
from relay.demo.servers import open_kafka, open_postgres
from relay.demo.services import Addresses, Role
from relay.demo.traffic import Customers, healthy, stories
from relay.demo.verdict import judge

START = 60.0
"""Seconds for all processes to be at work; on two idle cores it takes five."""

STANDSTILL = 30.0
"""Seconds without any progress after which a part counts as standing still: ten leases."""

FASTEST = 150
"""Orders a second at most: two cores carry all the processes at this rate."""

TICK = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What may be chosen. `logs`: a directory that keeps the processes' logs."""

    orders: int = 2_000
    kills: int = 10
    kafka: str | None = None
    postgres: str | None = None
    logs: Path | None = None


class Demo:
    """One run. `play` returns its outcome, or raises DemoFailed, DemoImpossible or Interrupted."""

    def __init__(self, options: Options, board: Board, interruption: Interruption) -> None:
        self._options = options
        self._board = board
        self._interruption = interruption

    def play(self) -> Outcome:
        services.check_packages()
        options, interruption, say = self._options, self._interruption, self._board.say
        with ExitStack() as stack:
            postgres = open_postgres(stack, options.postgres, interruption, say)
            kafka = open_kafka(stack, options.kafka, interruption, say)
            if kafka.most is not None and options.orders > kafka.most:
                raise DemoImpossible(
                    f"the mock cluster forgets old records: at most {kafka.most:,} orders, or --kafka real"
                )
            port = Port()
            stack.callback(port.release)
            self._at = at = Addresses(
                databases=postgres.databases,
                bootstrap=kafka.bootstrap,
                prefix=kafka.prefix,
                session_ms=kafka.session_ms,
                fetch_wait_ms=kafka.fetch_wait_ms,
                port=port.number,
            )
            self._gauge = stack.enter_context(Gauge(at))
            self._fleet = stack.enter_context(Fleet(services.every_service(at), self._directory(stack)))
            self._open()
            customers, blows = self._trade(stack)
            stalled = self._drain(customers, blows) or self._close()
            return self._judge(customers, blows, kafka.name, postgres.name, stalled)

    def _directory(self, stack: ExitStack) -> Path:
        if self._options.logs is not None:
            try:
                self._options.logs.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise DemoImpossible(f"--logs names {self._options.logs}: {error.strerror}") from error
            return self._options.logs.resolve()
        directory = workspace.create("demo")
        stack.callback(workspace.remove, directory)
        return directory

    def _open(self) -> None:
        """Start every service; the first of each kind brings its database up to date."""
        fleet = self._fleet
        began = time.monotonic()
        first = [fleet[name] for name in ("order", "invoice-1", "shipping")]
        for process in first:
            process.start()
        self._wait(self._gauge.migrated, "preparing the databases")
        for process in fleet:
            if process not in first:
                process.start()
        self._wait(healthy(self._at.port), "starting the order service")
        self._wait(self._carried, "starting the relays")
        self._board.say(
            f"services  {len(list(fleet))} processes, started in {time.monotonic() - began:.1f} s"
        )

    def _carried(self) -> bool:
        return all(self._gauge.carrier(role) for role in trouble.RELAYS)

    def _trade(self, stack: ExitStack) -> tuple[Customers, trouble.Trouble]:
        """Start the customers and prepare the trouble."""
        options = self._options
        chance = random.Random()
        told = stories(options.orders, chance)
        seconds = max(trouble.duration(options.kills), options.orders / FASTEST)
        customers = Customers(told, self._at.port, seconds=seconds)
        stack.callback(customers.stop)
        blows = trouble.Trouble(
            trouble.schedule(options.kills),
            self._fleet,
            carrier=self._gauge.carrier,
            session_seconds=self._at.session_ms / 1_000,
            say=self._board.tell,
            chance=chance,
        )
        customers.start()
        return customers, blows

    def _drain(self, customers: Customers, blows: trouble.Trouble) -> str | None:
        """Watch until every order has arrived everywhere. Returns which part stood still, if one did."""
        began = moved = time.monotonic()
        before, told = Counts(), 0
        while True:
            now = time.monotonic()
            blows.run_once(now - began)
            self._fleet.check()
            counts = self._gauge.counts()
            self._show(customers, blows, counts)
            finished = self._customers_done(customers)
            if finished and blows.over and counts.behind is None:
                return None
            said = customers.placed + customers.rolled_back + customers.changed + blows.kills + blows.freezes
            if (counts, said) != (before, told):
                before, told, moved = counts, said, now
            elif now - moved > STANDSTILL:
                guilty = (counts.behind or blows.next_role) if finished else Role.ORDER
                return self._standstill(guilty or Role.ORDER)
            self._interruption.wait(TICK)

    def _customers_done(self, customers: Customers) -> bool:
        try:
            return customers.done
        except DemoFailed as failure:
            raise DemoFailed(f"{failure}\n{self._fleet.last_words(Role.ORDER)}") from failure

    def _close(self) -> str | None:
        """Stop the relays, let the consumers read what is left (repeats, at most), and stop them too."""
        self._board.clear()
        self._stop(*trouble.RELAYS)
        ends = self._ends()
        orders, invoices = self._at.topics
        for service, role, topics in (
            ("invoice", Role.INVOICE, {orders}),
            ("shipping", Role.SHIPPING, {orders, invoices}),
        ):
            wanted = {place: end for place, end in ends.items() if place[0] in topics}
            if not self._read_up_to(wanted, service):
                return self._standstill(role)
        self._stop(Role.ORDER, Role.INVOICE, Role.SHIPPING)
        return None

    def _read_up_to(self, ends: dict[tuple[str, int], int], service: str) -> bool:
        until = time.monotonic() + STANDSTILL
        while True:
            self._fleet.check()
            offsets = self._gauge.offsets(service)
            if all(offsets.get(place, 0) >= end for place, end in ends.items()):
                return True
            if time.monotonic() > until:
                return False
            self._interruption.wait(TICK)

    def _ends(self) -> dict[tuple[str, int], int]:
        reader = Consumer(
            {"bootstrap.servers": self._at.bootstrap, "group.id": "outbox-demo-ends", "log_level": 3}
        )
        try:
            return wire.ends(reader, self._at.topics)
        finally:
            reader.close()

    def _judge(
        self, customers: Customers, blows: trouble.Trouble, kafka: str, postgres: str, stalled: str | None
    ) -> Outcome:
        records = wire.read(self._at.bootstrap, self._at.topics, self._interruption.check)
        evidence = databases.gather(self._at.databases, customers.notes, records)
        waits = databases.waits(self._at.databases["invoice"])
        self._interruption.check()
        return Outcome(
            verdict=judge(evidence),
            orders=customers.placed,
            changed=customers.changed,
            cancelled=customers.cancelled,
            rolled_back=customers.rolled_back,
            invoices=len(evidence.balances),
            shipments=sum(standing == "shipped" for standing in evidence.standings.values()),
            kills=blows.kills,
            freezes=blows.freezes,
            p50_ms=round(databases.percentile(waits, 0.5), 1),
            p99_ms=round(databases.percentile(waits, 0.99), 1),
            kafka=kafka,
            postgres=postgres,
            stalled=stalled,
        )

    def _stop(self, *roles: Role) -> None:
        for name in self._fleet.stop(*roles):
            self._board.say(
                f"{name} did not end in good order and was killed:\n{self._fleet[name].last_words()}"
            )

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        wait_until(condition, self._fleet, self._interruption.wait, within=START, what=what)

    def _standstill(self, role: Role) -> str:
        return f"{role} stood still for {STANDSTILL:g} s. Their last words:\n{self._fleet.last_words(role)}"

    def _show(self, customers: Customers, blows: trouble.Trouble, counts: Counts) -> None:
        self._board.show(
            orders=f"{customers.placed:,}/{self._options.orders:,}",
            published=counts.published,
            invoiced=counts.invoices,
            shipped=counts.shipped,
            killed=blows.kills,
            frozen=blows.freezes,
        )
