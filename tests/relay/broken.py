"""Relays that break one rule each: the test of a guarantee has to notice every one of them."""

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import relay.database
import relay.lease
import relay.outgoing
import relay.planner
import relay.producers
import relay.producers.clearance
import relay.producers.sequenced
import relay.producers.session
import relay.progress
import relay.replay.replay
import relay.shard
import relay.supervision
import relay.takeover
import relay.tenure
from outbox import hooks
from relay import points
from relay.producers import Target, delivery
from relay.row import Row


def impatient() -> None:
    """No rule broken: what a person would mend is looked at again after moments."""
    relay.shard.HALTED = relay.shard.TROUBLED = 0.2
    relay.tenure.TOPICS_EVERY = relay.tenure.MODE_EVERY = relay.takeover.SWITCH_AGAIN = 0.2
    relay.tenure.ASK_EVERY = relay.supervision.SILENT = 0.5


def counted() -> None:
    """No rule broken: each statement that is sent is announced."""
    wait = relay.database.Connection.wait

    def counting(self: Any, *args: Any, **kwargs: Any) -> Any:
        hooks.fire("statement")
        return wait(self, *args, **kwargs)

    relay.database.Connection.wait = counting  # type: ignore[method-assign]


def small_windows() -> None:
    """No rule broken: a replay has many windows."""
    relay.replay.replay.WINDOW = 30


def loses_the_broker_in_a_release() -> None:
    """No rule broken: before the second row of its first release the broker does not answer."""
    lost: list[object] = []

    def observer(point: str, facts: Any) -> None:
        if point == points.RELEASING and facts["number"] == 2 and not lost:
            lost.append(facts)
            raise relay.producers.Interrupted("no broker answers")

    hooks.subscribe(observer)


def forgets_the_plan() -> None:
    """A successor plans anew what its predecessor had begun to send."""
    relay.progress.CLAIM = relay.progress.CLAIM.replace(
        "epoch = epoch + 1", "epoch = epoch + 1, next = NULL, next_floor = NULL, next_xid = NULL, low = 0"
    )


def confirms_before_it_sends() -> None:
    """A plan counts as sent."""
    relay.planner.LOOK_AND_PLAN = relay.planner.LOOK_AND_PLAN.replace(
        "SET next", "SET done = seen, done_floor = floor, done_xid = pg_current_xact_id(), next"
    )


def scatters_keys() -> None:
    """A repeat lands in another partition: tests start `relay-1`, and `relay-2` as its successor."""
    shift = int(os.environ["OUTBOX_INSTANCE"].rpartition("-")[2])

    def address(rows: Iterable[Row], resolve: Callable[[bytes], tuple[str, int]]) -> Iterator[Target]:
        for topic, partition in delivery.address(rows, resolve):
            yield topic, (partition + shift) % resolve(topic.encode())[1]

    relay.outgoing.address = address  # type: ignore[attr-defined]


def sleepwalks() -> None:
    """Believes in its lease for ever: only the row can tell it otherwise."""
    relay.lease.Lease.held = property(lambda _: True)  # type: ignore[assignment,method-assign]


def stops_when_fenced() -> None:
    """No rule broken: ends when fenced, instead of claiming again."""

    def observer(point: str, _: object) -> None:
        if point == points.FENCED:
            os.kill(os.getpid(), signal.SIGTERM)

    hooks.subscribe(observer)


def leaves_without_a_word() -> None:
    """Does not write down at its end what was acknowledged."""
    relay.shard.Shard.finish = relay.shard.Shard.let_go  # type: ignore[method-assign]
    relay.tenure.LOW_EVERY = 60.0


def believes_its_claim() -> None:
    """Takes the row as it was claimed, however long ago, instead of reading it behind the fence."""
    relay.progress.ShardRow.read_again = lambda self, state: state  # type: ignore[method-assign]


def thinks_it_is_sequenced() -> None:
    """Its mode stands in its configuration."""
    for name in ("ROW", "CLAIM", "PLAN", "CONFIRM_AND_PLAN", "CONFIRM", "MARK_LOW"):
        statement = getattr(relay.progress, name).replace("low, mode,", "low, 'sequenced' AS mode,")
        setattr(relay.progress, name, statement)
    for name in ("LOOK_AND_PLAN", "LOOK_CONFIRM_AND_PLAN"):
        statement = getattr(relay.planner, name).replace("low, mode,", "low, 'sequenced' AS mode,")
        setattr(relay.planner, name, statement)
    relay.takeover.WHO = relay.takeover.WHO.replace("s.mode", "'sequenced'")


def trusts_the_brokers() -> None:
    """Believes that every transaction was ended wherever it wrote."""
    clearance = relay.producers.clearance.Clearance

    def caught_up(self: Any, clients: Any, known: Any, wrote: Any, alive: Callable[[], bool]) -> Any:
        return self._ledger.read(alive).recorded

    clearance.caught_up = caught_up  # type: ignore[method-assign]
    for look in ("examine", "tend", "leave"):
        setattr(clearance, look, lambda *_, **__: None)


def records_nothing() -> None:
    """A change of mode writes no first progress record."""
    relay.producers.TransactionalProducer.begin = lambda *_: None  # type: ignore[method-assign]


SABOTAGE = {
    work.__name__: work
    for work in (
        impatient,
        small_windows,
        counted,
        loses_the_broker_in_a_release,
        forgets_the_plan,
        confirms_before_it_sends,
        scatters_keys,
        sleepwalks,
        stops_when_fenced,
        leaves_without_a_word,
        believes_its_claim,
        thinks_it_is_sequenced,
        records_nothing,
        trusts_the_brokers,
    )
}


def apply(names: str) -> None:
    """Break what `names`, separated by commas, say."""
    for name in filter(None, names.split(",")):
        SABOTAGE[name]()
