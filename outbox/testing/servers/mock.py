"""Own a mock cluster that lives in a process of its own."""

import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable
from signal import SIGCONT, SIGKILL, SIGSTOP
from types import TracebackType
from typing import Self

from outbox.testing.servers import reaper
from outbox.testing.servers.failure import ServerFailed

PATIENCE = 30.0
"""Seconds for one answer; a start takes half a second on an idle machine."""


class MockKafka:
    """librdkafka's mock cluster: Kafka's protocol without Java. See `mock_kafka` for what it does not do."""

    def __init__(self, brokers: int = 1) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "outbox.testing.servers.mock_kafka", str(brokers)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        reaper.watch_process(self._process.pid, SIGKILL)
        self.bootstrap = self._hear()
        """As in "127.0.0.1:9092"."""

    @property
    def pid(self) -> int:
        """The process id of the mock."""
        return self._process.pid

    def create_topic(self, name: str, partitions: int = 6) -> str:
        """Create topic `name`; one that a client names first gets four partitions."""
        self._ask(f"topic {name} {partitions}")
        return name

    def down(self, broker: int = 1) -> None:
        """Lose `broker`: its connections break and none is taken.

        Nobody takes over: the partitions that it leads, which the mock draws at random, and the groups
        that it coordinates wait for it.
        """
        self._ask(f"down {broker}")

    def up(self, broker: int = 1) -> None:
        """Get `broker` back, with its data."""
        self._ask(f"up {broker}")

    def pause(self) -> None:
        """Freeze it: connections stay open, nothing answers."""
        os.kill(self.pid, SIGSTOP)

    def resume(self) -> None:
        """Let it go on after `pause`."""
        os.kill(self.pid, SIGCONT)

    def close(self) -> None:
        """End it; what it held is gone."""
        if self._process.returncode is None:
            self._process.kill()
            self._process.wait(PATIENCE)
            reaper.forget(self._process.pid)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise ServerFailed("the mock cluster has ended; start another one") from error
        answer = self._hear()
        if answer != "ok":
            raise ServerFailed(f"the mock cluster refused {line!r}: {answer}")

    def _hear(self) -> str:
        """The next line it says."""
        assert self._process.stdout is not None
        answer = _within(PATIENCE, self._process.stdout.readline)
        if not answer:
            self.close()
            raise ServerFailed(
                "the mock cluster ended or did not answer; "
                "run `python -m outbox.testing.servers.mock_kafka` to see why"
            )
        return answer.strip()


def start_mock_kafka(brokers: int = 1) -> MockKafka:
    """A mock cluster in a process of its own, for a machine with Python only."""
    return MockKafka(brokers)


def _within(seconds: float, read: Callable[[], str]) -> str:
    """What `read` returns, or nothing when it takes longer."""
    answers: queue.Queue[str] = queue.Queue()
    threading.Thread(target=lambda: answers.put(read()), daemon=True).start()
    try:
        return answers.get(timeout=seconds)
    except queue.Empty:
        return ""
