"""Leave no process, socket or directory behind, however the program that started them ends.

A tiny process holds the reading end of a pipe. When the writing end closes, because its owner ended in
any way (SIGKILL included), it ends the servers and removes the directories that are still registered.
It runs in a session of its own, so Ctrl-C on a terminal reaches the owner only. Standard library only:
it is started by path, without the package.
"""

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO

PATIENCE = 10.0
"""Seconds a server gets to leave after its own signal, before SIGKILL."""

_lock = threading.Lock()
_pipe: IO[bytes] | None = None


def watch_process(pid: int, farewell: signal.Signals) -> None:
    """From now on `pid` ends with this process: by `farewell`, and by SIGKILL if that does not help."""
    _tell(f"process {pid} {int(farewell)}")


def watch_directory(path: Path) -> None:
    """From now on `path` disappears with this process."""
    _tell(f"directory {path}")


def forget(what: int | Path) -> None:
    """`what` is gone already, or is somebody else's now."""
    _tell(f"forget {what}")


def _tell(line: str) -> None:
    global _pipe
    with _lock:
        if _pipe is None:
            _pipe = _start()
        _pipe.write(line.encode() + b"\n")
        _pipe.flush()


def _start() -> IO[bytes]:
    child = subprocess.Popen(
        [sys.executable, "-I", "-S", __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd="/",
    )
    child.returncode = 0  # nobody waits for it: it outlives us by design
    assert child.stdin is not None
    return child.stdin


def _after_fork() -> None:
    """A forked child must not keep the pipe open: the reaper would miss its owner's end."""
    global _pipe, _lock
    _lock = threading.Lock()
    if _pipe is not None:
        with contextlib.suppress(OSError):
            os.close(_pipe.fileno())
        _pipe = None


os.register_at_fork(after_in_child=_after_fork)


def serve(lines: IO[str]) -> None:
    """Remember what the owner registers; clean up when it is gone."""
    processes: dict[str, tuple[int, int]] = {}
    directories: dict[str, None] = {}
    for line in lines:
        word, _, rest = line.rstrip("\n").partition(" ")
        if word == "process":
            pid, farewell = rest.split()
            with contextlib.suppress(ProcessLookupError):
                # A pidfd never means another process that got the same number later.
                processes[pid] = (os.pidfd_open(int(pid)), int(farewell))
        elif word == "directory":
            directories[rest] = None
        elif word == "forget":
            directories.pop(rest, None)
            if found := processes.pop(rest, None):
                os.close(found[0])
    _end(list(processes.values()))
    for path in directories:
        shutil.rmtree(path, ignore_errors=True)


def _end(processes: list[tuple[int, int]]) -> None:
    for pidfd, farewell in processes:
        _send(pidfd, signal.SIGCONT)  # a frozen process hears nothing else
        _send(pidfd, farewell)
    until = time.monotonic() + PATIENCE
    for pidfd, _ in processes:
        left = max(0.0, until - time.monotonic())
        if not select.select([pidfd], [], [], left)[0]:
            _send(pidfd, signal.SIGKILL)
            select.select([pidfd], [], [], PATIENCE)


def _send(pidfd: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, number)


if __name__ == "__main__":
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    serve(sys.stdin)
