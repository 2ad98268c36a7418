"""A relay as a process of its own that announces each step, and dies or freezes at the step a test names.

`main` is `outbox-relay run` with an observer. A test holds its process as `RelayProcess`.
"""

import json
import os
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from outbox import hooks
from tests import nursery
from tests.relay import broken

ANNOUNCE, STRIKE, BREAK = "RELAY_TEST_ANNOUNCE", "RELAY_TEST_STRIKE", "RELAY_TEST_BREAK"

LATER = ("relay.cli", "relay.daemon", "relay.relays")
"""What it imports by and by."""


class RelayProcess:
    """`strike`: e.g. "relay.sending 3 KILL", the signal it sends itself there. `sabotage`: from `broken`."""

    def __init__(
        self,
        settings: Mapping[str, str],
        log: Path,
        *,
        strike: str | None = None,
        sabotage: str | None = None,
        arguments: tuple[str, ...] = (),
    ) -> None:
        self._log = log
        self._heard: list[tuple[str, dict[str, Any]]] = []
        self._news = threading.Condition()
        reading, writing = os.pipe()
        environment = {name: value for name, value in os.environ.items() if not name.startswith("OUTBOX_")}
        environment |= {ANNOUNCE: str(writing), **settings}
        environment |= {name: value for name, value in ((STRIKE, strike), (BREAK, sabotage)) if value}
        with log.open("ab") as output:
            self._process = nursery.give_birth(
                "tests.relay.process",
                ["run", *arguments],
                environment=environment,
                output=output.fileno(),
                keep=writing,
            )
        os.close(writing)
        self._reader = threading.Thread(target=self._hear, args=(reading,), daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def count(self, point: str) -> int:
        """How often it has announced `point` so far."""
        with self._news:
            return sum(heard == point for heard, _ in self._heard)

    def wait_for(self, point: str, times: int = 1, *, within: float = 90.0) -> None:
        """Until it has announced `point` so many times."""
        with self._news:
            reached = self._news.wait_for(
                lambda: sum(heard == point for heard, _ in self._heard) >= times, within
            )
        assert reached, f"{point} not reached {times} times within {within} s\n{self.log[-3000:]}"

    def wait(self, within: float = 60.0) -> int:
        """Its exit code; minus the signal that killed it."""
        try:
            return self._process.wait(within)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {within} s\n{self.log[-3000:]}") from None

    def wait_frozen(self, within: float = 90.0) -> None:
        """Until it has stopped itself."""
        end = time.monotonic() + within
        while not self._process.frozen:
            assert time.monotonic() < end, f"not frozen within {within} s\n{self.log[-3000:]}"
            time.sleep(0.01)

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def stop(self, within: float = 60.0) -> int:
        """End it cleanly; its exit code."""
        self.send(signal.SIGTERM)
        return self.wait(within)

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait(10)
        self._reader.join(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _hear(self, reading: int) -> None:
        with os.fdopen(reading) as lines:
            for line in lines:
                point, facts = json.loads(line)
                with self._news:
                    self._heard.append((point, facts))
                    self._news.notify_all()


def _observe() -> None:
    announce = int(os.environ[ANNOUNCE])
    point, times, name = (os.environ.get(STRIKE) or "never 0 KILL").split()
    reached: Counter[str] = Counter()
    counting = threading.Lock()

    def observer(now: str, facts: dict[str, Any]) -> None:
        with counting:  # each shard has a thread: two that count at once would pass the number by
            reached[now] += 1
            struck = now == point and reached[now] == int(times)
        os.write(announce, (json.dumps([now, facts], default=str) + "\n").encode())
        if struck:
            os.kill(os.getpid(), signal.Signals[f"SIG{name}"])

    hooks.subscribe(observer)


def main(*_: str) -> None:
    _observe()
    broken.apply(os.environ.get(BREAK, ""))
    from relay.cli import main as command

    command()
