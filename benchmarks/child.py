"""A program in a process of its own: talk to it line by line, read its CPU time and memory, end it."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import Any, Self

from outbox.testing.servers import reaper

RELAY = str(Path(sys.executable).with_name("outbox-relay"))


class ChildFailed(Exception):
    """The program ended or fell silent; the message ends with what it wrote to stderr."""


class Child:
    """Started at once; ended by SIGTERM, and by SIGKILL if that does not help, when the block ends."""

    def __init__(self, *command: str, environment: Mapping[str, str] | None = None) -> None:
        self._name = " ".join(Path(part).name for part in command[:3])
        self._stderr = TemporaryFile()  # noqa: SIM115 - closed by stop()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env={**os.environ, **(environment or {})},
            text=True,
        )
        self._heard: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        reaper.watch_process(self._process.pid, signal.SIGTERM)
        self._listener.start()

    @classmethod
    def python(cls, module: str, *arguments: str | int | float) -> Self:
        """`python -m benchmarks.programs.<module>`."""
        program = f"benchmarks.programs.{module}"
        return cls(sys.executable, "-m", program, *(str(argument) for argument in arguments))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def say(self, line: str = "go") -> None:
        """Send one line to its stdin."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def hear(self, within: float = 120.0) -> dict[str, Any]:
        """The next line it prints, a JSON object."""
        try:
            line = self._heard.get(timeout=within)
        except queue.Empty:
            raise self.failed(f"said nothing for {within:g} s") from None
        if not line:
            raise self.failed("ended too early")
        found: dict[str, Any] = json.loads(line)
        return found

    def check(self) -> None:
        """Raises ChildFailed when it is not running any more."""
        if self._process.poll() is not None:
            raise self.failed(f"ended with {self._process.returncode}")

    def freeze(self) -> None:
        """Let it stand still until `thaw`."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def cpu(self) -> float:
        """Core-seconds used so far by all its threads, ended ones included (clock_getcpuclockid(3))."""
        return time.clock_gettime((~self._process.pid << 3) | 2)

    def peak_mb(self) -> float:
        """The most memory it ever had resident."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        kilobytes = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(kilobytes) / 1024

    def stop(self) -> None:
        """Ask it to end, wait, insist."""
        if self._process.poll() is None:
            self._process.terminate()
            self.thaw()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(20)
        reaper.forget(self._process.pid)
        self._listener.join(5)
        for stream in (self._process.stdin, self._process.stdout, self._stderr):
            if stream is not None:
                stream.close()

    def failed(self, what: str) -> ChildFailed:
        self._stderr.seek(0)
        said = self._stderr.read().decode(errors="replace").splitlines()[-30:]
        return ChildFailed("\n".join([f"{self._name} {what}", *said]))

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._heard.put(line)
        self._heard.put("")


def relay(url: str, bootstrap: str, **settings: str | int) -> Child:
    """The daemon as a user starts it."""
    environment = {"OUTBOX_DATABASE_URL": url, "OUTBOX_KAFKA_BOOTSTRAP_SERVERS": bootstrap}
    environment |= {f"OUTBOX_{name.upper()}": str(value) for name, value in settings.items()}
    return Child(RELAY, "run", environment=environment)
