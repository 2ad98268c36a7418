"""Give each server a directory of its own that disappears with it, and a cache that stays."""

import os
import re
import shutil
import tempfile
from pathlib import Path

from outbox.testing.servers import reaper
from outbox.testing.servers.account import Account

LONGEST = 60
"""A unix socket's path ends at 107 bytes, `.s.PGSQL.12345` and sub-directories included."""


MEMORY = Path("/dev/shm")
ROOM = 4 << 30
"""Bytes that must be free there, and in the machine: a few servers of some hundred MB each."""


def create(prefix: str, account: Account | None = None, *, memory: bool = False) -> Path:
    """A new directory, readable by its owner only; it disappears at the latest with this process.

    With `memory` its files lie in memory, if this machine has the room for them there.
    """
    root = tempfile.gettempdir()
    if len(root) > LONGEST:
        root = "/tmp"
    if memory and _has_room():
        root = str(MEMORY)
    path = Path(tempfile.mkdtemp(prefix=f"outbox-{prefix}-", dir=root))
    reaper.watch_directory(path)
    if account is not None:
        account.own(path)
    return path


def _has_room() -> bool:
    """May programs be run from there too? A container's is often small, and closed to them."""
    try:
        there = os.statvfs(MEMORY)
        free = re.search(r"^MemAvailable: *(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        return False
    usable = os.access(MEMORY, os.W_OK) and not there.f_flag & os.ST_NOEXEC
    return usable and free is not None and min(there.f_bavail * there.f_frsize, int(free[1]) << 10) >= ROOM


def remove(path: Path) -> None:
    """Remove what `create` gave."""
    shutil.rmtree(path, ignore_errors=True)
    reaper.forget(path)


def cache() -> Path:
    """Where downloads stay: $OUTBOX_CACHE, else `outbox-relay` in the user's cache directory."""
    if chosen := os.environ.get("OUTBOX_CACHE"):
        path = Path(chosen)
    else:
        path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "outbox-relay"
    path.mkdir(parents=True, exist_ok=True)
    return path.resolve()
