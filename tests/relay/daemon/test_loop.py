"""A bell wakes its sleeper from anywhere, a signal handler included; a stop ends what sleeps on it."""

import signal
import threading
import time

from relay.loop import Bell, run


def test_a_ring_ends_the_sleep_and_a_ring_before_it_is_not_lost() -> None:
    bell = Bell()
    bell.ring()
    assert bell.sleep(30)
    threading.Timer(0.05, bell.ring).start()
    assert bell.sleep(30)
    assert not bell.sleep(0.01)


def test_many_rings_wake_once() -> None:
    bell = Bell()
    for _ in range(1000):
        bell.ring()
    assert bell.sleep(30)
    assert not bell.sleep(0.01)


def test_a_stop_ends_the_loop_whenever_it_comes() -> None:
    bell = Bell()
    rounds = []

    def work() -> float:
        rounds.append(1)
        if len(rounds) == 3:
            bell.stop()
        return 0.0

    run(work, bell)
    assert len(rounds) == 3
    assert bell.sleep(30), "stopped bells let nobody sleep"


def test_signals_that_interrupt_the_bell_itself_do_not_lock_it_up() -> None:
    """The lock of an Event would be waited for by the handler, in the very thread that holds it."""
    bell = Bell()
    before = signal.signal(signal.SIGALRM, lambda *_: bell.ring())
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0001)
    try:
        end = time.monotonic() + 1
        while time.monotonic() < end:
            bell.ring()
            bell.sleep(0.0002)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
