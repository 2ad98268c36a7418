"""Let tests overlap that mostly wait, and give a test marked `alone` the machine for itself.

Several workers run the tests (`-n`). Each test takes a share of the room while it runs; one that measures
time or CPU takes all of it: it waits at the door until those inside are through, and nobody enters before it
has left. The kernel frees both locks when a worker dies.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

DOOR, ROOM = Path(__file__), Path(__file__).parent


def workers(config: pytest.Config) -> int:
    """How many workers `-n auto` means: one more than there are cores, as a test waits most of its time.

    None at all for a single file, or one test of it: it would stay with one worker anyway.
    """
    named = {argument.partition("::")[0] for argument in config.args}
    if len(named) == 1 and named.pop().endswith(".py"):
        return 0
    return len(os.sched_getaffinity(0)) + 1


_kept: ExitStack | None = None
"""The room, between two tests marked `alone` that follow each other: others would have to leave it again."""


@contextmanager
def turn(item: pytest.Item, following: pytest.Item | None) -> Iterator[None]:
    """While inside, no other worker runs a test marked `alone`; none runs any if this one is marked."""
    global _kept
    if not hasattr(item.config, "workerinput"):
        yield
        return
    kept, _kept = _kept, None
    with kept or ExitStack() as inside:
        if kept is None:
            inside.enter_context(_locked(ROOM, fcntl.LOCK_EX if _alone(item) else fcntl.LOCK_SH))
        yield
        if _alone(item) and following is not None and _alone(following):
            _kept = inside.pop_all()


def _alone(item: pytest.Item) -> bool:
    return item.get_closest_marker("alone") is not None


@contextmanager
def _locked(room: Path, way: int) -> Iterator[None]:
    place = os.open(room, os.O_RDONLY)
    door = os.open(DOOR, os.O_RDONLY)
    try:
        fcntl.flock(door, fcntl.LOCK_EX)
        fcntl.flock(place, way)
        fcntl.flock(door, fcntl.LOCK_UN)
        yield
    finally:
        os.close(door)
        os.close(place)
