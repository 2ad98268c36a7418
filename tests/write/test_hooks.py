"""Observers come and go on any thread, and none is lost or stays."""

import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from outbox import hooks


@pytest.fixture
def restless() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("restless")
def test_observers_of_many_threads_neither_get_lost_nor_stay() -> None:
    heard: list[int] = []
    lost: list[int] = []

    def come_and_go(number: int) -> None:
        mine: list[int] = []

        def observer(point: str, facts: dict[str, Any]) -> None:
            if point == "test.hooks" and facts["number"] == number:
                mine.append(number)
                heard.append(number)

        for turn in range(2000):
            unsubscribe = hooks.subscribe(observer)
            hooks.fire("test.hooks", number=number)
            unsubscribe()
            if len(mine) != turn + 1:
                lost.append(number)
                return

    threads = [threading.Thread(target=come_and_go, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lost == []
    before = len(heard)
    for number in range(4):
        hooks.fire("test.hooks", number=number)
    assert len(heard) == before, "one stayed"
