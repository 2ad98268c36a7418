"""Trouble comes as announced, orders are as many as asked for, and a process that dies by itself is told."""

import random
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from relay.demo.failure import DemoFailed
from relay.demo.fleet import Fleet
from relay.demo.services import Role, Service
from relay.demo.traffic import stories
from relay.demo.trouble import Blow, Trouble, schedule

SLEEPER = "print('ready', flush=True); import time; time.sleep(60)"


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    """Two invoice consumers that do nothing, and one that ends at once when it is started."""
    sleeper = [sys.executable, "-c", SLEEPER]
    quitter = [sys.executable, "-c", "print('I cannot go on')"]
    services = [
        Service(name="invoice-1", role=Role.INVOICE, command=sleeper),
        Service(name="invoice-2", role=Role.INVOICE, command=sleeper),
        Service(name="shipping", role=Role.SHIPPING, command=quitter),
    ]
    with Fleet(services, tmp_path) as fleet:
        yield fleet


def trouble(fleet: Fleet, *blows: Blow, carrier: str | None = None) -> Trouble:
    return Trouble(
        list(blows),
        fleet,
        carrier=lambda _: carrier,
        session_seconds=3,
        say=lambda _: None,
        chance=random.Random(1),
    )


@pytest.mark.parametrize("kills", [0, 1, 2, 10, 20, 33])
def test_as_many_are_killed_as_asked_for_and_some_are_frozen(kills: int) -> None:
    kinds = [blow.kind for blow in schedule(kills)]
    assert kinds.count("kill") == kills
    assert kinds.count("freeze") == max(kills // 3, min(kills, 1))


def test_both_relays_and_consumers_are_struck() -> None:
    for kind in ("kill", "freeze"):
        roles = {blow.role for blow in schedule(10) if blow.kind == kind}
        assert {Role.ORDER_RELAY, Role.INVOICE_RELAY, Role.INVOICE} <= roles


def test_a_killed_process_starts_again_as_another_instance(fleet: Fleet) -> None:
    fleet["invoice-1"].start()
    blows = trouble(fleet, Blow(1, "kill", Role.INVOICE))
    blows.run_once(0.5)
    assert (blows.kills, fleet["invoice-1"].instance) == (0, "invoice-1.1")
    blows.run_once(1.0)
    assert (blows.kills, fleet["invoice-1"].active, blows.over) == (1, False, False)
    fleet.check()
    blows.run_once(10)
    assert (fleet["invoice-1"].instance, fleet["invoice-1"].active, blows.over) == ("invoice-1.2", True, True)


def test_a_frozen_process_is_spared_until_it_wakes_up(fleet: Fleet) -> None:
    fleet["invoice-1"].start()
    blows = trouble(fleet, Blow(0, "freeze", Role.INVOICE), Blow(1, "kill", Role.INVOICE))
    blows.run_once(0)
    blows.run_once(3.5)
    assert (blows.kills, blows.freezes, fleet["invoice-1"].active) == (0, 1, False)
    blows.run_once(4.5)
    assert (blows.kills, blows.freezes) == (1, 1)


def test_of_the_relays_only_the_one_that_carries_is_struck(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SLEEPER]
    services = [Service(name=f"relay-{n}", role=Role.ORDER_RELAY, command=command) for n in (1, 2)]
    with Fleet(services, tmp_path) as fleet:
        for process in fleet:
            process.start()
        waiting = trouble(fleet, Blow(0, "kill", Role.ORDER_RELAY), carrier="relay-9.1")
        waiting.run_once(1)
        assert (waiting.kills, waiting.next_role) == (0, Role.ORDER_RELAY)
        striking = trouble(fleet, Blow(0, "kill", Role.ORDER_RELAY), carrier="relay-2.1")
        striking.run_once(1)
        assert [process.active for process in fleet] == [True, False]


def test_a_process_that_ends_by_itself_fails_the_demo_with_its_last_words(fleet: Fleet) -> None:
    fleet["shipping"].start()
    until = threading.Event()
    for _ in range(500):
        if fleet["shipping"].ended:
            break
        until.wait(0.02)
    with pytest.raises(DemoFailed, match=r"shipping ended by itself(?s:.)*I cannot go on"):
        fleet.check()


def test_stories_are_as_many_as_asked_for_and_some_more_are_refused() -> None:
    told = stories(1_000, random.Random(7))
    assert sum(not story.refused for story in told) == 1_000
    assert sum(story.refused for story in told) == 50
    assert len({story.order for story in told}) == len(told)
    placed = [story for story in told if not story.refused]
    assert 40 < sum(story.cancelled for story in placed) < 130
    assert 70 < sum(bool(story.changes) for story in placed) < 180
