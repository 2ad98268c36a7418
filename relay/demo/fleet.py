"""Run the services as processes that can be killed, frozen and started again; none outlives us."""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from outbox.testing.servers.program import Program
from relay.demo.failure import DemoFailed
from relay.demo.services import Role, Service

GOODBYE = 15.0
"""Seconds a process gets to end in good order; a relay takes at most 10 for its acknowledgements."""

LAST_LINES = 12


class Process:
    """One service's process. Each start is a new instance of the same name, as under a supervisor."""

    def __init__(self, service: Service, directory: Path) -> None:
        self.service = service
        self.frozen = False
        self._directory = directory
        self._starts = itertools.count(1)
        self._wanted = False
        self.instance = service.name
        self._program = self._make()

    @property
    def name(self) -> str:
        return self.service.name

    @property
    def role(self) -> Role:
        return self.service.role

    @property
    def active(self) -> bool:
        """Running and not frozen."""
        return self._program.running and not self.frozen

    @property
    def ended(self) -> bool:
        """Gone although nobody killed or stopped it."""
        return self._wanted and not self._program.running

    def start(self) -> None:
        self.instance = f"{self.name}.{next(self._starts)}"
        self._program = self._make()
        self._program.start()
        self._wanted = True

    def kill(self) -> None:
        self._wanted, self.frozen = False, False
        self._program.kill()

    def freeze(self) -> None:
        self._program.pause()
        self.frozen = True

    def thaw(self) -> None:
        self._program.resume()
        self.frozen = False

    def stop(self) -> bool:
        """End it in good order. False if it had to be killed."""
        before, self._wanted, self.frozen = time.monotonic(), False, False
        self._program.stop(within=GOODBYE)
        return time.monotonic() - before < GOODBYE

    def last_words(self) -> str:
        """The end of its log, indented under its name."""
        lines = self._program.tail(LAST_LINES).splitlines() or ["(it said nothing)"]
        return "\n".join([f"  {self.name}:", *(f"    {line}" for line in lines)])

    def _make(self) -> Program:
        return Program(
            self.name,
            self.service.command,
            log=self._directory / f"{self.name}.log",
            environment={**self.service.environment, "OUTBOX_INSTANCE": self.instance},
            directory=self._directory,
        )


class Fleet:
    """All processes, by name and by role. Leaving it ends what still runs."""

    def __init__(self, services: Iterable[Service], directory: Path) -> None:
        self._processes = {service.name: Process(service, directory) for service in services}

    def __getitem__(self, name: str) -> Process:
        return self._processes[name]

    def __iter__(self) -> Iterator[Process]:
        return iter(self._processes.values())

    def of(self, *roles: Role) -> list[Process]:
        return [process for process in self if process.role in roles]

    def check(self) -> None:
        """Raise DemoFailed when a process ended by itself: none of them ever should."""
        for process in self:
            if process.ended:
                raise DemoFailed(f"{process.name} ended by itself. Its last words:\n{process.last_words()}")

    def stop(self, *roles: Role) -> list[str]:
        """End these in good order, all at once. Returns the names of those that had to be killed."""
        processes = self.of(*roles)
        with ThreadPoolExecutor(len(processes)) as pool:
            obeyed = list(pool.map(Process.stop, processes))
        return [process.name for process, did in zip(processes, obeyed, strict=True) if not did]

    def last_words(self, *roles: Role) -> str:
        return "\n".join(process.last_words() for process in self.of(*roles))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self:
            with suppress(ProcessLookupError):
                process.kill()


def wait_until(
    condition: Callable[[], bool], fleet: Fleet, rest: Callable[[float], None], *, within: float, what: str
) -> None:
    """Return once `condition()`; raise DemoFailed when a process ends or `within` seconds pass."""
    until = time.monotonic() + within
    while not condition():
        fleet.check()
        if time.monotonic() > until:
            words = fleet.last_words(*Role)
            raise DemoFailed(f"{what} took longer than {within:g} s. The last words:\n{words}")
        rest(0.05)
