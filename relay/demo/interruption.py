"""Let Ctrl-C end the demo at any moment without leaving anything behind.

A signal sets a flag; nothing is ever torn out of the middle of a start or a clean-up. Who waits, waits here,
and is told by `Interrupted`. A second signal ends the demo at once: then the reaper of the servers cleans up.
"""

import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STOPPING = b"\nstopping what was started; once more to end at once\n"


class Interrupted(Exception):
    """Somebody asked for the end. `number`: by which signal."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Interruption:
    """Owns the signals of this process while it is entered, in the main thread."""

    def __init__(self) -> None:
        # A pipe, because an Event that a handler sets while its own thread waits for it can deadlock.
        self._read, self._write = os.pipe()
        self._number: int | None = None
        self._helpers = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        os.close(self._read)
        os.close(self._write)

    def check(self) -> None:
        """Raise Interrupted if the end was asked for."""
        if self._number is not None:
            raise Interrupted(self._number)

    def wait(self, seconds: float) -> None:
        """Let `seconds` pass, unless the end is asked for: then raise Interrupted."""
        select.select([self._read], [], [], max(0.0, seconds))
        self.check()

    @contextmanager
    def helpers(self, *, within: float) -> Iterator[None]:
        """Meanwhile also end the programs that are waited for (initdb, Maven); after `within` in any case."""
        bound = threading.Timer(within, end_helpers)
        bound.daemon = True
        self._helpers = True
        bound.start()
        try:
            yield
        finally:
            bound.cancel()
            self._helpers = False
            self.check()

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self._number is not None:
            os._exit(128 + number)
        self._number = number
        os.write(self._write, b"!")
        if sys.stderr.isatty():
            os.write(sys.stderr.fileno(), STOPPING)
        if self._helpers:
            end_helpers()


def end_helpers() -> None:
    """End the children that share our process group. Servers and services have sessions of their own."""
    for task in Path("/proc/self/task").glob("*/children"):
        for child in task.read_text().split():
            with contextlib.suppress(ProcessLookupError):
                if os.getpgid(int(child)) == os.getpgrp():
                    os.kill(int(child), signal.SIGTERM)
