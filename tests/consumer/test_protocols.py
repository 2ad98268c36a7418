"""Whatever protocol a group assigns by, and while that changes: effects once, in order, no needless pause."""

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import pytest
from sqlalchemy.orm import sessionmaker

from outbox.consumer import Consumer
from outbox.errors import ConfigurationError
from tests.consumer.conftest import StageFactory
from tests.consumer.stage import PROTOCOLS, SHORT, Stage, Witness, eventually, running

INCREMENTAL = ["cooperative", "kip848"]

EAGER_LISTS: dict[str, dict[str, Any]] = {
    "range": {"partition.assignment.strategy": "range"},
    "both": {"partition.assignment.strategy": "roundrobin,range"},
    "roundrobin": {"partition.assignment.strategy": "roundrobin"},
}

CHANGES = {
    "classic to KIP-848 and back": ["cooperative", "kip848", "cooperative"],
    "eager to cooperative by way of KIP-848": ["eager", "kip848", "cooperative"],
    "one eager strategy to another by a list of both": ["range", "both", "roundrobin"],
}


@contextmanager
def load(stage: Stage, every: float = 0.02) -> Iterator[None]:
    """Records arrive in all partitions all the time while inside."""
    over = threading.Event()

    def send() -> None:
        while not over.wait(every):
            stage.send(stage.partitions)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield
    finally:
        over.set()
        sender.join()


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_a_rolling_restart_changes_the_protocol_under_load(build: StageFactory, change: str) -> None:
    stage = build(partitions=4)
    first, *steps = [{**PROTOCOLS, **EAGER_LISTS}[name] for name in CHANGES[change]]
    places = [ExitStack(), ExitStack()]
    try:
        with load(stage):
            both = [place.enter_context(running(stage.recorder(first))) for place in places]
            eventually(lambda: all(map(has_work, both)), what="both at work")
            for step in steps:
                restarted = [replaced(stage, place, step) for place in places]
                for consumer in restarted:
                    eventually(partial(has_work, consumer), what=f"work for {step}")
        stage.wait()
        assert stage.faults() == []
    finally:
        for place in places:
            place.close()


def replaced(stage: Stage, place: ExitStack, properties: dict[str, Any]) -> Consumer:
    """A member ends and another takes its place. Returns when it has work, or waits for the others to end."""
    place.close()
    consumer = stage.recorder(properties)
    place.enter_context(running(consumer))
    eventually(lambda: has_work(consumer) or says(consumer, "cooperative-sticky"))
    return consumer


def says(consumer: Consumer, words: str) -> bool:
    """Is there trouble with these words?"""
    return any(words in text for member in consumer.health().members for text in member.trouble)


def has_work(consumer: Consumer) -> bool:
    return any(p.applied for member in consumer.health().members for p in member.partitions)


def test_eager_and_cooperative_in_one_list_are_refused_with_the_way_that_there_is(stage: Stage) -> None:
    with pytest.raises(ConfigurationError, match=r"group\.protocol=consumer"):
        stage.consumer({"partition.assignment.strategy": "cooperative-sticky,range"})


def test_what_the_brokers_decide_is_refused_under_kip848(stage: Stage) -> None:
    with pytest.raises(ConfigurationError, match=r"group\.consumer\.session\.timeout\.ms"):
        Consumer(
            group="g",
            sessions=sessionmaker(stage.engine),
            kafka={"bootstrap.servers": "k:9092", "group.protocol": "consumer", "session.timeout.ms": 6000},
        )


def test_a_member_that_does_not_fit_its_group_says_so_and_joins_when_it_does(stage: Stage) -> None:
    stage.send(9)
    misfit = stage.recorder(PROTOCOLS["eager"])
    with running(misfit):
        with running(stage.recorder(PROTOCOLS["cooperative"])):
            eventually(lambda: says(misfit, "assignment.strategy") or has_work(misfit))
            stage.wait()
        stage.send(9)
        stage.wait()
    assert stage.faults() == []


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_more_members_than_partitions_are_well_and_take_over(build: StageFactory, protocol: str) -> None:
    stage = build(partitions=1)
    idle = stage.recorder(PROTOCOLS[protocol])
    with running(stage.recorder(PROTOCOLS[protocol])):
        stage.send(5)
        stage.wait()
        with running(idle, threads=2):
            eventually(lambda: len(idle.health().members) == 2 and idle.health().ok)
            stage.send(5)
            stage.wait()
            owner = stage.row().owner
            eventually(lambda: idle.health().ok)
            held = sum(len(member.partitions) for member in idle.health().members)
            assert held <= 1, owner
        stage.send(5)
        stage.wait()
    with running(idle, threads=2):
        stage.send(5)
        stage.wait()
        assert idle.health().ok
    assert stage.faults() == []


