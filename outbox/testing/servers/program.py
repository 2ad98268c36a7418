"""Run one server program that can be killed, frozen and started again, and never outlives its owner."""

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP, SIGTERM, Signals

from outbox.testing.servers import reaper
from outbox.testing.servers.account import Account
from outbox.testing.servers.failure import ServerFailed

POLL = 0.01
"""Seconds between two looks at a condition that cannot be waited on."""


class Program:
    """A command in a session of its own, so that Ctrl-C reaches it through its owner only.

    `farewell`: the signal that ends it in good order. `account`: whom it runs as, None for ourselves.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        log: Path,
        farewell: Signals = SIGTERM,
        account: Account | None = None,
        environment: Mapping[str, str] | None = None,
        directory: Path | None = None,
    ) -> None:
        self.name = name
        self.log = log
        self._command = list(command)
        self._farewell = farewell
        self._account = account
        self._environment = environment
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id of the running program."""
        if self._process is None or self._process.poll() is not None:
            raise ServerFailed(f"{self.name} is not running; call start() first")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Frozen counts as running."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it; returns before it is ready."""
        if self.running:
            raise ServerFailed(f"{self.name} is running already as process {self.pid}")
        account = self._account
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=self._directory,
                env=None if self._environment is None else {**os.environ, **self._environment},
                user=None if account is None else account.uid,
                group=None if account is None else account.gid,
                extra_groups=None if account is None else [],
            )
        reaper.watch_process(self._process.pid, self._farewell)

    def wait_until(self, ready: Callable[[], bool], *, within: float, what: str = "be ready") -> None:
        """Return once `ready()`; fail when the program ends or `within` seconds pass."""
        until = time.monotonic() + within
        while not ready():
            if not self.running:
                raise ServerFailed(f"{self.name} ended before it could {what}.\n{self.tail()}")
            if time.monotonic() > until:
                raise ServerFailed(f"{self.name} did not {what} within {within:g} s.\n{self.tail()}")
            time.sleep(POLL)

    def send(self, number: Signals) -> None:
        """Send one signal."""
        os.kill(self.pid, number)

    def pause(self) -> None:
        """Freeze it as a stalled machine would: connections stay open, nothing answers."""
        self.send(SIGSTOP)

    def resume(self) -> None:
        """Let it go on after `pause`."""
        self.send(SIGCONT)

    def kill(self) -> None:
        """End it as a power cut would, without a chance to say goodbye."""
        if self.running:
            self.send(SIGKILL)
        self._reap(within=30)

    def stop(self, *, within: float = 20, by: Signals | None = None) -> None:
        """End it in good order, by `by` or its usual signal; kill it when it takes too long."""
        if self.running:
            self.resume()
            self.send(by or self._farewell)
        try:
            self._reap(within=within)
        except subprocess.TimeoutExpired:
            self.kill()

    def tail(self, lines: int = 30) -> str:
        """The end of its log."""
        if not self.log.exists():
            return f"(no log at {self.log})"
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def _reap(self, *, within: float) -> None:
        if self._process is not None:
            self._process.wait(within)
            reaper.forget(self._process.pid)
            self._process = None
