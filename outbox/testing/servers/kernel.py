"""Ask the kernel what PostgreSQL hides: the backends of a postmaster, and the memory a killed one leaves."""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

from outbox.testing.servers.failure import ServerFailed


def kill_family(pid: int, *, within: float = 10) -> None:
    """SIGKILL process `pid` and all its children, and wait until the children are gone.

    A killed postmaster's backends end when they notice, which a busy one does late, and until then no
    new server starts on their memory. The parent is frozen first, so that no child is born meanwhile.
    """
    os.kill(pid, signal.SIGSTOP)
    children = _children(pid)
    for each in (*children, pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)
    until = time.monotonic() + within
    while left := [child for child in children if _lives(child)]:
        if time.monotonic() > until:
            raise ServerFailed(f"processes {left} live on {within:g} s after SIGKILL")
        time.sleep(0.005)


def remove_shared_memory(identifier: int | None) -> None:
    """Remove a System V segment that its killed owner could not remove; nothing if there is none."""
    if identifier is not None:
        with contextlib.suppress(FileNotFoundError):
            subprocess.run(["ipcrm", "-m", str(identifier)], capture_output=True, check=False, timeout=10)


def _children(pid: int) -> list[int]:
    with contextlib.suppress(FileNotFoundError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _lives(pid: int) -> bool:
    """A zombie does not: it holds nothing any more."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"