def longest_wait(stage: Stage, partition: int, begin: float, end: float) -> float:
    """Seconds from sending to the effect, at most, of the records sent in that time."""
    rows = stage.rows(
        f"SELECT extract(epoch FROM stored), sent FROM effect WHERE partition = {partition} "
        f"AND sent BETWEEN {begin} AND {end}"
    )
    return max((float(stored) - float(sent) for stored, sent in rows), default=0.0)


@pytest.mark.alone
@pytest.mark.parametrize("protocol", INCREMENTAL)
def test_partitions_that_stay_go_on_while_another_member_joins(
    build: StageFactory, seen: Witness, protocol: str
) -> None:
    stage = build(partitions=6)
    first = stage.recorder(PROTOCOLS[protocol])
    with running(first), load(stage):
        eventually(lambda: len(stage.effects()) > 100)
        quiet = time.time()
        eventually(lambda: len(stage.effects()) > 400)
        begin = time.time()
        with running(stage.recorder(PROTOCOLS[protocol])) as second:
            eventually(lambda: has_work(second) and len(first.health().members[0].partitions) == 3)
            end = time.time()
            staying = [p.partition for p in first.health().members[0].partitions]
            epochs = [stage.row(p).owner_epoch for p in staying]
    stage_wait = [longest_wait(stage, p, quiet, begin) for p in range(6)]
    waits = [longest_wait(stage, p, begin, end) for p in staying]
    assert epochs == [1, 1, 1], "they were neither revoked nor claimed again"
    # A client that is not woken sleeps for 0.5 to 1 s in every second rebalance.
    assert max(waits) <= max(stage_wait) + 0.4


def test_under_eager_every_partition_is_given_up_when_another_member_joins(
    build: StageFactory, seen: Witness
) -> None:
    """What the two above can tell apart."""
    stage = build(partitions=6)
    first = stage.recorder(PROTOCOLS["eager"])
    with running(first), load(stage):
        eventually(lambda: len(stage.effects()) > 100)
        with running(stage.recorder(PROTOCOLS["eager"])) as second:
            eventually(lambda: has_work(second))
            eventually(lambda: all(stage.row(p).owner_epoch >= 2 for p in range(6)))


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("protocol", ["cooperative"])
def test_partitions_of_a_killed_process_go_on_within_the_session_time_out_and_a_second(
    build: StageFactory, protocol: str
) -> None:
    stage = build(partitions=6)
    kafka = {**PROTOCOLS[protocol], **SHORT}
    bound = (6.0 if protocol == "kip848" else 3.0) + 1.0
    processes = [stage.process(kafka=kafka) for _ in range(3)]
    try:
        with load(stage, every=0.05):
            for _ in range(3):
                eventually(lambda: shared(stage, {p.pid for p in processes}), what="two partitions each")
                victim = processes.pop(0)
                lost = [p for p in range(6) if f"/{victim.pid}/" in stage.row(p).owner]
                victim.kill()
                dead = time.time()
                victim.wait(10)
                took = eventually(partial(last_resumed, stage, lost, dead), within=30) - dead
                if took <= bound:
                    break
                processes.append(stage.process(kafka=kafka))
        stage.wait()
        assert took <= bound
        assert stage.faults() == []
    finally:
        for process in processes:
            process.kill()
            process.wait(10)


def shared(stage: Stage, pids: set[int]) -> bool:
    rows = stage.rows("SELECT owner FROM consumer_offset")
    pids_now = [int(owner.split("/")[1]) for (owner,) in rows if owner]
    return set(pids_now) == pids and all(pids_now.count(pid) == 2 for pid in pids)


def last_resumed(stage: Stage, partitions: list[int], since: float) -> float | None:
    """When all of them had gone on."""
    times = [resumed(stage, partition, since) for partition in partitions]
    return max(moment or 0.0 for moment in times) if all(times) else None


def resumed(stage: Stage, partition: int, since: float) -> float | None:
    """When the first record after `since` was stored there, in seconds since 1970."""
    query = (
        f"SELECT extract(epoch FROM min(stored)) FROM effect WHERE partition = {partition} "
        f"AND stored > to_timestamp({since})"
    )
    ((found,),) = stage.rows(query)
    return None if found is None else float(found)
