"""Processes forked from one that has imported what they need: half a second of work or a whole one each time.

`python -m tests.nursery MODULE` waits at a socket for orders. Nothing but the imports is shared: whoever is
born has arguments, an environment, a session and files of its own, and calls MODULE's `main(*arguments)`.
"""

import atexit
import contextlib
import importlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).parents[1]

NUMBER = struct.Struct("i")
LARGEST = 1 << 18


class Child:
    """A process that somebody else gave birth to, held as if it was ours. `report` tells its id and end."""

    pid: int

    def __init__(self, report: int) -> None:
        self._report = report
        self.returncode: int | Any = None
        (self.pid,) = NUMBER.unpack(os.read(report, NUMBER.size))

    @property
    def frozen(self) -> bool:
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"

    def poll(self) -> int | None:
        """Its exit code, minus the signal that killed it; None while it lives."""
        return self._end(0)

    def wait(self, within: float = 60) -> int:
        """Its exit code; subprocess.TimeoutExpired if it lives on."""
        code = self._end(within)
        if code is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", within)
        return code

    def send_signal(self, number: signal.Signals) -> None:
        """Nothing if it has ended: its id may be somebody else's."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.wait()

    def _end(self, within: float) -> int | None:
        if self.returncode is None:
            news = select.poll()
            news.register(self._report, select.POLLIN)
            if news.poll(within * 1000):
                (self.returncode,) = NUMBER.unpack(os.read(self._report, NUMBER.size))
                os.close(self._report)
        return self.returncode


def give_birth(
    module: str,
    arguments: Sequence[str],
    *,
    environment: Mapping[str, str] = os.environ,
    output: int = 2,
    keep: int | None = None,
) -> Child:
    """A process that calls `module.main(*arguments)`.

    It speaks to the file `output`; the file `keep` is open in it, under the same number.
    """
    reading, writing = os.pipe()
    order = {"arguments": list(arguments), "environment": dict(environment), "keep": keep}
    message = json.dumps(order).encode()
    assert len(message) < LARGEST
    files = [output, writing] if keep is None else [output, writing, keep]
    socket.send_fds(_nursery(module), [message], files)
    os.close(writing)
    return Child(reading)


@cache
def _nursery(module: str) -> socket.socket:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.nursery", module, str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            cwd=ROOT,
            start_new_session=True,
        )

    def close() -> None:
        ours.close()
        process.wait(10)

    atexit.register(close)
    return ours


def _serve(line: socket.socket) -> None:
    """Until the other end is closed; returns in each that is born."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        message, files, _, _ = socket.recv_fds(line, LARGEST, 3)
        if not message:
            sys.exit()
        if os.fork() == 0:
            line.close()
            _begin(json.loads(message), *files)
            return
        for file in files:
            os.close(file)


def _begin(order: dict[str, Any], output: int, report: int, *kept: int) -> None:
    """Fork once more, to wait for the end of what this returns in."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if pid := os.fork():
        for file in (output, *kept):
            os.close(file)
        with contextlib.suppress(OSError):  # nobody wants to know any more
            os.write(report, NUMBER.pack(pid))
            _, status = os.waitpid(pid, 0)
            os.write(report, NUMBER.pack(os.waitstatus_to_exitcode(status)))
        os._exit(0)
    os.close(report)
    os.setsid()
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    for file in kept:
        if file != order["keep"]:
            os.dup2(file, order["keep"])
            os.close(file)
    os.environ.clear()
    os.environ.update(order["environment"])
    sys.argv = [sys.argv[0], *order["arguments"]]


def _main(module: str, line: str) -> None:
    program = importlib.import_module(module)
    for later in getattr(program, "LATER", ()):
        importlib.import_module(later)
    _serve(socket.socket(fileno=int(line)))
    program.main(*sys.argv[1:])


if __name__ == "__main__":
    _main(*sys.argv[1:])
