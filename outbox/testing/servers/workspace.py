"""Give each server a directory of its own that disappears with it, and a cache that stays."""

import os
import shutil
import tempfile
from pathlib import Path

from outbox.testing.servers import reaper
from outbox.testing.servers.account import Account

LONGEST = 60
"""A unix socket's path ends at 107 bytes, `.s.PGSQL.12345` and sub-directories included."""


def create(prefix: str, account: Account | None = None) -> Path:
    """A new directory, readable by its owner only; it disappears at the latest with this process."""
    root = tempfile.gettempdir()
    if len(root) > LONGEST:
        root = "/tmp"
    path = Path(tempfile.mkdtemp(prefix=f"outbox-{prefix}-", dir=root))
    reaper.watch_directory(path)
    if account is not None:
        account.own(path)
    return path


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
