"""Wait for PostgreSQL to say so, never for time to pass."""

import threading
import time

from sqlalchemy import Engine, text

SECONDS = 20.0


def until_blocked(engine: Engine, pid: int) -> None:
    """Return when backend `pid` waits for a lock that another transaction holds."""
    deadline = time.monotonic() + SECONDS
    tick = threading.Event()
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        while not connection.scalar(text("SELECT cardinality(pg_blocking_pids(:pid))"), {"pid": pid}):
            assert time.monotonic() < deadline, f"backend {pid} was never blocked"
            tick.wait(0.005)
